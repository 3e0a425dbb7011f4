"""How fast the kit is beside the obvious way to do the same, on this machine. It is no part of the tests.

    python tests/benchmark.py --encoder ENCODER --data DATA                                # one process: tables
    torchrun --nproc-per-node 2 tests/benchmark.py --encoder ENCODER --data DATA           # what a second one brings
    python tests/benchmark.py --encoder ENCODER --data DATA --device cuda --plane --train  # whole jobs too

The plain baseline stands in this file. It takes the windows (subword ids, read positions, gold) from the kit and does the
rest itself: load_state_dict at every point, dev sentences in file order, batches of 32 padded to the longest, fp32, scores
counted word by word, and for parsing the labels of every pair of words and Chu-Liu-Edmonds on every sentence. Kit and
baseline take turns, after a warm-up, and medians are printed. If their scores differ, this says so and exits with 1.
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


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--encoder", default="mbert", help="as for reproduce.py; a folder without weights gets random ones")
    p.add_argument("--data", default="data", help="folder of the corpora (default data)")
    p.add_argument("--task", nargs="+", default=["pos", "ner", "xnli", "parsing"], help="default all four")
    p.add_argument("--src", default="en")
    p.add_argument("--tgt", default="de")
    p.add_argument("--limit", type=int, help="the first N training and dev sentences, for a quick look")
    p.add_argument("--device", help="cuda or cpu (default cuda if there is one)")
    p.add_argument("--precision", choices=["bf16", "fp32"], help="of the kit: default bf16 on cuda, fp32 on cpu")
    p.add_argument("--points", type=int, default=5, help="points of the plane to time (default 5)")
    p.add_argument("--steps", type=int, default=100, help="fine-tuning steps of each endpoint (default 100)")
    p.add_argument("--plane", action="store_true", help="also time a whole plane of POS")
    p.add_argument("--train", action="store_true", help="also time fine-tuning POS on the source for 5 epochs")
    return p.parse_args()


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
    """Biaffine arcs, and labels for every pair of words; position 0 is the root."""

    def __init__(self, hidden, labels, arc=512, label=128):
        super().__init__()
        self.drop, self.inner_drop = nn.Dropout(0.2), nn.Dropout(0.33)
        self.arc_dep, self.arc_head = nn.Linear(hidden, arc), nn.Linear(hidden, arc)
        self.label_dep, self.label_head = nn.Linear(hidden, label), nn.Linear(hidden, label)
        self.arc = nn.Parameter(torch.empty(arc + 1, arc))
        self.label = nn.Parameter(torch.empty(label + 1, labels, label + 1))

    def forward(self, hidden, batch):
        h = self.drop(hidden.gather(1, batch["read"][..., None].expand(-1, -1, hidden.shape[-1])))  # (B, N, H)
        arc_dep, arc_head, dep, head = (self.inner_drop(F.elu(layer(h))) for layer in (
            self.arc_dep, self.arc_head, self.label_dep, self.label_head))
        arc_dep, dep, head = (F.pad(x, (0, 1), value=1.0) for x in (arc_dep, dep, head))
        arcs = torch.einsum("bxi,ij,byj->bxy", arc_dep, self.arc, arc_head)                       # (B, N, N)
        arcs = arcs.masked_fill(torch.eye(arcs.shape[1], device=arcs.device).bool() | ~batch["real"][:, None], -1e9)
        return arcs, torch.einsum("bxi,icj,byj->bxyc", dep, self.label, head)                     # (B, N, N, C)

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
        self.head = (PlainParser if kit.task == "parsing" else PlainTagger)(
            self.encoder.config.hidden_size, len(reproduce.TASKS[kit.task].labels))
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
    fillers = {"ids": chunk[0]["pad"], "types": 0, "mask": 0, "read": 0, "real": False, "gold": [-1] * len(chunk[0]["gold"][0])}
    longest = {name: max(len(w[name]) for w in chunk) for name in fillers}
    return {name: torch.tensor([w[name] + [filler] * (longest[name] - len(w[name])) for w in chunk], device=device)
            for name, filler in fillers.items()}


def count_labels(sentences, lost):
    right = total = 0
    for prediction, gold in sentences:
        for p, (g,) in zip(prediction, gold):
            total += 1
            right += p == g
    return [[right, total]]


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
    labelled, unlabelled, total = 0, 0, lost
    for prediction, gold in sentences:
        for (head, relation), (gold_head, gold_relation, scored) in zip(prediction, gold):
            if scored:
                total += 1
                unlabelled += head == gold_head
                labelled += head == gold_head and relation == gold_relation
    return [[labelled, total], [unlabelled, total]]


def one_root_tree(scores):
    """Heads of the best tree with one root word; where more words want to be it, each of them is tried alone."""
    heads = chu_liu_edmonds(scores)
    roots = [i for i in range(1, len(heads)) if heads[i] == 0]
    if len(roots) == 1:
        return heads
    trees = [chu_liu_edmonds([row if i in (0, root) else [-1e9, *row[1:]] for i, row in enumerate(scores)])
             for root in roots]
    return max(trees, key=lambda tree: sum(scores[i][tree[i]] for i in range(1, len(tree))))


def chu_liu_edmonds(scores):
    """Heads of the best tree from node 0 under scores[dependent][head]."""
    nodes = range(len(scores))
    heads = [0] + [max((h for h in nodes if h != d), key=scores[d].__getitem__) for d in nodes[1:]]
    cycle = cycle_of(heads)
    if not cycle:
        return heads
    rest = [i for i in nodes if i not in cycle]
    small = [[scores[d][h] for h in rest] + [max(scores[d][c] for c in cycle)] for d in rest]
    small.append([max(scores[c][h] - scores[c][heads[c]] for c in cycle) for h in rest] + [0.0])
    found = chu_liu_edmonds(small)
    above = rest[found[-1]]                                    # the cycle is broken where this head gains most
    heads[max(cycle, key=lambda c: scores[c][above] - scores[c][heads[c]])] = above
    for d, h in zip(rest[1:], found[1:]):
        heads[d] = rest[h] if h < len(rest) else max(cycle, key=scores[d].__getitem__)
    return heads


def cycle_of(heads):
    for start in range(1, len(heads)):
        path, node = [], start
        while node and node not in path:
            path.append(node)
            node = heads[node]
        if node:
            return path[path.index(node):]
    return None


# -------------------------------------------------------------------------------------------------------------- the kit

class Kit:
    """What reproduce.py does at a point and in a training step, with three endpoints fine-tuned a little."""

    def __init__(self, bench, task, options):
        self.bench, self.task, self.encoder = bench, task, bench.args.encoder[0]
        self.reader = bench.reader(self.encoder, task)
        self.dev, train = ([bench.examples(task, self.encoder, lang, split) for lang in (options.src, options.tgt)]
                           for split in ("dev", "train"))
        ends = []
        for sets in (train, train[:1], train[1:]):             # both, source, target
            self.begin()
            for i in range(options.steps):
                self.train_set = sets[i % len(sets)]
                self.step(np.random.default_rng(i).permutation(len(self.train_set))[:BATCH])
            ends.append(self.theta.detach())
        self.ends, self.train_set = torch.stack(ends), train[0]
        self.begin()

    def begin(self):
        self.theta = self.reader.start(1).to(self.bench.device).requires_grad_()
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
            loss = self.reader.run(self.bench.cast(self.theta), self.train_set.batch(numbers))
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def flops(self):
        """Operations of a point on real subwords: two a parameter beyond the embeddings, and the attention."""
        c, named = self.reader.encoder.config, self.reader.encoder.named_parameters()
        body = sum(p.numel() for n, p in named if "embeddings" not in n)
        head = sum(p.numel() for p in self.reader.head.parameters())
        return sum(2 * body * d.lengths.sum() + 2 * head * d.reads.sum()
                   + 4 * c.num_hidden_layers * c.hidden_size * (d.lengths.astype(float) ** 2).sum() for d in self.dev)


# ------------------------------------------------------------------------------------------------------------ measuring

def timed(device, work, *args):
    """(seconds, result) of a call, the device's work included."""
    began = time.perf_counter()
    result = work(*args)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


