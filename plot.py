"""Figures, claims and report from the result files of one run or of many.

    python plot.py results                               # what reproduce.py does at the end of a run
    python plot.py machine1 machine2 --out joined        # runs of several machines, joined

Reads RESULTS/grids/TASK/ENCODER/SRC-TGT/seedK.jsonl; writes FOLDER/figures/*.png and *.pdf, FOLDER/report.md.
A *grid* is one result file: the evaluated points of one *run* (task, encoder, pair, seed); a *case* a task,
an encoder and a pair over its seeds; *sides* are source and target, by their dev sets; *normalised* is what
normalise() returns. Points are (a1, a2) of Eq. 3, lines are Eq. 1 and Eq. 2.
"""
import argparse
import io
import math
import shlex
import sys
from functools import partial
from itertools import product
from pathlib import Path
from textwrap import fill, indent

import numpy as np  # matplotlib, which is slow to import, is imported where a figure is made

import derive
from results import FORMAT, KitError, read_lines, write

CLAIMS = (  # a claim, where the paper makes it, and our rules: a name of numbers(), >= or <, a limit
    ("Source stays flat along Eq. 1", "Abstract, Fig. 2", "source, Eq. 1: lowest score >= 0.97"),
    ("Target rises smoothly and linearly along Eq. 1", "Abstract, Fig. 2", "target, Eq. 1: rise >= 0.02",
     "target, Eq. 1: largest fall < 0.02", "target, Eq. 1: R squared >= 0.9"),
    ("Target stays flat along Eq. 2", "Fig. 2", "target, Eq. 2: lowest score >= 0.97"),
    ("Source rises smoothly and linearly along Eq. 2", "Fig. 2", "source, Eq. 2: rise >= 0.02",
     "source, Eq. 2: largest fall < 0.02", "source, Eq. 2: R squared >= 0.9"),
    ("Zero-shot seeds vary much less on the source", "Fig. 5", "zero-shot: variance, source / target < 0.25"),
    ("d_src and d_tgt are about equally long", "App. B, Fig. 4", "norm_ratio: runs inside >= 0.75"),
    ("The angle between them is near 55 degrees", "App. B, Fig. 4", "angle: runs inside >= 0.75"),
    ("The target surface is steep at zero-shot", "Fig. 3", "target: slope, zero-shot / bilingual >= 1.5"),
    ("The source surface is flat at zero-shot", "Fig. 3", "zero-shot: slope, source / target < 0.5"),
    ("mBERT dips slightly near alpha 0.1 and 0.9", "Sec. 5", "mBERT, Eq. 1: dip at 0.1 >= 0.005",
     "mBERT, Eq. 1: dip at 0.9 >= 0.005"),
    ("XLM-R has a flatter slope than mBERT", "Sec. 5", "target, Eq. 1: rise, XLM-R - mBERT < 0"),
    ("XLM-R's interpolated models are smoother", "Sec. 5", "source, Eq. 1: bend, XLM-R - mBERT < 0",
     "target, Eq. 1: bend, XLM-R - mBERT < 0"),
    ("XLM-R's target surface is flatter than mBERT's", "Fig. 3", "plane: share lost, XLM-R - mBERT < 0"),
    ("XLM-R is better than mBERT in zero-shot transfer", "Sec. 5", "zero-shot: error, XLM-R - mBERT < 0"),
    ("Interpolating the encoder alone looks alike", "Footnote 2", "encoder alone: mean difference < 0.02"),
    ("Interpolating the head alone hardly matters", "Footnote 2", "head alone: largest change < 0.03"),
)
INSIDE, KEEPS = {"norm_ratio": (0.9, 1.1), "angle": (45, 65)}, 0.95
RULES = f"""The paper has words, the limits are ours. *Flat*: within 3 %, little beside losses of a third.
*Rise*: 2 %, *smooth* without a fall as large, *linear* if a straight line explains nine tenths (R squared).
*Much*: half the standard deviation. *About*, *near*: three of four runs are inside {INSIDE["norm_ratio"]},
{INSIDE["angle"]}; by the mean, .3 and 1.7 would be 1. *Slope*: along Eq. 1, or where a
case has a plane (here {{}} of {{}}) the gradient's length. *Steep*: 1.5 times the slope at the bilingual
model; *flat* beside that: half of it. *Dip*: how far a score lies below the middle of those 0.1 before and
after, for both sides' mean; .005 is no rounding. *Bend*: its mean size. *Lost*: scores below {KEEPS}.

A claim *agrees* where the numbers of all grids and of more than half of the cases alone follow its rules,
*differs* where neither do, else it is *mixed*. A case is a task, an encoder and a pair over its seeds; of two
encoders, a task and a pair. Scores are normalised, means over cases, and on lines from alpha 0 to 1."""
MARGIN = 1.0     # a model at most this many points above the most frequent class has collapsed
MIN_CASES = 3    # with fewer cases a band is over runs, though seeds of one case are no independent samples
MIN_RUNS = 5     # fewer runs than this are drawn one by one: their band would fill the figure
BOTH, SRC, TGT = (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)  # the three fine-tuned models
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student's t, 1 to 10 degrees
SIDES, CASE, PAIR = ("source", "target"), ("task", "encoder", "src", "tgt"), ("task", "src", "tgt")
NAMES = {"ner": "NER", "parsing": "Parsing", "pos": "POS", "xnli": "XNLI", "title": "Titles",
         "mbert": "mBERT", "xlmr": "XLM-R", "e5": "mE5-small", "multilingual-e5-small": "mE5-small",
         "bert-base-multilingual-cased": "mBERT", "xlm-roberta-large": "XLM-R"}  # all others keep their own
