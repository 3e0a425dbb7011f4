"""Make title corpora out of treebanks: a sentence, and as its title its subject, main verb and object.

    python scripts/titles.py data en fr de          # writes data/title/LANG/{train,dev}.jsonl
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
import results

def titles(path):
    """Yield {"source", "target"} per sentence of a treebank whose root has a subject or an object."""
    for words, rows in data.read_conllu(path):
        root = [head for _, head, _ in rows].index(0) + 1
        kept = [i for i, (_, head, relation) in enumerate(rows, 1) if i == root or head == root
                and data.RELATIONS[relation] in ("nsubj", "obj")]
        if len(kept) > 1:
            yield {"source": " ".join(words), "target": " ".join(words[i - 1] for i in kept)}

def write(folder, treebanks, langs):
    for lang in langs:
        for split in data.SPLITS:
            path = Path(folder, "title", lang, f"{split}.jsonl")
            found = titles(data.ud_file(treebanks, lang, split).path)
            text = "".join(json.dumps(title, ensure_ascii=False) + "\n" for title in found)
            results.write(path, text.encode())

def main(folder="", *langs):
    """Write the titles of a folder with treebanks; returns the exit code."""
    try:
        if not langs or {*langs} - data.TREEBANKS.keys():
            raise results.KitError(f"expected a folder and languages of {' '.join(data.TREEBANKS)}, got "
                                   f"{' '.join([folder, *langs]) or 'nothing'}.")
        write(folder, folder, langs)
    except (results.KitError, OSError) as e:
        print(f"titles.py: {e}", file=sys.stderr)
        return 2
    return 0

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