def in_turn(device, kit, plain, calls):
    """[(seconds, result) of kit, of plain] for each call, the two in alternating order; the first call is made twice."""
    rounds = []
    for i, args in enumerate([calls[0], *calls]):
        order = (kit, plain) if i % 2 else (plain, kit)
        took = {work: timed(device, work, *args) for work in order}
        rounds.append((took[kit], took[plain]))
    return rounds[1:]


def medians(rounds):
    """(calls a second of the kit, of the baseline, their ratio), the ratio from pairs measured side by side."""
    kit, plain = ([took for took, _ in side] for side in zip(*rounds))
    return 1 / statistics.median(kit), 1 / statistics.median(plain), statistics.median(p / k for k, p in zip(kit, plain))


def differences(rounds, precision):
    """(the largest difference of a score, of a count of right ones, whether it is too large)."""
    kit, plain = (np.array([result for _, result in side], dtype=float) for side in zip(*rounds))  # (points, 2, S, 2)
    score = np.abs(100 * kit[..., 0] / kit[..., 1] - 100 * plain[..., 0] / plain[..., 1]).max()
    count = np.abs(kit - plain).max()
    return score, count, score > BF16 if precision == "bf16" else count > TIES


def matrix_rate(bench):
    """Operations a second of one large matrix product in the kit's precision."""
    n, dtype = (8192 if bench.device.type == "cuda" else 1024), getattr(torch, {"bf16": "bfloat16"}.get(bench.args.precision, "float32"))
    a = torch.randn(n, n, device=bench.device, dtype=dtype)
    torch.mm(a, a)
    return 2 * n ** 3 / statistics.median(timed(bench.device, torch.mm, a, a)[0] for _ in range(9))


