"""Figures, claims and report from the result files of one run or of many.

    python plot.py results --out results                 # what reproduce.py does at the end of a run
    python plot.py machine1 machine2 --out joined        # runs of several machines, joined

Reads RESULTS/grids/TASK/ENCODER/SRC-TGT/seedK.jsonl; writes FOLDER/figures/*.png and *.pdf, and FOLDER/report.md.

The words used here: a *grid* is one result file, the evaluated points of one *run* (task, encoder, pair, seed); a
*case* is a task, an encoder and a pair over its seeds; *side* 0 is the source language's dev set, side 1 the target's;
*normalised* is what normalise() returns. Points are (a1, a2) of Eq. 3, lines are Eq. 1 and Eq. 2.
"""
import argparse
import contextlib
import io
import itertools
import json
import math
import os
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np  # matplotlib, which is slow to import, is imported where a figure is made

# The numbers that decide a claim; scores in them are normalised: 1 is the bilingual model.
FLAT = 0.97              # a score that never drops below this on the way is flat
GAP = 0.02               # a score that ends less than this above its start has not risen
FALL = 0.02              # the largest fall on the way up that is still smooth
LINEAR = 0.90            # R squared of the straight line between both ends
NORM_RATIO = (0.9, 1.1)  # mean |d_src| / |d_tgt|
ANGLE = (45, 65)         # mean angle in degrees; the paper's is near 55
STEEPER = 1.5            # slope at the zero-shot point over slope at the bilingual point
KEEPS = 0.95             # how flat a surface is: the share of the plane where the score is at least this
SAME = 0.02              # mean absolute difference of two surfaces that are alike

MARGIN = 1.0             # a model at most this many points above the most frequent class has collapsed
MIN_UNITS = 3            # with fewer cases than this, the units of a band are the runs
STEP = 0.1               # the regular spacing of the lines and the plane
BOTH, SRC, TGT = (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)  # the three fine-tuned models
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student's t, 1 to 10 degrees

TASKS = {"ner": ("NER", "Fig. 6"), "parsing": ("Parsing", "Fig. 7"), "pos": ("POS", "Fig. 8"),
         "xnli": ("XNLI", "Fig. 9")}
ENCODERS = {"mbert": "mBERT", "bert-base-multilingual-cased": "mBERT", "xlmr": "XLM-R", "xlm-roberta-large": "XLM-R"}

# Okabe and Ito's colours. Hue and marker tell the sides apart, lightness and dashes the encoders.
COLOURS = (("#0072B2", "#56B4E9"), ("#D55E00", "#E69F00"))
MARKERS, DASHES = ("o", "^"), ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))
DOTS = (("o", "#0072B2"), ("s", "#E69F00"), ("^", "#009E73"), ("D", "#CC79A7"))
LEVELS = (0.30, 0.50, 0.70, 0.90, 0.95, 0.99, 1.00)  # contour lines of Figs. 3 and 10, and the shades between them
SHADES = ("#ffffff", "#f3f8fc", "#e5f0f8", "#d6e7f4", "#c5ddef", "#b0d0e8", "#99c2e1", "#82b4da")
COLUMN = 3.3             # inches: a column of print, and the width of a panel
STYLE = {"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
         "legend.fontsize": 8, "legend.frameon": False, "lines.linewidth": 1.3, "lines.markersize": 4,
         "axes.linewidth": 0.6, "savefig.dpi": 200, "pdf.fonttype": 42}


class ResultError(ValueError):
    """What the user can put right: a sentence with the file, the line, the value, what was expected, what to do."""


class Untested(Exception):
    """Why a run cannot test a claim."""


@dataclass
class Claim:
    """One row of the table of claims; verdict is "agrees", "differs" or "not tested"."""
    claim: str
    where: str
    rule: str
    measured: str
    verdict: str


