"""Reproduce "Zero-shot Cross-lingual Transfer is Under-specified Optimization" (Wu, Van Durme & Dredze 2022).

Fine-tune one multilingual encoder on a source language, on a target language and on both, then score every
model on the line and in the plane between the three. If the source score stays flat while the target score
climbs, the source language alone does not determine a good model.

    python reproduce.py --demo                                  # two invented languages, no network, no GPU
    python reproduce.py --task pos --src ar --tgt de            # one task, one pair, mBERT, three seeds
    python reproduce.py --task pos ner --src en --tgt de zh --encoder mbert xlmr --lines-only
    python reproduce.py --paper --dry-run                       # the paper's whole matrix: what would be run
    torchrun --nproc-per-node 8 reproduce.py --paper            # the same on eight GPUs

The same command again continues where the last one stopped, whatever stopped it. Exit code 0: all is there;
2: a mistake, told in a sentence; 3: some models or pairs could not be made, the rest is there.
"""

import argparse
import os
import signal
import sys
from contextlib import suppress
from typing import NamedTuple

import data
import derive
import visit
from results import FORMAT, KitError, UnitError
from tasks import TASKS, Corpora, Scorer

PAPER = {"encoder": ["mbert", "xlmr"], "task": ["xnli", "ner", "pos", "parsing"], "src": ["en", "ar"],
         "tgt": ["ar", "de", "es", "fr", "hi", "ru", "vi", "zh"], "seeds": [1, 2, 3]}             # Sec. 4
FINE_TUNING = {"epochs": 5, "batch_size": 32, "lr": 2e-5}                                         # App. A
FIRST = """Run first: python reproduce.py --demo                          two invented languages, five minutes
then:      python reproduce.py --demo ingredients              what makes an encoder multilingual
           python reproduce.py --demo generation               why it answers in the wrong language
then:      python reproduce.py --task pos --src ar --tgt de    the real experiment; a GPU helps
           python reproduce.py --help                          all flags; RESULTS.md says what came out
"""
DEFAULTS = {"encoder": ["mbert"], "seeds": PAPER["seeds"], "align": [0.0], "visit": [], "out": "results"}
DEMOS = {"languages": {"task": PAPER["task"], "src": ["A"], "tgt": ["B"], "out": "results/demo"},
         "ingredients": {"task": ["pos", "ner"], "src": ["A"], "seeds": [1], "align": [0.0, 5.0],
                         "tgt": ["A.inversion", "A.permutation", "A.syntax-B", "A.transliteration",
                                 "A.syntax-B.transliteration", "A.transliteration.inversion",
                                 "A.transliteration.permutation"],
                         "lines_only": True, "out": "results/demo-ingredients"},
         "generation": {"task": ["title"], "src": ["A", "A+C"], "tgt": ["B"], "seeds": [1],
                        "lr": [5e-4, 2e-3], "lines_only": True, "out": "results/demo-generation"}}
SCRATCH = "scratch", "scratch-original", "scratch-random"   # and controls: original alone; no pretraining
CONTROL = "scratch-random"   # of the demo: what shows without any pretraining
DEV_SCORINGS = 4                                                        # an epoch, as in the authors' code

class Parser(argparse.ArgumentParser):
    def error(self, message):
        value = message.partition("'")[2].partition("'")[0]   # what was given, where the message quotes it
        lower = value != value.lower() and value.lower() in {*TASKS, *DEMOS, *data.TREEBANKS}
        hint = "separate by spaces; " if "," in value else "write it in lower case; " if lower else ""
        self.exit(2, f"reproduce.py: {message} ({hint}--help lists the flags)\n")