def decoding(bench, trees):
    """Sentences a second of heads.decode, 32 at once, 10 to 40 words; their argmax is always a tree, or never."""
    rng, batches = np.random.default_rng(1), []
    for words in np.arange(10, 41).repeat(2):
        n = words + 1
        scores = rng.standard_normal((32, n, n), dtype=np.float32)
        for s in scores:
            order = np.append(0, rng.permutation(words) + 1)
            for i in range(1, n) if trees else ():
                s[order[i], order[rng.integers(min(i, 2) - 1, i)]] += 100.0    # one word at ROOT, the rest below it
            s[1, 2], s[2, 1] = (s[1, 2], s[2, 1]) if trees else (100.0, 100.0)  # else two words that want each other
        arcs = torch.from_numpy(scores).to(bench.device).masked_fill_(torch.eye(n, device=bench.device).bool(), -torch.inf)
        batches.append((arcs, torch.ones(32, n, dtype=torch.bool, device=bench.device)))
    took = [timed(bench.device, lambda: [heads.decode(*b) for b in batches])[0] for _ in range(4)]
    return 32 * len(batches) / statistics.median(took[1:])


def reading(bench, task, langs):
    """Seconds to read and encode the train and dev files of the languages."""
    t, tokenizer = reproduce.TASKS[task], heads.load_encoder(bench.args.encoder[0]).tokenizer

    def work():
        for lang in langs:
            for split in ("train", "dev"):
                data.load(t.file(bench.args.data, lang, split), lang, split, t.read, t.encode, tokenizer, bench.args.limit)
    return statistics.median(timed(bench.device, work)[0] for _ in range(3))


def peak(bench):
    """Peak memory in MB: of the device since it was last asked, or of this process so far."""
    if bench.device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    most = torch.cuda.max_memory_allocated(bench.device) / 1e6
    torch.cuda.reset_peak_memory_stats(bench.device)
    return most


# ----------------------------------------------------------------------------------------------------------------- main

def compare(bench, task, options, rate):
    """Print a task's rows; returns whether kit and baseline disagree."""
    kit = Kit(bench, task, options)
    peak(bench)
    kit.point(0.0, 0.0)
    kit_peak, plain = peak(bench), Plain(kit)
    rounds = in_turn(bench.device, kit.point, plain.point, some_points(options))
    sentences, (fast, slow, ratio) = sum(d.counts["sentences"] for d in kit.dev), medians(rounds)
    score, count, wrong = differences(rounds, bench.args.precision)
    numbers = np.random.default_rng(1)
    calls = [(numbers.permutation(len(kit.train_set))[:BATCH],) for _ in range(15)]
    steps = medians(in_turn(bench.device, kit.step, plain.step, calls))
    print(f"| {task} | {fast:.3f} | {slow:.3f} | {ratio:.2f} | {fast * sentences:.0f} | {slow * sentences:.0f} | "
          f"{100 * kit.flops() * fast / rate:.0f} % | {steps[0]:.2f} | {steps[1]:.2f} | {steps[2]:.2f} | "
          f"{score:.3f} ({count:.0f}) | {kit_peak:.0f} | {peak(bench):.0f} |", flush=True)
    return wrong