NUMBER = int, float, type(None)
FIELDS = dict.fromkeys(("task", "encoder", "src", "tgt", "part", "scored_in"), str) | dict.fromkeys(
    ("metrics", "line", "plane"), list) | {"seed": int, "settings": dict, "majority": dict,
                                           "norm_ratio": NUMBER, "angle": NUMBER}  # of a file's header
# Okabe and Ito's colours. Hue and marker tell the sides apart, lightness and dashes the encoders.
COLOURS, DASHES = (("#0072B2", "#56B4E9"), ("#D55E00", "#E69F00")), ("-", (0, (4, 1.5)), (0, (1, 1.2)))
DOTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
LEVELS = (0.30, 0.50, 0.70, 0.90, 0.95, 0.99)  # contour lines of Figs. 3 and 10, with shades between them
SHADES = ("#ffffff", "#f0f6fb", "#deebf6", "#cbe0f0", "#b5d2e9", "#9dc4e2", "#82b4da")
STYLE = {"font.size": 8, "axes.titlesize": 8, "axes.linewidth": 0.6, "lines.linewidth": 1.3,
         "lines.markersize": 4, "legend.frameon": False, "savefig.dpi": 200, "pdf.fonttype": 42}

LANGUAGES, FAR = ("en", "ar", "de", "es", "fr", "hi", "ru", "vi", "zh"), 5
PUBLISHED = (  # of such runs: task, metric, encoder, model, source, test scores in LANGUAGES
    ("xnli", "accuracy", "mBERT", "zero-shot", "AlignFreeze", "80.8 64.6 70.1 73.4 72.8 59.7 67.8 69.0 68.9"),
    ("ner", "span F1", "mBERT", "zero-shot", "AlignFreeze", "85.1 40.3 79.7 73.8 80.3 68.9 65.2 72.8 -"),
    ("pos", "accuracy", "mBERT", "zero-shot", "AlignFreeze", "96.6 - 88.3 85.1 85.7 67.7 81.4 62.3 65.7"),
    ("xnli", "accuracy", "XLM-R", "zero-shot", "Conneau", "89.1 79.8 83.9 85.1 84.1 76.9 81.2 80.8 80.2"),
    ("xnli", "accuracy", "mBERT", "target only", "Wu", "82.1 70.8 74.8 78.5 76.9 65.3 74.3 67.8 76.2"),
    ("pos", "accuracy", "mBERT", "target only", "MaChAmp", "95.0 - 92.9 - - 97.5 98.1 91.1 96.8"),
    ("parsing", "LAS", "mBERT", "target only", "MaChAmp", "87.6 - 81.7 - - 92.0 87.4 66.1 85.9"))
BESIDE = f"""Published test scores of such runs, zero-shot from English (AlignFreeze 2025: five seeds, spread
0.1 on English, up to 2.0 elsewhere; Conneau et al. 2020: selected on all languages' dev sets; Wu & Dredze
2019; MaChAmp's result files: UD 2.7, LAS with punctuation). The paper prints no such table, and yours are
dev scores: a help, no claim. *Far* is more than {FAR} points (ours): to be expected with --limit or another
corpus, else look at the settings."""

