"""Figures, claims and report from the result files of one run or of many.

    python plot.py results --out results                 # what reproduce.py does at the end of a run
    python plot.py machine1 machine2 --out joined        # runs of several machines, joined

Reads RESULTS/grids/TASK/ENCODER/SRC-TGT/seedK.jsonl; writes FOLDER/figures/*.png and *.pdf, and FOLDER/report.md.

The words used here: a *grid* is one result file, the evaluated points of one *run* (task, encoder, pair, seed); a *case*
is a task, an encoder and a pair over its seeds; *side* 0 is the source language's dev set, side 1 the target's;
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
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student's t, 1 to 10 degrees of freedom

TASKS = {"ner": ("NER", "Fig. 6"), "parsing": ("Parsing", "Fig. 7"), "pos": ("POS", "Fig. 8"), "xnli": ("XNLI", "Fig. 9")}
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
    """Something the user can put right: a sentence with the file, the line, the value, what was expected, what to do."""


@dataclass
class Grid:
    """One result file: fields of its header, and points, which maps (a1, a2) to the (source, target) score, 0 to 100."""
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

    @property
    def key(self):
        return self.task, self.encoder, self.src, self.tgt, self.seed, self.part

    def __str__(self):
        part = "" if self.part == "all" else f", {self.part} only"
        return f"{task_name(self.task)} {encoder_name(self.encoder)} {pair_name(self)} seed {self.seed}{part}"


FIELDS = {name: kind for name, kind in Grid.__annotations__.items() if name not in ("file", "header", "points")}


@dataclass
class Claim:
    """One row of the table of claims; verdict is "agrees", "differs" or "not tested"."""
    claim: str
    where: str
    rule: str
    measured: str
    verdict: str


# ---- reading ---------------------------------------------------------------------------------------------------------

def load(folders):
    """All grids under folders, sorted. The same grid in two folders counts once. Raises ResultError where they differ."""
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
    """Adds to a grid the points that another file has of it. Raises ResultError where the two contradict each other."""
    differ = [(f'"{name}"', first.header.get(name), second.header.get(name)) for name in first.header | second.header]
    differ += [(f"the scores at {point}", first.points.setdefault(point, scores), scores)
               for point, scores in second.points.items()]
    for what, one, other in differ:
        if one != other:
            raise ResultError(f"{first.file} and {second.file} are both {first}, but differ in {what}: "
                              f"{str(one)[:80]} and {str(other)[:80]}; give only one of the two runs")


def read(path):
    """One result file as a Grid, without a torn last line; None where not even the header was written whole."""
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
                refuse(path, number, "line", text[:40], "JSON")
    return checked(path, rows) if rows else None


def refuse(path, number, name, value, expected):
    raise ResultError(f"{path} line {number}: {name} is {value!r}, expected {expected}; restore the file, "
                      "or move it away and run reproduce.py again")


def checked(path, rows):
    """A Grid of the rows of a result file. Raises ResultError where the header or a point is not what it should be."""
    header = rows[0] if isinstance(rows[0], dict) else {}
    if header.get("format") != 1:
        refuse(path, 1, "format", header.get("format"), "1, the format that this version reads")
    for name, kind in FIELDS.items():
        value = header.get(name)
        if not (is_number(value) if kind is float else isinstance(value, kind)):
            refuse(path, 1, name, value, f"a value of type {kind.__name__}")
    if not all(is_number(header["majority"].get(header[side])) for side in ("src", "tgt")):
        refuse(path, 1, "majority", header["majority"], "a score for each of the two languages")
    grid = Grid(path, header, {}, **{name: header[name] for name in FIELDS})
    grid.line, grid.plane = sorted(grid.line), sorted(grid.plane)
    expected = {*axes(grid), *plane(grid)}
    for number, row in enumerate(rows[1:], 2):
        a1, a2, *scores = map(row.get, ("a1", "a2", "src", "tgt")) if isinstance(row, dict) else [None] * 4
        if (a1, a2) not in expected:
            refuse(path, number, "(a1, a2)", (a1, a2), "a point of the lines or the plane that line 1 describes")
        if not all(is_number(score) and 0 <= score <= 100 for score in scores):
            refuse(path, number, "(src, tgt)", tuple(scores), "two scores from 0 to 100")
        if grid.points.setdefault((a1, a2), tuple(scores)) != tuple(scores):
            refuse(path, number, "(src, tgt)", tuple(scores), f"{grid.points[a1, a2]}, as an earlier line says")
    return grid


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# ---- grids -----------------------------------------------------------------------------------------------------------

def on_line(grid, equation, inside=False):
    """The points of Eq. 1 or Eq. 2 in the order of grid.line; inside: only those between the line's two models."""
    rests = [round(1 - alpha, 3) for alpha in grid.line if not inside or 0 <= alpha <= 1]
    return [(rest, 0.0) if equation == 1 else (0.0, rest) for rest in rests]