@dataclass(eq=False)
class Grid:
    """One result file: its header's fields, and points, which maps (a1, a2) to the (source, target) score, 0 to 100."""
    file: Path
    header: dict
    points: dict
    task: str
    metric: str
    encoder: str
    src: str
    tgt: str
    seed: int
    part: str
    line: list
    plane: list
    settings: dict
    majority: dict
    norm_ratio: float
    angle: float

    def __post_init__(self):
        if self.norm_ratio is None or self.angle is None:  # d_src or d_tgt is zero
            self.norm_ratio = self.angle = math.nan
        self.line, self.plane = sorted(self.line), sorted(self.plane)
        self.key = self.task, self.encoder, self.src, self.tgt, self.seed, self.part
        self.task_name = TASKS.get(self.task, (self.task.upper(), ""))[0]
        self.encoder_name = ENCODERS.get(self.encoder.split("/")[-1], self.encoder)
        self.languages = self.src.upper(), self.tgt.upper()
        self.pair = "-".join(self.languages)
        self.square = list(itertools.product(self.plane, self.plane))  # the points of the plane
        self.axes = self.on_line(1) + self.on_line(2)                  # the points of both lines

    def __str__(self):
        part = "" if self.part == "all" else f", {self.part} only"
        return f"{self.task_name} {self.encoder_name} {self.pair} seed {self.seed}{part}"

    def on_line(self, equation, inside=False):
        """The points of Eq. 1 or Eq. 2 by rising alpha; inside: only from the monolingual to the bilingual model."""
        rests = [round(1 - alpha, 3) for alpha in self.line if not inside or 0 <= alpha <= 1]
        return [(rest, 0.0) if equation == 1 else (0.0, rest) for rest in rests]

    def has(self, points):
        return all(point in self.points for point in points)

    def has_plane(self):
        return any(a1 and a2 for a1, a2 in self.points)  # a run with --lines-only never leaves the axes

    def collapse(self):
        """A clause that says which fine-tuned model learned nothing in a language it was trained on; "" if all did.

        Where only a part is interpolated, the bilingual model is the only fine-tuned one among the points.
        """
        alone = [("source-only", SRC, 0), ("target-only", TGT, 1)] if self.part == "all" else []
        for name, point, side in [("bilingual", BOTH, 0), ("bilingual", BOTH, 1), *alone]:
            floor = self.majority[(self.src, self.tgt)[side]]
            score = self.points.get(point, (math.inf, math.inf))[side]
            if score <= floor + MARGIN:
                return (f"the {name} model scores {score:.1f} on {self.languages[side]}, "
                        f"the most frequent class {floor:.1f}")
        return ""


FIELDS = {name: kind for name, kind in Grid.__annotations__.items() if name not in ("file", "header", "points")}


# ---- reading ---------------------------------------------------------------------------------------------------------

def load(folders):
    """All grids under folders, sorted; the same grid in two folders counts once. Raises ResultError if they differ."""
    grids = {}
    for folder in map(Path, folders):
        files = sorted((folder / "grids").rglob("seed*.jsonl"))
        if not files:
            raise ResultError(f"{folder}: no result files grids/TASK/ENCODER/SRC-TGT/seedK.jsonl in this folder; "
                              "name a folder that reproduce.py wrote with --out")
        for grid in filter(None, map(read, files)):
            join(grids.setdefault(grid.key, grid), grid)
    return sorted(grids.values(), key=lambda grid: grid.key)


def join(first, second):
    """Adds to a grid the points that another file has of it. Raises ResultError where the two contradict."""
    differ = [(name, first.header.get(name), second.header.get(name)) for name in first.header | second.header]
    differ += [(f"the scores at {point}", first.points.setdefault(point, scores), scores)
               for point, scores in second.points.items()]
    for what, one, other in differ:
        if one != other:
            raise ResultError(f"{first.file} and {second.file} are both {first}, but differ in {what}: "
                              f"{str(one)[:80]} and {str(other)[:80]}; give only one of the two runs")


def read(path):
    """One result file as a Grid; None where not even the header was written whole."""
    rows = read_lines(path)
    return check(path, rows) if rows else None


def read_lines(path):
    """What the lines of a result file hold, header first, without a torn last line."""
    try:
        lines = path.read_bytes().split(b"\n")  # what follows the last line end is empty or torn
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror}); check the file and its folder") from None
    rows = []
    for number, text in enumerate(lines, 1):
        try:
            rows.append(json.loads(text))
        except ValueError:
            if number < len(lines):
                refuse(path, number, "the line", text[:40], "JSON")
    return rows


def check(path, rows):
    """A Grid of the rows of a result file. Raises ResultError where the header or a point is not what it must be."""
    header = rows[0] if isinstance(rows[0], dict) else {}
    if header.get("format") != 1:
        refuse(path, 1, "format", header.get("format"), "1, the format that this version reads")
    for name, kind in FIELDS.items():
        value = header.get(name)
        if name not in header or not (is_number(value) or value is None if kind is float else isinstance(value, kind)):
            refuse(path, 1, name, value, f"a value of type {kind.__name__}")
    for name, numbers in (("line", header["line"]), ("plane", header["plane"]),
                          ("majority", [header["majority"].get(header[side]) for side in ("src", "tgt")])):
        if not all(map(is_number, numbers)):
            refuse(path, 1, name, header[name], "numbers, and for majority one for each of the two languages")
    grid = Grid(path, header, {}, **{name: header[name] for name in FIELDS})
    expected = {*grid.axes, *grid.square}
    for number, row in enumerate(rows[1:], 2):
        a1, a2, *scores = map(row.get, ("a1", "a2", "src", "tgt")) if isinstance(row, dict) else [None] * 4
        if not (is_number(a1) and is_number(a2) and (a1, a2) in expected):
            refuse(path, number, "(a1, a2)", (a1, a2), "a point of the lines or the plane that line 1 describes")
        if not all(is_number(score) and 0 <= score <= 100 for score in scores):
            refuse(path, number, "(src, tgt)", tuple(scores), "two scores from 0 to 100")
        if grid.points.setdefault((a1, a2), tuple(scores)) != tuple(scores):
            refuse(path, number, "(src, tgt)", tuple(scores), f"{grid.points[a1, a2]}, as an earlier line says")
    return grid


