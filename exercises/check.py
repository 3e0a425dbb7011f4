"""Checks the five stubs of this folder, and gives points.

    python exercises/check.py                     # all parts
    python exercises/check.py tree spans          # some
    python exercises/check.py --json              # for an autograder: one JSON object on stdout, nothing else

Each part has five checks of a point each. A check tries cases from small to large against an oracle that
works otherwise than a solution would (enumeration, a second method, numbers by hand), and shows the first
case that fails. Everything is seeded, on the CPU and without a network. Each part runs in a process of its
own: one that hangs, ends or breaks costs its own points and no others. What a stub prints goes to stderr.
Exit code: 0 with all points, 1 with fewer, 2 for a mistake on the command line.
"""

import argparse
import ast
import copy
import importlib.util
import itertools
import json
import math
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

HERE, SECONDS = Path(__file__).resolve().parent, 6   # of CPU time that a part may take, loading torch aside
# The alphas of the paper's line (Sec. 4 and footnote 5).
ALPHAS = sorted([i / 10 for i in range(-5, 16)] + [i / 1000 for i in (
    25, 50, 75, 125, 150, 175, 825, 850, 875, 925, 950, 975)])
LARGE = 3940, 3957, 3926   # totals of the best trees of tree_large; two methods agree on them

# A check is a generator with a title, given the student's module. It yields (the case in words, what is
# expected, a function that gives what came); the runner calls that function and compares.

# ---- plane: against parameters copied into a second module ------------------------------------------------

def corner(model, seed):
    """Parameters {name: tensor} of a fine-tuned model, made up."""
    import torch
    maker = torch.Generator().manual_seed(seed)
    return {name: value + torch.randn(value.shape, generator=maker)
            for name, value in model.state_dict().items() if name in dict(model.named_parameters())}

def network(tied=False):
    """A small module with a buffer; tied: one parameter is used under two names."""
    import torch
    torch.manual_seed(0)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.norm = torch.nn.LayerNorm(3)
            self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))
            if tied:
                self.last.weight = self.first.weight

        def forward(self, x):
            return self.last(self.norm(torch.tanh(self.first(x)))) * self.scale

    return Network().eval()

def single():
    """A module of one weight, 7, and its corners 1, 3 and -2."""
    import torch
    model = torch.nn.Linear(1, 1, bias=False).eval()
    model.weight.data.fill_(7)
    return model, [{"weight": torch.tensor([[value]])} for value in (1.0, 3.0, -2.0)]

def copied(model, corners, a1, a2, inputs):
    """The oracle: the sum of the corners, by weights, loaded into another module of the same kind."""
    both, src, tgt = corners
    twin = copy.deepcopy(model).double()
    for name, value in twin.named_parameters():
        value.data.copy_(sum(weight * each[name].double()
                             for weight, each in ((1 - a1 - a2, both), (a1, src), (a2, tgt))))
    return twin(inputs.double()).float()

def points_of(it, points, tied=False):
    """Cases at these points: one weight first, then a network."""
    import torch
    model, corners = single()
    for a1, a2 in () if tied else points:
        yield (f"one weight, in both 1, src 3, tgt -2; a1 = {a1:g}, a2 = {a2:g}; input 1",
               1 + 2 * a1 - 3 * a2,
               lambda: it.outputs(model, corners, a1, a2, torch.ones(1, 1)).item())
    net = network(tied)
    three, x = [corner(net, seed) for seed in (1, 2, 3)], torch.randn(2, 3)
    for a1, a2 in points:
        yield (f"a network{' that uses a parameter twice' if tied else ''}; a1 = {a1:g}, a2 = {a2:g}",
               copied(net, three, a1, a2, x), lambda: it.outputs(net, three, a1, a2, x))

def plane_corners(it):
    """the three corners are the three models"""
    yield from points_of(it, [(0, 0), (1, 0), (0, 1)])

def plane_anywhere(it):
    """other points, in the triangle and outside"""
    yield from points_of(it, [(0.5, 0), (0, 0.5), (0.25, 0.5), (1.5, -0.5), (-0.5, 1.5), (1, 1)])