def axes(grid):
    return on_line(grid, 1) + on_line(grid, 2)


def plane(grid):
    return list(itertools.product(grid.plane, grid.plane))


def has(grid, points):
    return all(point in grid.points for point in points)


def has_plane(grid):
    return any(a1 and a2 for a1, a2 in grid.points)  # a run with --lines-only never leaves the axes


def collapsed(grid):
    """A clause that says which fine-tuned model learned nothing in a language it was trained on; "" where all did.

    Where only a part is interpolated, the bilingual model is the only fine-tuned one among the points.
    """
    models = [("bilingual", BOTH, 0), ("bilingual", BOTH, 1)]
    if grid.part == "all":
        models += [("source-only", SRC, 0), ("target-only", TGT, 1)]
    for name, point, side in models:
        language = (grid.src, grid.tgt)[side]
        score, floor = grid.points.get(point, (math.inf, math.inf))[side], grid.majority[language]
        if score <= floor + MARGIN:
            return f"the {name} model scores {score:.1f} on {language.upper()}, the most frequent class alone {floor:.1f}"
    return ""


def sound(grids):
    """The grids left when those of a collapsed model are taken out, whatever part of it they interpolate."""
    out = {grid.key[:-1] for grid in grids if collapsed(grid)}
    return [grid for grid in grids if grid.key[:-1] not in out]


def whole(grids):
    """The sound grids that interpolate everything: all figures and means are made of these, but those of footnote 2."""
    return [grid for grid in sound(grids) if grid.part == "all"]


def cases(grids):
    """Lists of the grids that differ in nothing but seed and part, in order."""
    found = {}
    for grid in grids:
        found.setdefault(grid.key[:4], []).append(grid)
    return list(found.values())


def distinct(grids, name):
    return sorted({getattr(grid, name) for grid in grids})


def task_name(task):
    return TASKS.get(task, (task.upper(), ""))[0]


def encoder_name(encoder):
    return ENCODERS.get(encoder.split("/")[-1], encoder)


def pair_name(grid):
    return f"{grid.src}-{grid.tgt}".upper()


# ---- numbers ---------------------------------------------------------------------------------------------------------