def refuse(path, number, name, value, expected):
    raise ResultError(f"{path} line {number}: {name} is {value!r}, expected {expected}; restore the file, "
                      "or move it away and run reproduce.py again")


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def sound(grids):
    """The grids left when those of a collapsed model are taken out, whatever part of it they interpolate."""
    out = {grid.key[:-1] for grid in grids if grid.collapse()}
    return [grid for grid in grids if grid.key[:-1] not in out]


def whole(grids):
    """The sound grids that interpolate everything: figures and means are made of these, but for footnote 2."""
    return [grid for grid in sound(grids) if grid.part == "all"]


def group(grids, *names):
    """The grids by the values of the named fields: {(value, ...): [grid, ...]}, in the order of the values."""
    found = {}
    for grid in grids:
        found.setdefault(tuple(getattr(grid, name) for name in names), []).append(grid)
    return dict(sorted(found.items()))


def cases(grids):
    """Lists of the grids that differ in nothing but seed and part."""
    return list(group(grids, "task", "encoder", "src", "tgt").values())


# ---- numbers ---------------------------------------------------------------------------------------------------------

def normalise(runs, points, side):
    """Scores of one case relative to the bilingual model (Sec. 4): nothing is normalised anywhere else.

    runs: grids of one task, encoder and pair, one a seed; points: a list of (a1, a2). Returns two arrays,
    scores (runs, points): each score over the score that the bilingual model of the same seed has on the same dev set;
    variance (points,): the variance over seeds (divisor n - 1) of the plain scores, 0 to 100, over the mean score of
    the bilingual models. The paper normalises mean and variance alike by the bilingual performance, so the variance is
    divided once, by a score and not by its square, and is in score points. The variance of the normalised scores would
    not do: it is 0 at the bilingual model by construction.
    NaN stands where a point or its bilingual model is not evaluated, and for the variance of fewer than two seeds.
    """
    missing = (math.nan, math.nan)
    plain = np.array([[run.points.get(point, missing)[side] for point in points] for run in runs])
    bilingual = np.array([[run.points.get(BOTH, missing)[side]] for run in runs])
    return plain / bilingual, moments(plain)[2] ** 2 / moments(bilingual)[1]


def moments(values):
    """Number, mean and standard deviation (divisor n - 1) of each column of values, NaNs left out; NaN if too few."""
    there = np.isfinite(values)
    number = there.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, values, 0).sum(0) / number
        squares = np.where(there, values - mean, 0) ** 2
        return number, mean, np.sqrt(np.where(number > 1, squares.sum(0) / (number - 1), np.nan))


def band(values):
    """Mean and half width of its 95 % confidence interval for each column of values (units, points).

    The paper names no method; this is Student's, t(.975, n - 1) * sd / sqrt(n). NaN, no band, where n = 1.
    """
    number, mean, sd = moments(values)
    free = np.maximum(number - 1, 1)
    t = np.where(free > len(T975), 1.95996 + 2.3723 / free + 2.8225 / free ** 2,  # beyond the table: right to .002
                 np.take(T975, free - 1, mode="clip"))
    return mean, t * sd / np.sqrt(free + 1)


def series(grids, equation, side):
    """Mean, half width of its 95 % band, and mean variance along a line, all normalised, each (points,).

    The band's units are the cases, each the mean of its seeds: seeds of one case are not independent samples of tasks
    and languages. With fewer than three cases the units are the runs.
    """
    parts = [normalise(runs, grids[0].on_line(equation), side) for runs in cases(grids)]
    means = np.array([moments(scores)[1] for scores, _ in parts])
    units = means if len(parts) >= MIN_UNITS else np.concatenate([scores for scores, _ in parts])
    return *band(units), moments(np.array([variance for _, variance in parts]))[1]


def surface(runs, points, side):
    """The mean normalised score (points,) of one case."""
    return moments(normalise(runs, points, side)[0])[1]


# ---- figures ---------------------------------------------------------------------------------------------------------

