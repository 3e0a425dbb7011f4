"""How fast the kit is beside the obvious way to do the same, on this machine. It is no part of the tests.

    python tests/benchmark.py --encoder ENCODER --data DATA                                # one process: two tables
    torchrun --nproc-per-node 2 tests/benchmark.py --encoder ENCODER --data DATA           # what a second one brings
    python tests/benchmark.py --encoder ENCODER --data DATA --device cuda --plane --train  # whole jobs too

The plain baseline stands in this file. It takes the windows (subword ids, read positions, gold) from the kit and does the
rest itself: load_state_dict at every point, dev sentences in file order, batches of 32 padded to the longest, fp32, scores
counted word by word, and for parsing the labels of every pair of positions and Chu-Liu-Edmonds on every sentence. Kit and
baseline take turns, after a warm-up, and medians are printed. If their scores differ, this says so and exits with 1.

--task (default all), --src (en), --tgt (de), --encoder, --data, --limit, --device and --precision (of the kit; the baseline
is fp32) are those of reproduce.py. A local encoder folder without weights gets random ones.
"""

import argparse
import resource
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import heads  # noqa: E402
import reproduce  # noqa: E402

BATCH = 32
LR = 5e-4     # high, since the three endpoints get few steps
TIES = 5      # decisions of a dev set that may differ in fp32: two labels or trees of equal score, up to rounding
BF16 = 0.1    # what a score may differ by in bf16


# --------------------------------------------------------------------------------------------------- the plain baseline

class PlainTagger(nn.Module):
    """A label for every subword."""

    def __init__(self, hidden, labels):
        super().__init__()
        self.drop, self.out = nn.Dropout(0.2), nn.Linear(hidden, labels)

    def forward(self, hidden, batch):
        return self.out(self.drop(hidden))                                                        # (B, L, C)

    def loss(self, scores, batch):
        scores = scores.gather(1, batch["read"][..., None].expand(-1, -1, scores.shape[-1]))
        return F.cross_entropy(scores.flatten(0, 1), batch["gold"].flatten(), ignore_index=-1)

    def predict(self, scores, chunk):
        return [[labels[i] for i in window["read"]] for labels, window in zip(scores.argmax(-1).tolist(), chunk)]


class PlainParser(nn.Module):
    """Biaffine arcs, and labels, for every pair of positions, of which the words are taken then; position 0 is the root."""

    def __init__(self, hidden, labels, arc, label):
        super().__init__()
        self.drop, self.inner_drop = nn.Dropout(0.2), nn.Dropout(0.33)
        self.arc_dep, self.arc_head = nn.Linear(hidden, arc), nn.Linear(hidden, arc)
        self.label_dep, self.label_head = nn.Linear(hidden, label), nn.Linear(hidden, label)
        self.arc = nn.Parameter(torch.empty(arc + 1, arc))
        self.label = nn.Parameter(torch.empty(label + 1, labels, label + 1))

    def forward(self, hidden, batch):
        h = self.drop(hidden)                                                                      # (B, L, H)
        arc_dep, arc_head, dep, head = (self.inner_drop(F.elu(layer(h))) for layer in (
            self.arc_dep, self.arc_head, self.label_dep, self.label_head))
        arc_dep, dep, head = (F.pad(x, (0, 1), value=1.0) for x in (arc_dep, dep, head))
        arcs = torch.einsum("bxi,ij,byj->bxy", arc_dep, self.arc, arc_head)                       # (B, L, L)
        labels = torch.einsum("bxi,icj,byj->bxyc", dep, self.label, head)                         # (B, L, L, C)
        rows, word, other = torch.arange(len(h), device=h.device)[:, None, None], batch["read"][:, :, None], batch["read"][:, None]
        arcs, labels = arcs[rows, word, other], labels[rows, word, other]                         # (B, N, N), (B, N, N, C)
        return arcs.masked_fill(torch.eye(arcs.shape[1], device=arcs.device).bool() | ~batch["real"][:, None], -1e9), labels

    def loss(self, scores, batch):
        (arcs, labels), (head, relation) = scores, batch["gold"].unbind(-1)[:2]
        labels = labels.gather(2, head.clamp(min=0)[..., None, None].expand(-1, -1, -1, labels.shape[-1]))
        return (F.cross_entropy(arcs.flatten(0, 1), head.flatten(), ignore_index=-1)
                + F.cross_entropy(labels.flatten(0, 2), relation.masked_fill(head < 0, -1).flatten(), ignore_index=-1))

    def predict(self, scores, chunk):
        arcs, labels, sizes = scores[0].tolist(), scores[1].argmax(-1).tolist(), [len(w["read"]) for w in chunk]
        trees = [one_root_tree([row[:n] for row in a[:n]]) for a, n in zip(arcs, sizes)]
        return [[(head, labels[b][word][head]) for word, head in enumerate(tree)] for b, tree in enumerate(trees)]