class Grid:
    """One result file: header, scores {metric: {(a1, a2): (source, target)}}, points (those of the first)."""
    def __init__(self, file, header):
        self.file, self.header = file, header
        for name in FIELDS:
            setattr(self, name, header[name])
        self.scores = {metric: {} for metric in self.metrics}
        self.points = self.scores[self.metrics[0]]
        self.line, self.plane = sorted(self.line), sorted(self.plane)
        self.written = {}  # {(a1, a2): [[gold, output]]} of a task that writes
        self.task_name = NAMES.get(self.task, self.task)
        self.encoder_name = NAMES.get(self.encoder.split("--")[-1], self.encoder)  # OWNER--NAME on the hub
        made, control = header.get("pretraining", "scratch"), header.get("control", "")
        self.control = bool(control) or made != "scratch"  # beside the experiment, in no claim of the paper
        if "pretraining" in header:  # here, for its pair alone
            self.encoder_name = f"{made}, align {header['align']:g}" if header["align"] else made
        if control:
            self.encoder, self.encoder_name = f"{self.encoder}, {control}", f"{self.encoder_name}, {control}"
        self.floors = self.majority[self.src], self.majority[self.tgt]
        self.languages = self.src.upper(), self.tgt.upper()
        self.pair = "-".join(self.languages)
        self.known = None not in (self.norm_ratio, self.angle)  # else d_src or d_tgt is zero
        self.axes = {*self.on_line(1), *self.on_line(2)}
        self.square = list(product(self.plane, self.plane))
        self.key = self.task, self.encoder, self.src, self.tgt, self.seed, self.part

    def __str__(self):
        part = "" if self.part == "all" else f", {self.part} only"
        return f"{self.task_name} {self.encoder_name} {self.pair} seed {self.seed}{part}"

    def on_line(self, equation, inside=False):
        """The points of Eq. 1 or 2 by rising alpha; inside: those of alpha from 0 to 1."""
        rests = [round(1 - alpha, 3) for alpha in self.line if not inside or 0 <= alpha <= 1]
        return [(rest, 0.0) if equation == 1 else (0.0, rest) for rest in rests]

    def collapse(self):
        """A clause: which fine-tuned model learned nothing in a language it was trained on; "" if all did."""
        alone = [("source-only", SRC, 0), ("target-only", TGT, 1)] if self.part == "all" else []
        for name, point, side in [("bilingual", BOTH, 0), ("bilingual", BOTH, 1), *alone]:
            score = self.points.get(point, (101, 101))[side]
            if score <= self.floors[side] + MARGIN:
                return (f"{name} model {score:.1f} on {self.languages[side]}, most frequent class "
                        f"{self.floors[side]:.1f}")
        return ""

def load(folders):
    """All grids under folders, sorted; one in two folders counts once. Raises KitError where they differ."""
    grids = {}
    for folder in map(Path, folders):
        files = sorted((folder / "grids").rglob("seed*.jsonl"))
        if not files:
            raise KitError(f"{folder}: no result files in grids/; name a folder that reproduce.py wrote")
        for grid in filter(None, map(read, files)):
            join(grids.setdefault(grid.key, grid), grid)
    return [grids[key] for key in sorted(grids)]

def join(first, second):
    """Add to a grid the points that another file has of it. Raises KitError where the two contradict."""
    differ = [(name, first.header.get(name), second.header.get(name))
              for name in (*FIELDS, "models", "data", "dev", "encoder_digest")]
    first.written |= second.written
    for metric, points in second.scores.items():
        had = first.scores.get(metric, {})  # where the metrics are others, the headers differ
        differ += [(f"{metric} at {at}", had.setdefault(at, pair), pair) for at, pair in points.items()]
    for what, one, other in differ:
        if one != other:
            raise KitError(f"{first.file} and {second.file} are both {first}, but differ in {what}: "
                           f"{str(one)[:80]} and {str(other)[:80]}; give only one of the two runs")

def read(path):
    """One result file as a Grid; None where not even the header was written whole."""
    rows = read_lines(io.BytesIO(path.read_bytes()), path)  # a copy: a torn last line is not ours to cut off
    return check(path, rows) if rows else None

def check(path, rows):
    """The Grid of a result file's rows. Raises KitError where something is missing or a point is wrong."""
    number, sides = 1, ("src", "tgt")
    try:
        if rows[0]["format"] not in (2, FORMAT):  # of 2 the models are trained otherwise, the lines the same
            raise ValueError(f"its format is {rows[0]['format']}, that of this kit {FORMAT}")
        for name, kinds in FIELDS.items():
            if not isinstance(value := rows[0][name], kinds) or value == [] or value != value:
                raise ValueError(f"{name} is {value!r}, which it cannot be")
        grid = Grid(path, rows[0])
        expected = grid.axes.union(grid.square)
        for number, row in enumerate(rows[1:], 2):
            point = row["a1"], row["a2"]
            grid.written |= {point: row["written"]} if "written" in row else {}
            if point not in expected:
                raise ValueError(f"{point} is no point of the lines or the plane that line 1 describes")
            for metric, points in grid.scores.items():
                pair = tuple(row[side][metric] for side in sides)
                if not all(0 <= score <= 100 for score in pair):
                    raise ValueError(f"{metric} is {pair}, expected two scores from 0 to 100")
                if points.setdefault(point, pair) != pair:
                    raise ValueError(f"{metric} is {pair}, an earlier line says {points[point]}")
    except (AttributeError, LookupError, TypeError, ValueError) as e:
        reason = f"it has no {e}" if isinstance(e, KeyError) else e
        raise KitError(f"{path} line {number}: {reason}; restore the file, or move it away and run "
                       "reproduce.py again") from None
    return grid

