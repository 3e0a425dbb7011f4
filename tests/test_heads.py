"""Heads, decoding and scores against brute force, enumeration, seqeval and hand-made cases."""

import itertools
import random

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score

import data
import heads


class Dev:
    """The part of an Encoded set that a score looks at."""

    def __init__(self, gold, new=None, lost=0):
        self.gold, self.lost = torch.tensor(gold), lost
        self.new = torch.tensor(new) if new is not None else None


def score(counts):
    return [n / d for n, d in counts.tolist()]


# ---------------------------------------------------------------------------------------------------------- decoding

def all_trees(n):
    """Every head tuple over n words that is a tree with one root word."""
    for tree in itertools.product(range(n + 1), repeat=n):
        above = (0, *tree)
        if tree.count(0) == 1 and all(reaches_root(above, i) for i in range(1, n + 1)):
            yield above


def reaches_root(above, i):
    for _ in above:
        i = above[i]
    return i == 0


def total(scores, tree):
    return sum(scores[i, tree[i]] for i in range(1, len(tree)))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_best_tree_equals_the_enumeration_of_all_trees(n):
    rng, trees = np.random.default_rng(n), list(all_trees(n))
    for scale in (0.01, 1, 100):
        for _ in range(30):
            s = rng.normal(size=(n + 1, n + 1)) * scale
            found = heads.best_tree(s)
            assert tuple(found) in trees
            assert total(s, found) == pytest.approx(max(total(s, t) for t in trees), rel=1e-9, abs=1e-9)


def one_root_by_trying_each(s):
    """The second method: for each root word, the best arborescence where no other word may hang on ROOT, found by the
    contraction algorithm written again over dictionaries of arcs."""
    n, best = len(s), -np.inf
    for root in range(1, n):
        arcs = {(h, d): s[d, h] for d in range(1, n) for h in range(1, n) if h != d and d != root}
        arcs[0, root] = s[root, 0]
        best = max(best, edmonds(arcs, 0))
    return best


def edmonds(arcs, root):
    """Weight of the maximum arborescence from root over {(head, dependent): weight}."""
    nodes = {d for _, d in arcs}
    into = {d: max((w, h) for (h, x), w in arcs.items() if x == d) for d in nodes}
    for start in nodes:
        path, i = [], start
        while i != root and i not in path:
            path.append(i)
            i = into[i][1]
        if i != root:
            cycle = path[path.index(i):]
            inner, name, small = sum(into[c][0] for c in cycle), ("c", *cycle), {}
            for (h, d), w in arcs.items():
                if h in cycle and d in cycle:
                    continue
                w, h, d = (w - into[d][0], h, name) if d in cycle else (w, name if h in cycle else h, d)
                small[h, d] = max(w, small.get((h, d), -np.inf))
            return inner + edmonds(small, root)
    return sum(w for w, _ in into.values())


def test_best_tree_equals_a_second_method_on_larger_matrices():
    rng = np.random.default_rng(0)
    for i in range(200):
        s = rng.normal(size=(n := int(rng.integers(6, 16)), n)) * (1 if i % 2 else 50)
        assert total(s, heads.best_tree(s)) == pytest.approx(one_root_by_trying_each(s), rel=1e-9, abs=1e-7)


def test_decode_keeps_trees_and_repairs_the_rest():
    torch.manual_seed(0)
    sizes, N = [1, 4, 7, 9], 10
    real = torch.arange(N) < torch.tensor(sizes)[:, None] + 1
    arcs = torch.randn(4, N, N).masked_fill(torch.eye(N, dtype=torch.bool) | ~real[:, None], -float("inf"))
    found = heads.decode(arcs, real)
    assert heads.are_trees(found, real).all() and (found[~real] == 0).all()
    for s, tree, n in zip(arcs, found, sizes):
        want = heads.best_tree(s[:n + 1, :n + 1].double().numpy())
        assert tree[:n + 1].tolist() == want.tolist()


@pytest.mark.parametrize("tree, good", [((0, 0, 1, 1), True), ((0, 2, 0, 2), True), ((0, 0, 0, 1), False),
                                        ((0, 2, 1, 0), False), ((0, 2, 3, 1), False), ((0, 3, 1, 0), True)])
def test_are_trees(tree, good):
    assert heads.are_trees(torch.tensor([tree]), torch.ones(1, 4, dtype=torch.bool)).item() is good


# ------------------------------------------------------------------------------------------------------------ scores

def test_span_f1_equals_seqeval_on_random_tags_windows_or_not():
    rng = random.Random(0)
    for _ in range(2000):
        sentences = [rng.randint(1, 8) for _ in range(rng.randint(1, 4))]
        gold, pred = ([[rng.choice(data.BIO) for _ in range(n)] for n in sentences] for _ in range(2))
        if rng.random() < 0.5:
            pred = [[p if rng.random() < 0.3 else g for g, p in zip(*two)] for two in zip(gold, pred)]
        new = [i == 0 for n in sentences for i in range(n)]
        flat = [torch.tensor([[data.BIO.index(t)] for s in tags for t in s]) for tags in (gold, pred)]
        (right, all_), = heads.span_f1(flat[1], Dev(flat[0].tolist(), new)).tolist()
        assert (right / all_ if all_ else 0.0) == pytest.approx(f1_score(gold, pred, zero_division=0))