def flags():
    """The Parser of all flags, in groups."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    natural = at_least(1)
    g = p.add_argument_group("what to run")
    g.add_argument("--task", nargs="+", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    g.add_argument("--src", nargs="+", metavar="LANG",
                   help="every pair of --src and --tgt is run; en+fr: two source languages together")
    g.add_argument("--tgt", nargs="+", metavar="LANG",
                   help=f"{' '.join(data.TREEBANKS)}, or derived, as en.inversion (see derive.py)")
    g.add_argument("--encoder", nargs="+", metavar="NAME",
                   help="mbert, xlmr, e5, mt5, a name on the hub or a local folder (default mbert); scratch: "
                        "one pretrained for the pair; its controls: scratch-original, scratch-random")
    g.add_argument("--seeds", nargs="+", type=at_least(0), metavar="N", help="default 1 2 3; 3 is one seed")
    g.add_argument("--paper", action="store_true", help="the paper's matrix; the flags above narrow it")
    g.add_argument("--demo", nargs="?", const="languages", choices=DEMOS,
                   help="two invented languages and a tiny encoder, pretrained here; ingredients: one "
                        "language and those derived from it, an encoder each; generation: titles in three")
    g.add_argument("--dry-run", action="store_true", help="print the plan and what of it is done, and stop")
    g = p.add_argument_group("fine-tuning (defaults: App. A of the paper; the demo has its own)")
    g.add_argument("--epochs", type=natural, metavar="N", help="default 5")
    g.add_argument("--batch-size", type=natural, metavar="N", help="default 32; cut up where memory runs out")
    g.add_argument("--lr", nargs="+", type=at_least(1e-12, float), metavar="X",
                   help="at its peak, default 2e-5; further ones are controls, which stand beside")
    g.add_argument("--limit", nargs="+", type=natural, metavar="N",
                   help="the first N sentences of a training and a dev set; two numbers: of each its own")
    g.add_argument("--precision", choices=["bf16", "fp16", "fp32"],
                   help="of training: default bf16 on cuda, before Ampere fp16, fp32 on cpu; grids are "
                        "scored in fp32")
    g.add_argument("--select", choices=["dev", "xlrs", "last"], default="dev",
                   help="which checkpoint is kept: that of the best dev score (default), of the lowest XLRS "
                        "within a point of it, or the last one")
    g.add_argument("--parallel", nargs="*", metavar="FILE",
                   help="log XLRS and the target's score at every dev scoring, on sentences of files named "
                        "after their language, as en.txt, translations line by line (default XNLI's dev set)")
    g = p.add_argument_group("pretraining (--encoder scratch; see pretrain.py)")
    g.add_argument("--text", nargs="+", metavar="FILE",
                   help="a sentence a line: the original, from which the derived text is made, or both")
    g.add_argument("--pretraining", metavar="PRESET", default="",
                   help="as layers=2,hidden=64,steps=6000; what is not named is the paper's")
    g.add_argument("--align", nargs="+", type=at_least(0, float), metavar="W",
                   help="weights of the alignment of transliterated embeddings, an encoder each (default 0)")
    g = p.add_argument_group("interpolation")
    g.add_argument("--part", choices=["all", "encoder", "head", "decoder"], default="all",
                   help="what is interpolated, the rest stays the bilingual model's (default all)")
    g.add_argument("--lines-only", action="store_true", help="Eq. 1 and 2 only, 65 points instead of 465")
    g.add_argument("--visit", nargs="+", metavar="NAME",
                   help="place other models at the plane: start, average, average-N, average-seeds, last, "
                        "way, few-N, few-N-then, silver, with-LANG (see visit.py)")
    g = p.add_argument_group("where")
    g.add_argument("--data", metavar="DIR", help="the corpora, downloaded if absent (default data)")
    g.add_argument("--out", metavar="DIR", help="the results (default results, or that of the demo)")
    g.add_argument("--export", nargs="+", metavar="FILE",
                   help="FILE.safetensors ... FOLDER: write a model there for transformers (see export.py)")
    g.add_argument("--device", metavar="NAME", help="cuda or cpu (default cuda if there is one; demos: cpu)")
    return p

def parse_arguments(argv=None):
    """The settings of a run; exits with one sentence and code 2 where they make no sense."""
    p = flags()
    args = p.parse_args(argv)
    if args.export:
        return args
    if not (args.task or args.src or args.tgt or args.demo or args.paper):
        p.exit(2, FIRST)
    try:
        complete(args)
        check_arguments(args)
    except KitError as e:
        p.error(str(e))
    return args

def complete(args):
    """Give settings that were not asked for the values of the demo or of the paper."""
    if args.demo:
        fixed = "src encoder paper data text parallel".split() + ["tgt"] * (args.demo != "ingredients")
        if asked := [f"--{name}" for name in fixed if getattr(args, name) not in (None, False)]:
            raise KitError(f"--demo has its own: leave out {' and '.join(asked)}")
        data.TREEBANKS.update(data.INVENTED)
        args.encoder = ["scratch"]
    made_here = {*SCRATCH} & {*(args.encoder or ())}
    if made_here and not (args.text or args.demo):
        raise KitError("--encoder scratch needs --text FILE")
    if not made_here and (args.text or args.align or args.pretraining):
        raise KitError("--text, --align and --pretraining need --encoder scratch")
    for name, value in (DEFAULTS | (DEMOS[args.demo] if args.demo else PAPER if args.paper else {})).items():
        setattr(args, name, getattr(args, name) or value)
    args.seeds, args.visit = [*dict.fromkeys(args.seeds)], [*dict.fromkeys(args.visit)]
    args.device = args.device or ("cpu" if args.demo else None)   # tiny models gain from cores, not from GPUs
    args.data = args.data or (f"{args.out}/data" if args.demo else "data")
    if args.demo == "generation":
        args.parallel = [f"{args.data}/parallel/{lang}.txt" for lang in "ABC"]

def check_arguments(args):
    """Raise KitError where settings make no sense together."""
    for name in ("task", "src", "tgt"):
        if not getattr(args, name):
            raise KitError(f"--{name} is missing: name one or more, or use --demo or --paper")
    generated = [TASKS[task].writes for task in args.task]
    if args.demo and {*generated} != {args.demo == "generation"}:
        raise KitError("--task title is there in --demo generation, which has no other task")
    if len(args.limit or ()) > 2:
        raise KitError("--limit takes one number, or two: of training and of dev sentences.")
    if args.select == "xlrs" and args.parallel is None:
        raise KitError("--select xlrs needs --parallel")
    for task in args.task:
        if args.part not in ("all", *TASKS[task].parts):
            raise KitError(f"--part {args.part}: task {task} has {' and '.join(TASKS[task].parts)}")
    visit.check(args, [task for task in args.task if TASKS[task].writes])
    sides = [side.split("+") for side in args.src]
    if twice := ["+".join(side) for side in sides if len({*side}) < len(side)]:
        raise KitError(f"--src {twice[0]} names a language twice")
    for name in [*sum(sides, []), *args.tgt, *(each[5:] for each in args.visit if each[:5] == "with-")]:
        if derive.parse(name)[1] and (any(generated) or args.parallel is not None):
            raise KitError(f"{name}: --task title and --parallel need languages that are not derived.")
    if not directions(args):
        raise KitError(f"every --tgt is in --src {args.src[0]}: a pair needs two languages")

def directions(args):
    """[(src, tgt)] of a run, each a pair of different languages."""
    return [(src, tgt) for src in args.src for tgt in args.tgt if tgt not in src.split("+")]

def at_least(low, kind=int):
    """A type for argparse: a number from `low` up."""
    def number(text):
        with suppress(ValueError):
            if low <= kind(text) < 1e12:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least {low}")
    return number

if __name__ == "__main__":   # --help and a wrong flag are answered before the imports that take seconds
    ARGS = parse_arguments()
    signal.signal(signal.SIGINT, signal.SIG_DFL)   # Ctrl-C just ends them; afterwards answer() takes over
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")   # a process that has ended is told in a sentence
    print("loading torch and transformers ...", file=sys.stderr, flush=True)

import json
import math
import shlex
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import demo
import export
import generate
import grids
import heads
import plot
import pretrain
import results
from heads import short_name
from train import Settings, choose, find_device, train, usual_precision

# ---- plan -------------------------------------------------------------------------------------------------

class Finetuned(NamedTuple):
    """One fine-tuned model; langs: its languages in alphabetical order."""
    task: str
    encoder: str
    langs: tuple
    seed: int
    lr: float | None = None   # of a control, else the run's own
    visitor: str = ""         # as in visit.VISITORS, where it also learns from a target: tgt
    tgt: str = ""

    def __str__(self):
        remedy = self.visitor and f", {self.visitor} {self.tgt}"
        return f"{self.task} {short_name(self.encoder)} {'+'.join(self.langs)} {seed(self, ' ')}{remedy}"

    def path(self, out):
        folder = Path(out, "models", self.task, short_name(self.encoder), "-".join(self.langs))
        return folder / (seed(self) + (self.visitor and f".{self.visitor}.{self.tgt}")) / "model.safetensors"

def seed(unit, space=""):
    """The seed of a unit in words, and the learning rate of a control."""
    return f"seed{space}{unit.seed}" + (f".lr{space}{unit.lr:g}" if unit.lr else "")

class Pair(NamedTuple):
    """A source and a target of one task, encoder and seed: three models, and the points of their plane."""
    task: str
    encoder: str
    src: str   # one language, or several, as en+fr
    tgt: str
    seed: int
    lr: float | None = None   # of a control, else the run's own
    visitor: str = ""         # of a visit: what is placed at the plane

    def __str__(self):
        visitor = self.visitor and f", {self.visitor}"
        return f"{self.task} {short_name(self.encoder)} {self.src}-{self.tgt} {seed(self, ' ')}{visitor}"

    def langs(self):
        """The languages of its two sides."""
        return tuple(self.src.split("+")), (self.tgt,)

    def models(self):
        """The three corners of the plane: both, source, target."""
        src, tgt = self.langs()
        return [Finetuned(self.task, self.encoder, tuple(sorted(langs)), self.seed, self.lr)
                for langs in (src + tgt, src, tgt)]

    def path(self, out, part):
        folder = Path(out, "grids", self.task, short_name(self.encoder), f"{self.src}-{self.tgt}")
        if self.visitor:
            return folder / f"{seed(self)}.visits" / f"{self.visitor}.jsonl"
        return folder / (f"{seed(self)}.jsonl" if part == "all" else f"{seed(self)}.{part}.jsonl")

def plan(args):
    """(models, pairs) of a run: every pair of the chosen matrix, and each distinct model once."""
    named = {short_name(encoder): encoder for encoder in args.encoder}   # the last one of each name
    for encoder in args.encoder:
        if (other := named[short_name(encoder)]) != encoder:
            raise KitError(f"The encoders {encoder} and {other} would both be {short_name(encoder)} in "
                           f"{args.out}: rename a folder, or give each an --out of its own.")
    pairs = list(dict.fromkeys(
        Pair(task, encoder, src, tgt, seed, lr) for task in args.task for src, tgt in directions(args)
        for encoder in encoders(args, task, src, tgt) for seed in args.seeds
        for lr in (None, *(args.lr or ())[1:])))
    pairs.sort(key=lambda pair: (pair.encoder, args.task.index(pair.task)))   # to load each encoder once
    models = [model for pair in pairs for model in pair.models()]
    if args.demo == "languages" and "pos" in args.task:
        [control] = scratch(args, CONTROL, "pos", "A", "B")
        models += [Finetuned("pos", control.folder, ("A",), seed) for seed in args.seeds]
    models += [model for each in visit.visits(args, pairs) for model in visit.made_of(args, each)]
    return list(dict.fromkeys(models)), pairs

def scratch(args, kind, task, src, tgt):
    """The encoders that are pretrained for a pair, one for each --align (pretrain.Scratch)."""
    texts = demo.texts(args.out, args.demo, src, tgt) if args.demo else args.text
    align = [0.0] if args.demo == "ingredients" and tgt not in demo.ALIGNED else args.align
    return pretrain.scratch(f"{args.out}/encoders", kind, src, tgt, texts, align, TASKS[task].writes)

def scratch_encoders(args):
    """The distinct encoders that are pretrained in a run."""
    kinds = [kind for kind in args.encoder if kind in SCRATCH]
    kinds += [CONTROL] if args.demo == "languages" and "pos" in args.task else []
    return list(dict.fromkeys(made for kind in kinds for task in args.task for src, tgt in directions(args)
                              for made in scratch(args, kind, task, src, tgt)))

def encoders(args, task, src, tgt):
    """The encoders of a pair: what --encoder names, or the folders of those that are pretrained for it."""
    for name in args.encoder:
        made = scratch(args, name, task, src, tgt) if name in SCRATCH else ()
        yield from (each.folder for each in made) if made else [name]

def pretraining(args):
    """The Preset of a run: what was asked for, else the demo's, else the paper's."""
    return pretrain.parse_preset(args.pretraining, demo.PRETRAINING[args.demo] if args.demo else "")

def points_of(args, pair):
    """The points of one pair; a demo spares its reader all planes but one, and a control's lines."""
    if args.demo and pair.lr:
        return [grids.BOTH, grids.SRC, grids.TGT]
    return grids.points(args.lines_only or args.demo and (pair.task, pair.seed) != ("pos", args.seeds[0]))