def plane_twice(it):
    """a parameter that is used twice, and a buffer that is no parameter"""
    yield from points_of(it, [(0, 0), (1, 0), (0.5, -0.5)], tied=True)

def plane_unchanged(it):
    """neither the module nor the corners change"""
    import torch
    for what, model, corners in (("one weight", *single()), ("a network", network(), None)):
        corners = corners or [corner(model, seed) for seed in (1, 2, 3)]
        own = [*model.named_parameters(), *model.named_buffers()]
        held = [(f"the model's {name}", value) for name, value in own]
        held += [(f"{name} of corner {number}", value) for number, each in enumerate(corners)
                 for name, value in each.items()]
        kept, seen = [value.clone() for _, value in held], []

        def changed(when):
            seen.extend(f"{name} is another {when}" for (name, value), before in zip(held, kept)
                        if not torch.equal(value, before))

        model.register_forward_pre_hook(lambda *_: changed("while the model runs"))
        modes = [module.training for module in model.modules()]

        def run():
            for a1, a2 in ((1, 0), (0.5, 0.5), (-0.5, 1)):
                it.outputs(model, corners, a1, a2, torch.ones(1, 1 if what == "one weight" else 3))
            changed("afterwards")
            if [module.training for module in model.modules()] != modes:
                seen.append("train() or eval() was called")
            if [id(value) for _, value in own] != [id(v) for v in (*model.parameters(), *model.buffers())]:
                seen.append("the module has other parameters than before")
            return seen[0] if seen else "nothing changed"

        yield f"{what}, three points", "nothing changed", run

def plane_again(it):
    """a point is the same whatever was asked for before"""
    import torch
    for what, net in (("one weight", None), ("a network", network())):
        model, corners = single() if net is None else (net, [corner(net, seed) for seed in (1, 2, 3)])
        x, rng = torch.ones(1, 1 if net is None else 3), random.Random(0)

        def run():
            first = it.outputs(model, corners, 0.3, 0.6, x)
            kept = first.clone()
            for _ in range(200):
                it.outputs(model, corners, rng.uniform(-0.5, 1.5), rng.uniform(-0.5, 1.5), x)
            again = it.outputs(model, corners, 0.3, 0.6, x)
            if not torch.equal(first, kept):
                return "what was returned the first time has changed since"
            return "the same, to the last bit" if torch.equal(again, kept) else f"{again}, at first {kept}"

        yield f"{what}: (.3, .6), then 200 other points, then it again", "the same, to the last bit", run
        yield (f"{what}: (.3, .6)", copied(model, corners, 0.3, 0.6, x),
               lambda: it.outputs(model, corners, 0.3, 0.6, x))

# ---- windows: against a sentence that is written out, subword by subword ----------------------------------

def written_out(lengths, room, context):
    """The oracle: windows grown a subword at a time over the list of (word, whether its first) subwords."""
    subwords = [(word, part == 0) for word, length in enumerate(lengths) for part in range(length)]
    found, word = [], 0
    while word < len(lengths):
        left = max(0, subwords.index((word, True)) - context)
        shown = subwords[left:left + room]
        whole = [w for w in range(word, len(lengths)) if [s[0] for s in shown].count(w) == lengths[w]]
        last = max(whole, default=word)
        right = left + max(place for place, (w, _) in enumerate(shown) if w <= last) + 1
        read = [place for place, (w, first) in enumerate(shown) if first and word <= w <= last]
        found.append((left, right, read))
        word = last + 1
    return found

def sentences(it, lengths, rooms, contexts):
    """Cases of these sentences, rooms and contexts, the smallest first."""
    many = [case for case in itertools.product(lengths, rooms, contexts) if case[2] < case[1]]
    for each, room, context in sorted(many, key=lambda case: (sum(case[0]), len(case[0]), case)):
        yield (f"windows({list(each)}, {room}, {context})", written_out(each, room, context),
               lambda: it.windows(list(each), room, context))

def short_words(longest, most):
    return [each for n in range(1, most + 1) for each in itertools.product(range(1, longest + 1), repeat=n)]