def plan(grids):
    """The figures that the grids allow: (file name without ending, caption, function that makes it)."""
    grids = whole(grids)
    if not grids:
        return []
    figures = [("fig2-lines", "Fig. 2: both lines, all tasks and pairs", partial(lines_figure, grids))]
    for (task,), of in group(grids, "task").items():
        paper = f"{TASKS[task][1]}: both" if task in TASKS else "Both"
        figures.append((f"lines-{task}", f"{paper} lines, {of[0].task_name}", partial(lines_figure, of)))
    for names, of in group(grids, "task", "src", "tgt").items():
        name, label = "-".join(names), f"{of[0].task_name} {of[0].pair}"
        figures.append((f"lines-{name}", f"Both lines, {label}", partial(lines_figure, of)))
        of = [grid for grid in of if grid.has_plane()]
        if of:
            figures.append((f"plane-{name}", f"Figs. 3 and 10: the plane, {label}", partial(plane_figure, of)))
    figures.append(("norms", "Fig. 4: norm ratio and angle, a dot for each run", partial(norms_figure, grids)))
    if max(map(len, cases(grids))) > 1:
        figures.append(("variance", "Fig. 5: variance over seeds", partial(lines_figure, grids, variance=True)))
    return figures


def draw(grids, out, share=slice(None)):
    """Writes the figures that the grids allow, or a share of them, to out/figures as PNG and PDF; returns the files' names."""
    from matplotlib import style
    names = []
    with style.context(["default", STYLE]):  # the same files whatever settings the user has
        for name, _, make in plan(grids)[share]:
            figure = make()
            for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                data = io.BytesIO()
                figure.savefig(data, format=ending, metadata=metadata)
                write(Path(out, "figures", f"{name}.{ending}"), data.getvalue())
                names.append(f"{name}.{ending}")
    return names


def canvas(rows, columns, height, **shared):
    """A figure of rows x columns panels, each as wide as a column of print, and its panels (rows, columns)."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(COLUMN * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def title(ax, text, grids, points):
    """Says over a panel what it shows, of how many seeds, and whether some of its points are still missing."""
    seeds = sorted({len(runs) for runs in cases(grids)})
    note = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else plural(seeds[0], "seed")
    ax.set_title(text, loc="left")
    ax.set_title(note if all(grid.has(points) for grid in grids) else f"{note}, incomplete", loc="right", fontsize=7)


def lines_figure(grids, variance=False):
    """Figs. 2 and 5 to 9: a row of panels for each source language, a column for each equation."""
    sources, encoders = group(grids, "src").values(), list(group(grids, "encoder"))
    figure, panels = canvas(len(sources), 2, 2.2, sharey=True)
    for of, row in zip(sources, panels):
        for equation, ax in zip((1, 2), row):
            line_panel(ax, of, equation, encoders, variance)
        row[0].set_ylabel("variance / bilingual score" if variance else "score / bilingual score")
    panels[0, 0].set_ylim(bottom=0 if variance else max(0, panels[0, 0].get_ylim()[0]))
    handles = {label: handle for ax in panels.flat for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=2, handlelength=3.5)
    return figure


def line_panel(ax, grids, equation, encoders, variance):
    """A curve for each encoder and side, with a band where there are several seeds; models are named under the axis."""
    alphas = np.array(grids[0].line)
    for (encoder, of), side in itertools.product(group(grids, "encoder").items(), (0, 1)):
        number = encoders.index(encoder)
        mean, half, variances = series(of, equation, side)
        colour = COLOURS[side][number % 2]
        ax.plot(alphas, variances if variance else mean, color=colour, ls=DASHES[number % 4], marker=MARKERS[side],
                markevery=np.flatnonzero(alphas * 2 % 1 == 0).tolist(), mfc="white" if number % 2 else colour,
                label=f"{('source', 'target')[side]} language, {of[0].encoder_name}")
        if not variance and max(map(len, cases(of))) > 1:
            ax.fill_between(alphas, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
    source, target = grids[0].languages if len(group(grids, "tgt")) == 1 else (grids[0].languages[0], "X")
    task = f"{grids[0].task_name}, " if len(group(grids, "task")) == 1 else ""
    title(ax, f"{task}Eq. {equation}", grids, grids[0].on_line(equation))
    ax.set_xlim(alphas[0] - 0.1, alphas[-1] + 0.1)
    ax.set_xticks([-0.5, 0, 0.5, 1, 1.5],
                  ["−.5\n", f"0\n{source if equation == 1 else target}", ".5\nα", f"1\n{source}-{target}", "1.5\n"])


def plane_figure(grids):
    """Figs. 3 and 10 for one task and pair: a panel for each language; several encoders make a column each."""
    encoders = group(grids, "encoder").values()
    shape = (1, 2) if len(encoders) == 1 else (2, len(encoders))
    figure, panels = canvas(*shape, 3.15, sharex=True, sharey=True)
    for (side, runs), ax in zip(itertools.product((0, 1), encoders), panels.flat):
        plane_panel(ax, runs, side)
    for ax in panels[-1]:
        ax.set_xlabel("α₁")
    for ax in panels[:, 0]:
        ax.set_ylabel("α₂")
    return figure


def plane_panel(ax, runs, side):
    """The mean surface of one case on one language's dev set, its contour lines and the three models."""
    from matplotlib.patheffects import withStroke
    halo = withStroke(linewidth=2, foreground="white")
    grid, axis = runs[0], np.array(runs[0].plane)
    height = np.ma.masked_invalid(surface(runs, grid.square, side).reshape(len(axis), -1).T)  # (a2, a1)
    ax.set_facecolor("0.85")  # what is not evaluated stays grey
    ax.contourf(axis, axis, height, levels=(-1, *LEVELS, 101), colors=SHADES)
    reached = [level for level in LEVELS if height.count() and height.min() < level <= height.max()]
    if reached:
        widths = [0.4 if level == 1 else 0.8 for level in reached]  # noise frays the 1.00 along a flat ridge
        label_contours(ax, ax.contour(axis, axis, height, levels=reached, colors="0.25", linewidths=widths), halo)
    for point, name in ((BOTH, grid.pair), (SRC, grid.languages[0]), (TGT, grid.languages[1])):
        ax.plot(*point, "o", color="black", markeredgecolor="white", markersize=5)
        ax.annotate(name, point, (4, 4), textcoords="offset points", weight="bold", path_effects=[halo])
    title(ax, f"{grid.task_name}, {grid.encoder_name}: score on {grid.languages[side]}", runs, grid.square)
    ax.set(xlim=axis[[0, -1]], ylim=axis[[0, -1]], aspect="equal", xticks=axis[::5], yticks=axis[::5])