def settings(args, unit):
    """Fine-tuning settings of a unit: what was asked for, else the demo's, else the paper's."""
    chosen = FINE_TUNING | (demo.SETTINGS.get(unit.task, {}) if args.demo else {})
    asked = {"epochs": args.epochs, "batch_size": args.batch_size, "lr": unit.lr or args.lr and args.lr[0]}
    chosen |= {name: value for name, value in asked.items() if value is not None}
    further = {"select": args.select} if args.select != "dev" else {}
    if isinstance(unit, Finetuned) and visit.comes_then(unit):
        chosen["epochs"] *= visit.LONGER
        further = {"select": "last"}   # the source's dev set would rather stop at once
    limit = args.limit[0] if len(args.limit or ()) == 1 else args.limit
    return chosen | {"limit": limit, "precision": args.precision} | further

def dry_run(args, models, pairs):
    """Print the distinct models, pairs and points of a plan and what of it is done."""
    trained = sum(model.path(args.out).exists() for model in models)
    print(f"{trained} of {len(models)} distinct models done (pairs share them); {len(pairs)} pairs:")
    for task, encoder, lr in dict.fromkeys((pair.task, pair.encoder, pair.lr) for pair in pairs):
        wanted = have = 0
        for pair in (pair for pair in pairs if (pair.task, pair.encoder, pair.lr) == (task, encoder, lr)):
            path, todo = pair.path(args.out, args.part), set(points_of(args, pair))
            grid = grids.read(path)
            wanted, have = wanted + len(todo), have + len(todo & grid.points.keys() if grid else ())
        chosen = json.dumps(settings(args, pair))
        print(f"  {task} {short_name(encoder)}: {have} of {wanted} points done; {chosen}")
    if visits := visit.visits(args, pairs):
        found = [grids.read(each._replace(visitor="").path(args.out, "all")) for each in visits]
        done = sum(grid is not None and each.visitor in grid.visits for each, grid in zip(visits, found))
        print(f"  {done} of {len(visits)} visits done: {' '.join(args.visit)}")
    if todo := [made.folder for made in scratch_encoders(args) if not Path(made.folder).exists()]:
        print(f"to pretrain before: {', '.join(todo)}; {pretraining(args).steps} steps each")