def sound(grids, part="all"):
    """The grids that interpolate a part, without those of a run of which any part has collapsed."""
    out = {grid.key[:-1] for grid in grids if grid.collapse()}
    return [grid for grid in grids if grid.key[:-1] not in out and grid.part == part]

def group(grids, *names):
    """The grids by the values of the named attributes: {(value, ...): [grid, ...]}, sorted by the values."""
    found = {}
    for grid in grids:
        found.setdefault(tuple(getattr(grid, name) for name in names), []).append(grid)
    return dict(sorted(found.items()))

def cases(grids):
    """Lists of the grids that differ in nothing but seed and part."""
    return list(group(grids, *CASE).values())

def normalise(runs, points):
    """Scores of one case relative to the bilingual model (Sec. 4): nothing is normalised anywhere else.
    runs: grids of one task, encoder and pair, one a seed; points: a list of (a1, a2). Returns two arrays,
    scores (runs, points, sides): each over that of the same seed's bilingual model on the same dev set;
    variance (points, sides): of the plain scores over seeds (divisor n - 1), over the mean bilingual score,
    as in the paper not over its square. NaN stands for what is not evaluated, and for a single seed's."""
    plain = np.array([[run.points.get(at, (math.nan, math.nan)) for at in (BOTH, *points)] for run in runs])
    bilingual, plain = plain[:, :1], plain[:, 1:]
    return plain / bilingual, moments(plain)[2] ** 2 / mean(bilingual)

def moments(values):
    """Number, mean, standard deviation (divisor n - 1) along the first axis, without NaNs; NaN of too few."""
    there = np.ma.masked_invalid(np.array(values, float))
    return there.count(0), np.ma.filled(there.mean(0), np.nan), np.ma.filled(there.std(0, ddof=1), np.nan)

def mean(values):
    return moments(values)[1]

def band(values):
    """Mean along the first axis and half width of its 95 % interval (ours: Student's t); NaN where n is 1."""
    number, middle, sd = moments(values)
    free = np.maximum(number - 1, 1)
    t = np.where(free > len(T975), 1.95996 + 2.3723 / free + 2.8225 / free ** 2,  # beyond: right to .002
                 np.take(T975, free - 1, mode="clip"))
    return middle, t * sd / np.sqrt(free + 1)

def series(grids, equation):
    """On a line: normalised scores (units, points, sides), what units are, mean variance (points, sides)."""
    parts = [normalise(runs, grids[0].on_line(equation)) for runs in cases(grids)]
    many = len(parts) >= MIN_CASES
    scores = np.concatenate([mean(scores)[None] if many else scores for scores, _ in parts])
    units = "cases" if many else "runs" if len(parts) > 1 else "seeds"
    return scores, units, mean([variance for _, variance in parts])

# ---- figures -----------------------------------------------------------------------------------------------
def plan(grids):
    """The figures that the grids allow, a list of (name of the file, caption, function that makes it)."""
    more = [figure for each in further(grids) for figure in each.figures(grids)]
    grids = [grid for grid in sound(grids) if not grid.control]
    figures = [("fig2-lines", "Fig. 2: both lines, all tasks and pairs", partial(lines_figure, grids))]
    for (task,), of in group(grids, "task").items():
        figures.append((f"lines-{task}", f"Figs. 6 to 9: task {of[0].task_name}", partial(lines_figure, of)))
    for names, of in group(grids, *PAIR).items():
        name, label = "-".join(names), f"{of[0].task_name} {of[0].pair}"
        figures.append((f"lines-{name}", f"Both lines: {label}", partial(lines_figure, of)))
        if planes := [grid for grid in of if grid.points.keys() - grid.axes]:
            figures.append((f"plane-{name}", f"Figs. 3 and 10: {label}", partial(plane_figure, planes)))
    figures.append(("norms", "Fig. 4: norm ratio and angle of each run", partial(norms_figure, grids)))
    if max(map(len, cases(grids)), default=0) > 1:
        figures.append(("variance", "Fig. 5: variance over seeds", partial(lines_figure, grids, True)))
    return figures + more if grids else []

def further(grids):
    """The modules that have figures and a section of the report of their own for these grids."""
    found = [derive] if derive.transfers(grids) else []
    if any(grid.header.get("xlrs") or grid.written or "+" in grid.src for grid in grids):
        import generate  # which imports torch
        found.append(generate)
    return found

def draw_figure(name, make, out):
    """Write one figure of plan() to out/figures as PNG and PDF, the same bytes each time."""
    from matplotlib import style
    with style.context(["default", STYLE]):  # whatever settings the user has
        figure = make()
        for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            data = io.BytesIO()
            figure.savefig(data, format=ending, metadata=metadata)
            write(Path(out, "figures", f"{name}.{ending}"), data.getvalue())

