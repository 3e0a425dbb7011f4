"""How fast the kit is beside the obvious way to do the same, on this machine. It is no part of the tests.

    python tests/benchmark.py --encoder FOLDER --data DATA                                 # one process
    torchrun --nproc-per-node 2 tests/benchmark.py --encoder FOLDER --data DATA            # a second one too
    python tests/benchmark.py --encoder FOLDER --data DATA --device cuda --plane --train   # whole jobs too

The plain baseline takes windows from the kit and does the rest as any tutorial would: load_state_dict at
every point, dev sentences in file order, batches of 32 padded to the longest, fp32, and for parsing the
labels of every pair of words and a spanning tree for every sentence. Kit and baseline take turns, after a
warm-up; medians are printed. Where counts differ by more than rounding, this says so and exits with 1.
Memory is the largest so far, of the GPU or of this process; the matrix rate is that of one large product.

--task (default all), --src (en), --tgt (de), --encoder, --data, --limit, --device and --precision (of the
kit's training) are those of reproduce.py. A local encoder folder without weights gets random ones.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoConfig, AutoModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import heads
import reproduce
import results
import train

BATCH = 32
LR = 5e-4     # high, since the three corners get few steps
TIES = 5      # decisions of a dev set that may differ in fp32: labels or trees of equal score, up to rounding
TF32 = 0.1    # what a score may differ by in tf32

# ---- the plain baseline -----------------------------------------------------------------------------------

class AllPairs(heads.Biaffine):
    """The parser without thrift: labels of every pair of words, a spanning tree for every sentence."""

    def labels(self, h, heads):
        dep = F.pad(self.inner(self.label_dep, h), (0, 1), value=1.0)
        head = F.pad(self.inner(self.label_head, h), (0, 1), value=1.0)                 # (B, N, D+1)
        every = torch.einsum("bxi,icj,byj->bxyc", dep, self.label, head)                # (B, N, N, C)
        return every.gather(2, heads[..., None, None].expand(-1, -1, 1, every.shape[-1]))[:, :, 0]

    def predict(self, h, batch):
        scores, trees = self.arcs(h, batch.real).double().cpu().numpy(), torch.zeros_like(batch.read)
        for tree, score, n in zip(trees, scores, batch.real.sum(1).tolist()):
            tree[:n] = torch.from_numpy(heads.best_tree(score[:n, :n]))
        return torch.stack([trees, self.labels(h, trees).argmax(-1)], -1)

class Plain:
    """The same data, parameters and scores, used as in any tutorial."""

    def __init__(self, kit):
        head, device = AllPairs if kit.pair.task == "parsing" else heads.Linear, kit.run.device
        encoder, labels = heads.load_encoder(kit.pair.encoder), reproduce.TASKS[kit.pair.task].labels
        self.model = heads.Model(encoder, head, len(labels)).to(device)
        self.corners = [{name: p.to(device) for name, p in corner.items()} for corner in kit.corners]
        self.adam = torch.optim.Adam(self.model.parameters(), lr=LR, betas=(0.9, 0.99))
        self.dev, self.score = kit.dev, kit.score

    @torch.no_grad()
    def point(self, a1, a2):
        """Counts [right, all], by language and score, at a point of the plane."""
        both, src, tgt = self.corners
        point = {n: both[n] + a1 * (src[n] - both[n]) + a2 * (tgt[n] - both[n]) for n in both}
        self.model.eval().load_state_dict(point)
        counts = []
        for dev in self.dev:
            batches = map(dev.batch, np.split(np.arange(len(dev)), range(BATCH, len(dev), BATCH)))
            counts.append(self.score(torch.cat([self.model(b)[b.real] for b in batches]), dev).tolist())
        return counts

    def step(self, batch):
        """One training step."""
        loss = self.model.train().loss(batch)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

# ---- the kit ----------------------------------------------------------------------------------------------

class Kit:
    """What reproduce.py does at a point and in a training step; its three corners are fine-tuned a little."""

    def __init__(self, run, task):
        self.run, self.corners, rng = run, [], np.random.default_rng(1)
        self.pair = reproduce.Pair(task, run.args.encoder[0], run.args.src[0], run.args.tgt[0], 1)
        self.score = heads.SCORES[reproduce.TASKS[task].metrics[0]]
        self.dev, train_sets = ([run.examples(task, self.pair.encoder, lang, split)
                                 for lang in self.pair[2:4]] for split in ("dev", "train"))
        for sets in (train_sets, train_sets[:1], train_sets[1:]):   # both, source, target
            self.begin()
            for i in range(run.args.steps):
                examples = sets[i % len(sets)]
                self.step(examples.batch(rng.integers(len(examples), size=BATCH)))
            self.corners.append({name: p.detach().cpu().clone() for name, p in self.model.named_parameters()})
        self.train_set = train_sets[0]
        self.begin()
        self.plane = reproduce.Plane(run.model(self.pair), *self.corners)

    def begin(self):
        """A model before its first step; its learning rate all but stays."""
        self.model = self.run.model(self.pair)
        settings = train.Settings(10 ** 9, LR, [], warmup=0.0, precision=self.run.args.precision)
        with open(Path(self.run.args.out, "train.jsonl"), "a+b") as journal:
            self.training = train.Training(self.model, settings, {}, journal)

    @torch.no_grad()
    def point(self, a1, a2):
        """Counts [right, all], by language and score, at a point of the plane."""
        self.plane.move(a1, a2)
        return [self.score(self.run.predictions(self.plane, dev), dev).tolist() for dev in self.dev]

    def step(self, batch):
        """One training step."""
        self.training.steps(self.training.step + 1, lambda step, parts: [batch], tqdm(disable=True))

    def operations(self):
        """Of a point, on real subwords: two a parameter beyond the embeddings, and the attention."""
        size, config = {"encoder": 0, "head": 0}, self.model.encoder.config
        for name, p in self.model.named_parameters():
            size[name.split(".")[0]] += 0 if "embeddings" in name else 2 * p.numel()
        attention = 4 * config.num_hidden_layers * config.hidden_size
        return sum(size["encoder"] * d.lengths.sum() + size["head"] * d.reads.sum()
                   + attention * np.square(d.lengths).sum() for d in self.dev)

# ---- measuring --------------------------------------------------------------------------------------------

def timed(run, work, *args):
    """(seconds, result) of a call, the device's work included."""
    began = time.perf_counter()
    result = work(*args)
    torch.zeros(1, device=run.device).item()   # the device does one thing after the other
    return time.perf_counter() - began, result