def normalise(runs, points, side):
    """Scores of one case relative to the bilingual model (Sec. 4): nothing is normalised anywhere else.

    runs: grids of one task, encoder and pair, one a seed; points: a list of (a1, a2). Returns two arrays,
    scores (runs, points): each score over the score that the bilingual model of the same seed has on the same dev set;
    variance (points,): the variance over seeds (divisor n - 1) of the plain scores, 0 to 100, over the mean score of the
    bilingual models. The paper says that mean and variance are both normalised by the bilingual performance, so the
    variance is divided once, by a score and not by its square, and is in score points. The variance of the normalised
    scores would not do: it is 0 at the bilingual model by construction.
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
    parts = [normalise(runs, on_line(grids[0], equation), side) for runs in cases(grids)]
    means = np.array([moments(scores)[1] for scores, _ in parts])
    units = means if len(parts) >= MIN_UNITS else np.concatenate([scores for scores, _ in parts])
    return *band(units), moments(np.array([variance for _, variance in parts]))[1]


# ---- figures ---------------------------------------------------------------------------------------------------------

def plan(grids):
    """The figures that the grids allow: (file name without ending, caption, function that makes it)."""
    grids = whole(grids)
    if not grids:
        return []
    figures = [("fig2-lines", "Fig. 2: both lines, all tasks and pairs", lambda: lines_figure(grids))]
    for task in distinct(grids, "task"):
        of = [grid for grid in grids if grid.task == task]
        paper = f"{TASKS[task][1]}: both" if task in TASKS else "Both"
        figures.append((f"lines-{task}", f"{paper} lines, {task_name(task)}", lambda of=of: lines_figure(of)))
    for task, src, tgt in sorted({(grid.task, grid.src, grid.tgt) for grid in grids}):
        of = [grid for grid in grids if (grid.task, grid.src, grid.tgt) == (task, src, tgt)]
        name, label = f"{task}-{src}-{tgt}", f"{task_name(task)} {pair_name(of[0])}"
        figures.append((f"lines-{name}", f"Both lines, {label}", lambda of=of: lines_figure(of)))
        of = [grid for grid in of if has_plane(grid)]
        if of:
            figures.append((f"plane-{name}", f"Figs. 3 and 10: the plane, {label}", lambda of=of: plane_figure(of)))
    figures.append(("norms", "Fig. 4: norm ratio and angle, a dot for each run", lambda: norms_figure(grids)))
    if max(map(len, cases(grids))) > 1:
        figures.append(("variance", "Fig. 5: variance over seeds", lambda: lines_figure(grids, variance=True)))
    return figures


def draw(grids, out):
    """Writes every figure that the grids allow into the folder out, as PNG and as PDF; returns the names of the files."""
    from matplotlib import style
    names = []
    with style.context(["default", STYLE]):  # the same files whatever settings the user has
        for name, _, make in plan(grids):
            figure = make()
            for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                data = io.BytesIO()
                figure.savefig(data, format=ending, metadata=metadata)
                write(Path(out, f"{name}.{ending}"), data.getvalue())
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
    ax.set_title(note if all(has(grid, points) for grid in grids) else f"{note}, incomplete", loc="right", fontsize=7)


def lines_figure(grids, variance=False):
    """Figs. 2 and 5 to 9: a row of panels for each source language, a column for each equation."""
    sources, encoders = distinct(grids, "src"), distinct(grids, "encoder")
    figure, panels = canvas(len(sources), 2, 2.2, sharey=True)
    for source, row in zip(sources, panels):
        for equation, ax in zip((1, 2), row):
            line_panel(ax, [grid for grid in grids if grid.src == source], equation, encoders, variance)
        row[0].set_ylabel("variance / bilingual score" if variance else "score / bilingual score")
    panels[0, 0].set_ylim(bottom=0 if variance else max(0, panels[0, 0].get_ylim()[0]))
    handles = {label: handle for ax in panels.flat for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=2, handlelength=3.5)
    return figure


def line_panel(ax, grids, equation, encoders, variance):
    """A curve for each encoder and side, with a band where there are several seeds; models are named under the axis."""
    alphas = np.array(grids[0].line)
    for (number, encoder), side in itertools.product(enumerate(encoders), (1, 0)):
        of = [grid for grid in grids if grid.encoder == encoder]
        if not of:
            continue
        mean, half, variances = series(of, equation, side)
        colour = COLOURS[side][number % 2]
        ax.plot(alphas, variances if variance else mean, color=colour, ls=DASHES[number % 4], marker=MARKERS[side],
                markerfacecolor="white" if number % 2 else colour, markevery=np.flatnonzero(alphas * 2 % 1 == 0).tolist(),
                label=f"{('source', 'target')[side]} language, {encoder_name(encoder)}")
        if not variance and max(map(len, cases(of))) > 1:
            ax.fill_between(alphas, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
    tasks, targets, source = distinct(grids, "task"), distinct(grids, "tgt"), grids[0].src.upper()
    target = targets[0].upper() if len(targets) == 1 else "X"
    text = f"Eq. {equation}" if len(tasks) > 1 else f"{task_name(tasks[0])}, Eq. {equation}"
    title(ax, text, grids, on_line(grids[0], equation))
    ax.set_xticks([-0.5, 0, 0.5, 1, 1.5],
                  ["−.5\n", f"0\n{source if equation == 1 else target}", ".5\nα", f"1\n{source}-{target}", "1.5\n"])


def plane_figure(grids):
    """Figs. 3 and 10 for one task and pair: a panel for each language; several encoders make a column each."""
    encoders = distinct(grids, "encoder")
    shape = (1, 2) if len(encoders) == 1 else (2, len(encoders))
    figure, panels = canvas(*shape, 3.15, sharex=True, sharey=True)
    for (side, encoder), ax in zip(itertools.product((0, 1), encoders), panels.flat):
        plane_panel(ax, [grid for grid in grids if grid.encoder == encoder], side)
    for ax in panels[-1]:
        ax.set_xlabel("α₁")
    for ax in panels[:, 0]:
        ax.set_ylabel("α₂")
    return figure


def plane_panel(ax, runs, side):
    """The mean surface of one case on one language's dev set, its contour lines and the three models."""
    from matplotlib.patheffects import withStroke
    grid, axis = runs[0], np.array(runs[0].plane)
    surface = moments(normalise(runs, plane(grid), side)[0])[1].reshape(len(axis), -1).T  # (a2, a1)
    surface = np.ma.masked_invalid(surface)
    ax.set_facecolor("0.85")  # what is not evaluated stays grey
    ax.contourf(axis, axis, surface, levels=(-1, *LEVELS, 101), colors=SHADES)
    reached = [level for level in LEVELS if surface.count() and surface.min() < level <= surface.max()]
    if reached:
        label_contours(ax, ax.contour(axis, axis, surface, levels=reached, colors="0.25", linewidths=0.8))
    for point, name in ((BOTH, pair_name(grid)), (SRC, grid.src.upper()), (TGT, grid.tgt.upper())):
        ax.plot(*point, "o", color="black", markeredgecolor="white", markersize=5)
        ax.annotate(name, point, (4, 4), textcoords="offset points", weight="bold",
                    path_effects=[withStroke(linewidth=2, foreground="white")])
    language = (grid.src, grid.tgt)[side].upper()
    title(ax, f"{task_name(grid.task)}, {encoder_name(grid.encoder)}: score on {language}", runs, plane(grid))
    ax.set(xlim=axis[[0, -1]], ylim=axis[[0, -1]], aspect="equal", xticks=axis[::5], yticks=axis[::5])