# ---- run --------------------------------------------------------------------------------------------------

class Run:
    """What the phases of a run share: settings, processes, device, corpora, scorer, and its models."""

    def __init__(self, args, pairs=()):
        """pairs: of the plan, whose visits say which checkpoints are kept."""
        self.args, self.ranks, self.device = args, results.Ranks(), find_device(args.device)
        self.faults = []   # tracebacks of what the kit did wrong, for the end
        args.precision = args.precision or usual_precision(self.device)
        self.scored_in = "fp32"   # bf16 would blur a grid, tf32 change the order of some points (RESULTS.md)
        torch.set_float32_matmul_precision("highest")
        if self.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)   # threads fight on small models; another number changes last digits
        self.corpora = Corpora(args, self.device)
        self.scorer = Scorer(self.corpora, self.ranks)
        self.keeps = visit.keeps(args, pairs)
        self.watch = generate.Watch(args.parallel, directions(args), self.corpora, self.scorer)

    def model(self, unit, sets=None, ids=()):
        """The model of a Finetuned or a Pair before fine-tuning: all of a seed start alike (Sec. 3.1).
        sets: the Encoded sets it will read. Its embedding has rows for their subwords and for those in ids, a
        list of tensors (M,); no other row would move, so scores stay as they are. None: it has all rows."""
        encoder = self.corpora.encoder(unit.task, unit.encoder)
        ids = None if sets is None else torch.cat([*(encoded.used() for encoded in sets), *ids])
        torch.manual_seed(unit.seed)   # of the head
        return TASKS[unit.task].build(encoder, TASKS[unit.task].labels, ids).to(self.device)

    def finetuned(self, unit, sets):
        """The model of a Finetuned for some Encoded sets, in eval mode."""
        trained = self.trained(unit)
        model = self.model(unit, sets, heads.rows_of(trained)).eval().requires_grad_(False)
        whole = self.corpora.encoder(unit.task, unit.encoder).model
        model.load_state_dict(heads.spread(model, trained, whole), strict=False)   # buffers are its own
        return model

    def plane(self, pair, files=()):
        """The heads.Plane of a Pair; its three models are loaded one by one. files: of further
        models at which it must be able to stand."""
        dev = [self.corpora.examples(pair.task, pair.encoder, lang, "dev") for lang in sum(pair.langs(), ())]
        units, whole = pair.models(), self.corpora.encoder(pair.task, pair.encoder).model
        files = [*(unit.path(self.args.out) for unit in units), *files]
        ids = [heads.rows_of(results.load_tensors(file, ".ids")[1]) for file in files]
        model = self.model(pair, dev, sum(ids, []))
        corners = (heads.spread(model, self.trained(unit), whole) for unit in units)
        return heads.Plane(model, corners, self.args.part)

    def trained(self, unit):
        """{name: parameter} of a Finetuned as it is saved, on the CPU. Raises KitError if it is not that."""
        return results.whole(unit.path(self.args.out))

