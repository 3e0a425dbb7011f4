"""How fast and how small the kit is beside the plain loop that one would write in ten lines (class Plain).

    python scripts/benchmark.py --data DATA --encoder FOLDER [FOLDER ...] --task pos --src en --tgt de

The kit trains three models for one epoch. Each way then times training steps and scores points of the plane
of the same three models; where counts differ by more than rounding, this exits with 1. Each way has a process
of its own, so that its peak memory is its own; they take turns, in alternating order, after a warm-up. Times
are medians, of processor time on a CPU; *ratio* is plain to kit, for times the median of each turn's ratio.
The share of the matrix rate counts products on real subwords alone, beside one large product in fp32. An
encoder folder without weights gets random ones. The flags not listed are those of reproduce.py, --limit is
500 if not given, and --precision is that of the three models.
"""

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoConfig, AutoModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data
import grids
import heads
import reproduce
import train
from results import KitError

BATCH = 32
TIES = 5   # decisions of a dev set that may differ in fp32: labels of equal score, up to rounding
COLUMNS = ("encoder", "way", "a step in fp32, s", "in bf16, s", "a point, s", "share of the matrix rate",
           "peak memory, GB", "a model, MB")

# ---- the two ways, each in a process of its own -----------------------------------------------------------

class Way:
    """What both ways share: data, scores, clock."""

    def __init__(self, args):
        self.run, [self.pair], self.out = reproduce.Run(args), reproduce.plan(args)[1], Path(args.out)
        self.task, self.gpu = reproduce.TASKS[self.pair.task], self.run.device.type == "cuda"
        reproduce.check_data(self.run, self.pair.models())
        self.train_set, *self.dev = (
            self.run.corpora.examples(*self.pair[:2], lang, split) for lang, split in
            ((self.pair.src, "train"), (self.pair.src, "dev"), (self.pair.tgt, "dev")))

    def timed(self, work, *args):
        """(seconds, result) of a call, the device's work included."""
        clock = time.perf_counter if self.gpu else time.process_time
        began, result = clock(), work(*args)
        torch.zeros(1, device=self.run.device).item()   # the device does one thing after the other
        return clock() - began, result

    @torch.no_grad()
    def point(self, a1, a2):
        """(seconds, counts [right, all] by language and score) of a point; operations a second of one large
        product beside it."""
        n = 8192 if self.gpu else 1024
        a = torch.randn(n, n, device=self.run.device)
        product = np.median([self.timed(torch.mm, a, a)[0] for _ in range(9)])
        seconds, counts = self.timed(lambda: [self.task.count(found, dev, None, None).tolist() for found, dev
                                              in zip(self.predictions(a1, a2), self.dev)])
        return seconds, counts, 2 * n ** 3 / product

    def peak(self):
        """Peak memory of this process so far in GB, on the GPU or on the CPU."""
        most, unit = getrusage(RUSAGE_SELF).ru_maxrss, 1 if sys.platform == "darwin" else 1024
        return (torch.cuda.max_memory_allocated() if self.gpu else most * unit) / 1e9