def label_contours(ax, contours):
    """Labels each level once, where there is most room between the models, the frame and the labels before it."""
    taken = [np.add(model, shift) for model in (BOTH, SRC, TGT) for shift in ((0, 0), (0.2, 0.1))]
    spots, frame = [], contours.axes.dataLim
    for pieces in contours.allsegs:
        longest = max(pieces, key=lambda piece: np.ptp(piece, axis=0).sum(), default=np.zeros((1, 2)))
        if np.ptp(longest, axis=0).sum() > 0.5:  # the label would hide anything shorter
            room = [np.hypot(*(longest - spot).T) for spot in taken + spots]
            room += [2 * np.abs(longest - edge).min(1) for edge in (frame.min, frame.max)]
            spots.append(longest[np.min(room, 0).argmax()])
    ax.clabel(contours, manual=spots, fmt=lambda level: f"{level:.2f}".lstrip("0"), fontsize=7, inline_spacing=2)


def norms_figure(grids):
    """Fig. 4: the ratio of the norms of d_src and d_tgt against the angle between them, a dot for each run."""
    figure, [[ax]] = canvas(1, 1, 2.8)
    encoders = distinct(grids, "encoder")
    for task, (marker, colour) in zip(distinct(grids, "task"), itertools.cycle(DOTS)):
        ax.plot([], [], marker, color=colour, label=task_name(task))
        for number, encoder in enumerate(encoders):
            of = [grid for grid in grids if (grid.task, grid.encoder) == (task, encoder)]
            ax.plot([grid.norm_ratio for grid in of], [grid.angle for grid in of], marker, color=colour,
                    markerfacecolor="none" if number % 2 else colour)
    for number, encoder in enumerate(encoders if len(encoders) > 1 else ()):
        ax.plot([], [], "o", color="0.3", markerfacecolor="none" if number % 2 else "0.3", label=encoder_name(encoder))
    ax.axvline(1, color="0.5", lw=0.8, ls=":", zorder=0)
    ax.axhline(55, color="0.5", lw=0.8, ls=":", zorder=0, label="1 and 55° (paper)")
    ax.set(xlabel=r"$|\delta_{src}|\,/\,|\delta_{tgt}|$", ylabel="angle, degrees")
    title(ax, "", grids, ())
    figure.legend(loc="outside upper center", ncols=3, handletextpad=0.4)
    return figure


# ---- claims ----------------------------------------------------------------------------------------------------------
# A check takes sound grids. It returns whether they bear the claim out, and what was measured; or None, and why they
# cannot tell.

def flat(grids, equation, side):
    """Is the score of one side between the line's two models nowhere much below the bilingual model's?"""
    runs, said = having(grids, lambda grid: on_line(grid, equation, inside=True))
    if not runs:
        return None, f"no run has the whole of Eq. {equation}"
    alphas, scores = between(runs, equation, side)
    return scores.min() >= FLAT, f"lowest {scores.min():.3f}, at alpha {alphas[scores.argmin()]:g} ({said})"