# ---- fine-tune --------------------------------------------------------------------------------------------

def finetune(run, unit):
    """Fine-tune one model and leave model.safetensors and train.jsonl in its folder (App. A), and if a visit
    asks for them its checkpoints; a model that was trained without them is trained for them once more."""
    path, config = unit.path(run.args.out), model_config(run, unit)
    again = path.parent / "checkpoints" / "train.jsonl"
    with results.locked(path.with_name("train.jsonl")) as journal:
        if path.exists():
            about = results.load_tensors(path, None)[0]
            results.check_same(config, about["config"], path)
            if unit in run.keeps and not visit.are_kept(path, about):
                with results.locked(again) as other:
                    _, best = train_model(run, unit, config, other)
                if results.digest(best) != about["digest"]:
                    raise UnitError(f"{unit}: trained again for its checkpoints, it is another model, as on "
                                    f"another machine. Delete {path.parent} to have all of this one.")
            else:
                run.ranks.say(f"{unit}: already trained, in {path.parent}")
            again.unlink(missing_ok=True)
        else:
            kept, best = train_model(run, unit, config, journal)
            results.save_tensors(path, best, {"config": config, "digest": results.digest(best), **kept})
        results.clear(path.parent)
        results.clear(again.parent)

def train_model(run, unit, config, journal):
    """(metadata, parameters as they are saved) of what is kept of one training."""
    path, began, examples = unit.path(run.args.out), time.time(), partial(
        run.corpora.examples, unit.task, unit.encoder)
    train_sets, dev_sets = visit.train_sets(run, unit), [examples(lang, "dev") for lang in unit.langs]
    sets, then = [*train_sets.values(), *dev_sets, *run.watch.sets(unit)], visit.comes_then(unit)
    model = run.finetuned(*visit.needs(unit), sets).requires_grad_(True) if then else run.model(unit, sets)
    waste = math.inf if TASKS[unit.task].writes else run.scorer.waste
    sizes = tuple((lang, len(encoded)) for lang, encoded in train_sets.items())
    per_epoch = sum(math.ceil(size / config["batch_size"]) for _, size in sizes)
    steps, scorings = per_epoch * config["epochs"], DEV_SCORINGS * (1 if then else config["epochs"])
    chosen = Settings(steps=steps, lr=config["lr"], seed=unit.seed, precision=config["precision"],
                      evaluate_at=sorted({math.ceil(k * steps / scorings) for k in range(1, scorings + 1)}))

    def batches(step, pieces):
        epoch, number = divmod(step, per_epoch)
        lang, windows = data.batch_order(sizes, config["batch_size"], unit.seed, epoch)[number]
        pieces, packed = np.array_split(windows, min(pieces, len(windows))), model.packed_from is not None
        if not packed:   # of like length instead, to pad little
            pieces = [cut for piece in pieces for cut in train_sets[lang].cut(piece, math.inf, waste)]
        return [train_sets[lang].batch(piece, packed) for piece in pieces]

    def saved(parameters):
        found = {name: value.detach().cpu() for name, value in parameters.items()}
        return heads.moved(model, found, run.corpora.encoder(unit.task, unit.encoder).model)

    def score_dev(records):
        scores = {lang: run.scorer.score(model, unit, lang, unit.langs) for lang in unit.langs}
        own = [score[TASKS[unit.task].metrics[0]] for score in scores.values()]
        record = {"score": scores, "mean": round(sum(own) / len(own), 4), **run.watch(model, unit)}
        if unit in run.keeps:
            now, step = saved(dict(model.named_parameters())), chosen.evaluate_at[len(records)]
            visit.checkpoint(path, step).parent.mkdir(exist_ok=True)
            results.save_tensors(visit.checkpoint(path, step), now,
                                 {"config": config, "digest": results.digest(now)})
        return record, choose([*records, record], config.get("select", "dev")) is record

    rows = results.digest({name: b for name, b in model.named_buffers() if name.endswith(".ids")})
    kept, best = train(model, batches, score_dev, chosen, config | {"rows": rows}, journal, str(unit),
                       run.ranks)
    run.ranks.say(f"{unit}: {kept['mean']} after {kept['best_step']} of {steps} steps, "
                  f"{time.time() - began:.0f} s")
    return kept, saved(best)