def windows_one(it):
    """a sentence that fits into one window, and one without words"""
    yield "windows([], 4, 1)", [], lambda: it.windows([], 4, 1)
    yield from sentences(it, short_words(3, 3), [9, 126], [0, 2])

def windows_words(it):
    """words of one subword, several windows"""
    yield from sentences(it, [(1,) * n for n in range(2, 15)], [2, 3, 5], [0, 1, 2])

def windows_whole(it):
    """words of several subwords are not cut"""
    yield from sentences(it, short_words(3, 5), [5, 6], [0, 1, 2])

def windows_cut(it):
    """a word that does not fit is read and cut"""
    yield from sentences(it, [each for each in short_words(6, 3) if max(each) > 3], [3, 4], [0, 1, 2])

def windows_real(it):
    """long sentences, a room of 126 and a context of 64"""
    rng = random.Random(0)
    long = [tuple(rng.choices((1, 2, 3, 9, 70, 200), (50, 20, 20, 7, 2, 1), k=n)) for n in range(60, 300, 12)]
    yield from sentences(it, long, [126], [64])

# ---- spans: against a test of every stretch of words ------------------------------------------------------

def stretches(tags):
    """The oracle: all (type, first, last) for which the definition of a span holds, by trying all."""
    def begins(i):
        return tags[i][0] == "B" or tags[i][0] == "I" and (i == 0 or tags[i - 1][2:] != tags[i][2:])

    def is_span(i, j):
        same = {tag[2:] for tag in tags[i:j + 1]}
        ends = j + 1 == len(tags) or tags[j + 1][0] == "O" or begins(j + 1)
        return len(same) == 1 and begins(i) and not any(map(begins, range(i + 1, j + 1))) and ends

    return [(tags[i][2:], i, j) for i in range(len(tags)) for j in range(i, len(tags)) if is_span(i, j)]

def f1_by_counting(gold, predicted):
    """The oracle: F1 from the two multisets of all spans, in fractions."""
    one, other = (Counter((n, *span) for n, tags in enumerate(of) for span in stretches(tags))
                  for of in (gold, predicted))
    right = (one & other).total()
    return float(Fraction(200 * right, one.total() + other.total())) if right else 0.0

def tag_cases(it, longest, tags, keep):
    """Cases of all tag sequences to this length that keep() keeps, the shortest first."""
    for n in range(1, longest + 1):
        for each in itertools.product(tags, repeat=n):
            if keep(each):
                yield f"spans({list(each)})", stretches(each), lambda: it.spans(list(each))

def broken(tags):
    """Whether an I- goes on with nothing of its type."""
    return any(tag[0] == "I" and before[2:] != tag[2:] for before, tag in zip(("O", *tags), tags))

def spans_valid(it):
    """valid tags"""
    yield from tag_cases(it, 4, ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), lambda tags: not broken(tags))

def spans_repaired(it):
    """an I- after O, or at the beginning of a sentence, begins a span"""
    yield from tag_cases(it, 5, ("O", "B-PER", "I-PER"), broken)

def spans_types(it):
    """an I- of another type begins a span"""
    yield from tag_cases(it, 4, ("B-PER", "I-PER", "B-LOC", "I-LOC", "I-ORG"), broken)

def f1_cases(it, cases):
    for gold, predicted in cases:
        yield (f"span_f1({gold}, {predicted})", f1_by_counting(gold, predicted),
               lambda: it.span_f1(copy.deepcopy(gold), copy.deepcopy(predicted)))

def spans_f1(it):
    """F1 by hand: nothing found, a wrong end, a wrong type, several sentences"""
    yield "span_f1([['O']], [['O']])", 0, lambda: it.span_f1([["O"]], [["O"]])
    yield "span_f1([['B-PER']], [['B-PER']])", 100, lambda: it.span_f1([["B-PER"]], [["B-PER"]])
    yield "span_f1([['B-PER']], [['I-PER']])", 100, lambda: it.span_f1([["B-PER"]], [["I-PER"]])
    yield from f1_cases(it, [
        ([["B-PER"]], [["O"]]), ([["O"]], [["B-PER"]]), ([["B-PER"]], [["B-LOC"]]),
        ([["B-PER", "I-PER"]], [["B-PER", "O"]]),
        ([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "O"]]),             # P 1, R 1/2
        ([["B-PER"], ["I-PER"]], [["B-PER"], ["O"]]),                   # a span ends with its sentence
        ([["O", "B-PER"], ["B-PER", "O"]], [["B-PER", "O"], ["O", "B-PER"]]),   # spans of other sentences
        ([["B-PER"], ["B-PER", "B-LOC", "B-LOC"]], [["B-PER"], ["O", "O", "O"]])])   # no mean over sentences