def canvas(rows, columns, height, **shared):
    """A figure of panels as wide as a column of print, height in inches, and these panels (rows, columns)."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(3.3 * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)

def title(ax, text, grids, points):
    """Say over a panel what it shows, of how many seeds, and whether some of its points are still missing."""
    seeds = {len(runs) for runs in cases(grids)}
    note = "seeds: " + " to ".join(map(str, sorted({min(seeds), max(seeds)})))
    note += "" if all({*points} <= grid.points.keys() for grid in grids) else ", incomplete"
    ax.set_title(text, loc="left")
    ax.set_title(note, loc="right", size=7)

def lines_figure(grids, variance=False):
    """Figs. 2 and 5 to 9: a row of panels for each source language, a column for each equation."""
    sources, encoders, legend = group(grids, "src").values(), list(group(grids, "encoder_name")), {}
    figure, panels = canvas(len(sources), 2, 2.3, sharey=True)
    for (of, equation), ax in zip(product(sources, (1, 2)), panels.flat, strict=True):
        notes = {}
        for (encoder, runs), side in product(group(of, "encoder_name").items(), (0, 1)):
            number, alphas = encoders.index(encoder), np.array(runs[0].line)
            (scores, units, variances), colour = series(runs, equation), COLOURS[side][number % 2]
            middle, half = (values[:, side] for values in band(scores))
            [legend[f"{SIDES[side]} language, {runs[0].encoder_name}"]] = ax.plot(
                alphas, variances[:, side] if variance else middle, color=colour, ls=DASHES[number % 3],
                marker="o^"[side], markevery=np.flatnonzero(alphas * 2 % 1 == 0).tolist())
            spread = not variance and max(map(len, cases(runs))) > 1
            if spread and (units == "cases" or len(scores) >= MIN_RUNS):
                ax.fill_between(alphas, middle - half, middle + half, color=colour, alpha=0.2, lw=0)
                notes[f"band: 95 % of the mean over {len(scores)} {units}"] = True
            elif spread:
                ax.plot(alphas, scores[..., side].T, color=colour, lw=0.4)
                notes[f"thin lines: single {units}"] = True
        models = of[0].languages if len(group(of, "tgt")) == 1 else (of[0].languages[0], "X")
        ticks = "−.5", f"0\n{models[equation - 1]}", ".5\nα", "1\n" + "-".join(models), "1.5"
        ax.set_xticks((-0.5, 0, 0.5, 1, 1.5), ticks)
        ax.set_xlabel("; ".join(notes), size=7)
        task = f"{of[0].task_name}, " if len(group(of, "task")) == 1 else ""
        title(ax, f"{task}Eq. {equation}", of, of[0].on_line(equation))
    ax.set_ylim(bottom=0 if variance else max(0, ax.get_ylim()[0]))
    figure.supylabel("variance / bilingual score" if variance else "score / bilingual score", size=8)
    figure.legend(legend.values(), legend, loc="outside upper center", ncols=2, handlelength=3.5)
    return figure

def plane_figure(grids):
    """Figs. 3 and 10 for a task and pair: a panel for each language; several encoders make a column each."""
    from matplotlib.patheffects import withStroke
    encoders, halo = group(grids, "encoder_name").values(), [withStroke(linewidth=2, foreground="white")]
    figure, panels = canvas(min(len(encoders), 2), max(len(encoders), 2), 3.15, sharex=True, sharey=True)
    for (side, of), ax in zip(product((0, 1), encoders), panels.flat, strict=True):
        grid, axis = of[0], np.array(of[0].plane)
        height = mean(normalise(of, grid.square)[0])[:, side].reshape(len(axis), -1).T  # (a2, a1)
        height = np.ma.masked_invalid(height)
        ax.set_facecolor("0.85")  # what is not evaluated stays grey
        ax.contourf(axis, axis, height, levels=(-1, *LEVELS, 101), colors=SHADES)
        if reached := [level for level in LEVELS if height.count() and height.min() < level <= height.max()]:
            contours = ax.contour(axis, axis, height, levels=reached, colors="0.25", linewidths=0.8)
            ax.clabel(contours, fmt=lambda level: f"{level:.2f}".lstrip("0"), fontsize=7)
        for point, name in ((BOTH, grid.pair), (SRC, grid.languages[0]), (TGT, grid.languages[1])):
            ax.plot(*point, "o", color="black", markeredgecolor="white", markersize=5)
            ax.annotate(name, point, (4, 4), textcoords="offset points", weight="bold", path_effects=halo)
        title(ax, f"{grid.task_name}, {grid.encoder_name}: score on {grid.languages[side]}", of, grid.square)
        ax.set(xlim=axis[[0, -1]], ylim=axis[[0, -1]], aspect="equal", xticks=axis[::5], yticks=axis[::5],
               xlabel="α₁", ylabel="α₂")
    return figure

def norms_figure(grids):
    """Fig. 4: the ratio of the norms of d_src and d_tgt and the angle between them, a dot for each run."""
    figure, [[ax]] = canvas(1, 1, 2.4)
    tasks, encoders = list(group(grids, "task")), list(group(grids, "encoder_name"))
    for (task, encoder), of in group([run for run in grids if run.known], "task", "encoder_name").items():
        colour, marker = DOTS[tasks.index((task,)) % 4], "os^D"[encoders.index((encoder,)) % 4]
        ax.plot([grid.norm_ratio for grid in of], [grid.angle for grid in of], marker, color=colour,
                label=f"{of[0].task_name}, {of[0].encoder_name}")
    ax.fill_between(INSIDE["norm_ratio"], *INSIDE["angle"], color="0.9", zorder=0, label="near the paper's")
    ax.set(xlabel=r"$|\delta_{src}|\,/\,|\delta_{tgt}|$", ylabel="angle, degrees")
    figure.legend(loc="outside right upper", handlelength=1.4)
    return figure

# ---- claims ------------------------------------------------------------------------------------------------
def claims(grids):
    """What the grids say to each claim of the paper, a list of dicts of words, by RULES."""
    def follows(found, rules):  # None where a number is not known
        above = [(found.get(name, math.nan) - float(limit), sign) for name, sign, limit in rules]
        holds = all((gap >= 0) == (sign == ">=") for gap, sign in above)
        return None if any(math.isnan(gap) for gap, _ in above) else holds

    grids = [grid for grid in grids if not grid.control]
    pooled, rows = numbers(grids), []
    alone, pairs = ([numbers(of) for of in group(grids, *names).values()] for names in (CASE, PAIR))
    for claim, paper, *rules in CLAIMS:
        rules = [rule.rsplit(" ", 2) for rule in rules]
        measured = [f"{name.split(': ')[1]} = {pooled.get(name, math.nan):.3f}" for name, _, _ in rules]
        each = [follows(found, rules) for found in (pairs if "XLM-R" in claim else alone)]
        found = judge(follows(pooled, rules), each, ", ".join(measured))
        rows.append({"claim": claim, "paper": paper} | found)
    return rows

def judge(holds, each, measured):
    """{verdict, cases, measured} of a claim: whether all grids follow it (None: unknown), and each case."""
    yes, no = each.count(True), each.count(False)
    if holds is None:
        return {"verdict": "not tested", "cases": "-", "measured": "-"}
    verdict = "agrees" if holds and yes > no else "mixed" if holds or yes > no else "differs"
    return {"verdict": verdict, "cases": f"{yes} of {yes + no}", "measured": measured}

def verdict(cases, measured):
    """`judge` of a claim that a case, a list of numbers, follows where all are above 0."""
    if not cases:
        return judge(None, [], "")
    pooled = np.mean(cases, 0)
    return judge(min(pooled) > 0, [min(case) > 0 for case in cases], measured.format(*pooled))

@np.errstate(all="ignore")  # what is divided by nothing is NaN or infinite
def numbers(grids):
    """What the rules ask of some grids, {name: number}; NaN or left out where the grids do not tell."""
    full, found, gaps, compared = sound(grids), {}, [], []
    for equation, (side, name) in product((1, 2), enumerate(SIDES)):
        found |= {f"{name}, Eq. {equation}: {key}": both[side] for key, both in shape(full, equation).items()}
    of_mbert = shape([grid for grid in full if grid.encoder_name == "mBERT"], 1)
    found |= {f"mBERT, Eq. 1: {key}": np.mean(both) for key, both in of_mbert.items()}
    for name, (low, high) in INSIDE.items():
        found[f"{name}: runs inside"] = mean([low <= getattr(run, name) <= high for run in full if run.known])
    found["zero-shot: error"] = mean([100 - grid.points[SRC][1] for grid in full if SRC in grid.points])
    planes = cases([grid for grid in full if {*grid.square} <= grid.points.keys()])
    surfaces = [mean(normalise(case, case[0].square)[0]) for case in planes]  # (points, sides)
    found["plane: share lost"] = mean([np.mean(surface[:, 1] < KEEPS) for surface in surfaces])
    if full:
        source, target = mean([normalise(case, [SRC])[1][0] for case in cases(full)])
        found["zero-shot: variance, source / target"] = source / target
        (source, target), (_, bilingual) = mean([slopes(case) for case in cases(full)])
        found["zero-shot: slope, source / target"] = source / target
        found["target: slope, zero-shot / bilingual"] = target / bilingual
    heads = [shape(sound(grids, "head"), equation).get("largest change", [math.nan]) for equation in (1, 2)]
    found["head alone: largest change"] = np.max(np.concatenate(heads))
    for runs in group(full + sound(grids, "encoder"), *CASE, "seed").values():
        points = sorted(set.intersection(*(set(run.points) for run in runs)))
        gaps += [mean(abs(np.diff([normalise([run], points)[0] for run in runs], axis=0)).ravel())]
    found["encoder alone: mean difference"] = mean(gaps)
    for of in group(full, *PAIR).values():
        by = group(of, "encoder_name")
        if {("XLM-R",), ("mBERT",)} <= by.keys():
            compared.append((numbers(by["XLM-R",]), numbers(by["mBERT",])))
    for key in list(found):
        gaps = [xlmr.get(key, math.nan) - mbert.get(key, math.nan) for xlmr, mbert in compared]
        found[f"{key}, XLM-R - mBERT"] = mean(gaps)
    return found

def shape(grids, equation):
    """What a line's mean scores do between its two models, {name: (sides,)}; {} where no line is whole."""
    runs = [grid for grid in grids if {*grid.on_line(equation, True)} <= grid.points.keys()]
    if not runs:
        return {}
    alphas, scores = np.array(runs[0].line), mean(series(runs, equation)[0])  # (points, sides)
    even = np.transpose([np.interp(np.linspace(0, 1, 11), alphas, scores[:, side]) for side in (0, 1)])
    inside, dips = scores[(alphas >= 0) & (alphas <= 1)], np.diff(even, 2, axis=0) / 2
    return {"lowest score": inside.min(0), "rise": inside[-1] - inside[0], "bend": abs(dips).mean(0),
            "largest change": abs(inside - 1).max(0), "dip at 0.1": dips[0], "dip at 0.9": dips[-1],
            "largest fall": (np.maximum.accumulate(inside) - inside).max(0),
            "R squared": r_squared(even)}

