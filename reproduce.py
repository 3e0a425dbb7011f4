"""Reproduce "Zero-shot Cross-lingual Transfer is Under-specified Optimization" (Wu, Van Durme & Dredze 2022).

Fine-tune one multilingual encoder on a source language, on a target language and on both, then score every model on the
line and in the plane between the three. If the source score stays flat while the target score climbs, the source
language alone does not determine a good model.

    python reproduce.py --demo                                     # two invented languages, no network, no GPU
    python reproduce.py --task pos --src ar --tgt de               # one task, one pair, mBERT, three seeds
    python reproduce.py --task pos ner --src en --tgt de zh --encoder mbert xlmr --lines-only
    python reproduce.py --paper --dry-run                          # the paper's whole matrix: what would be run
    torchrun --nproc-per-node 8 reproduce.py --paper               # the same on eight GPUs

The same command again continues where the last one stopped, whatever stopped it.
"""

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import time

PAPER = dict(encoder=["mbert", "xlmr"], task=["xnli", "ner", "pos", "parsing"], src=["en", "ar"],
             tgt=["ar", "de", "es", "fr", "hi", "ru", "vi", "zh"], seeds=[1, 2, 3])               # Sec. 4
FINE_TUNING = dict(epochs=5, batch_size=32, lr=2e-5)                                              # App. A