class Plain(nn.Module):
    """Encoder and head as an ordinary module, with the kit's parameter names and values."""

    def __init__(self, kit):
        super().__init__()
        self.device, self.count = kit.bench.device, {"ner": count_spans, "parsing": count_arcs}.get(kit.task, count_labels)
        self.encoder = AutoModel.from_pretrained(heads.HUB.get(kit.encoder, kit.encoder), dtype=torch.float32)
        self.encoder.pooler = None
        sizes, like = (self.encoder.config.hidden_size, len(reproduce.TASKS[kit.task].labels)), kit.reader.head
        self.head = (PlainParser(*sizes, like.arc.shape[1], like.label.shape[2] - 1) if kit.task == "parsing"
                     else PlainTagger(*sizes))
        self.ends = [{n: v.clone() for n, v in kit.reader.views(end).items()} for end in kit.ends]
        self.load_state_dict(self.ends[0])
        self.to(self.device)
        self.adam = torch.optim.Adam(self.parameters(), lr=LR, betas=(0.9, 0.99))
        self.dev, self.train_set = [(windows_of(d), d.lost) for d in kit.dev], windows_of(kit.train_set)

    def forward(self, batch):
        extra = {"token_type_ids": batch["types"]} if self.encoder.config.type_vocab_size > 1 else {}
        hidden = self.encoder(input_ids=batch["ids"], attention_mask=batch["mask"], **extra).last_hidden_state
        return self.head(hidden, batch)

    @torch.no_grad()
    def point(self, a1, a2):
        """Counts [right, all], by language and score, at a point of the plane."""
        both, src, tgt = self.ends
        self.load_state_dict({n: both[n] + a1 * (src[n] - both[n]) + a2 * (tgt[n] - both[n]) for n in both})
        self.eval()
        counts = []
        for windows, lost in self.dev:
            sentences = []                                     # (prediction, gold)
            for i in range(0, len(windows), BATCH):
                chunk = windows[i:i + BATCH]
                for window, prediction in zip(chunk, self.head.predict(self(collate(chunk, self.device)), chunk)):
                    if window["new"]:
                        sentences.append(([], []))
                    sentences[-1][0].extend(prediction)
                    sentences[-1][1].extend(window["gold"])
            counts.append(self.count(sentences, lost))
        return counts

    def step(self, numbers):
        """One training step on the windows of these numbers."""
        self.train()
        batch = collate([self.train_set[i] for i in numbers], self.device)
        loss = self.head.loss(self(batch), batch)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()


def windows_of(examples):
    """The windows of a kit's Encoded set as plain lists, in file order."""
    ids, start, second, read, read_start, gold, new = (
        getattr(examples, name).tolist() for name in ("ids", "start", "second", "read", "read_start", "gold", "new"))
    return [{"ids": ids[a:b], "types": [int(i >= s) for i in range(b - a)], "mask": [1] * (b - a), "read": read[c:d],
             "real": [True] * (d - c), "gold": gold[c:d], "new": new[c], "pad": examples.pad}
            for a, b, s, c, d in zip(start, start[1:], second, read_start, read_start[1:])]


def collate(chunk, device):
    """Tensors of some windows, padded to the longest."""
    fillers = {"ids": chunk[0]["pad"], "types": 0, "mask": 0, "read": 0, "real": False,
               "gold": [-1] * len(chunk[0]["gold"][0])}
    longest = {name: max(len(w[name]) for w in chunk) for name in fillers}
    return {name: torch.tensor([w[name] + [filler] * (longest[name] - len(w[name])) for w in chunk], device=device)
            for name, filler in fillers.items()}


def count_labels(sentences, lost):
    right = [p == g for prediction, gold in sentences for p, (g,) in zip(prediction, gold)]
    return [[sum(right), len(right)]]


def count_spans(sentences, lost):
    right = total = 0
    for prediction, gold in sentences:
        predicted, wanted = spans(prediction), spans([g for g, in gold])
        right += 2 * len(predicted & wanted)
        total += len(predicted) + len(wanted)
    return [[right, total]]


def spans(tags):
    """{(type, first, last)} of the spans; an I- that continues none begins one."""
    found, before = [], "O"
    for i, name in enumerate(data.BIO[t] for t in tags):
        if name[0] == "I" and before[2:] == name[2:]:
            found[-1][2] = i
        elif name != "O":
            found.append([name[2:], i, i])
        before = name
    return {tuple(span) for span in found}