def test_accuracy_leaves_unlabelled_words_out():
    dev = Dev([[1], [2], [-1], [3]])
    assert heads.accuracy(torch.tensor([[1], [0], [0], [3]]), dev).tolist() == [[2, 3]]


def test_attachment_by_hand():
    gold = [[-1, -1, 0], [2, 5, 1], [0, 30, 1], [2, 7, 1], [2, 29, 0], [-1, 4, 1]]   # ROOT, 3 words, a stop, a cut head
    pred = torch.tensor([[0, 0], [2, 5], [0, 30], [2, 8], [1, 1], [3, 4]])
    las, uas = heads.attachment(pred, Dev(gold, lost=2)).tolist()
    assert las == [2, 4 + 2] and uas == [3, 4 + 2]


def test_attachment_with_punctuation_kept_is_the_shared_tasks_las():
    """All words scored: LAS is right (head, relation) pairs over words, as the CoNLL shared task counts them."""
    rng = np.random.default_rng(0)
    gold = np.stack([rng.integers(0, 9, 300), rng.integers(0, 37, 300), np.ones(300, int)], 1)
    pred = np.where(rng.random((300, 1)) < .6, gold[:, :2], rng.integers(0, 9, (300, 2)))
    want = sum((h, r) == (g, q) for (h, r), (g, q, _) in zip(pred.tolist(), gold.tolist())) / 300
    assert score(heads.attachment(torch.tensor(pred), Dev(gold.tolist())))[0] == pytest.approx(want)


# ------------------------------------------------------------------------------------------------------------- heads

def batch(real, gold=None):
    keep = torch.cat([real.flatten().nonzero()[:, 0], torch.zeros(1, dtype=torch.long)])
    place = (real.flatten().cumsum(0) - 1).where(real.flatten(), len(keep) - 1).view(real.shape)
    return data.Batch(None, None, None, None, place, keep, real, None, gold)


def test_biaffine_scores_equal_the_sum_over_all_indices():
    torch.manual_seed(0)
    head, h = heads.Biaffine(6, 5, arc=4, label=3).eval(), torch.randn(2, 4, 6)
    real = torch.tensor([[True] * 4, [True] * 3 + [False]])
    elu = torch.nn.functional.elu
    arc_d, arc_h, lab_d, lab_h = (elu(layer(h)) for layer in (head.arc_dep, head.arc_head, head.label_dep, head.label_head))
    one, heads_ = torch.ones(1), torch.randint(0, 3, (2, 4))
    b = batch(real)
    arcs, labels = head.arcs(h, real), head.labels(h, heads_, b.keep)[b.place]
    for b, d in itertools.product(range(2), range(4)):
        for g in range(4):
            want = torch.cat([arc_d[b, d], one]) @ head.arc @ arc_h[b, g]
            assert arcs[b, d, g] == -float("inf") if d == g or not real[b, g] else torch.isclose(arcs[b, d, g], want, atol=1e-5)
        u, v = torch.cat([lab_d[b, d], one]), torch.cat([lab_h[b, heads_[b, d]], one])
        assert not real[b, d] or torch.allclose(labels[b, d], torch.stack([u @ head.label[:, c] @ v for c in range(5)]), atol=1e-5)


def test_parser_loss_trains_root_arcs_and_leaves_cut_heads_and_padding_out():
    torch.manual_seed(0)
    head, h = heads.Biaffine(6, 5, arc=4, label=3).eval(), torch.randn(2, 4, 6)
    real = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    gold = torch.tensor([[[-1, -1, 0], [0, 1, 1], [1, 2, 1], [-1, 3, 1]],        # word 3's head was cut off
                         [[-1, -1, 0], [0, 4, 1], [-1, -1, -1], [-1, -1, -1]]])
    keep = batch(real).keep
    arcs = head.arcs(h, real).log_softmax(-1)
    labels = head.labels(h, gold[..., 0].clamp(min=0), keep)[batch(real).place].log_softmax(-1)
    want = -(arcs[0, 1, 0] + arcs[0, 2, 1] + arcs[1, 1, 0]) / 3 - (labels[0, 1, 1] + labels[0, 2, 2] + labels[1, 1, 4]) / 3
    assert torch.isclose(head.loss(h, batch(real, gold)), want)


def test_variational_dropout_drops_the_same_features_at_all_positions():
    torch.manual_seed(0)
    x = heads.variational_dropout(torch.ones(50, 7, 40), 0.2, training=True)
    assert torch.equal(x, x[:, :1].expand_as(x))
    assert set(x.unique().tolist()) == {0.0, 1.25} and 0.17 < (x == 0).float().mean() < 0.23
    assert torch.equal(heads.variational_dropout(torch.ones(2, 3, 4), 0.2, training=False), torch.ones(2, 3, 4))