def parse_arguments(argv=None):
    """The settings of a run; exits with a sentence and code 2 where they make no sense."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def at_least(low, kind=int):
        def number(text):
            try:
                value = kind(text)
            except ValueError:
                value = math.nan
            if not low <= value < 1e12:
                raise argparse.ArgumentTypeError(f"{text!r} is no number of at least {low}{' and below 1e12' * (value > low)}")
            return value
        return number

    g = p.add_argument_group("what to run")
    g.add_argument("--task", nargs="+", choices=PAPER["task"], metavar="TASK", help="xnli, ner, pos, parsing")
    g.add_argument("--src", nargs="+", metavar="LANG", help="source languages; every pair of --src and --tgt is run")
    g.add_argument("--tgt", nargs="+", metavar="LANG", help="target languages: ar de en es fr hi ru vi zh")
    g.add_argument("--encoder", nargs="+", metavar="NAME",
                   help="mbert, xlmr, a name on the hub or a local folder (default mbert)")
    g.add_argument("--seeds", nargs="+", type=at_least(0), metavar="N", help="default 1 2 3")
    g.add_argument("--paper", action="store_true",
                   help="the paper's whole matrix, 2 encoders, 4 tasks, 15 pairs, 3 seeds; the flags above narrow it")
    g.add_argument("--demo", action="store_true", help="two invented languages and a tiny encoder, pretrained here")
    g.add_argument("--dry-run", action="store_true", help="print the plan and what of it is done, and stop")
    g = p.add_argument_group("fine-tuning (defaults: App. A of the paper; the demo has its own)")
    g.add_argument("--epochs", type=at_least(1), metavar="N", help="default 5")
    g.add_argument("--batch-size", type=at_least(1), metavar="N", help="default 32; lower it when memory runs out")
    g.add_argument("--lr", type=at_least(1e-12, float), metavar="X", help="peak learning rate, default 2e-5")
    g.add_argument("--limit", type=at_least(1), metavar="N", help="the first N training and dev sentences, for a look")
    g = p.add_argument_group("interpolation")
    g.add_argument("--part", choices=["all", "encoder", "head"], default="all",
                   help="the parameters that are interpolated, the others stay the bilingual model's (default all)")
    g.add_argument("--lines-only", action="store_true", help="Eq. 1 and 2 only, 65 points instead of 465")
    g = p.add_argument_group("where")
    g.add_argument("--data", metavar="DIR", help="folder of the corpora, downloaded if absent (default data)")
    g.add_argument("--out", metavar="DIR", help="folder of the results (default results, or results/demo)")
    g.add_argument("--device", metavar="NAME", help="cuda or cpu (default cuda if there is one)")
    g.add_argument("--precision", choices=["bf16", "fp32"], help="default bf16 on cuda, fp32 on cpu")
    args = p.parse_args(argv)

    args.out = args.out or ("results/demo" if args.demo else "results")
    if args.demo:
        if args.src or args.tgt or args.encoder or args.paper or args.data:
            p.error("--demo brings its own languages, encoder and data: leave out --src, --tgt, --encoder, --data, --paper")
        args.src, args.tgt, args.encoder, args.data = ["A"], ["B"], [f"{args.out}/encoder"], f"{args.out}/data"
    for name, value in PAPER.items():
        if args.paper or name == "seeds" or args.demo and name == "task":
            setattr(args, name, getattr(args, name) or value)
    args.encoder, args.data = args.encoder or ["mbert"], args.data or "data"
    for name in ("task", "src", "tgt"):
        if not getattr(args, name):
            p.error(f"--{name} is missing: name one or more, or use --demo or --paper")
    if not any(s != t for s in args.src for t in args.tgt):
        p.error(f"--src and --tgt are both {args.src[0]}: a pair needs two languages")
    return args


CHILD = "REPRODUCE_CHILD"  # set in the environment of the processes that launch() starts


def launch(args):
    """Run this command as one single-threaded process per core; returns the exit code. They stop when this one is gone."""
    processes = min(CORES, 3 * len(args.task) * len(args.seeds))   # one model each, at least
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = {**os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [subprocess.Popen([sys.executable, *sys.argv], stdin=subprocess.PIPE,
                                 env=env | {"RANK": str(r), "LOCAL_RANK": str(r), CHILD: "1"}) for r in range(processes)]
    try:
        while None in (codes := [c.poll() for c in children]) and not any(codes):
            time.sleep(0.05)
    except KeyboardInterrupt:
        return stopped(args)
    finally:
        for c in children:
            c.stdin.close()
    return max(c.wait() for c in children)


def stopped(args):
    """What Ctrl-C leaves behind; returns the exit code."""
    print(f"\nStopped. What is finished is saved in {args.out}; the same command continues from there.", file=sys.stderr)
    return 130


# The slow imports come after parsing, so that --help and a wrong flag are answered at once.
ARGS = parse_arguments() if __name__ == "__main__" else None
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
if ARGS and ARGS.demo and not ARGS.dry_run and ARGS.device in (None, "cpu") and "RANK" not in os.environ and CORES > 1:
    sys.exit(launch(ARGS))   # the tiny encoder gains from every core
if ARGS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until run() takes over, Ctrl-C just ends the process

import fcntl  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import shlex  # noqa: E402
import threading  # noqa: E402
from contextlib import contextmanager, nullcontext  # noqa: E402
from datetime import timedelta  # noqa: E402
from functools import lru_cache  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import safetensors  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tqdm import tqdm  # noqa: E402

import data  # noqa: E402
import demo  # noqa: E402
import heads  # noqa: E402
import plot  # noqa: E402
from data import DataError  # noqa: E402
from heads import Encoder, load_encoder  # noqa: E402

FORMAT = 1  # of the result files; raised when an older folder can no longer be continued
PLANE = [round(0.1 * i, 1) for i in range(-5, 16)]                                                 # Sec. 4
LINE = sorted(PLANE + [0.025, 0.05, 0.075, 0.125, 0.15, 0.175, 0.825, 0.85, 0.875, 0.925, 0.95, 0.975])  # footnote 5
DEV_SCORINGS = 4  # an epoch


class Task(NamedTuple):
    """Everything that tells one task from another."""
    metrics: tuple   # names of the scores; the first one is the task's
    file: object     # (folder, lang, split) -> path, fetched if absent
    read: object     # (path, lang) -> examples
    encode: object   # (examples, tokenizer, split, label) -> Encoded
    labels: tuple
    head: type
    score: object    # (predictions, dev set) -> counts


TASKS = {
    "xnli": Task(("accuracy",), data.xnli_file, data.read_xnli, data.encode_pairs, data.NLI, heads.Linear, heads.accuracy),
    "ner": Task(("span F1",), data.ner_file, data.read_ner, data.encode_words, data.BIO, heads.Linear, heads.span_f1),
    "pos": Task(("accuracy",), data.ud_file, data.read_pos, data.encode_words, data.UPOS, heads.Linear, heads.accuracy),
    "parsing": Task(("LAS", "UAS"), data.ud_file, data.read_trees, data.encode_trees, data.RELATIONS, heads.Biaffine,
                    heads.attachment),
}


# -------------------------------------------------------------------------------------------------------------- plan

class Model(NamedTuple):
    """One fine-tuned model: langs has one language, or two in alphabetical order for a bilingual model."""
    task: str
    encoder: str
    langs: tuple
    seed: int

    def folder(self, out):
        return Path(out, "models", self.task, label(self.encoder), "-".join(self.langs), f"seed{self.seed}")


class Grid(NamedTuple):
    """One plane: a source, a target and the bilingual model of one task, encoder and seed."""
    task: str
    encoder: str
    src: str
    tgt: str
    seed: int

    def models(self):
        """The three corners: source, target, both."""
        return [Model(self.task, self.encoder, langs, self.seed)
                for langs in ((self.src,), (self.tgt,), tuple(sorted((self.src, self.tgt))))]

    def path(self, out, part):
        return Path(out, "grids", self.task, label(self.encoder), f"{self.src}-{self.tgt}",
                    f"seed{self.seed}{'' if part == 'all' else '.' + part}.jsonl")


def label(encoder):
    """An encoder's name in paths and figures: a local folder's own name, a hub name without its slash."""
    local = Path(encoder).is_dir() or encoder.count("/") > 1
    return Path(encoder).resolve().name if local else encoder.replace("/", "--")


def plan(args):
    """(models, grids) of a run: every grid of the chosen matrix, and each distinct model once."""
    for lang in [*args.src, *args.tgt]:
        if lang not in data.TREEBANKS:
            raise DataError(f"There is no language {lang!r}; there are {', '.join(sorted(data.TREEBANKS))}.")
    grids = [Grid(*g) for g in dict.fromkeys((t, e, s, g, n) for t in args.task for e in args.encoder for s in args.src
                                             for g in args.tgt if s != g for n in args.seeds)]
    models = list(dict.fromkeys(m for g in grids for m in g.models()))
    if args.demo and "pos" in args.task:  # the control: no pretraining, source only
        models += [Model("pos", control(args), ("A",), n) for n in dict.fromkeys(args.seeds)]
    return models, grids


def control(args):
    return f"{args.out}/encoder-not-pretrained"


def points(lines_only):
    """Distinct points (a1, a2) of Eq. 3, the lines first: Eq. 1 at a is (1-a, 0), Eq. 2 at a is (0, 1-a)."""
    line = [(round(1 - a, 3), 0.0) for a in LINE] + [(0.0, round(1 - a, 3)) for a in LINE]
    return list(dict.fromkeys(line + ([] if lines_only else [(a1, a2) for a1 in PLANE for a2 in PLANE])))


def points_of(args, g):
    """The points of one grid; the demo spares its reader all planes but one."""
    return points(args.lines_only or args.demo and (g.task, g.seed) != ("pos", args.seeds[0]))


def settings(args, task):
    """Fine-tuning settings of a task: what was asked for, else the demo's, else the paper's."""
    chosen = FINE_TUNING | (demo.SETTINGS[task] if args.demo else {})
    return chosen | {k: getattr(args, k) for k in chosen if getattr(args, k) is not None} | dict(
        limit=args.limit, precision=args.precision)


# ------------------------------------------------------------------------------------------------------------- bench

class Bench:
    """What a process keeps at hand: its settings, its device, its rank, and what it has loaded."""

    def __init__(self, args, rank=0, world=1):
        self.args, self.rank, self.world = args, rank, world
        name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise DataError(f"--device {name}: there is no CUDA device here; leave the flag out to compute on the CPU.")
        if name == "cuda":  # more processes than GPUs share them
            name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
        try:
            self.device = torch.device(name)
            torch.zeros(1, device=self.device).item()   # is it really there?
        except (RuntimeError, AssertionError) as e:
            raise DataError(f"--device {name} cannot be used ({str(e).splitlines()[0]}); expected cuda, cuda:0 or cpu.") from None
        args.precision = args.precision or ("bf16" if self.device.type == "cuda" else "fp32")
        if self.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # threads fight on small models, and another number would change the last digits

    def log(self, text):
        tqdm.write(text)   # around the progress bars
        sys.stdout.flush()

    @lru_cache(maxsize=1)
    def reader(self, encoder, task):
        return heads.Reader(load_encoder(encoder), TASKS[task].head, len(TASKS[task].labels), self.device)

    @lru_cache(maxsize=64)
    def examples(self, task, encoder, lang, split):
        """A corpus file as an Encoded set on the device."""
        t = TASKS[task]
        return data.load(t.file(self.args.data, lang, split), lang, split, t.read, t.encode,
                         load_encoder(encoder).tokenizer, self.args.limit).to(self.device)

    @lru_cache(maxsize=None)
    def digests(self, task, lang):
        """SHA-256 of a language's train and dev file."""
        files = [TASKS[task].file(self.args.data, lang, split) for split in ("train", "dev")]
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]

    @lru_cache(maxsize=None)
    def encoder_digest(self, encoder):
        return load_encoder(encoder).digest

    def precise(self):
        """The precision of encoder and head; losses, parameters and counts are exact in any case."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.args.precision == "bf16" else nullcontext()

    def cast(self, theta):
        """theta (P,) in the precision to compute in, cast once for the whole encoder."""
        return theta.bfloat16() if self.args.precision == "bf16" else theta

    @torch.no_grad()
    def counts(self, reader, theta, task, dev):
        """Counts (S, 2) of a dev set under theta (P,), left on the device: the one way a model is scored, anywhere."""
        reader.eval()
        size = self.args.batch_size or FINE_TUNING["batch_size"]
        # On the CPU a batch costs what some 1e8 operations cost, and padding is not worth more than that.
        batches = dev.batches(size * 40, 3e8 / reader.split) if self.device.type == "cpu" else dev.batches(size * 512)
        with self.precise():
            found = reader.run(self.cast(theta), *batches)
        pred = torch.empty(len(dev.read) + 1, found[0].shape[-1], dtype=torch.long, device=self.device)
        for batch, labels in zip(batches, found):
            pred[batch.rows.flatten()] = labels.flatten(0, 1)                  # padding lands in the spare last row
        return TASKS[task].score(pred[:-1], dev)


def scores(counts):
    """Scores from 0 to 100 of counts (S, 2) on any device."""
    return [round(100 * right / all_, 4) if all_ else 0.0 for right, all_ in counts.tolist()]


# ------------------------------------------------------------------------------------------------------------- files

@contextmanager
def locked(path):
    """The file opened for reading and appending by this process alone. Raises DataError if another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "a+b") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"Another process is writing {path}: wait for it, or give another --out.") from None
            yield f
    except OSError as e:
        e.filename = e.filename or str(path)   # a full disk gives no name
        raise