def label_contours(ax, contours, halo):
    """Labels each level once, where there is most room between the models, the frame and the labels before it."""
    taken = [np.add(model, shift) for model in (BOTH, SRC, TGT) for shift in ((0, 0), (0.2, 0.1))]
    spots, frame = [], ax.dataLim
    for pieces in contours.allsegs:
        longest = max(filter(len, pieces), key=extent, default=[])
        if len(longest) and extent(longest) > 0.5:  # a label would hide anything smaller
            room = [np.hypot(*(longest - spot).T) for spot in taken + spots]
            room += [2 * np.abs(longest - edge).min(1) for edge in (frame.min, frame.max)]
            spots.append(longest[np.min(room, 0).argmax()])
    for label in ax.clabel(contours, manual=spots, fmt=lambda level: f"{level:.2f}".lstrip("0"), fontsize=7):
        label.set_path_effects([halo])


def extent(piece):
    """Diagonal of the box around a piece of a contour (points, 2), at most twice its narrow side where it is closed."""
    wide, high = np.ptp(piece, axis=0)
    closed = np.array_equal(piece[0], piece[-1])
    return min(math.hypot(wide, high), 2 * min(wide, high) if closed else math.inf)


def norms_figure(grids):
    """Fig. 4: the ratio of the norms of d_src and d_tgt against the angle between them, a dot for each run."""
    figure, [[ax]] = canvas(1, 1, 2.8)
    encoders = group(grids, "encoder")
    faces = dict(zip(encoders, itertools.cycle((True, False))))  # filled or open
    for tasks, (marker, colour) in zip(group(grids, "task").values(), itertools.cycle(DOTS)):
        ax.plot([], [], marker, color=colour, label=tasks[0].task_name)
        for encoder, of in group(tasks, "encoder").items():
            ax.plot([grid.norm_ratio for grid in of], [grid.angle for grid in of], marker, color=colour,
                    mfc=colour if faces[encoder] else "none")
    for encoder, of in encoders.items() if len(encoders) > 1 else ():
        ax.plot([], [], "o", color="0.3", mfc="0.3" if faces[encoder] else "none", label=of[0].encoder_name)
    ax.axvline(1, color="0.5", lw=0.8, ls=":", zorder=0)
    ax.axhline(55, color="0.5", lw=0.8, ls=":", zorder=0, label="paper")
    ax.plot(NORM_RATIO, ANGLE, ls="none")  # the least that the axes span
    ax.set(xlabel=r"$|\delta_{src}|\,/\,|\delta_{tgt}|$", ylabel="angle, degrees")
    title(ax, "", grids, ())
    ax.locator_params(nbins=6)
    figure.legend(loc="outside upper center", ncols=4 if len(encoders) > 1 else 3, handlelength=1.4, columnspacing=1.2)
    return figure


# ---- claims ----------------------------------------------------------------------------------------------------------
# A check takes sound grids; it returns whether they bear the claim out and what was measured, or raises Untested.

def flat(grids, equation, side):
    """Is the score of one side between the line's two models nowhere much below the bilingual model's?"""
    alphas, scores, said = between(grids, equation, side)
    return scores.min() >= FLAT, f"lowest {scores.min():.3f}, at alpha {alphas[scores.argmin()]:g} ({said})"