def rises(grids, equation, side):
    """Does the score of one side rise from the monolingual to the bilingual model, smoothly and along a straight line?"""
    runs, said = having(grids, lambda grid: on_line(grid, equation, inside=True))
    if not runs:
        return None, f"no run has the whole of Eq. {equation}"
    alphas, scores = between(runs, equation, side)
    gain, fall = scores[-1] - scores[0], (np.maximum.accumulate(scores) - scores).max()
    tenths = np.isclose(alphas / STEP, np.round(alphas / STEP))  # evenly spaced: the extra points crowd at the ends
    off, around = (scores - scores[0] - gain * alphas)[tenths], scores[tenths] - scores[tenths].mean()
    r2 = 1 - (off ** 2).sum() / max((around ** 2).sum(), 1e-12)
    return (gain >= GAP and fall <= FALL and r2 >= LINEAR,
            f"{scores[0]:.3f} to {scores[-1]:.3f}, R squared {r2:.3f}, largest fall {fall:.3f} ({said})")


def having(grids, needed):
    """The runs, everything interpolated, that have the points needed(grid), and how many they are."""
    grids = [grid for grid in grids if grid.part == "all"]
    runs = [grid for grid in grids if has(grid, needed(grid))]
    left = f", {len(grids) - len(runs)} incomplete left out" if len(runs) < len(grids) else ""
    return runs, f"{plural(len(runs), 'run')} of {plural(len(cases(runs)), 'case')}{left}"


def between(runs, equation, side):
    """The alphas from 0 to 1, and the mean normalised score of one side at each."""
    alphas = np.array(runs[0].line)
    inside = (alphas >= 0) & (alphas <= 1)
    return alphas[inside], series(runs, equation, side)[0][inside]


def varies(grids):
    """Do the seeds differ more in the target than in the source language at the zero-shot end?"""
    runs, _ = having(grids, lambda grid: [BOTH, SRC])
    several = [case for case in cases(runs) if len(case) > 1]
    if not several:
        return None, "only one seed" if runs else "no run has the models evaluated"
    source, target = (np.mean([normalise(case, [SRC], side)[1] for case in several]) for side in (0, 1))
    return target > source, f"target {target:.4f}, source {source:.4f} ({plural(len(several), 'case')} with several seeds)"


def lies(grids, name, limits, digits):
    """Does the mean over the runs of a number that the header holds lie within limits?"""
    values = [getattr(grid, name) for grid in grids if grid.part == "all"]
    if not values:
        return None, "no run"
    mean, low, high = (f"{value:.{digits}f}" for value in (np.mean(values), min(values), max(values)))
    return limits[0] <= np.mean(values) <= limits[1], f"mean {mean}, from {low} to {high} ({plural(len(values), 'run')})"


def steep(grids):
    """Is the target surface steeper at the zero-shot than at the bilingual point?

    A slope is the length of the gradient of the mean normalised surface. Without a plane, the zero-shot point has
    neighbours along Eq. 1 alone, and the slopes of both points are those along it.
    """
    for directions, how in (((0, 1), "in the plane"), ((0,), "along Eq. 1 only, no plane")):
        needed = [BOTH, *(point for at in (BOTH, SRC) for way in directions for point in beside(at, way))]
        runs, said = having(grids, lambda grid: needed)
        if runs:
            break
    else:
        return None, "no run has the points around the two models"
    zero, both, source = (np.mean([slope(case, at, side, directions) for case in cases(runs)])
                          for at, side in ((SRC, 1), (BOTH, 1), (SRC, 0)))
    return zero >= STEEPER * both, (f"{zero:.3f} at the zero-shot, {both:.3f} at the bilingual point, {how}; the source "
                                    f"surface at the zero-shot point {source:.3f} ({said})")


def slope(case, at, side, directions):
    """Length of the gradient of a case's mean normalised surface at a point, by central differences of the grid's step."""
    means = [moments(normalise(case, beside(at, way), side)[0])[1] for way in directions]
    return math.hypot(*((after - before) / (2 * STEP) for before, after in means))


def beside(point, way):
    """The grid points before and after a point in the direction of a1 (way 0) or a2 (way 1)."""
    return [tuple(round(x + sign * STEP * (i == way), 3) for i, x in enumerate(point)) for sign in (-1, 1)]