def count_arcs(sentences, lost):
    scored = [(p, g) for prediction, gold in sentences for p, (*g, scored) in zip(prediction, gold) if scored]
    labelled = sum(p == tuple(g) for p, g in scored)
    unlabelled = sum(p[0] == g[0] for p, g in scored)
    return [[labelled, len(scored) + lost], [unlabelled, len(scored) + lost]]


def one_root_tree(scores):
    """Heads of the best tree with one root word; where more words want to be it, each of them is tried alone."""
    tree = chu_liu_edmonds(scores)
    roots = [i for i in range(1, len(tree)) if tree[i] == 0]
    if len(roots) == 1:
        return tree
    trees = [chu_liu_edmonds([row if i in (0, root) else [-1e9, *row[1:]] for i, row in enumerate(scores)])
             for root in roots]
    return max(trees, key=lambda tree: sum(scores[i][tree[i]] for i in range(1, len(tree))))


def chu_liu_edmonds(scores):
    """Heads of the best tree from node 0 under scores[dependent][head]."""
    nodes = range(len(scores))
    tree = [0] + [max((h for h in nodes if h != d), key=scores[d].__getitem__) for d in nodes[1:]]
    cycle = cycle_of(tree)
    if not cycle:
        return tree
    rest = [i for i in nodes if i not in cycle]
    small = [[scores[d][h] for h in rest] + [max(scores[d][c] for c in cycle)] for d in rest]
    small.append([max(scores[c][h] - scores[c][tree[c]] for c in cycle) for h in rest] + [0.0])
    found = chu_liu_edmonds(small)
    above = rest[found[-1]]                                    # the cycle is broken where this head gains most
    tree[max(cycle, key=lambda c: scores[c][above] - scores[c][tree[c]])] = above
    for d, h in zip(rest[1:], found[1:]):
        tree[d] = rest[h] if h < len(rest) else max(cycle, key=scores[d].__getitem__)
    return tree


def cycle_of(tree):
    for start in range(1, len(tree)):
        path, node = [], start
        while node and node not in path:
            path.append(node)
            node = tree[node]
        if node:
            return path[path.index(node):]
    return None


# -------------------------------------------------------------------------------------------------------------- the kit

class Kit:
    """What reproduce.py does at a point and in a training step, with three endpoints fine-tuned a little."""

    def __init__(self, bench, task):
        self.bench, self.task, self.encoder = bench, task, bench.args.encoder[0]
        self.reader = bench.reader(self.encoder, task)
        self.dev, train = ([bench.examples(task, self.encoder, lang, split) for lang in (bench.args.src[0], bench.args.tgt[0])]
                           for split in ("dev", "train"))
        ends = []
        for sets in (train, train[:1], train[1:]):             # both, source, target
            self.begin()
            for i in range(bench.args.steps):
                self.train_set = sets[i % len(sets)]
                self.step(np.random.default_rng(i).permutation(len(self.train_set))[:BATCH])
            ends.append(self.theta)
        self.ends, self.train_set = torch.stack(ends), train[0]
        self.begin()

    def begin(self):
        self.theta = self.reader.start(1).to(self.bench.device)
        self.theta.grad = torch.zeros_like(self.theta)
        self.adam = torch.optim.Adam([self.theta], lr=LR, betas=(0.9, 0.99), fused=True)

    def point(self, a1, a2):
        """Counts [right, all], by language and score, at a point of the plane."""
        weights = torch.tensor([1 - a1 - a2, a1, a2], dtype=torch.float32, device=self.bench.device)
        theta = self.bench.cast(reproduce.interpolate(torch.empty_like(self.ends[0]), self.ends, weights))
        return torch.stack([self.bench.counts(self.reader, theta, self.task, d) for d in self.dev]).tolist()

    def step(self, numbers):
        """One training step on the windows of these numbers."""
        self.reader.train()
        with self.bench.precise():
            self.reader.gradient(self.bench.cast(self.theta), self.train_set.batch(numbers), self.theta.grad)
        self.adam.step()

    def flops(self):
        """Operations of a point on real subwords: two a parameter beyond the embeddings, and the attention."""
        c, named = self.reader.encoder.config, self.reader.encoder.named_parameters()
        body = sum(p.numel() for n, p in named if "embeddings" not in n)
        head = sum(p.numel() for p in self.reader.head.parameters())
        return sum(2 * body * d.lengths.sum() + 2 * head * d.reads.sum()
                   + 4 * c.num_hidden_layers * c.hidden_size * (d.lengths.astype(float) ** 2).sum() for d in self.dev)