def r_squared(even):
    """How much of curves (points, sides) at even steps the line between their two ends explains."""
    off, around = even - np.linspace(even[0], even[-1], len(even)), even - even.mean(0)
    return 1 - (off ** 2).sum(0) / np.maximum((around ** 2).sum(0), 1e-12)

def slopes(case):
    """Slopes (models, sides) of a case's mean surface at the zero-shot and the bilingual model: lengths of
    its gradients or, where there is no plane around the models, sizes along Eq. 1."""
    steps = 0.1 * np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
    around = np.round([*(SRC + steps), *(BOTH + steps)], 3).tolist()
    scores = normalise(case, [*map(tuple, around)])[0].reshape(-1, 2, 2, 2, 2)
    gradients = mean(scores[:, :, 0] - scores[:, :, 1]) / 0.2  # (models, directions, sides)
    plane = np.isfinite(gradients).all()
    return np.linalg.norm(gradients if plane else gradients[:, :1], axis=1)

# ---- report ------------------------------------------------------------------------------------------------
HOW = """Mean ± standard deviation over seeds, 0 to 100, on the target's dev set, but for two source columns.
Flatness is the lowest mean source score on Eq. 1 from alpha 0 to 1, over the bilingual model's; R squared
says how straight the target's climb there is."""
SHOWN = {"source": (SRC, 0), "zero-shot": (SRC, 1), "bilingual": (BOTH, 1), "target only": (TGT, 1),
         "bilingual on source": (BOTH, 0)}