def spans_random(it):
    """F1 of drawn tags, valid or not"""
    rng, tags, cases = random.Random(0), ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), []
    for _ in range(200):
        gold = [rng.choices(tags, k=rng.randint(1, 7)) for _ in range(rng.randint(1, 4))]
        cases.append((gold, [[g if rng.random() < 0.6 else rng.choice(tags) for g in each] for each in gold]))
    yield from f1_cases(it, sorted(cases, key=lambda case: sum(map(len, case[0]))))

# ---- tree: against all trees, or a total that was worked out ----------------------------------------------

@lru_cache
def trees(n):
    """All tuples of heads that make n words a tree with one of them on ROOT."""
    found = set()
    for heads in itertools.product([0], *[range(n + 1)] * n):
        up = heads
        for _ in range(n):
            up = [heads[i] for i in up]
        if not any(up) and heads[1:].count(0) == 1:
            found.add(heads)
    return found

def say_tree(scores, heads):
    """What a returned list of heads is, in words, and its total."""
    heads, n = plain(heads), len(scores) - 1
    whole = isinstance(heads, list) and len(heads) == n + 1 and heads[0] == 0
    if not whole or not all(type(h) is int and 0 <= h <= n for h in heads):
        return f"{heads}: no list of {n + 1} ints from 0 to {n}, the first of them 0"
    roots = [d for d in range(1, n + 1) if heads[d] == 0]
    if len(roots) != 1:
        return f"{heads}: {len(roots)} words on ROOT"
    up = heads
    for _ in range(n):
        up = [heads[i] for i in up]
    total = sum(scores[d][heads[d]] for d in range(1, n + 1))
    return f"{heads}: a cycle" if any(up) else f"a tree of total {total:g}"

def tree_cases(it, matrices):
    import numpy as np
    for rows in matrices:
        best = max(sum(rows[d][h] for d, h in enumerate(heads) if d) for heads in trees(len(rows) - 1))
        yield (f"best_tree(np.array({rows}))", f"a tree of total {best:g}",
               lambda: say_tree(rows, it.best_tree(np.array(rows, float))))

def drawn(seed, sizes, low=0, high=9):
    rng = random.Random(seed)
    return [[[rng.randint(low, high) for _ in range(n + 1)] for _ in range(n + 1)] for n in sizes]

def greedy(rows):
    """The best head of each word apart from the others."""
    return [0] + [max({*range(len(rows))} - {d}, key=row.__getitem__) for d, row in enumerate(rows) if d]

def rooted(matrices, more):
    """Matrices with so much more for a word on ROOT."""
    return [[[row[0] + more * (d > 0), *row[1:]] for d, row in enumerate(rows)] for rows in matrices]

def tree_easy(it):
    """sentences of one and two words"""
    yield from tree_cases(it, drawn(0, [1] * 3 + [2] * 60))

def tree_greedy(it):
    """each word's best head already makes a tree"""
    every = drawn(1, [3] * 300 + [4] * 300)
    yield from tree_cases(it, [rows for rows in every if tuple(greedy(rows)) in trees(len(rows) - 1)][:40])

def tree_cycles(it):
    """cycles to break, cycles inside of cycles among them; scores below 0 too"""
    every = drawn(2, [3] * 80 + [4] * 60 + [5] * 25, low=-9)
    yield from tree_cases(it, [rows for rows in every if 0 not in greedy(rows)[1:]])

def tree_roots(it):
    """two or more words would go to ROOT"""
    every = rooted(drawn(3, [2] * 20 + [3] * 60 + [4] * 60 + [5] * 15), 7)
    yield from tree_cases(it, [rows for rows in every if greedy(rows)[1:].count(0) > 1])