def flatter(grids):
    """Does XLM-R keep the target score on a larger share of the plane than mBERT?"""
    shares = {}
    for case in cases(having([grid for grid in grids if has_plane(grid)], plane)[0]):
        surface = moments(normalise(case, plane(case[0]), 1)[0])[1]
        task_and_pair = case[0].task, case[0].src, case[0].tgt
        shares.setdefault(task_and_pair, {})[encoder_name(case[0].encoder)] = (surface >= KEEPS).mean()
    shares = [share for share in shares.values() if {"mBERT", "XLM-R"} <= share.keys()]
    if not shares:
        return None, "needs whole planes of both encoders, mbert and xlmr, for the same task and pair"
    mbert, xlmr = (np.mean([share[name] for share in shares]) for name in ("mBERT", "XLM-R"))
    wins = sum(share["XLM-R"] > share["mBERT"] for share in shares)
    return xlmr > mbert, f"XLM-R {xlmr:.3f}, mBERT {mbert:.3f}; XLM-R is flatter in {wins} of {len(shares)} tasks and pairs"


def encoder_alone(grids):
    """Does interpolating the encoder alone give the surfaces that interpolating everything gives?"""
    everything = {grid.key[:-1]: grid for grid in grids if grid.part == "all" and has(grid, [BOTH])}
    gaps = []
    for grid in grids:
        if grid.part == "encoder" and has(grid, [BOTH]) and grid.key[:-1] in everything:
            other = everything[grid.key[:-1]]
            points = sorted(grid.points.keys() & other.points.keys())
            gaps.append([np.abs(np.subtract(*(normalise([run], points, side)[0] for run in (grid, other)))) for side in (0, 1)])
    if not gaps:
        return None, "needs runs with --part encoder beside the same runs with --part all"
    mean, largest = np.mean([np.mean(gap) for gap in gaps]), max(np.max(gap) for gap in gaps)
    return mean <= SAME, f"{mean:.3f}, largest {largest:.3f} ({plural(len(gaps), 'run')})"


def head_alone(grids):
    """Do the scores stay where they are when the head alone is interpolated?"""
    lines = {grid: on_line(grid, 1, inside=True) + on_line(grid, 2, inside=True) for grid in grids if grid.part == "head"}
    runs = {grid: points for grid, points in lines.items() if has(grid, points)}
    if not runs:
        return None, "needs runs with --part head"
    off = max(np.abs(normalise([run], points, side)[0] - 1).max() for run, points in runs.items() for side in (0, 1))
    return off <= 1 - FLAT, f"largest distance {off:.3f} ({plural(len(runs), 'run')})"


STAYS = f"lowest mean score for alpha in [0, 1] >= {FLAT}"
RISES = (f"ends at least {GAP} above its start; R squared of the straight line between its ends, at the tenths of alpha, "
         f">= {LINEAR}; largest fall <= {FALL}")
CLAIMS = (  # the claim, where the paper makes it, the rule that decides, the check
    ("Source stays flat along Eq. 1", "Sec. 5, Fig. 2", STAYS, lambda grids: flat(grids, 1, 0)),
    ("Target rises smoothly and linearly along Eq. 1", "Sec. 5, Fig. 2", RISES, lambda grids: rises(grids, 1, 1)),
    ("Target stays flat along Eq. 2", "Sec. 5, Fig. 2", STAYS, lambda grids: flat(grids, 2, 1)),
    ("Source rises smoothly and linearly along Eq. 2", "Sec. 5, Fig. 2", RISES, lambda grids: rises(grids, 2, 0)),
    ("Seeds vary more on the target than on the source at the zero-shot end", "App. C, Fig. 5",
     "mean normalised variance at the source-only model: target > source", varies),
    ("d_src and d_tgt are about equally long", "Sec. 3.1, Fig. 4",
     f"mean norm ratio within {NORM_RATIO[0]} to {NORM_RATIO[1]}", lambda grids: lies(grids, "norm_ratio", NORM_RATIO, 2)),
    ("The angle between them is near 55 degrees", "Sec. 3.1, Fig. 4",
     f"mean angle within {ANGLE[0]} to {ANGLE[1]} degrees", lambda grids: lies(grids, "angle", ANGLE, 1)),
    ("The zero-shot model lies in a steep part of the target surface", "Sec. 5, Fig. 3",
     f"slope of the mean target surface there >= {STEEPER} x the slope at the bilingual model", steep),
    ("XLM-R's target surface is flatter than mBERT's", "Sec. 5, Fig. 3",
     f"share of the plane where the mean target score is >= {KEEPS}: XLM-R > mBERT", flatter),
    ("Interpolating the encoder alone looks alike", "Sec. 3.1, footnote 2",
     f"mean absolute difference from interpolating everything, at the same points in both languages, <= {SAME}", encoder_alone),
    ("Interpolating the head alone hardly matters", "Sec. 3.1, footnote 2",
     f"no score on either line, alpha in [0, 1], farther than {1 - FLAT:.2f} from the bilingual one", head_alone),
)