def rises(grids, equation, side):
    """Does the score of one side rise to the bilingual model smoothly and along a straight line?"""
    alphas, scores, said = between(grids, equation, side)
    gain, fall = scores[-1] - scores[0], (np.maximum.accumulate(scores) - scores).max()
    tenths = np.isclose(alphas / STEP, np.round(alphas / STEP))  # evenly spaced: the extra points crowd at the ends
    off, around = (scores - scores[0] - gain * alphas)[tenths], scores[tenths] - scores[tenths].mean()
    r2 = 1 - (off ** 2).sum() / max((around ** 2).sum(), 1e-12)
    return (gain >= GAP and fall <= FALL and r2 >= LINEAR,
            f"{scores[0]:.3f} to {scores[-1]:.3f}, R squared {r2:.3f}, largest fall {fall:.3f} ({said})")


def between(grids, equation, side):
    """The alphas from 0 to 1, the mean normalised score of one side at each, and of how many runs it is the mean."""
    why = f"no run has the whole of Eq. {equation}"
    runs, said = having(grids, lambda grid: grid.on_line(equation, inside=True), why)
    alphas = np.array(runs[0].line)
    inside = (alphas >= 0) & (alphas <= 1)
    return alphas[inside], series(runs, equation, side)[0][inside], said


def having(grids, needed, why):
    """The runs, everything interpolated, that have the points needed(grid), and how many; Untested(why) if none."""
    grids = [grid for grid in grids if grid.part == "all"]
    runs = [grid for grid in grids if grid.has(needed(grid))]
    if not runs:
        raise Untested(why)
    left = f", {len(grids) - len(runs)} without the points left out" if len(runs) < len(grids) else ""
    return runs, f"{plural(len(runs), 'run')} of {plural(len(cases(runs)), 'case')}{left}"


def varies(grids):
    """Do the seeds differ more in the target than in the source language at the zero-shot end?"""
    runs, _ = having(grids, lambda grid: [BOTH, SRC], "no run has evaluated its models")
    several = [case for case in cases(runs) if len(case) > 1]
    if not several:
        raise Untested("only one seed")
    source, target = (np.mean([normalise(case, [SRC], side)[1] for case in several]) for side in (0, 1))
    said = plural(len(several), "case")
    return target > source, f"target {target:.4f}, source {source:.4f} ({said} with several seeds)"


def lies(grids, name, limits, digits):
    """Does the mean over the runs of a number that the header holds lie within limits?"""
    values = [getattr(grid, name) for grid in grids if grid.part == "all" and math.isfinite(grid.angle)]
    if not values:
        raise Untested("no run")
    mean, low, high = np.mean(values), min(values), max(values)
    said = f"mean {mean:.{digits}f}, from {low:.{digits}f} to {high:.{digits}f} ({plural(len(values), 'run')})"
    return limits[0] <= mean <= limits[1], said


def steep(grids):
    """Is the target surface steeper at the zero-shot than at the bilingual point?

    A slope is the length of the gradient of the mean normalised surface. Without a plane, the zero-shot point has
    neighbours along Eq. 1 alone, and the slopes of both points are those along it.
    """
    def needed(ways):
        return [BOTH, *(point for at in (BOTH, SRC) for way in ways for point in beside(at, way))]
    ways, how = (0,), "along Eq. 1 only, no plane"
    if any(grid.has(needed((0, 1))) for grid in grids if grid.part == "all"):
        ways, how = (0, 1), "in the plane"
    runs, said = having(grids, lambda grid: needed(ways), "no run has the points around both models")
    zero, both, source = (np.mean([slope(case, at, side, ways) for case in cases(runs)])
                          for at, side in ((SRC, 1), (BOTH, 1), (SRC, 0)))
    return zero >= STEEPER * both, (f"{zero:.3f} at the zero-shot, {both:.3f} at the bilingual point, {how}; source "
                                    f"surface at the zero-shot point {source:.3f} ({said})")


def slope(case, at, side, ways):
    """Length of the gradient of a case's mean surface at a point, by central differences of the grid's step."""
    pairs = [surface(case, beside(at, way), side) for way in ways]
    return math.hypot(*((after - before) / (2 * STEP) for before, after in pairs))


def beside(point, way):
    """The grid points before and after a point in the direction of a1 (way 0) or a2 (way 1)."""
    return [tuple(round(x + sign * STEP * (i == way), 3) for i, x in enumerate(point)) for sign in (-1, 1)]


def flatter(grids):
    """Does XLM-R keep the target score on a larger share of the plane than mBERT?"""
    why = "needs whole planes of both encoders, mbert and xlmr, for the same task and pair"
    runs, _ = having([grid for grid in grids if grid.has_plane()], lambda grid: grid.square, why)
    shares = []
    for of in group(runs, "task", "src", "tgt").values():
        by = {encoder: runs for (encoder,), runs in group(of, "encoder_name").items()}
        if {"mBERT", "XLM-R"} <= by.keys():
            shares.append([(surface(by[name], of[0].square, 1) >= KEEPS).mean() for name in ("mBERT", "XLM-R")])
    if not shares:
        raise Untested(why)
    (mbert, xlmr), wins = np.mean(shares, 0), sum(xlmr > mbert for mbert, xlmr in shares)
    said = f"XLM-R {xlmr:.3f}, mBERT {mbert:.3f}; XLM-R is flatter in {wins} of {len(shares)} tasks and pairs"
    return xlmr > mbert, said