def model_config(run, unit):
    """Everything that decides a model's parameters, so that a file made otherwise is never taken for it."""
    return {"format": FORMAT, "task": unit.task, "encoder": short_name(unit.encoder),
            "langs": list(unit.langs), "seed": unit.seed, **settings(run.args, unit),
            "encoder_digest": run.corpora.encoder(unit.task, unit.encoder).digest,
            "data": {lang: run.corpora.digests(unit.task, lang) for lang in visit.languages(unit)},
            **visit.about(run, unit)}

# ---- evaluate ---------------------------------------------------------------------------------------------

def evaluate(run, pair):
    """Score every point of a pair on both dev sets into the pair's file; points that are there are kept."""
    path, todo, began = pair.path(run.args.out, run.args.part), points_of(run.args, pair), time.time()
    with results.locked(path) as f:
        header, past = grid_header(run, pair), results.read_lines(f, path)
        if past:
            results.check_same(header, past[0], path)
        have = grids.check(path, past).points if past else {}
        if have:
            lacks = run.args.parallel is not None and "xlrs" not in past[0]
            run.ranks.say(f"{pair}: {len(have.keys() & set(todo))} of {len(todo)} points already in {path}"
                          + ", made without --parallel: another --out logs XLRS" * lacks)
        todo = [point for point in todo if point not in have]
        if not todo:
            return
        plane = run.plane(pair)
        if not past:
            header |= run.corpora.about_dev(pair) | about_watch(run, pair)
            results.append_line(f, header | plane.geometry())
        for a1, a2 in tqdm(todo, str(pair), unit="point", leave=False, disable=run.ranks.quiet):
            plane.move(a1, a2)
            (src, each), (tgt, _) = (run.scorer.side(plane, pair, langs) for langs in pair.langs())
            line = {"a1": a1, "a2": a2, "src": src, "tgt": tgt} | ({"each": each} if len(each) > 1 else {})
            if TASKS[pair.task].writes and (a1, a2) in (grids.BOTH, grids.SRC):
                dev = run.corpora.examples(pair.task, pair.encoder, pair.tgt, "dev")
                line["written"] = generate.examples(plane, dev)
            results.append_line(f, line)
    run.ranks.say(f"{pair}: {len(todo)} points, {time.time() - began:.0f} s")