def claims(grids):
    """What the grids say to each claim of the paper, as a list of Claim; collapsed runs are left out."""
    grids, table = sound(grids), []
    for claim, where, rule, check in CLAIMS:
        holds, measured = check(grids)
        alone = [verdict for verdict, _ in map(check, cases(grids)) if verdict is not None]
        if len(alone) > 1:
            measured += f"; taken alone, {sum(alone)} of {len(alone)} cases agree"
        verdict = "not tested" if holds is None else "agrees" if holds else "differs"
        table.append(Claim(claim, where, rule, measured, verdict))
    return table


# ---- report ----------------------------------------------------------------------------------------------------------

HOW = """Mean ± standard deviation over seeds, 0 to 100, on the dev sets. Flatness is the lowest mean normalised source score on
Eq. 1, alpha in [0, 1]. Normalised: divided by the score of the same seed's bilingual model on the same dev set."""
CASE = "A case is one task, encoder and pair over its seeds. Scores, slopes and shares are of normalised scores."
BANDS = f"""Bands are 95 % confidence intervals of the mean (Student's t) over cases, each the mean of its seeds, or over runs
where there are fewer than {MIN_UNITS} cases; one seed has no band. A variance over seeds is in score points and divided by the
bilingual score. X stands for several target languages. A picture that would repeat one above it is not shown again."""


def summary(grids):
    """A Markdown table with a row for each task, encoder and pair: mean and standard deviation over the seeds."""
    rows = [("task", "encoder", "pair", "seeds", "source", "zero-shot target", "bilingual source", "bilingual target",
             "target only", "flatness", "norm ratio", "angle")]
    for case in cases(whole(grids)):
        grid = case[0]
        runs, _ = having(case, lambda grid: on_line(grid, 1, inside=True))
        scores = [mean_sd([run.points[point][side] for run in case if point in run.points], 1)
                  for point, side in ((SRC, 0), (SRC, 1), (BOTH, 0), (BOTH, 1), (TGT, 1))]
        rows.append((f"{task_name(grid.task)} {grid.metric}", encoder_name(grid.encoder), pair_name(grid), str(len(case)),
                     *scores, f"{between(runs, 1, 0)[1].min():.3f}" if runs else "-",
                     mean_sd([run.norm_ratio for run in case], 2), mean_sd([run.angle for run in case], 1)))
    return markdown(rows)


def mean_sd(values, digits):
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
    said = [f"Collapsed, left out of all figures, means and claims: {grid}, {collapsed(grid)}."
            for grid in grids if collapsed(grid)]
    for grid in grids:
        wanted = {*axes(grid), *(plane(grid) if has_plane(grid) else ())}
        if not has(grid, wanted):
            said.append(f"Incomplete: {grid}, {len(grid.points)} of {len(wanted)} points.")
    parts = sum(grid.part != "all" for grid in grids)
    if parts:
        said.append(f"Interpolated in part, used for footnote 2 alone: {plural(parts, 'grid')}.")
    for task, encoder in sorted({(grid.task, grid.encoder) for grid in whole(grids)}):
        mixed = [grid.settings for grid in whole(grids) if (grid.task, grid.encoder) == (task, encoder)]
        for name in mixed[0]:
            values = sorted({json.dumps(settings.get(name)) for settings in mixed})
            if len(values) > 1:
                said.append(f"Mixed settings: {task_name(task)} {encoder_name(encoder)}, {name} {' and '.join(values)}.")
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
        draw(grids, Path(args.out, "figures"))
        print(report(grids, args.out, "python plot.py " + shlex.join(sys.argv[1:] if argv is None else argv)))
        print(f"\nFigures and report: {Path(args.out, 'report.md')}")
    except ResultError as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