def summary(grids):
    """A row {column: cell} for each task, metric, encoder and pair; scores over the seeds."""
    def mean_sd(values, digits):
        sd = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{sd}" if values else "-"

    rows = []
    for case in cases(sound(grids)):
        first, line, known = case[0], shape(case, 1), [run for run in case if run.known]
        geometry = {"flatness": f"{line['lowest score'][0]:.3f}" if line else "-",
                    "R squared": f"{line['R squared'][1]:.2f}" if line else "-",
                    "norm ratio": mean_sd([run.norm_ratio for run in known], 2),
                    "angle": mean_sd([run.angle for run in known], 1)}
        for metric in first.metrics:
            scores = {name: mean_sd([run.scores[metric][at][side] for run in case if at in run.points], 1)
                      for name, (at, side) in SHOWN.items()}
            rows.append({"task": first.task_name, "metric": metric, "encoder": first.encoder_name,
                         "pair": first.pair, "seeds": str(len(case)), **scores, **geometry})
            geometry = {}  # of the first metric only
    return rows

def published(grids):
    """Rows {column: cell}: each score for which PUBLISHED has one, beside it."""
    rows = []
    for task, metric, encoder, model, source, scores in PUBLISHED:
        at, side = SHOWN[model]
        for (src, tgt), of in group(sound(grids), "src", "tgt").items():
            such = [grid for grid in of if (grid.task, grid.encoder_name) == (task, encoder)]
            found = [grid.scores[metric][at][side] for grid in such if at in grid.scores.get(metric, ())]
            score = dict(zip(LANGUAGES, scores.split(), strict=True)).get(tgt, "-")
            if found and score != "-" and (src == "en" or model != "zero-shot"):
                gap = np.mean(found) - float(score)
                rows.append({"task": of[0].task_name, "encoder": encoder, "pair": of[0].pair, "model": model,
                             "yours": f"{np.mean(found):.1f}", "published": score, "source": source,
                             "hint": "far" if abs(gap) > FAR else ""})
    return rows