def encoder_alone(grids):
    """Does interpolating the encoder alone give the surfaces that interpolating everything gives?"""
    gaps = []
    for runs in group([grid for grid in grids if grid.has([BOTH])], "task", "encoder", "src", "tgt", "seed").values():
        by = {run.part: run for run in runs}
        if {"all", "encoder"} <= by.keys():
            one, other = [by["all"]], [by["encoder"]]
            points = sorted(by["all"].points.keys() & by["encoder"].points.keys())
            gaps.append([abs(surface(one, points, side) - surface(other, points, side)) for side in (0, 1)])
    if not gaps:
        raise Untested("needs runs with --part encoder beside the same runs with --part all")
    mean, largest = np.mean([np.mean(gap) for gap in gaps]), max(np.max(gap) for gap in gaps)
    return mean <= SAME, f"{mean:.3f}, largest {largest:.3f} ({plural(len(gaps), 'run')})"


def head_alone(grids):
    """Do the scores stay where they are when the head alone is interpolated?"""
    heads = [grid for grid in grids if grid.part == "head"]
    lines = [(run, run.on_line(1, inside=True) + run.on_line(2, inside=True)) for run in heads]
    off = [abs(surface([run], points, side) - 1).max() for run, points in lines if run.has(points) for side in (0, 1)]
    if not off:
        raise Untested("needs runs with --part head")
    return max(off) <= 1 - FLAT, f"largest distance {max(off):.3f} ({plural(len(off) // 2, 'run')})"


STAYS = f"lowest mean score for alpha in [0, 1] >= {FLAT}"
RISES = (f"ends at least {GAP} above its start; R squared of the straight line between its ends, over the tenths of "
         f"alpha, >= {LINEAR}; largest fall <= {FALL}")
CLAIMS = (  # the claim, where the paper makes it, the rule that decides, the check
    ("Source stays flat along Eq. 1", "Sec. 5, Fig. 2", STAYS, partial(flat, equation=1, side=0)),
    ("Target rises smoothly and linearly along Eq. 1", "Sec. 5, Fig. 2", RISES, partial(rises, equation=1, side=1)),
    ("Target stays flat along Eq. 2", "Sec. 5, Fig. 2", STAYS, partial(flat, equation=2, side=1)),
    ("Source rises smoothly and linearly along Eq. 2", "Sec. 5, Fig. 2", RISES, partial(rises, equation=2, side=0)),
    ("Seeds vary more on the target than on the source at the zero-shot end", "App. C, Fig. 5",
     "mean normalised variance at the source-only model: target > source", varies),
    ("d_src and d_tgt are about equally long", "Sec. 3.1, Fig. 4",
     f"mean norm ratio within {NORM_RATIO[0]} to {NORM_RATIO[1]}",
     partial(lies, name="norm_ratio", limits=NORM_RATIO, digits=2)),
    ("The angle between them is near 55 degrees", "Sec. 3.1, Fig. 4",
     f"mean angle within {ANGLE[0]} to {ANGLE[1]} degrees", partial(lies, name="angle", limits=ANGLE, digits=1)),
    ("The zero-shot model lies in a steep part of the target surface", "Sec. 5, Fig. 3",
     f"slope of the mean target surface there >= {STEEPER} x the slope at the bilingual model", steep),
    ("XLM-R's target surface is flatter than mBERT's", "Sec. 5, Fig. 3",
     f"share of the plane where the mean target score is >= {KEEPS}: XLM-R > mBERT", flatter),
    ("Interpolating the encoder alone looks alike", "Sec. 3.1, footnote 2",
     f"mean absolute difference from interpolating everything, same points, both languages, <= {SAME}", encoder_alone),
    ("Interpolating the head alone hardly matters", "Sec. 3.1, footnote 2",
     f"no score on either line, alpha in [0, 1], farther than {1 - FLAT:.2f} from the bilingual one", head_alone),
)


def claims(grids):
    """What the grids say to each claim of the paper, as a list of Claim; collapsed runs are left out."""
    grids, table = sound(grids), []
    for claim, where, rule, test in CLAIMS:
        try:
            holds, measured = test(grids)
        except Untested as why:
            table.append(Claim(claim, where, rule, str(why), "not tested"))
            continue
        alone = []
        for case in cases(grids):
            with contextlib.suppress(Untested):
                alone.append(test(case)[0])
        if len(alone) > 1:
            measured += f"; taken alone, {sum(alone)} of {len(alone)} cases agree"
        table.append(Claim(claim, where, rule, measured, "agrees" if holds else "differs"))
    return table


# ---- report ----------------------------------------------------------------------------------------------------------

