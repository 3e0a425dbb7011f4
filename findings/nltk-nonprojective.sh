#!/usr/bin/env bash
# nltk 3.10.4: where words would choose each other as heads, the nonprojective parser often returns no tree.
#
# ProbabilisticNonprojectiveParser is nltk's maximum spanning tree parser (Chu-Liu-Edmonds); the scores come
# from a scorer of one's own. Seen for random scores, 400 sentences of each length, beside an enumeration of
# all trees; "cycle": each word's best head, taken alone, gives a cycle, so that the algorithm has work to do.
#
#     words   no cycle: sentences   not the best tree   cycle: sentences   not the best tree   of these no tree
#       2             306                  0                   94                  0                  0
#       3             255                  0                  145                 36                 27
#       4             203                  0                  197                 84                 74
#       5             168                  0                  232                104                101
#
# No tree: some words hang on each other in a circle and never reach the root. No exception, no warning; it
# is the same for integers, as in nltk's own example, and for log-probabilities. It matters since the class
# serves as a ready decoder, or as the oracle that a decoder of one's own is tested against: easy sentences
# come out right, and a cyclic answer still has a head for each word, so that UAS can be computed from it.
# Use another decoder (networkx's maximum_spanning_arborescence, without forbidden arcs).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q nltk==3.10.4
"$work/venv/bin/python" - <<'END'
import itertools
import math
import random
import nltk
from nltk.parse.nonprojectivedependencyparser import DependencyScorerI, ProbabilisticNonprojectiveParser

class Given(DependencyScorerI):
    """A scorer that hands out a table: scores[head][word] is a list with the score of this arc."""
    def train(self, graphs):
        pass

    def score(self, graph):
        return self.table

def is_tree(heads):
    """heads[i] is the head of word i + 1; 0 is the root."""
    reached = {0}
    for _ in heads:
        reached |= {word for word, head in enumerate(heads, 1) if head in reached}
    return len(reached) == len(heads) + 1

def parse(parser, scorer, score, words):
    scorer.table = [[[score[head, word]] if (head, word) in score else [] for word in range(words + 1)]
                    for head in range(words + 1)]
    graph, = parser.parse([f"word{word}" for word in range(1, words + 1)], ["X"] * words)
    arcs = [(head, word) for head, node in graph.nodes.items() for of in node["deps"].values() for word in of]
    return [head for head, word in sorted(arcs, key=lambda arc: arc[1])], len(arcs)

def experiment(words, draw, kind, sentences=400):
    """(sentences without a cycle, wrong ones of them, with a cycle, wrong ones of them, no trees)."""
    trees = [heads for heads in itertools.product(range(words + 1), repeat=words) if is_tree(heads)]
    arcs = [(head, word) for head in range(words + 1) for word in range(1, words + 1) if head != word]
    scorer, parser = Given(), ProbabilisticNonprojectiveParser()
    parser.train([], scorer)
    easy = easy_wrong = hard = hard_wrong = no_tree = 0
    first = None
    for _ in range(sentences):
        values = draw.sample(range(1, 1000), len(arcs))
        if kind == "log-probabilities":
            totals = [sum(value for value, arc in zip(values, arcs) if arc[1] == word) for word in range(words + 1)]
            values = [math.log(value / totals[arc[1]]) for value, arc in zip(values, arcs)]
        score = dict(zip(arcs, values))
        total = lambda heads: sum(score[head, word] for word, head in enumerate(heads, 1))
        best = max(trees, key=total)
        greedy = [max((arc for arc in arcs if arc[1] == word), key=score.get)[0] for word in range(1, words + 1)]
        heads, number = parse(parser, scorer, score, words)
        assert number == words   # one head for each word, tree or not
        wrong = tuple(heads) != best
        if is_tree(greedy):
            easy, easy_wrong = easy + 1, easy_wrong + wrong
        else:
            hard, hard_wrong, no_tree = hard + 1, hard_wrong + wrong, no_tree + (not is_tree(heads))
            if wrong and not is_tree(heads) and first is None:
                first = score, heads, best
    return easy, easy_wrong, hard, hard_wrong, no_tree, first

print("nltk", nltk.__version__)
changed = False
for kind in ("integers", "log-probabilities"):
    draw = random.Random(0)
    for words in (2, 3, 4, 5):
        easy, easy_wrong, hard, hard_wrong, no_tree, first = experiment(words, draw, kind)
        print(f"{kind}, {words} words: no cycle {easy} sentences, {easy_wrong} not the best tree; "
              f"cycle {hard}, {hard_wrong} not the best tree, {no_tree} of these no tree")
        changed |= bool(easy_wrong) or words > 2 and no_tree < hard // 10
        if kind == "integers" and words == 3:
            example = first
score, heads, best = example
print("for example", {f"{head}>{word}": value for (head, word), value in score.items()})
print("    heads found:", heads, " best tree:", list(best))
if changed:
    raise SystemExit("The behaviour has changed.")
END
