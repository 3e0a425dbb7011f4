#!/usr/bin/env bash
# networkx 3.6.1: beside a masked arc, maximum_spanning_arborescence no longer looks at the scores.
#
# Parsers forbid an arc by a very low score: -1e30, or the lowest float32. The function makes a minimum of
# its maximum by taking each weight from a number larger than the spread of all of them; beside such a spread
# the scores of the allowed arcs are rounded away, and what decides is the order in which arcs were added.
# Seen for 100 sentences of four words, scores drawn from (-5, 0), two of the root's arcs forbidden, against
# the enumeration of all trees:
#
#     forbidden by                    not the best tree    different trees
#     leaving them out, -1e3, -1e9                 0             34
#     -1e16                                       84             22
#     -1e30, -3.4e38                             100              1
#
# All of them are valid trees without a forbidden arc; no exception, no warning. It matters since this
# function is the usual oracle for a Chu-Liu-Edmonds of one's own (a right parser fails its test) and the
# decoder of small parsers (UAS falls for no visible reason). Leave forbidden arcs out of the graph.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q networkx==3.6.1
"$work/venv/bin/python" - <<'END'
import itertools
import random
import networkx

WORDS, SENTENCES, BANNED = 4, 100, {(0, 2), (0, 4)}   # arcs (head, word), 0 is the root
ARCS = [(head, word) for head in range(WORDS + 1) for word in range(1, WORDS + 1) if head != word]

def is_tree(arcs):
    heads, reached = {word: head for head, word in arcs}, {0}
    for _ in heads:
        reached |= {word for word, head in heads.items() if head in reached}
    return len(reached) == WORDS + 1

choices = itertools.product(*([arc for arc in ARCS if arc[1] == word] for word in range(1, WORDS + 1)))
trees = [frozenset(arcs) for arcs in choices if is_tree(arcs) and not BANNED & set(arcs)]

def parse(forbidden):
    """(trees that are not the best, trees with a forbidden arc, different trees) of the same sentences."""
    draw, worse, used, seen = random.Random(0), 0, 0, set()
    for _ in range(SENTENCES):
        score = {arc: draw.uniform(-5, 0) for arc in ARCS}
        best = max(trees, key=lambda tree: sum(map(score.get, tree)))
        graph = networkx.DiGraph()
        graph.add_weighted_edges_from((*arc, forbidden if arc in BANNED else score[arc]) for arc in ARCS
                                      if arc not in BANNED or forbidden is not None)
        tree = frozenset(networkx.maximum_spanning_arborescence(graph).edges)
        worse, used = worse + (tree != best), used + bool(tree & BANNED)
        seen.add(tree)
    return worse, used, len(seen)

found = {}
for forbidden in (None, -1e3, -1e9, -1e16, -1e30, -3.4028234663852886e38):
    found[forbidden] = worse, used, different = parse(forbidden)
    print(f"forbidden arcs {forbidden or 'left out'}: {worse} of {SENTENCES} trees are not the best, "
          f"{used} have a forbidden arc, {different} different trees")
right, wrong = [*found.values()][:3], [*found.values()][3:]
if any(worse or used for worse, used, _ in right) or min(wrong)[0] <= SENTENCES // 2 or wrong[-1][2] != 1:
    raise SystemExit("The behaviour has changed.")
END