def tree_large(it):
    """40 words in time, and the scores stay as they are"""
    import numpy as np
    small = np.array([[0, 0, 0], [5, 0, 4], [5, 1, 0]], float)

    def run():
        given = small.copy()
        it.best_tree(given)
        return "unchanged" if (given == small).all() else f"{given.tolist()}"

    yield f"scores after best_tree(np.array({small.tolist()}))", "unchanged", run
    for number, (rows, best) in enumerate(zip(rooted(drawn(4, [40] * 3, high=99), 60), LARGE)):
        yield (f"40 words, matrix {number} of 0, 1, 2: rng = random.Random(4), scores rng.randint(0, 99), "
               "row by row, then 60 more for each word on ROOT", f"a tree of total {best}",
               lambda: say_tree(rows, it.best_tree(np.array(rows, float))))

# ---- lines: by hand, and against sums in fractions --------------------------------------------------------

def curves(seed, seeds=3):
    """Scores (seeds, points) of a line that climbs, dips and goes on outside of 0 to 1."""
    rng = random.Random(seed)
    return [[round(70 + 10 * a - 8 * a * a + rng.uniform(-3, 3), 2) for a in ALPHAS] for _ in range(seeds)]

def flat_cases(it, cases):
    import numpy as np
    for alphas, scores in cases:
        one, inside = alphas.index(1), [i for i, a in enumerate(alphas) if 0 <= a <= 1]
        want = min(statistics.mean(Fraction(row[i]) / Fraction(row[one]) for row in scores) for i in inside)
        yield (f"flatness(np.array({alphas}), np.array({scores}))", float(want),
               lambda: it.flatness(np.array(alphas, float), np.array(scores, float)))

def lines_flat(it):
    """flatness of one seed; what is outside of 0 to 1 does not count"""
    yield from flat_cases(it, [([0, 1], [[45, 50]]), ([0, 1], [[55, 50]]), ([0, 0.5, 1], [[48, 40, 50]]),
                               ([-0.5, 0, 1, 1.5], [[10, 45, 50, 20]]), (ALPHAS, curves(0, 1))])

def lines_seeds(it):
    """flatness of three seeds, each over its own bilingual model"""
    yield from flat_cases(it, [
        ([0, 1], [[40, 50], [40, 40], [80, 100]]),
        ([0, 0.5, 1], [[40, 50, 50], [50, 30, 50], [90, 90, 100]]), (ALPHAS, curves(1))])

def straightness(alphas, curve):
    """The oracle of R squared, in fractions."""
    points, y = [(Fraction(str(a)), Fraction(str(v))) for a, v in zip(alphas, curve)], []
    for at in (Fraction(tenth, 10) for tenth in range(11)):
        (a, p), (b, q) = next(two for two in zip(points, points[1:]) if two[0][0] <= at <= two[1][0])
        y.append(p + (q - p) * (at - a) / (b - a))
    off = sum((v - y[0] - (y[10] - y[0]) * Fraction(i, 10)) ** 2 for i, v in enumerate(y))
    return float(1 - off / sum((v - statistics.mean(y)) ** 2 for v in y))

def r_cases(it, cases):
    import numpy as np
    for alphas, curve in cases:
        yield (f"r_squared(np.array({alphas}), np.array({curve}))", straightness(alphas, curve),
               lambda: it.r_squared(np.array(alphas, float), np.array(curve, float)))

TENTHS = [i / 10 for i in range(11)]

def lines_straight(it):
    """R squared of even steps: straight, bent, and worse than a level line"""
    yield from r_cases(it, [(TENTHS, [50 + 2 * i for i in range(11)]), (TENTHS, [90 - i for i in range(11)]),
                            (TENTHS, [i * i for i in range(11)]), (TENTHS, [0] + [9] * 9 + [10]),
                            (TENTHS, [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6])])

def lines_uneven(it):
    """R squared of the paper's alphas, which are closer near 0 and 1 and go on outside"""
    yield from r_cases(it, [([0, 0.5, 1], [0, 8, 10]),
                            ([-0.5, 0, 0.5, 1, 1.5], [90, 0, 8, 10, 0]),
                            (ALPHAS, [round(100 * a ** 3 + a, 4) for a in ALPHAS]),
                            (ALPHAS, curves(2, 1)[0])])