def in_turn(run, kit, plain, calls):
    """(calls a second of kit, of plain, their ratio, results of kit, of plain); the first call warms up too.
    The two go in alternating order; the ratio is the median over calls, whose two times lie side by side."""
    chosen, rounds = torch.get_float32_matmul_precision(), []
    for i, args in enumerate([calls[0], *calls]):
        took = {}
        for work in (kit, plain) if i % 2 else (plain, kit):
            torch.set_float32_matmul_precision(chosen if work == kit else "highest")
            took[work] = timed(run, work, *args)
        rounds.append((*took[kit], *took[plain]))
    torch.set_float32_matmul_precision(chosen)
    fast, found, slow, wanted = map(np.array, zip(*rounds[1:]))
    return 1 / np.median(fast), 1 / np.median(slow), np.median(slow / fast), found, wanted

def matrix_rate(run):
    """Operations a second of one large matrix product in the precision that points are scored in."""
    n = 8192 if run.device.type == "cuda" else 1024
    a = torch.randn(n, n, device=run.device)
    return 2 * n ** 3 / np.median([timed(run, torch.mm, a, a)[0] for _ in range(10)][1:])

def decoding(run, trees):
    """Sentences a second of heads.decode, 32 at once, 10 to 40 words; argmax is always a tree, or never."""
    rng, batches = np.random.default_rng(1), []
    for n in range(11, 42):   # with the root
        scores, word = rng.standard_normal((32, n, n)), np.arange(1, n)
        if trees:
            scores[:, word, word - 1] += 100.0
        else:
            scores[:, 1, 2] = scores[:, 2, 1] = 100.0   # two words that want each other
        scores[:, word, word] = -np.inf
        scores = torch.tensor(scores, dtype=torch.float32, device=run.device)
        batches.append((scores, torch.ones(32, n, dtype=torch.bool, device=run.device)))
    took = [timed(run, lambda: [heads.decode(*b) for b in batches])[0] for _ in range(4)]
    return 32 * len(batches) / np.median(took[1:])

def reading(run, task):
    """Seconds to read and encode the train and dev files of both languages."""
    args, fresh = run.args, reproduce.Run(run.args)   # it has encoded nothing yet
    files = [(lang, split) for lang in (args.src[0], args.tgt[0]) for split in ("train", "dev")]
    return sum(timed(run, fresh.examples, task, args.encoder[0], *file)[0] for file in files)

def plane(run):
    """Seconds of a whole plane of POS, from three saved models to its file, as in a run."""
    kit = Kit(run, "pos")
    for unit, corner in zip(kit.pair.models(), kit.corners):
        path = unit.path(run.args.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"config": reproduce.model_config(run, unit), "digest": results.digest(corner)}
        results.save_tensors(path, corner, about)
    return timed(run, reproduce.evaluate, run, kit.pair)[0]

def peak(run):
    """Peak memory of this process so far in MB, on the GPU or on the CPU."""
    gpu = run.device.type == "cuda"
    return torch.cuda.max_memory_allocated() / 1e6 if gpu else getrusage(RUSAGE_SELF).ru_maxrss / 1e3