# ------------------------------------------------------------------------------------------------------------ measuring

def some_points(bench):
    """Points spread over the plane."""
    every = reproduce.points(lines_only=False)
    return every[::max(1, len(every) // bench.args.points)][:bench.args.points]


def timed(device, work, *args):
    """(seconds, result) of a call, the device's work included."""
    began = time.perf_counter()
    result = work(*args)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


def in_turn(device, kit, plain, calls):
    """(calls a second of kit, of plain, their ratio, results of kit, of plain); the first call is made twice, to warm up.

    The two go in alternating order; the ratio is the median over the calls, whose two times lie side by side.
    """
    rounds = []
    for i, args in enumerate([calls[0], *calls]):
        took = {work: timed(device, work, *args) for work in ((kit, plain) if i % 2 else (plain, kit))}
        rounds.append((*took[kit], *took[plain]))
    fast, found, slow, wanted = zip(*rounds[1:])
    ratio = statistics.median(s / f for f, s in zip(fast, slow))
    return 1 / statistics.median(fast), 1 / statistics.median(slow), ratio, np.array(found, float), np.array(wanted, float)


def matrix_rate(bench):
    """Operations a second of one large matrix product in the kit's precision."""
    n = 8192 if bench.device.type == "cuda" else 1024
    a = torch.randn(n, n, device=bench.device, dtype=torch.bfloat16 if bench.args.precision == "bf16" else torch.float32)
    return 2 * n ** 3 / statistics.median([timed(bench.device, torch.mm, a, a)[0] for _ in range(10)][1:])


def decoding(bench, trees):
    """Sentences a second of heads.decode, 32 at once, 10 to 40 words each; their argmax is always a tree, or never."""
    rng, batches = np.random.default_rng(1), []
    for n in np.arange(11, 42):                                # with the root
        scores = rng.standard_normal((32, n, n), dtype=np.float32)
        for s in scores:
            order = rng.permutation(np.arange(1, n))
            s[order[0], 0] += 100.0 * trees
            for i in range(1, n - 1):
                s[order[i], order[rng.integers(i)]] += 100.0 * trees
            s[1, 2], s[2, 1] = (s[1, 2], s[2, 1]) if trees else (100.0, 100.0)   # two words that want each other
        arcs = torch.from_numpy(scores).to(bench.device).masked_fill_(torch.eye(n, device=bench.device).bool(), -torch.inf)
        batches.append((arcs, torch.ones(32, n, dtype=torch.bool, device=bench.device)))
    took = [timed(bench.device, lambda: [heads.decode(*b) for b in batches])[0] for _ in range(4)]
    return 32 * len(batches) / statistics.median(took[1:])


def reading(bench, task):
    """Seconds to read and encode the train and dev files of both languages."""
    t, tokenizer = reproduce.TASKS[task], heads.load_encoder(bench.args.encoder[0]).tokenizer

    def work():
        for lang in (bench.args.src[0], bench.args.tgt[0]):
            for split in ("train", "dev"):
                data.load(t.file(bench.args.data, lang, split), lang, split, t.read, t.encode, tokenizer, bench.args.limit)
    return statistics.median(timed(bench.device, work)[0] for _ in range(3))


def plane(bench):
    """Seconds of a whole plane of POS, written to a file as in a run."""
    kit, todo = Kit(bench, "pos"), reproduce.points(lines_only=False)
    grid = reproduce.Grid("pos", kit.encoder, bench.args.src[0], bench.args.tgt[0], 1)
    kit.point(0.0, 0.0)
    with tempfile.TemporaryFile() as f:
        return timed(bench.device, reproduce.evaluate_points, bench, kit.reader, grid, kit.ends, kit.dev, todo, f, "plane")[0]


def peak(bench):
    """Peak memory of this process so far in MB, on the GPU or on the CPU."""
    return (torch.cuda.max_memory_allocated(bench.device) / 1e6 if bench.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


# ----------------------------------------------------------------------------------------------------------------- main

def compare(bench, task, rate):
    """Print a task's row; returns whether kit and baseline disagree."""
    kit = Kit(bench, task)
    kit.point(0.0, 0.0)
    kit_peak, plain = peak(bench), Plain(kit)
    fast, slow, ratio, found, wanted = in_turn(bench.device, kit.point, plain.point, some_points(bench))
    score = np.abs(100 * found[..., 0] / found[..., 1] - 100 * wanted[..., 0] / wanted[..., 1]).max()
    count, sentences = np.abs(found - wanted).max(), sum(d.counts["sentences"] for d in kit.dev)
    batches = np.random.default_rng(1).integers(len(kit.train_set), size=(15, 1, BATCH))
    steps = in_turn(bench.device, kit.step, plain.step, batches)
    print(f"| {task} | {fast:.3f} | {slow:.3f} | {ratio:.2f} | {fast * sentences:.0f} | {slow * sentences:.0f} | "
          f"{100 * kit.flops() * fast / rate:.0f} % | {steps[0]:.2f} | {steps[1]:.2f} | {steps[2]:.2f} | "
          f"{score:.3f} ({count:.0f}) | {kit_peak:.0f} | {peak(bench):.0f} |", flush=True)
    return score > BF16 if bench.args.precision == "bf16" else count > TIES


def alone(bench):
    """Kit beside baseline in one process; returns the exit code."""
    args, rate = bench.args, matrix_rate(bench)
    print(f"{bench.device}, {args.precision}, {torch.get_num_threads()} thread, matrix products at {rate / 1e9:.0f} GFLOP/s\n\n"
          "| task | points/s: kit | plain | ratio | sentences/s: kit | plain | kit's share of the matrix rate | "
          "training steps/s: kit | plain | ratio | largest difference of a score (of a count) | peak MB of the process so far: kit | and baseline |\n"
          + "|---" * 13 + "|")
    wrong = [task for task in args.task if compare(bench, task, rate)]
    print(f"\ndecoding: {decoding(bench, True):.0f} sentences/s where argmax is a tree, "
          f"{decoding(bench, False):.0f} where it never is")
    print(f"reading and encoding {args.src[0]} and {args.tgt[0]}, train and dev: pos {reading(bench, 'pos'):.1f} s, "
          f"parsing {reading(bench, 'parsing'):.1f} s")
    if args.plane:
        print(f"a plane of POS: {plane(bench):.1f} s")
    if args.train:
        model = reproduce.Model("pos", args.encoder[0], (args.src[0],), 1)
        print(f"fine-tuning POS on {args.src[0]}: {timed(bench.device, reproduce.finetune, bench, model)[0]:.1f} s")
    print(f"more processes: torchrun --nproc-per-node 2 tests/benchmark.py {shlex.join(sys.argv[1:])}")
    if wrong:
        print(f"FAILED: kit and baseline do not give the same scores for {', '.join(wrong)}.")
    return int(bool(wrong))


def together(bench):
    """Print what all processes do at once beside what one does while the others wait."""
    if bench.rank == 0:
        print("| task | points/s: one process | all | ratio |\n|---|---|---|---|")
    for task in bench.args.task:
        kit, points = Kit(bench, task), some_points(bench)
        kit.point(0.0, 0.0)
        reproduce.barrier(bench)
        one = sum(timed(bench.device, kit.point, *p)[0] for p in points if bench.rank == 0)
        reproduce.barrier(bench)
        began = time.perf_counter()
        for p in points:
            kit.point(*p)
        reproduce.barrier(bench)
        every = time.perf_counter() - began                    # until the slowest is done
        if bench.rank == 0:
            rates = len(points) / one, bench.world * len(points) / every
            print(f"| {task} | {rates[0]:.3f} | {rates[1]:.3f} | {rates[1] / rates[0]:.2f} |", flush=True)
    return 0


def with_weights(name, folder):
    """The encoder's name, or a folder with random weights of its shape where it is a local folder without any."""
    if not Path(name).is_dir() or any(Path(name).glob("*.safetensors")):
        return name
    print(f"{name} has no weights: random ones of its shape are used.")
    torch.manual_seed(1)
    target = Path(folder, Path(name).resolve().name)
    shutil.copytree(name, target, copy_function=shutil.copyfile)
    AutoModel.from_config(AutoConfig.from_pretrained(name)).save_pretrained(target)
    return str(target)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--points", type=int, default=5, help="points of the plane to time (default 5)")
    p.add_argument("--steps", type=int, default=100, help="fine-tuning steps of each endpoint (default 100)")
    p.add_argument("--plane", action="store_true", help="also time a whole plane of POS")
    p.add_argument("--train", action="store_true", help="also time 5 epochs of fine-tuning POS on the source")
    options, rest = p.parse_known_args()
    with tempfile.TemporaryDirectory() as out:
        defaults = "--task pos ner xnli parsing --src en --tgt de".split()
        args = reproduce.parse_arguments([*defaults, *rest, "--seeds", "1", "--out", out])
        args.encoder = [with_weights(args.encoder[0], out)]
        vars(args).update(vars(options))
        bench = reproduce.Bench(args, *reproduce.start_ranks())
        return (together if bench.world > 1 else alone)(bench)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (data.DataError, heads.ModelError) as e:
        sys.exit(f"benchmark.py: {e}")