def lines_band(it):
    """mean and half width of the 95 % interval of three seeds"""
    import numpy as np
    for scores in ([[1], [2], [3]], [[80, 50], [80, 56], [80, 53]], curves(3)):
        columns = [*zip(*scores)]
        halves = [4.303 * (statistics.variance(column) / 3) ** 0.5 for column in columns]
        yield (f"band(np.array({scores}))", [[statistics.mean(column) for column in columns], halves],
               lambda: it.band(np.array(scores, float)))

PARTS = {"plane": (plane_corners, plane_anywhere, plane_twice, plane_unchanged, plane_again),
         "windows": (windows_one, windows_words, windows_whole, windows_cut, windows_real),
         "spans": (spans_valid, spans_repaired, spans_types, spans_f1, spans_random),
         "tree": (tree_easy, tree_greedy, tree_cycles, tree_roots, tree_large),
         "lines": (lines_flat, lines_seeds, lines_straight, lines_uneven, lines_band)}

# ---- one part, in a process of its own --------------------------------------------------------------------

def plain(value):
    """A value in lists and Python's numbers, whatever arrays, tensors and tuples it is made of."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value

def same(one, other):
    """Whether two plain values agree, numbers to one part in ten thousand."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if all(type(each) in (int, float) for each in (one, other)):
        return abs(one - other) <= 1e-4 * max(1, abs(one))
    return type(one) is type(other) and one == other

def show(value):
    """A plain value in one line of 300 characters at most."""
    def short(value):
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, list):
            return f"[{', '.join(map(short, value))}]"
        return value if isinstance(value, str) else repr(value)
    text = " ".join(short(value).split())
    return text if len(text) <= 300 else f"{text[:297]}..."

def error(e, path):
    """An exception in a sentence: what it is, and where in the student's file."""
    lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)]
    lines += [e.lineno] if isinstance(e, SyntaxError) and e.lineno else []
    return f"{type(e).__name__}: {e}" + (f" ({path.name} line {lines[-1]})" if lines else "")

def examine(check, module, path):
    """The outcome of one check: {"check", "passed"} and, of the first case that fails, what came."""
    found, case = {"check": check.__doc__, "passed": False}, ""
    try:
        for case, expected, run in check(module):
            expected, got = plain(expected), plain(run())
            if not same(expected, got):
                return found | {"case": show(case), "expected": show(expected), "got": show(got)}
    except NotImplementedError as e:
        return found | {"todo": True, "got": show(f"not done yet: {e}")}
    except (Exception, SystemExit) as e:
        return found | {"case": show(case), "expected": show(expected), "got": show(error(e, path))}
    return found | {"passed": True}