def records(f, path):
    """The JSON lines of an open file; a torn last line, left by a killed process, is cut off to be done again."""
    f.seek(0)
    content = f.read()
    whole = content[:content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        f.truncate(len(whole))
    try:
        return [dict(json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError):
        raise DataError(f"{path} is damaged: a line in it is no JSON. Delete the file; the same command makes it again.") from None


def append(f, record):
    f.write(json.dumps(record).encode() + b"\n")
    f.flush()


def save(path, tensors, about):
    """Write tensors and a JSON-able dict as safetensors under a temporary name and move the file into place."""
    temporary = path.with_suffix(".tmp")
    for left in path.parent.glob(".tmp*"):   # the library has temporary names of its own; these are of killed processes
        left.unlink(missing_ok=True)
    try:
        safetensors.torch.save_file(tensors, temporary, {"about": json.dumps(about)})
        os.replace(temporary, path)
    except safetensors.SafetensorError as e:
        raise DataError(f"{path} could not be written ({e}): make room there, or give another --out.") from None
    finally:
        temporary.unlink(missing_ok=True)


def load(path, names=()):
    """(about, {name: tensor}) of a file made by save; all tensors if names is None. Raises DataError."""
    try:
        with safetensors.safe_open(path, "pt") as f:
            return ({"config": {}} | json.loads(f.metadata()["about"]),
                    {n: f.get_tensor(n) for n in (f.keys() if names is None else names)})
    except FileNotFoundError:
        raise DataError(f"{path} is gone; the same command makes it again.") from None
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as e:
        raise DataError(f"{path} is torn or not of this kit ({e}). Delete it; the same command makes it again.") from None


def check_same(want, have, path):
    """Raise DataError, naming the first setting that differs, unless a file was made with the settings now asked for."""
    for key in want:
        if want[key] != have.get(key):
            raise DataError(f"{path} was made with {key} {have.get(key)}, this run asks for {want[key]}. "
                            "Ask for the same, give another --out, or delete that file.")


def digest(theta):
    return hashlib.sha256(theta.cpu().numpy()).hexdigest()


# ------------------------------------------------------------------------------------------------------- fine-tuning

def model_config(bench, m):
    """Everything that decides a model's parameters, so that a file made otherwise is never taken for it."""
    return {"format": FORMAT, "task": m.task, "encoder": label(m.encoder), "langs": list(m.langs), "seed": m.seed,
            **settings(bench.args, m.task), "encoder_digest": bench.encoder_digest(m.encoder),
            "data": {lang: bench.digests(m.task, lang) for lang in m.langs}}


def finetune(bench, m):
    """Fine-tune one model and leave model.safetensors and train.jsonl in its folder (App. A)."""
    folder, config = m.folder(bench.args.out), model_config(bench, m)
    name = f"{m.task} {label(m.encoder)} {'+'.join(m.langs)} seed {m.seed}"
    if (folder / "model.safetensors").exists():
        check_same(config, load(folder / "model.safetensors")[0]["config"], folder / "model.safetensors")
        clear(folder)
        return bench.log(f"{name}: already trained, in {folder}")
    began = time.time()
    with locked(folder / "train.jsonl") as journal:
        if (folder / "model.safetensors").exists():   # another process was faster
            return finetune(bench, m)
        run = Training(bench, m, config, folder / "state.safetensors", journal)
        with tqdm(total=run.marks[-1], initial=run.step, desc=name, unit="step", leave=False,
                  disable=None if bench.rank == 0 else True) as bar:
            while run.step < run.marks[-1]:
                run.segment(bar, name)
        best = run.best.cpu()
        save(folder / "model.safetensors", {n: v.contiguous() for n, v in run.reader.views(best).items()},
             {"config": config, "digest": digest(best), **run.about})
        clear(folder)
    bench.log(f"{name}: {run.about['score']} after {run.about['best_step']} of {run.step} steps, "
              f"{time.time() - began:.0f} s")


def clear(folder):
    """Remove what only an unfinished training needs, and what a killed one left behind."""
    for left in [folder / "state.safetensors", *folder.glob("*.tmp"), *folder.glob(".tmp*")]:
        left.unlink(missing_ok=True)


class Training:
    """The state of one fine-tuning between two dev scorings; it can be saved and taken up again."""

    def __init__(self, bench, m, config, path, journal):
        self.bench, self.m, self.config, self.path, self.journal = bench, m, config, path, journal
        self.reader = bench.reader(m.encoder, m.task)
        self.sets = {lang: [bench.examples(m.task, m.encoder, lang, s) for s in ("train", "dev")] for lang in m.langs}
        self.per_epoch = sum(-(-len(train) // config["batch_size"]) for train, _ in self.sets.values())
        scorings = range(1, DEV_SCORINGS * config["epochs"] + 1)
        self.marks = sorted({-(-k * self.per_epoch // DEV_SCORINGS) for k in scorings})   # steps after which dev is scored
        self.theta = self.reader.start(m.seed).to(bench.device)
        self.theta.grad = torch.zeros_like(self.theta)
        self.adam = torch.optim.Adam([self.theta], lr=0.0, betas=(0.9, 0.99), eps=1e-8, fused=True)
        self.step, self.best, self.about = 0, None, {"best_step": 0, "score": -1.0}
        self.saved, self.cost = time.time(), 0.0
        past = records(journal, journal.name)
        if path.exists():
            self.restore(past)
        else:
            journal.truncate(0)

    def restore(self, past):
        """Take up the last saved state, and drop the dev scorings that were logged after it."""
        about, tensors = load(self.path, None)
        check_same(self.config, about["config"], self.path)
        try:
            self.step, self.about = about["step"], about["about"]
            past = [record for record in past if record["step"] <= self.step]
            moved = {n: t.to(self.bench.device) for n, t in tensors.items()}
            self.theta.copy_(moved["theta"])
            self.best = moved["best"]
            self.adam.state[self.theta] = {"step": torch.tensor(float(self.step), device=self.bench.device),
                                           "exp_avg": moved["exp_avg"], "exp_avg_sq": moved["exp_avg_sq"]}
        except (KeyError, TypeError, RuntimeError) as e:
            raise DataError(f"{self.path} or {self.journal.name} is damaged ({e!r}). Delete both; "
                            "the same command trains this model anew.") from None
        # Cut, not written anew: a process killed here leaves all lines or the right ones.
        self.journal.truncate(sum(len(json.dumps(record)) + 1 for record in past))
        self.bench.log(f"{self.path.parent}: continued after step {self.step}")

    def segment(self, bar, name):
        """Train up to the next dev scoring, score, keep the best."""
        last = min(mark for mark in self.marks if mark > self.step)
        # Seeded anew in each segment, so that a resumed run draws the same dropout masks.
        torch.manual_seed(self.m.seed * 1_000_003 + self.step)
        self.reader.train()
        total, count = torch.zeros((), device=self.bench.device), last - self.step
        while self.step < last:
            epoch, i = divmod(self.step, self.per_epoch)
            lang, windows = batch_order(self.sets, self.config["batch_size"], self.m.seed, epoch)[i]
            self.adam.param_groups[0]["lr"] = self.config["lr"] * warmup_decay(self.step, self.marks[-1])
            with self.bench.precise():
                total += self.reader.gradient(self.bench.cast(self.theta), self.sets[lang][0].batch(windows), self.theta.grad)
            self.adam.step()
            self.step += 1
            bar.update()
        self.score(total.item() / count, name)

    def score(self, loss, name):
        if not math.isfinite(loss):
            for path in (self.path, Path(self.journal.name)):
                path.unlink(missing_ok=True)
            raise DataError(f"{name}: the loss became {loss} before step {self.step}; nothing of it was kept. "
                            "Try a lower --lr.")
        task, theta = self.m.task, self.theta
        found = {lang: scores(self.bench.counts(self.reader, theta, task, dev)) for lang, (_, dev) in self.sets.items()}
        record = {"step": self.step, "lr": self.adam.param_groups[0]["lr"], "loss": round(loss, 6)}
        for i, metric in enumerate(TASKS[task].metrics):
            record["score" if i == 0 else metric] = {lang: s[i] for lang, s in found.items()}
        mean = round(sum(record["score"].values()) / len(found), 4)
        if mean > self.about["score"]:
            self.best, self.about = theta.clone(), {"best_step": self.step, "score": mean}
        append(self.journal, record)
        # A save may cost a tenth of the time since the last one, so that a large model is not kept waiting for the disk.
        if self.step < self.marks[-1] and time.time() - self.saved >= 10 * self.cost:
            began, state = time.time(), self.adam.state[self.theta]
            save(self.path, {"theta": theta, "best": self.best, "exp_avg": state["exp_avg"],
                             "exp_avg_sq": state["exp_avg_sq"]},
                 {"config": self.config, "step": self.step, "about": self.about})
            self.saved, self.cost = time.time(), time.time() - began


@lru_cache(maxsize=1)
def _batch_order(sizes, batch_size, seed, epoch):
    rng = np.random.default_rng([seed, epoch])
    batches = [(lang, chunk) for lang, n in sizes
               for chunk in np.split(rng.permutation(n), range(batch_size, n, batch_size))]
    return [batches[i] for i in rng.permutation(len(batches))]


def batch_order(sets, batch_size, seed, epoch):
    """[(lang, window numbers)] of an epoch: a batch holds one language, the batches of all are shuffled together."""
    return _batch_order(tuple((lang, len(train)) for lang, (train, _) in sets.items()), batch_size, seed, epoch)


def warmup_decay(step, total):
    """Share of the peak learning rate at a step: linear warm-up over the first 10 %, then linear decay to 0 (App. A)."""
    warm = int(0.1 * total)
    return step / warm if step < warm else (total - step) / max(1, total - warm)


# ----------------------------------------------------------------------------------------------------- interpolation

def corners(bench, g):
    """ends (3, P) on the device: both, src, tgt. Parameters outside --part are those of both."""
    reader, args, ends = bench.reader(g.encoder, g.task), bench.args, []
    for m in g.models():
        path = m.folder(args.out) / "model.safetensors"
        about, tensors = load(path, None)
        try:
            theta = reader.flat(tensors)
        except KeyError:
            theta = torch.zeros(0)
        if digest(theta) != about.get("digest"):
            raise DataError(f"{path} does not hold the parameters it was saved with: delete it and run the same command again.")
        ends.append(theta)
    src, tgt, both = ends
    for end in (src, tgt):
        end[still(reader, args.part)] = both[still(reader, args.part)]
    return torch.stack([both, src, tgt]).to(bench.device)


def still(reader, part):
    """The slice of theta that is not interpolated (footnote 2)."""
    return {"all": slice(0, 0), "encoder": slice(reader.split, None), "head": slice(0, reader.split)}[part]


def geometry(ends):
    """Norms of d_src and d_tgt, their ratio, and the angle between them in degrees, in float64 (App. B)."""
    sums = torch.zeros(3, dtype=torch.float64)
    for both, src, tgt in zip(*(end.split(1 << 22) for end in ends)):
        s, t = src.double() - both.double(), tgt.double() - both.double()
        sums += torch.stack([s @ s, t @ t, s @ t]).cpu()
    norm_src, norm_tgt = sums[0].sqrt().item(), sums[1].sqrt().item()
    if not norm_src or not norm_tgt:
        return {"norm_src": norm_src, "norm_tgt": norm_tgt, "norm_ratio": None, "angle": None}
    cosine = max(-1.0, min(1.0, sums[2].item() / norm_src / norm_tgt))
    return {"norm_src": norm_src, "norm_tgt": norm_tgt, "norm_ratio": norm_src / norm_tgt,
            "angle": math.degrees(math.acos(cosine))}


def interpolate(theta, ends, weights):
    """Write (1-a1-a2) both + a1 src + a2 tgt into theta (P,): Eq. 3, exact at its corners. ends (3, P), weights (3,)."""
    return torch.mv(ends.T, weights, out=theta)


def grid_header(bench, g):
    """The first line of a grid file, without what has to be computed."""
    args, models = bench.args, {}
    for role, m in zip(("src", "tgt", "both"), g.models()):
        path = m.folder(args.out) / "model.safetensors"
        about = load(path)[0]
        check_same(model_config(bench, m), about["config"], path)
        models[role] = about.get("digest")
    return {"format": FORMAT, "task": g.task, "metric": TASKS[g.task].metrics[0], "encoder": label(g.encoder),
            "encoder_digest": bench.encoder_digest(g.encoder), "src": g.src, "tgt": g.tgt, "seed": g.seed,
            "part": args.part, "line": LINE, "plane": PLANE, "settings": settings(args, g.task), "models": models,
            "data": {lang: bench.digests(g.task, lang) for lang in (g.src, g.tgt)}}


def evaluate_grid(bench, g):
    """Score every point of a grid on both dev sets and append it to the grid's file; points that are there are kept."""
    path, todo = g.path(bench.args.out, bench.args.part), points_of(bench.args, g)
    name = f"{g.task} {label(g.encoder)} {g.src}-{g.tgt} seed {g.seed}"
    with locked(path) as f:
        header, past = grid_header(bench, g), records(f, path)
        if past:
            check_same(header, past[0], path)
        have = plot.check(path, past).points if past else {}
        todo, count = [p for p in todo if p not in have], len(todo)
        if have:
            bench.log(f"{name}: {count - len(todo)} of {count} points already in {path}")
        if not todo:
            return
        began = time.time()
        reader, dev = bench.reader(g.encoder, g.task), [bench.examples(g.task, g.encoder, lang, "dev") for lang in (g.src, g.tgt)]
        ends = corners(bench, g)
        if not past:
            append(f, header | {"dev": {lang: dev_size(d) for lang, d in zip((g.src, g.tgt), dev)},
                                "majority": {lang: majority(g.task, d) for lang, d in zip((g.src, g.tgt), dev)},
                                **geometry(ends)})
        evaluate_points(bench, reader, g, ends, dev, todo, f, name)
    bench.log(f"{name}: {len(todo)} points, {time.time() - began:.0f} s")


def evaluate_points(bench, reader, g, ends, dev, todo, f, name):
    theta, rest = torch.empty_like(ends[0]), still(reader, bench.args.part)
    weights = torch.tensor([[1 - a1 - a2, a1, a2] for a1, a2 in todo], device=bench.device)   # (points, 3)
    waiting = None
    for (a1, a2), w in zip(tqdm(todo, name, unit="point", leave=False, disable=None if bench.rank == 0 else True), weights):
        theta = interpolate(theta, ends, w)
        theta[rest] = ends[0, rest]   # untouched to the last bit
        now = bench.cast(theta)
        counts = torch.stack([bench.counts(reader, now, g.task, d)[0] for d in dev])          # (2, 2) on the device
        if waiting:   # the device is at the next point while the last one is read
            append(f, point(*waiting))
        waiting = a1, a2, counts
    append(f, point(*waiting))


def point(a1, a2, counts):
    src, tgt = scores(counts)
    return {"a1": a1, "a2": a2, "src": src, "tgt": tgt}


def dev_size(dev):
    return {"sentences": dev.counts["sentences"], "windows": len(dev), "lost": dev.lost}


def majority(task, dev):
    """Score of always answering the most frequent class: for accuracy its share, else 0 (no span, no tree is one)."""
    if TASKS[task].metrics[0] != "accuracy":
        return 0.0
    gold = dev.gold[:, 0]
    return scores(torch.stack([torch.bincount(gold[gold >= 0]).max(), (gold >= 0).sum()])[None])[0]


# --------------------------------------------------------------------------------------------------------- many ranks

def start_ranks():
    """(rank, world) of this process under torchrun or beside its siblings; (0, 1) alone."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    return rank, world


def barrier(bench):
    """Wait for all ranks. A rank that failed has said why; the others stop with it."""
    if bench.world > 1:
        try:
            torch.distributed.barrier()
        except RuntimeError:
            raise SystemExit(1) from None


def share(units, cost, bench):
    """This rank's part of the units: the longest first, each to the rank that has least so far, the same on all ranks."""
    loads, mine = [0.0] * bench.world, []
    for unit in sorted(units, key=cost, reverse=True):
        rank = loads.index(min(loads))
        loads[rank] += cost(unit)
        if rank == bench.rank:
            mine.append(unit)
    return mine


def follow_parent():
    """End this process when the one that launched it is gone, however it went."""
    os.read(sys.stdin.fileno(), 1)   # unbuffered: a lock held on sys.stdin would be in the way at exit
    os._exit(1)


# --------------------------------------------------------------------------------------------------------------- main

def summarise(bench, models):
    """Fetch, read, encode and count the corpus files of the run before anything is trained on them or written."""
    sets = list(dict.fromkeys((m.task, m.encoder, lang, split) for m in models for lang in m.langs
                              for split in ("train", "dev")
                              if split == "dev" or not (m.folder(bench.args.out) / "model.safetensors").exists()))
    if bench.rank == 0:
        for task, _, lang, split in sets:
            TASKS[task].file(bench.args.data, lang, split)
    barrier(bench)
    for task, encoder, lang, split in sets[bench.rank::bench.world]:
        examples = bench.examples(task, encoder, lang, split)
        tqdm.write(f"{task:8}{lang} {split:6}{label(encoder)}: " + data.describe(task, lang, split, examples))
        path = TASKS[task].file(bench.args.data, lang, split)
        if note := data.departure(path, task, lang, split, examples.counts["in_file"]):
            tqdm.write(f"warning: {note}")
    barrier(bench)


def cost(args, unit):
    """(subwords trained on, subwords scored) of a Model or a Grid, from Table 1 and the usual length of a sentence."""
    def subwords(lang, split):
        n = data.TABLE_1[unit.task].get(lang, (2000, 300))[split == "dev"]
        return min(n, args.limit or n) * SUBWORDS[unit.task]
    if isinstance(unit, Grid):
        return 0, len(points_of(args, unit)) * sum(subwords(lang, "dev") for lang in (unit.src, unit.tgt))
    epochs = settings(args, unit.task)["epochs"]
    return (epochs * sum(subwords(lang, "train") for lang in unit.langs),
            epochs * DEV_SCORINGS * sum(subwords(lang, "dev") for lang in unit.langs))


def weight(args, unit):
    """How long a unit takes beside others: a subword trained on costs three times one that is scored."""
    trained, scored = cost(args, unit)
    return (3 * trained + scored) * (4 if unit.encoder == "xlmr" else 1)


def dry_run(args, models, grids):
    """Print the distinct models, grids and points of a plan and what of it is done; hours too for the paper's matrix."""
    out, all_points = args.out, sum(len(points_of(args, g)) for g in grids)
    for task, encoder in dict.fromkeys((g.task, g.encoder) for g in grids):
        ms, gs = ([u for u in units if (u.task, u.encoder) == (task, encoder)] for units in (models, grids))
        trained = sum((m.folder(out) / "model.safetensors").exists() for m in ms)
        have = 0
        for g in gs:
            if (path := g.path(out, args.part)).exists() and (grid := plot.read(path)):
                have += len(grid.points.keys() & set(points_of(args, g)))
        seeds = len({m.seed for m in ms})
        print(f"{task:8}{label(encoder)}: {seeds} seeds of {len(ms) // seeds} distinct models (not {3 * len(gs) // seeds}: "
              f"pairs share them), {trained} of {len(ms)} done; {len(gs)} grids, "
              f"{have} of {sum(len(points_of(args, g)) for g in gs)} points done")
        if len(ms) <= 12:
            print("        models:", ", ".join(f"{'+'.join(m.langs)}/{m.seed}" for m in ms))
    print(f"in all: {len(models)} models, {len(grids)} grids, {all_points} points; each point is scored on two dev sets. "
          "Settings: " + json.dumps({t: settings(args, t) for t in args.task}))
    if args.paper:
        estimate(args, models + grids)


def estimate(args, units):
    """Print the hours of a plan on this device, from a short calibration with random weights of each encoder's shape."""
    bench, hours = Bench(args), 0.0
    for encoder in args.encoder:
        train, score = calibrate(bench, encoder)
        trained, scored = (sum(part) for part in zip(*(cost(args, u) for u in units if u.encoder == encoder)))
        hours += (spent := (trained / train + scored / score) / 3600)
        print(f"{label(encoder)}: {train:.0f} subwords a second trained, {score:.0f} scored: {spent:.0f} hours")
    device = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "one CPU core"
    print(f"about {hours:.0f} hours on {device} in {args.precision}, divided by the devices at hand; the sizes are those of Table 1")


SUBWORDS = {"xnli": 45, "ner": 17, "pos": 30, "parsing": 30}  # of a sentence, special tokens included, for estimates
SHAPES = {"mbert": dict(vocab_size=119547), "xlmr": dict(vocab_size=250002, hidden_size=1024, num_hidden_layers=24,
                                                         num_attention_heads=16, intermediate_size=4096)}


def calibrate(bench, encoder):
    """(subwords trained on, subwords scored) a second, on made-up sentences of 32 subwords."""
    e = (Encoder(transformers.BertModel(transformers.BertConfig(**SHAPES[encoder]), add_pooling_layer=False), None, "",
                 True, True) if encoder in SHAPES else load_encoder(encoder))
    reader, windows, length = heads.Reader(e, heads.Linear, 17, bench.device), 32, 32
    made_up = data.Encoded(0, columns=1)
    for i in range(windows):
        made_up.add(range(100 + i, 100 + i + length), range(1, length), [(i % 17,)] * (length - 1))
    theta, examples = reader.start(0).to(bench.device), made_up.to(bench.device)
    theta.grad = torch.zeros_like(theta)
    adam = torch.optim.Adam([theta], lr=0.0, fused=True)

    def train():
        reader.train()
        with bench.precise():
            loss = reader.gradient(bench.cast(theta), examples.batch(np.arange(windows)), theta.grad)
        adam.step()
        return loss

    rates = []
    for work in (train, lambda: bench.counts(reader, theta, "pos", examples)):
        work().sum().item()   # warm-up; .item() waits for the device
        began, times = time.time(), 1 if bench.device.type == "cpu" else 20
        for _ in range(times):
            last = work()
        last.sum().item()
        rates.append(times * windows * length / (time.time() - began))
    return rates


def demo_notes(bench):
    """What an honest demo says beside its curves, as Markdown lines."""
    args = bench.args
    if "pos" not in args.task:
        return ""
    known = {w for words, _ in data.read_pos(data.ud_file(args.data, "A", "train"), "A") for w in words}

    def only_b(path, lang):
        for words, gold in data.read_pos(path, lang):
            yield words, [(-1,) if w in known else g for w, g in zip(words, gold)]

    rows = []
    for name, encoder, langs in (("source only", args.encoder[0], ("A",)), ("bilingual", args.encoder[0], ("A", "B")),
                                 ("source only, no pretraining", control(args), ("A",))):
        reader = bench.reader(encoder, "pos")
        dev = bench.examples("pos", encoder, "B", "dev")
        new = data.load(data.ud_file(args.data, "B", "dev"), "B", "dev", only_b, data.encode_words,
                        load_encoder(encoder).tokenizer, args.limit).to(bench.device)
        got = []
        for n in args.seeds:
            theta = reader.flat(load(Model("pos", encoder, langs, n).folder(args.out) / "model.safetensors", None)[1])
            got.append([scores(bench.counts(reader, theta.to(bench.device), "pos", d))[0] for d in (dev, new)])
        all_words, new_words = np.mean(got, 0)
        rows.append(f"| {name} | {all_words:.1f} | {new_words:.1f} |")
    share_new = (new.gold >= 0).float().mean().item()
    return "\n".join([
        "| POS of language B, mean over seeds | all words | words that only B has |", "|---|---|---|", *rows, "",
        f"Words that only B has are {100 * share_new:.0f} % of its dev words; always answering the most frequent class "
        f"gives {majority('pos', dev):.1f} on all words.",
        "The shape of the curves alone shows no alignment of the languages: they are smooth without pretraining too, and "
        "zero-shot transfer then lives on the shared words. What pretraining gives is the score on words that only B has.",
        "Source scores are near the ceiling, so part of their flatness is saturation.",
        "The demo's sizes and learning rates were chosen among others so that the source stays flat in all four tasks; with "
        "most of the others it did not in XNLI. That this run agrees on flatness is therefore no evidence for the paper.",
        "Three independent steps of equal length from one start give an angle of 60 degrees between the two directions; "
        "the demo's angle need not be the paper's."])


def main(args):
    if args.demo:
        data.TREEBANKS.update(demo.TREEBANKS)
        args.device = args.device or "cpu"   # the tiny encoder gains nothing from a GPU
    models, grids = plan(args)
    if args.dry_run:
        return dry_run(args, models, grids)
    bench = Bench(args, *start_ranks())
    if args.demo:
        for part in list(demo.PARTS)[bench.rank::bench.world]:
            demo.prepare(args.out, part, bench.log)
        barrier(bench)
    summarise(bench, models)
    for m in share(models, lambda m: weight(args, m), bench):
        finetune(bench, m)
    barrier(bench)
    for g in share(grids, lambda g: weight(args, g), bench):
        evaluate_grid(bench, g)
    barrier(bench)
    kept = plot.load([args.out])
    plot.draw(kept, args.out, slice(bench.rank, None, bench.world))
    barrier(bench)
    if bench.rank == 0:
        notes = demo_notes(bench) if args.demo else ""
        print(plot.report(kept, args.out, shlex.join(["python", *sys.argv]), notes))
        print(notes and f"\n{notes}\n")
        print(f"Results, figures and report.md are in {args.out}.")


def run(args):
    """main with its errors told as sentences; returns the exit code."""
    child = CHILD in os.environ
    if child:
        threading.Thread(target=follow_parent, daemon=True).start()
    try:
        return main(args) or 0
    except KeyboardInterrupt:
        return 130 if child or int(os.environ.get("RANK", 0)) else stopped(args)
    except (DataError, heads.ModelError, plot.ResultError) as e:
        problem = str(e)
    except (RuntimeError, MemoryError) as e:   # the CPU's allocator raises a RuntimeError, CUDA's a kind of it
        if not isinstance(e, MemoryError) and not re.search("out of memory|allocate memory|ALLOC_FAILED", str(e)):
            raise
        problem = "The device ran out of memory: lower --batch-size, or take --precision bf16."
    except safetensors.SafetensorError as e:
        problem = f"A file could not be written or read ({e})."
    except OSError as e:
        problem = f"{e.filename or 'A file'} could not be written or read: {e.strerror or e}."
    print(f"reproduce.py: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run(ARGS))