def grid_header(run, pair):
    """The first line of a pair's file, without what has to be computed."""
    models, corpora, langs = {}, run.corpora, sum(pair.langs(), ())
    for role, unit in zip(("both", "src", "tgt"), pair.models()):
        about, _ = results.load_tensors(unit.path(run.args.out), None)
        results.check_same(model_config(run, unit), about["config"], unit.path(run.args.out))
        models[role] = about.get("digest")
    return {"format": FORMAT, "task": pair.task, "metrics": list(TASKS[pair.task].metrics),
            "encoder": short_name(pair.encoder),
            "encoder_digest": corpora.encoder(pair.task, pair.encoder).digest, "src": pair.src,
            "tgt": pair.tgt, "seed": pair.seed, "part": run.args.part, "line": grids.LINE,
            "plane": grids.PLANE, "scored_in": run.scored_in, "settings": settings(run.args, pair),
            "models": models, "data": {lang: corpora.digests(pair.task, lang) for lang in langs},
            **({"control": f"lr {pair.lr:g}"} if pair.lr else {}), **pretrain.about(pair.encoder)}

def about_watch(run, pair):
    """What a header says of --parallel: XLRS before fine-tuning and of two corners, and what was logged."""
    if run.args.parallel is None:
        return {}
    (both, source, _), sets = pair.models(), run.watch.parallel(pair)
    models = {"pretrained": run.model(pair, sets).eval(), "source": run.finetuned(source, sets),
              "both": run.finetuned(both, sets)}
    log = source.path(run.args.out).with_name("train.jsonl").read_text().splitlines()
    return run.watch.about(pair, models, map(json.loads, log))

# ---- main -------------------------------------------------------------------------------------------------

def main(args):
    """The experiment from plan to report; returns the exit code."""
    models, pairs = plan(args)
    visits, run, preset = visit.visits(args, pairs), Run(args, pairs), pretraining(args)
    if args.dry_run:
        return dry_run(args, models, pairs)
    results.check_locks(Path(args.out))
    if args.demo:
        for part in run.ranks.take(demo.PARTS):
            demo.prepare(args.out, args.demo, part)
        run.ranks.barrier()
    for encoder in run.ranks.take(scratch_encoders(args)):
        pretrain.pretrain(encoder, preset, args.precision, run.device, run.ranks)
    run.ranks.barrier()
    check_data(run, models)
    run.ranks.expect(len(models) + len(pairs) + len(visits))
    for model in run.ranks.take(models):
        attempt(run, model, finetune, model.path(args.out).with_name("failed.json"), visit.needs(model))
    for pair in run.ranks.take(pairs):   # once its three models are there
        attempt(run, pair, evaluate, pair.path(args.out, args.part).with_suffix(".failed"), pair.models())
    for each in run.ranks.take(visits):
        attempt(run, each, partial(visit.evaluate, header=grid_header),
                each.path(args.out, "all").with_suffix(".failed"),
                [each._replace(visitor=""), *visit.made_of(args, each)])
    run.ranks.barrier()
    run.ranks.bar.close()
    evaluated = grids.load([args.out]) if any(Path(args.out, "grids").rglob("seed*.jsonl")) else []
    for name, _, make in run.ranks.take(plot.figures_of(evaluated)):
        plot.draw_figure(name, make, args.out)
    run.ranks.barrier()
    code = report(run, evaluated, models, pairs + visits) if run.ranks.rank == 0 else 0
    print(*run.faults, sep="\n", end="", file=sys.stderr)
    return code