HOW = """Mean ± standard deviation over seeds, 0 to 100, on the dev sets. Flatness is the lowest mean normalised
source score on Eq. 1, alpha in [0, 1]. Normalised: divided by the score of the same seed's bilingual model on the same
dev set."""
CASE = "A case is one task, encoder and pair over its seeds. Scores, slopes and shares are of normalised scores."
BANDS = f"""Bands are 95 % confidence intervals of the mean (Student's t) over cases, each the mean of its seeds, or
over runs where there are fewer than {MIN_UNITS} cases; one seed has no band. A variance over seeds is in score points
and divided by the bilingual score. X stands for several target languages. A picture that would repeat one above it is
left out."""


def summary(grids):
    """A Markdown table with a row for each task, encoder and pair: mean and standard deviation over the seeds."""
    rows = [("task", "encoder", "pair", "seeds", "source", "zero-shot target", "bilingual source", "bilingual target",
             "target only", "flatness", "norm ratio", "angle")]
    for case in cases(whole(grids)):
        grid, flatness = case[0], "-"
        with contextlib.suppress(Untested):
            flatness = f"{between(case, 1, 0)[1].min():.3f}"
        scores = [mean_sd([run.points[point][side] for run in case if point in run.points], 1)
                  for point, side in ((SRC, 0), (SRC, 1), (BOTH, 0), (BOTH, 1), (TGT, 1))]
        rows.append((f"{grid.task_name} {grid.metric}", grid.encoder_name, grid.pair, str(len(case)), *scores, flatness,
                     mean_sd([run.norm_ratio for run in case], 2), mean_sd([run.angle for run in case], 1)))
    return markdown(rows)


def mean_sd(values, digits):
    values = [value for value in values if math.isfinite(value)]
    sd = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{sd}" if values else "-"


def markdown(rows):
    """Rows of cells, the first the head, as a Markdown table that also reads well as plain text."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def plural(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def remarks(grids):
    """Sentences on what the numbers leave out or mix: collapsed, unfinished and partial runs, unlike settings."""
    said = [f"Collapsed, left out of all figures, means and claims: {grid}, {grid.collapse()}."
            for grid in grids if grid.collapse()]
    for grid in grids:
        wanted = {*grid.axes, *(grid.square if grid.has_plane() else ())}
        if not grid.has(wanted):
            said.append(f"Incomplete: {grid}, {len(grid.points)} of {len(wanted)} points.")
    parts = sum(grid.part != "all" for grid in grids)
    if parts:
        said.append(f"Interpolated in part, used for footnote 2 alone: {plural(parts, 'grid')}.")
    for of in group(whole(grids), "task", "encoder").values():
        for name in of[0].settings:
            values = sorted({json.dumps(grid.settings.get(name)) for grid in of})
            if len(values) > 1:
                said.append(f"Mixed settings: {of[0].task_name} {of[0].encoder_name}, {name} {' and '.join(values)}.")
    return said


def report(grids, out, command, notes=""):
    """Writes out/report.md around the figures in out/figures; returns its tables as text for the terminal."""
    table, said, checks = summary(grids), remarks(grids), claims(grids)
    rows = [(claim.claim, claim.where, claim.verdict, claim.measured, claim.rule) for claim in checks]
    pictures = {}  # by content: with one task and one pair, several figures are the same
    for name, caption, _ in plan(grids):
        file = Path(out, "figures", f"{name}.png")
        if file.exists():
            pictures.setdefault(file.read_bytes(), f"### {caption}\n\n![{caption}](figures/{name}.png)\n\n"
                                                   f"As [PDF](figures/{name}.pdf)")
    parts = ["# Report", f"Made by\n\n    {command}", "## Scores", HOW, table, "\n".join(f"- {text}" for text in said),
             "## The paper's claims", CASE, markdown([("claim", "paper", "verdict", "measured", "rule"), *rows]), notes,
             *(("## Figures", BANDS) if pictures else ()), *pictures.values()]
    write(Path(out, "report.md"), "\n\n".join(filter(None, parts)).encode() + b"\n")
    lines = [f"{claim.verdict:<12}{claim.claim} ({claim.where})\n{'':12}{claim.measured}\n{'':12}rule: {claim.rule}"
             for claim in checks]
    return "\n\n".join(filter(None, [table, "\n".join(said), "\n".join(lines)]))


def write(path, data):
    """Writes bytes whole or not at all: under a temporary name, then moved into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ResultError(f"{path}: cannot be written ({error.strerror}); "
                          "make room there, or name another folder with --out") from None


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draws the paper's figures and checks its claims from result folders.")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="a folder that reproduce.py wrote with --out")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="writes FOLDER/figures and FOLDER/report.md")
    args = parser.parse_args(argv)
    try:
        grids = load(args.results)
        draw(grids, args.out)
        print(report(grids, args.out, "python plot.py " + shlex.join(sys.argv[1:] if argv is None else argv)))
        print(f"\nFigures and report: {Path(args.out, 'report.md')}")
    except ResultError as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