def load(path):
    """A student's file as a module."""
    spec = importlib.util.spec_from_file_location(f"student_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def run_part(path, start, log, seconds):
    """In the process of a part: its checks from the one numbered start, a line of the log for each."""
    with open(log, "a", encoding="utf-8") as f:
        def tell(row):
            f.write(json.dumps(row) + "\n")
            f.flush()

        import numpy  # noqa: F401  (what takes long to load is there before the time starts)
        if path.stem == "plane":
            import torch
            torch.set_grad_enabled(False)
            torch.set_num_threads(1)
        used = math.ceil(time.process_time() + seconds)   # of the CPU, so that a busy machine takes no points
        resource.setrlimit(resource.RLIMIT_CPU, (used, used + 1))
        tell({"ready": True})
        try:
            module = load(path)
        except (Exception, SystemExit) as e:
            return tell({"broken": f"{path.name} cannot be loaded: {show(error(e, path))}"})
        for check in PARTS[path.stem][start:]:
            tell(examine(check, module, path))

# ---- all parts, from outside ------------------------------------------------------------------------------

def start_part(path, start, seconds):
    """Run a part from a check on. (Its rows, whether its time was used up; asleep, it has 10 s more.)"""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        log.touch()
        child = subprocess.Popen([sys.executable, __file__, "--part", str(path), str(start), str(log),
                                  str(seconds)],
                                 stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True,
                                 env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"})
        began, late = None, False
        try:
            while child.poll() is None and not late:
                time.sleep(0.02)
                began = began or (time.monotonic() if log.stat().st_size else None)
                late = began is not None and time.monotonic() - began > seconds + 10
        finally:   # also on Ctrl-C: whatever the part started ends with it
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines(keepends=True)
                if line.endswith("\n")]
    if not rows:
        sys.exit(f"check.py: {path.stem} could not be started (see above). Install the kit's packages first: "
                 "pip install -r requirements.txt")
    return rows[1:], late or child.returncode == -signal.SIGXCPU

def run(path, seconds):
    """The outcomes of a part's checks, whatever its file does."""
    titles, rows = [check.__doc__ for check in PARTS[path.stem]], []
    if not path.is_file():
        return [{"check": title, "passed": False, "got": f"there is no {path}"} for title in titles]
    late = False
    while len(rows) < len(titles) and not late:
        found, late = start_part(path, len(rows), seconds)
        if found and "broken" in found[-1]:
            return [{"check": title, "passed": False, "got": found[-1]["broken"]} for title in titles]
        rows += found
        if len(rows) < len(titles):
            why = f"it took more than {seconds:g} seconds" if late else "it ended the whole process"
            rows.append({"check": titles[len(rows)], "passed": False, "got": why})
    return rows + [{"check": title, "passed": False, "got": "not run: the part's time was used up"}
                   for title in titles[len(rows):]]

def about(path):
    """The first line of a file's docstring, without running it."""
    try:
        return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    except (OSError, ValueError, SyntaxError):
        return ""

def page(found, folder):
    """What a person reads: the parts, their checks, and what to do next."""
    lines, todo = [], []
    for name, rows in found.items():
        points = f"{sum(row['passed'] for row in rows)} of {len(rows)}"
        if all(row.get("todo") for row in rows):
            todo.append(name)
            lines.append(f"{name:9}not done yet   {about(folder / f'{name}.py')}")
            continue
        lines.append(f"{name} {points}")
        if len({row.get("got") for row in rows}) == 1 and "case" not in rows[0] and not rows[0]["passed"]:
            rows = [{**rows[0], "check": "all checks"}]
        for row in rows:
            lines.append(f"  {'passed' if row['passed'] else 'failed'}  {row['check']}")
            for key in ("case", "expected", "got"):
                if row.get(key):
                    lines.append(textwrap.fill(row[key], 100, initial_indent=f"          {key:10}",
                                               subsequent_indent=" " * 20))
    points, of = total(found)
    lines += ["", f"{points} of {of} points."]
    if todo:
        lines.append(f"Next: open {os.path.relpath(folder / todo[0])}.py; its docstrings say what to write.")
        lines.append(f"Then: python {os.path.relpath(__file__)} {todo[0]}")
    return "\n".join(lines)

def total(found):
    return sum(row["passed"] for rows in found.values() for row in rows), sum(map(len, found.values()))

def main():
    if sys.argv[1:2] == ["--part"]:
        return run_part(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
    parser = argparse.ArgumentParser(description="Checks the stubs of exercises/ and gives points.")
    parser.error = lambda message: parser.exit(2, f"check.py: {message}; --help says how\n")
    parser.add_argument("parts", nargs="*", metavar="NAME", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--folder", type=Path, default=HERE, help="of the files (default: that of check.py)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a page")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a part (default: %(default)s)")
    args = parser.parse_args()
    names = [name.removesuffix(".py") for name in args.parts] or [*PARTS]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; expected {', '.join(PARTS)}")
    found = {name: run(args.folder.resolve() / f"{name}.py", args.seconds) for name in dict.fromkeys(names)}
    points, of = total(found)
    if args.json:
        parts = {name: {"points": sum(row["passed"] for row in rows), "of": len(rows), "checks": rows}
                 for name, rows in found.items()}
        print(json.dumps({"points": points, "of": of, "parts": parts}, indent=1))
    else:
        print(page(found, args.folder.resolve()))
    sys.exit(points < of)

if __name__ == "__main__":
    main()