def compare(run, task, rate):
    """Print a task's row; returns whether kit and baseline disagree."""
    kit = Kit(run, task)
    kit.point(0.0, 0.0)
    kit_peak, plain = peak(run), Plain(kit)
    fast, slow, ratio, found, wanted = in_turn(run, kit.point, plain.point, run.args.points)
    score = 100 * np.abs(found[..., 0] / found[..., 1] - wanted[..., 0] / wanted[..., 1]).max()
    count, sentences = np.abs(found - wanted).max(), sum(d.counts["sentences"] for d in kit.dev)
    windows = np.random.default_rng(1).integers(len(kit.train_set), size=(15, BATCH))
    steps = in_turn(run, kit.step, plain.step, [(kit.train_set.batch(w),) for w in windows])
    print(f"| {task} | {fast:.3f} | {slow:.3f} | {ratio:.2f} | {fast * sentences:.0f} "
          f"| {slow * sentences:.0f} | {kit.operations() * fast / rate:.0%} "
          f"| {steps[0]:.2f} | {steps[1]:.2f} | {steps[2]:.2f} "
          f"| {score:.3f} ({count:.0f}) | {kit_peak:.0f} | {peak(run):.0f} |", flush=True)
    return count > TIES if run.scored_in == "fp32" else score > TF32

def alone(run):
    """Print kit beside baseline in one process. Raises KitError if their scores differ."""
    args, rate = run.args, matrix_rate(run)
    print(f"{run.device}, training in {args.precision}, scoring in {run.scored_in}, threads: "
          f"{torch.get_num_threads()}, matrix products at {rate / 1e9:.0f} GFLOP/s\n\n"
          "| task | points/s: kit | plain | ratio | sentences/s: kit | plain | kit's matrix rate | steps/s: "
          "kit | plain | ratio | difference of a score (count) | peak MB: kit | and plain |\n|" + "---|" * 13)
    wrong = [task for task in args.task if compare(run, task, rate)]
    print(f"\ndecoding, sentences/s: {decoding(run, True):.0f} where argmax is a tree, "
          f"{decoding(run, False):.0f} where it never is")
    print(f"reading all files: pos {reading(run, 'pos'):.1f} s, parsing {reading(run, 'parsing'):.1f} s")
    if args.train:
        model = reproduce.Finetuned("pos", args.encoder[0], (args.src[0],), 1)
        print(f"fine-tuning POS: {timed(run, reproduce.finetune, run, model)[0]:.1f} s")
    if args.plane:
        print(f"a plane of POS: {plane(run):.1f} s")
    if wrong:
        raise results.KitError(f"kit and baseline do not give the same scores for {', '.join(wrong)}.")

def together(run):
    """Print what all processes do at once beside what one does while the others wait."""
    if run.ranks.rank == 0:
        print("| task | points/s: one process | all | ratio |\n|---|---|---|---|")
    for task in run.args.task:
        kit, points = Kit(run, task), run.args.points
        kit.point(0.0, 0.0)   # to warm up
        run.ranks.barrier()
        one = sum(timed(run, kit.point, *point)[0] for point in points if run.ranks.rank == 0)
        run.ranks.barrier()
        began = time.perf_counter()
        for point in points:
            kit.point(*point)
        run.ranks.barrier()
        every = time.perf_counter() - began   # until the slowest is done
        if run.ranks.rank == 0:
            one, rate = len(points) / one, run.ranks.world * len(points) / every
            print(f"| {task} | {one:.3f} | {rate:.3f} | {rate / one:.2f} |", flush=True)

def with_weights(name, folder):
    """The encoder's name, or a folder with random weights of its shape where it is a folder without any."""
    if Path(name).is_dir() and not any(Path(name).glob("*.safetensors")):
        print(f"{name} has no weights: random ones of its shape are used.")
        return with_random_weights(name, f"{folder}/encoder")
    return name

def with_random_weights(name, folder):
    """Make a folder with an encoder of the same shape and tokenizer as a local one, and random weights."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.from_pretrained(name))
    shutil.copytree(name, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    model.save_pretrained(folder)
    return folder

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--points", type=int, default=5, help="points of the plane to time (default 5)")
    p.add_argument("--steps", type=int, default=100, help="fine-tuning steps of each corner (default 100)")
    p.add_argument("--plane", action="store_true", help="also time a whole plane of POS")
    p.add_argument("--train", action="store_true", help="also time 5 epochs of fine-tuning POS on the source")
    options, rest = p.parse_known_args()
    with tempfile.TemporaryDirectory() as out:
        defaults = f"--task pos ner xnli parsing --src en --tgt de --seeds 1 --out {out}".split()
        args = reproduce.parse_arguments([*defaults, *rest])
        args.encoder = [with_weights(args.encoder[0], out)]
        vars(args).update(vars(options))
        every = reproduce.points(lines_only=False)
        args.points = every[::len(every) // args.points][:args.points]
        run = reproduce.Run(args)
        (together if run.ranks.world > 1 else alone)(run)

if __name__ == "__main__":
    try:
        main()
    except results.KitError as e:
        sys.exit(f"benchmark.py: {e}")
