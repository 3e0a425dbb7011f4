#!/usr/bin/env bash
# conllu 6.0.0: reading and writing a treebank again cuts MISC values and drops comments.
#
# parse(text)[0].serialize() of a valid CoNLL-U sentence is not that sentence:
#
#     Ref=example?page=3     -> Ref=example?page      a value ends at its second "="
#     Gloss=x|Gloss=y        -> Gloss=y               of a key that is there twice the last one is left
#     # a note of ours       -> gone                  a comment without "="
#     # text_en = ... twice  -> the last one          comments are a dict by key
#
# FORM "_", ranges, empty nodes, tags and trees come back right. No exception and no warning. It matters
# since the package is the usual way to cut a treebank into train and few-shot parts, to drop sentences or to
# change tags, and what is lost is what ties a treebank to other data: sources, glosses, translations.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q conllu==6.0.0
"$work/venv/bin/python" - <<'END'
import difflib
import conllu

def word(*columns):
    return "\t".join(columns)

text = "\n".join([
    "# sent_id = made-up-1", "# text = birds sing _x", "# text_en = birds sing",
    "# text_en = birds are singing", "# a note of ours",
    word("1", "birds", "bird", "NOUN", "_", "Number=Plur", "2", "nsubj", "2:nsubj", "Ref=example?page=3"),
    word("2", "sing", "sing", "VERB", "_", "_", "0", "root", "0:root", "Gloss=x|Gloss=y"),
    word("2.1", "gone", "go", "VERB", "_", "_", "_", "_", "2:conj", "_"),
    word("3-4", "_x", "_", "_", "_", "_", "_", "_", "_", "_"),
    word("3", "_", "_", "SYM", "_", "_", "2", "dep", "2:dep", "_"),
    word("4", "x", "x", "X", "_", "_", "2", "dep", "2:dep", "SpaceAfter=No"), "", ""])
again = conllu.parse(text)[0].serialize()
changes = [line for line in difflib.ndiff(text.splitlines(), again.splitlines()) if line[0] in "+-"]
print(*changes, sep="\n")
gone = {line[2:].split("\t")[-1] for line in changes if line[0] == "-"}
came = {line[2:].split("\t")[-1] for line in changes if line[0] == "+"}
if gone != {"# text_en = birds sing", "# a note of ours", "Ref=example?page=3", "Gloss=x|Gloss=y"} or \
        came != {"Ref=example?page", "Gloss=y"}:
    raise SystemExit("The behaviour has changed.")
END