def some_points(options):
    """Points spread over the plane."""
    every = reproduce.points(lines_only=False)
    return every[::max(1, len(every) // options.points)][:options.points]


def alone(bench, options):
    """Kit beside baseline in one process; returns the exit code."""
    rate = matrix_rate(bench)
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s ({bench.args.precision}, {bench.device}, {torch.get_num_threads()} thread)\n")
    print("| task | points/s: kit | plain | ratio | sentences/s: kit | plain | share of the matrix rate | training steps/s: kit "
          "| plain | ratio | largest difference of a score (of a count) | peak MB: kit | plain |\n" + "|---" * 13 + "|")
    wrong = [task for task in options.task if compare(bench, task, options, rate)]
    print(f"\ndecoding, argmax is a tree: {decoding(bench, True):.0f} sentences/s; never: {decoding(bench, False):.0f}")
    for task in ("pos", "parsing"):
        print(f"reading and encoding {options.src} and {options.tgt}, train and dev, for {task}: "
              f"{reading(bench, task, (options.src, options.tgt)):.1f} s")
    if options.plane:
        print(f"plane of POS: {plane(bench, options):.1f} s")
    if options.train:
        model = reproduce.Model("pos", bench.args.encoder[0], (options.src,), 1)
        print(f"fine-tuning POS on {options.src}: {timed(bench.device, reproduce.finetune, bench, model)[0]:.1f} s")
    print(f"more processes: torchrun --nproc-per-node 2 tests/benchmark.py {shlex.join(sys.argv[1:])}")
    if wrong:
        print(f"FAILED: kit and baseline do not give the same scores for {', '.join(wrong)}.")
    return bool(wrong)


def plane(bench, options):
    """Seconds of a whole plane of POS, written to a file as a run does."""
    kit = Kit(bench, "pos", options)
    grid, todo = reproduce.Grid("pos", kit.encoder, options.src, options.tgt, 1), reproduce.points(lines_only=False)
    kit.point(0.0, 0.0)
    with tempfile.TemporaryFile() as f:
        return timed(bench.device, reproduce.evaluate_points, bench, kit.reader, grid, kit.ends, kit.dev, todo, f, "plane")[0]


def together(bench, options):
    """Print what all processes do at once beside one of them while the others wait."""
    bench.log(f"| task | points/s: one process | {bench.world} processes | ratio |\n|---|---|---|---|")
    for task in options.task:
        kit, points = Kit(bench, task, options), some_points(options)

        def work():
            for point in points:
                kit.point(*point)

        kit.point(0.0, 0.0)
        reproduce.barrier(bench)
        one = timed(bench.device, work)[0] if bench.rank == 0 else 0.0
        reproduce.barrier(bench)
        every = timed(bench.device, lambda: (work(), reproduce.barrier(bench)))[0]
        one, every = len(points) / max(one, 1e-9), bench.world * len(points) / every
        bench.log(f"| {task} | {one:.3f} | {every:.3f} | {every / one:.2f} |")
    return 0


def with_weights(name, folder):
    """The encoder's name, or a folder with random weights of its shape where it is a local folder without any."""
    if not Path(name).is_dir() or any(Path(name).glob("*.safetensors")):
        return name
    print(f"{name} has no weights: random ones of its shape are used.")
    torch.manual_seed(1)
    target = Path(folder, Path(name).resolve().name)
    shutil.copytree(name, target)
    AutoModel.from_config(AutoConfig.from_pretrained(name)).save_pretrained(target)
    return str(target)


def main(options):
    with tempfile.TemporaryDirectory() as out:
        argv = ["--out", out, "--encoder", with_weights(options.encoder, out), "--data", options.data, "--seeds", "1",
                "--src", options.src, "--tgt", options.tgt, "--task", *options.task]
        for flag in ("limit", "device", "precision"):
            if getattr(options, flag):
                argv += [f"--{flag}", str(getattr(options, flag))]
        bench = reproduce.Bench(reproduce.parse_arguments(argv), *reproduce.start_ranks())
        return (together if bench.world > 1 else alone)(bench, options)


if __name__ == "__main__":
    try:
        sys.exit(main(parse_arguments()))
    except (data.DataError, heads.ModelError) as e:
        sys.exit(f"benchmark.py: {e}")