def table(rows, gap=" | "):
    """Rows {column: cell} as a Markdown table, or with another gap as plain text."""
    cells = [[*rows[0]], *([row.get(name, "") for name in rows[0]] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(gap.join(map(str.ljust, row, widths)).rstrip() for row in cells)

def remarks(grids):
    """Sentences on what the numbers leave out or mix: collapsed, unfinished, partial runs, settings."""
    said = [f"Collapsed, left out of all figures, means and claims: {grid}, {why}."
            for grid in grids if (why := grid.collapse())]
    for grid in grids:
        wanted = grid.axes.union(grid.square if grid.points.keys() - grid.axes else ())
        wanted = {BOTH, SRC, TGT} if grid.control and grid.points.keys() <= {BOTH, SRC, TGT} else wanted
        if wanted - grid.points.keys():
            said.append(f"Incomplete: {grid}, {len(grid.points)} of {len(wanted)} points.")
    if parts := sum(grid.part != "all" for grid in grids):
        said.append(f"Interpolated in part, used for footnote 2 alone: {parts} of {len(grids)} grids.")
    for key, of in group(sound(grids), "task_name", "encoder_name").items():
        settings = [{**grid.settings, "scored in": grid.scored_in} for grid in of]
        for name in settings[0]:
            values = sorted({str(each.get(name)) for each in settings})
            if len(values) > 1:
                said.append(f"Mixed settings: {' '.join(key)}, {name} {' and '.join(values)}.")
    return said

def report(grids, out, command, notes="", missing=()):
    """Write out/report.md with notes (Markdown) and missing (sentences); returns a text 79 columns wide."""
    rows, found, said, pictures = summary(grids), claims(grids), remarks(grids), {}
    sections, beside = [each.section(grids) for each in further(grids)], published(grids)
    for name, caption, _ in plan(grids):
        file = Path(out, "figures", f"{name}.png")
        if file.exists():  # by content: with one task and one pair, several figures are the same
            pictures.setdefault(file.read_bytes(), f"### {caption}\n\n![{caption}](figures/{name}.png)\n\n"
                                                   f"As [PDF](figures/{name}.pdf)")
    planes = [all({(1.0, 0.1), (1.0, -0.1)} <= {*run.points} for run in case) for case in cases(sound(grids))]
    rules = [f"{claim}: {', '.join(rules)}" for claim, _, *rules in CLAIMS]
    failed, noted, ruled = ("\n".join(f"- {text}" for text in texts) for texts in (missing, said, rules))
    parts = ["# Report", f"Made by\n\n    {command}", failed and "## Missing", failed, "## Scores", HOW,
             table(rows), noted, beside and "Is my number right?", beside and BESIDE, table(beside),
             "## The paper's claims", table(found), ruled, RULES.format(sum(planes), len(planes)),
             *(text for text, _ in sections), notes, pictures and "## Figures", *pictures.values()]
    write(Path(out, "report.md"), "\n\n".join(filter(None, parts)).encode() + b"\n")

    lines = [fill(text, 79) for text in (*(f"Missing: {text}" for text in missing), *said)]
    for encoder in dict.fromkeys(row["encoder"] for row in rows):
        short = [{"task": row["task"][:10], "pair": row["pair"][-18:]} | {name: row[name] for name in
                  ("source", "zero-shot", "bilingual", "flatness")}
                 for row in rows if row["encoder"] == encoder and "flatness" in row]
        lines += ["", fill(encoder, 79), table(short, "  ")]
    lines += verdicts(found)
    return "\n".join(lines + [line for _, short in sections for line in ("", short)])

def verdicts(rows):
    """The lines of claims for a screen."""
    lines = []
    for row in rows:
        lines.append(f"{row['verdict']:12}{row['claim']}")
        if row["measured"] != "-":
            lines.append(indent(fill(f"{row['measured']}; {row['cases']} cases", 67), " " * 12))
    return lines

def main():
    parser = argparse.ArgumentParser(description="Draws the paper's figures and checks its claims.")
    parser.error = lambda message: parser.exit(2, f"plot.py: {message}; python plot.py --help says how\n")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="a folder that reproduce.py wrote")
    parser.add_argument("--out", metavar="FOLDER", help="for figures and report.md (default: RESULTS)")
    args = parser.parse_args()
    out = args.out or args.results[0]
    if not args.out and len(args.results) > 1:
        parser.error("several RESULTS need --out FOLDER, for what they give together")
    try:
        grids = load(args.results)
        for name, _, make in plan(grids):
            draw_figure(name, make, out)
        print(report(grids, out, shlex.join(["python", *sys.argv])), f"\nFigures and report: {out}/report.md",
              sep="\n")
    except (KitError, OSError) as error:
        parser.exit(2, f"plot.py: {error}\n")

if __name__ == "__main__":
    main()