class Plain(Way):
    """As in any tutorial; subwords, batches of given sentences and scores are the kit's."""

    def __init__(self, args):
        super().__init__(args)
        self.takes_types = self.run.corpora.encoder(self.pair.task, self.pair.encoder).takes_types
        heads.load_encoder.cache_clear()   # the kit's, which has read the data
        self.model = torch.nn.Module()
        self.model.encoder = AutoModel.from_pretrained(heads.find(self.pair.encoder), dtype=torch.float32)
        self.model.head = torch.nn.Linear(self.model.encoder.config.hidden_size, len(self.task.labels))
        self.model.to(self.run.device)
        self.adam = torch.optim.AdamW(self.model.parameters(), lr=5e-4, weight_decay=0.0)
        self.files = [self.out / f"{number}.safetensors" for number in range(3)]

    def save(self):
        """Save the kit's three models as a plain loop saves its own, whole; megabytes of one."""
        start = {name: p.cpu() for name, p in self.model.state_dict().items()}
        for unit, path in zip(self.pair.models(), self.files):
            corner = {name.replace("head.out", "head"): p for name, p in self.run.trained(unit).items()}
            for name in [name for name in corner if name.endswith(".ids")]:
                ids, weight = corner.pop(name), name.replace(".ids", ".weight")
                corner[weight] = start[weight].index_copy(0, ids, corner[weight])
            safetensors.torch.save_file(start | corner, path)
        return path.stat().st_size / 1e6

    def logits(self, batch):
        """(B, N, C) of what is read of a batch."""
        more = {"token_type_ids": batch.types} if self.takes_types else {}
        states = self.model.encoder(input_ids=batch.ids, attention_mask=batch.mask, **more).last_hidden_state
        return self.model.head(states.flatten(0, 1)[batch.read])

    def step(self, number, precision):
        """Seconds of a training step, on the sentences that the kit takes."""
        order = data.batch_order(((self.pair.src, len(self.train_set)),), BATCH, self.pair.seed, 0)
        _, windows = order[number % len(order)]
        self.model.train()

        def learn():
            batch = self.train_set.batch(windows)
            with torch.autocast(self.run.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = self.logits(batch)
            loss = F.cross_entropy(logits.float().flatten(0, 1), batch.gold.flatten(), ignore_index=-1)
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()

        return self.timed(learn)[0]

    def load(self):
        """Make ready to score points."""
        self.adam = None
        self.model.eval().zero_grad()
        self.corners = [safetensors.torch.load_file(path, str(self.run.device)) for path in self.files]

    def predictions(self, a1, a2):
        both, src, tgt = self.corners
        self.model.load_state_dict({name: both[name] + a1 * (src[name] - both[name])
                                    + a2 * (tgt[name] - both[name]) for name in both})
        for dev in self.dev:
            batches = map(dev.batch, np.split(np.arange(len(dev)), range(BATCH, len(dev), BATCH)))
            yield torch.cat([self.logits(batch)[batch.real] for batch in batches]).argmax(-1, keepdim=True)

class Kit(Way):
    """What reproduce.py does."""

    def save(self):
        """Fine-tune the three models, without scoring them meanwhile; megabytes of one."""
        reproduce.train = self.train   # in the place of the loop that reproduce.finetune calls
        both, src, tgt = self.pair.models()
        for unit in (both, tgt, src):
            self.model = self.batches = None
            reproduce.finetune(self.run, unit)
        settings = self.settings._replace(steps=10 ** 9, warmup=0)   # the rate all but stays
        with open(self.out / "train.jsonl", "a+b") as journal:
            self.training = train.Training(self.model, settings, {}, journal)
        return src.path(self.out).stat().st_size / 1e6

    def train(self, model, batches, evaluate, settings, *more):
        self.model, self.batches = model, batches
        self.settings = settings._replace(evaluate_at=[settings.steps])
        return train.train(model, batches, lambda records: ({"mean": 0.0}, True), self.settings, *more)

    def step(self, number, precision):
        """Seconds of a training step."""
        kit, number = self.training, number % self.settings.steps
        kit.settings = kit.settings._replace(precision=precision)
        return self.timed(kit.steps, kit.step + 1, lambda _, parts: self.batches(number, parts),
                          tqdm(disable=True))[0]

    def load(self):
        """Make ready to score points."""
        self.model = self.training = self.batches = None
        self.plane = self.run.plane(self.pair)

    def predictions(self, a1, a2):
        self.plane.move(a1, a2)
        return [self.run.scorer.predictions(self.plane, dev) for dev in self.dev]

    def operations(self):
        """Of a point, on real subwords: two a parameter beyond the embeddings, and the attention."""
        encoder, config = self.plane.model.encoder, self.plane.model.encoder.config
        size = 2 * sum(p.numel() for name, p in encoder.named_parameters() if "embeddings" not in name)
        attention = 4 * config.num_hidden_layers * config.hidden_size
        return sum(size * dev.lengths.sum() + attention * np.square(dev.lengths).sum() for dev in self.dev)

# ---- measuring --------------------------------------------------------------------------------------------

OWN = []   # of a process: its way

def ask(way, args, method, *more):
    sys.stdout = sys.stderr   # the table alone goes to stdout
    OWN[:] = OWN or [way(args)]
    return getattr(OWN[0], method)(*more)

def process(way, args):
    """A function that calls a method of a way, (name, arguments), in a process of its own."""
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    return lambda *call: pool.submit(ask, way, args, *call).result()

def in_turn(both, method, calls):
    """[[what plain gave, what the kit gave] a call]; the first call is made twice, to warm up."""
    found = []
    for i, args in enumerate([calls[0], *calls]):
        gave = {each: each(method, *args) for each in both[::1 if i % 2 else -1]}
        found.append([gave[each] for each in both])
        print(method, *args, found[-1], file=sys.stderr, flush=True)
    return found[1:]

def compare(args, name):
    """Print an encoder's rows; returns what is said of them. Raises KitError where the ways differ."""
    both = plain, kit = [process(way, args) for way in (Plain, Kit)]
    sizes = [each("save") for each in (kit, plain)][::-1]   # the kit trains them
    seconds = [np.array(in_turn(both, "step", [(i, precision) for i in range(args.steps)]))
               for precision in ("fp32", "bf16")]                                          # (steps, 2) each
    plain("load"), kit("load")
    every = grids.points(lines_only=False)
    points = in_turn(both, "point", every[::len(every) // args.points][:args.points])
    took, counts, rate = (np.array([[each[i] for each in gave] for gave in points]) for i in range(3))
    seconds.append(took)
    shares, peaks = np.median(kit("operations") / took / rate, 0), [each("peak") for each in both]
    for i, way in enumerate(("plain", "kit")):
        row(name, way, *(f"{np.median(of[:, i]):.2f}" for of in seconds), f"{shares[i]:.0%}",
            f"{peaks[i]:.1f}", f"{sizes[i]:.0f}")
    row("", "ratio", *(f"{np.median(of[:, 0] / of[:, 1]):.1f}" for of in seconds), "",
        f"{peaks[0] / peaks[1]:.1f}", f"{sizes[0] / sizes[1]:.1f}")
    differ = np.abs(counts[:, 0] - counts[:, 1]).max()
    if differ > TIES:
        raise KitError(f"{name}: at a point, counts of kit and plain loop differ by {differ}; expected at "
                       f"most {TIES}.")
    return f"{name}: one product at {np.median(rate) / 1e9:.0f} GFLOP/s, counts differ by {differ} at most"

def row(*cells):
    print(f"| {' | '.join(cells)} |", flush=True)

def with_weights(name, folder, layers):
    """(encoder, what it is called); where it is a folder without weights, one with random weights."""
    called, given = heads.short_name(name), Path(name)
    if not given.is_dir() or any(given.glob("*.safetensors")):
        return name, called
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:   # whose peak is none of the ways'
        layers, whole = pool.submit(with_random_weights, name, f"{folder}/{called}", layers).result()
    some = f", {layers} of {whole} layers" if layers < whole else ""
    return f"{folder}/{called}", f"{called}'s shape{some}, random weights"

def with_random_weights(name, folder, layers=None):
    """Make a folder with an encoder of the shape and tokenizer of a local one, and random weights; (its
    layers, those of the local one)."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(name)
    whole = config.num_hidden_layers
    config.num_hidden_layers = min(layers or whole, whole)
    shutil.copytree(name, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    AutoModel.from_config(config).save_pretrained(folder)
    return config.num_hidden_layers, whole

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--points", type=int, default=5, help="points of the plane (default 5)")
    p.add_argument("--steps", type=int, default=10, help="training steps, in each precision (default 10)")
    p.add_argument("--layers", type=int, help="at most so many layers of an encoder with random weights")
    options, rest = p.parse_known_args()
    with tempfile.TemporaryDirectory() as out:
        defaults = "--task pos --src en --tgt de --seeds 1 --limit 500 --epochs 1 --lr 5e-4 --batch-size"
        args = reproduce.parse_arguments([*defaults.split(), str(BATCH), "--out", out, *rest])
        several = len(args.task + args.src + args.tgt) > 3 or "+" in args.src[0]
        if several or args.task[0] not in ("pos", "ner", "xnli"):
            raise KitError("expected one --task (pos, ner or xnli), one language of --src and one of --tgt.")
        vars(args).update(vars(options))
        row(*COLUMNS)
        row(*["---"] * len(COLUMNS))
        said = []
        for i, name in enumerate(args.encoder):
            folder, called = with_weights(name, f"{out}/encoders", args.layers)
            said.append(compare(argparse.Namespace(**vars(args) | {"encoder": [folder], "out": f"{out}/{i}"}),
                                called))
        limit = " ".join(map(str, args.limit))
        print(f"\n{args.task[0]} of {args.src[0]} and {args.tgt[0]}, --limit {limit}; "
              f"medians of {args.steps} steps and {args.points} points. {'; '.join(said)}.")

if __name__ == "__main__":
    try:
        main()
    except KitError as e:
        sys.exit(f"benchmark.py: {e}")