def check_data(run, models):
    """Fetch, read, encode and count the corpus files before anything is trained on them or written."""
    files = {}
    for unit in models:
        for lang in visit.languages(unit):
            for split in ("dev",) if unit.path(run.args.out).exists() else data.SPLITS:
                files[unit.task, unit.encoder, lang, split] = run.corpora.file(unit.task, lang, split)
    if run.ranks.rank == 0:   # fetched, for its digest, is also what a finished model was trained on
        train_sets = (run.corpora.file(task, lang, "train") for task, _, lang, _ in files)
        orders = (file for _, _, lang, _ in files for file in run.corpora.orders(lang))
        data.fetch([*files.values(), *train_sets, *orders, *run.watch.corpus_files()])
    run.ranks.barrier()
    run.watch.read()
    for task, encoder, lang, split in run.ranks.take(list(files)):
        said, note = run.corpora.describe(task, encoder, lang, split)
        run.ranks.say(f"{task:8}{lang} {split:6}{short_name(encoder)}: {said}")
        if note:
            run.ranks.say(f"warning: {note}")
    run.ranks.barrier()

def attempt(run, unit, work, failed, needs=()):
    """Do a unit of work once all it needs is there; if it cannot be done, record why and go on.
    A fault of the kit itself, not of an encoder or a device, is also kept for the end of the run."""
    problem, trace = "", {}
    try:
        if missing := [str(need) for need in needs if run.ranks.outcome(need)]:
            raise UnitError(f"{unit}: it needs {', '.join(missing)}.")
        work(run, unit)
        failed.unlink(missing_ok=True)
    except UnitError as e:
        problem = str(e)
    except (KitError, OSError):   # of a file, which others need too
        raise
    except Exception as e:
        find_device(str(run.device))   # raises KitError where an error has spoilt it for all others, too
        why = (str(e).strip() or repr(e)).splitlines()[0]
        said = "no memory is left for it" if results.out_of_memory(e) else type(e).__name__
        problem, trace = f"{unit}: {said} ({why}).", {"traceback": traceback.format_exc()}
        raised_in = Path(traceback.extract_tb(e.__traceback__)[-1].filename)
        if raised_in.parent == Path(__file__).parent and not isinstance(e, (RuntimeError, MemoryError)):
            run.faults.append(trace["traceback"])
    if problem:
        results.write(failed, json.dumps({"problem": problem, **settings(run.args, unit), **trace}).encode())
        run.ranks.say(problem)
    run.ranks.finish(unit, problem)

def report(run, evaluated, models, pairs):
    """Write report.md and print its short form; returns the exit code."""
    missing = [problem for unit in [*models, *pairs] if (problem := run.ranks.outcome(unit))]
    notes = demo.notes(run, models) if run.args.demo == "languages" else ""
    print(plot.report(evaluated, run.args.out, shlex.join(["python", *sys.argv]), notes, missing))
    figure = Path(run.args.out, "figures", "fig2-lines.png")
    print(f"\nLook first at {run.args.out}/report.md" + (f" and {figure}." if figure.exists() else "."))
    return 3 if missing else 0

def answer(args):
    """main with its mistakes told as sentences; returns the exit code."""
    try:
        if args.export:
            print(export.export(args.export, (args.encoder or [None])[0], TASKS))
            return 0
        return main(args) or 0
    except KeyboardInterrupt:
        if not results.quiet():
            print(f"\nStopped. What is finished is saved in {args.out}; the same command continues.",
                  file=sys.stderr)
        return 130
    except KitError as e:
        problem = str(e)
    except OSError as e:
        problem = f"{e.filename or 'A file'} could not be written or read: {e.strerror or e}."
    print(f"reproduce.py: {problem}", file=sys.stderr)
    return 2

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    many = ARGS.demo and not ARGS.dry_run and ARGS.device == "cpu" and not os.environ.get("RANK")
    sys.exit(results.on_every_core(partial(answer, ARGS)) if many else answer(ARGS))
