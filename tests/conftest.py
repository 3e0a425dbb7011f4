"""What test files share: a tiny random encoder, a tiny corpus, real files, and the command as a process."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"   # before the library is imported: no test reaches for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")   # a process a core: two threads of one fight

KIT = Path(__file__).resolve().parent.parent
LANGUAGES = {"en": ("UD_English-EWT", "en_ewt", "abcdefg"), "de": ("UD_German-GSD", "de_gsd", "defghij")}
SIZES = {"train": 40, "dev": 20}

def reproduce(*args, cwd=KIT, env=None, **popen):
    """Run reproduce.py with these arguments, offline, to its end; returns the CompletedProcess, in text."""
    return subprocess.run([sys.executable, str(KIT / "reproduce.py"), *map(str, args)], cwd=cwd, text=True,
                          capture_output=True, env={**os.environ, **(env or {})}, **popen)

def torchrun(*args, flags=("--standalone", "--nproc-per-node", 2)):
    """The Popen of reproduce.py with these arguments in several processes; flags: those of torchrun."""
    command = ["-m", "torch.distributed.run", *flags, KIT / "reproduce.py", *args]
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=KIT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def free_port():
    """A port of this machine that nothing listens on, as text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])

def windows(encoded):
    """The windows of an Encoded set that is on no device yet, in lists and ints."""
    return [(ids.tolist(), read.tolist(), *rest) for ids, read, *rest in encoded.added]

def real(name):
    """A folder of real files: mbert, xlmr, data or encoder; without it the test that asks is skipped."""
    folder = Path(os.environ.get("KIT_TEST_FILES", "no such folder"), name)
    return folder if folder.is_dir() else pytest.skip(f"KIT_TEST_FILES names no folder with {name}/")

def contents(folder, but="report.md"):
    """{name: bytes} of the files in a folder, but the report, which names the command that made it."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file() and path.name != but}

def wordpiece(folder, words):
    """A WordPiece tokenizer over these words."""
    from transformers import AutoTokenizer
    (folder / "vocab.txt").write_text("\n".join(words.split()))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return AutoTokenizer.from_pretrained(folder)

@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """Folder of a random BERT of one layer and 16 dimensions that spells every word of the tiny corpus."""
    return write_encoder(tmp_path_factory.mktemp("tiny") / "encoder")

@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Folder with the corpora of all four tasks in en and de, 40 train and 20 dev sentences each."""
    return write_corpus(tmp_path_factory.mktemp("tiny") / "data")

def write_encoder(folder, kind="Bert", **settings):
    import torch
    import transformers
    letters = sorted({letter for _, _, alphabet in LANGUAGES.values() for letter in alphabet})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters, *("##" + x for x in letters)]
    config = dict(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                  intermediate_size=32, max_position_embeddings=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**config | settings)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 128}))
    return folder

def write_corpus(folder):
    dev = ["language\tgold_label\tsentence1\tsentence2"]
    for lang, (treebank, code, alphabet) in LANGUAGES.items():
        rng = random.Random(lang)
        words = ["".join(rng.choices(alphabet, k=rng.randint(1, 5))) for _ in range(40)]
        for split, size in SIZES.items():
            sentences = [rng.choices(words, k=rng.randint(2, 9)) + ["."] for _ in range(size)]
            write(folder / "ud" / treebank / f"{code}-ud-{split}.conllu", conllu(sentences, rng))
            tagged = [line for sentence in sentences for line in wikiann(sentence, lang, rng)]
            write(folder / "panx" / lang / split, tagged)
        pairs = [(" ".join(rng.choices(words, k=5)), " ".join(rng.choices(words, k=3))) for _ in range(60)]
        labels = ["entailment", "neutral", "contradiction"] * 20
        train = [f"{a}\t{b}\t{c}".replace("contradiction", "contradictory")
                 for (a, b), c in zip(pairs[:40], labels)]
        path = folder / f"xnli/XNLI-MT-1.0/multinli/multinli.train.{lang}.tsv"
        write(path, ["premise\thypo\tlabel", *train])
        dev += [f"{lang}\t{c}\t{a}\t{b}" for (a, b), c in zip(pairs[40:], labels)]
    write(folder / "xnli/XNLI-1.0/xnli.dev.tsv", dev)
    return folder

def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode())

def conllu(sentences, rng):
    """CoNLL-U lines: a word's part of speech is decided by its first letter, its head is drawn."""
    tags, relations = ("NOUN", "VERB", "ADJ", "ADV", "DET"), ("nsubj", "obj", "amod", "advmod", "det:poss")
    for number, words in enumerate(sentences, 1):
        yield f"# sent_id = {number}"
        root = rng.randint(1, len(words) - 1)
        for i, word in enumerate(words, 1):
            kind = ord(word[0]) % 5
            head = 0 if i == root else root if i < root else rng.randint(root, i - 1)
            tag, relation = ("PUNCT", "punct") if word == "." else (tags[kind], relations[kind])
            relation = "root" if i == root else relation
            yield "\t".join((str(i), word, "_", tag, "_", "_", str(head), relation, "_", "_"))
        yield ""

def wikiann(words, lang, rng):
    tags = ["O"] * len(words)
    first, kind = rng.randrange(len(words) - 1), rng.choice(("LOC", "ORG", "PER"))
    tags[first:first + 2] = [f"B-{kind}", f"I-{kind}"]
    return [*(f"{lang}:{word}\t{tag}" for word, tag in zip(words, tags)), ""]
