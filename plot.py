"""Figures, claims and report from the result files of one run or of many.

    python plot.py results                               # what reproduce.py does at the end of a run
    python plot.py machine1 machine2 --out joined        # runs of several machines, joined

Reads RESULTS/grids/TASK/ENCODER/SRC-TGT/seedK.jsonl; writes FOLDER/figures/*.png and *.pdf, FOLDER/report.md.
"""
import argparse
import io
import math
import shlex
import sys
from functools import partial
from itertools import product
from pathlib import Path
from textwrap import fill

import numpy as np  # matplotlib, which is slow to import, is imported where a figure is made

import derive
import visit

from grids import (  # isort: skip
    BOTH, CASE, PAIR, SIDES, SRC, TGT, band, cases, group, judge, load, mean, mean_sd, moments,
    normalise, series, shape, slopes, sound, table, verdicts, wrong_words)
from results import KitError, write

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
{INSIDE["angle"]}, since a mean of 1 may come of .3 and 1.7. *Slope*: along Eq. 1, or where a
case has a plane (here {{}} of {{}}) the gradient's length. *Steep*: 1.5 times the slope at the bilingual
model; *flat* beside that: half of it. *Dip*: how far a score lies below the middle of those 0.1 before and
after, for both sides' mean; .005 is no rounding. *Bend*: its mean size. *Lost*: scores below {KEEPS}.

A claim *agrees* where the numbers of all grids and of more than half of the cases alone follow its rules,
*differs* where neither do, else it is *mixed*. A case is a task, an encoder and a pair over its seeds; of two
encoders, a task and a pair. Scores are normalised, means over cases, and on lines from alpha 0 to 1."""
MIN_RUNS = 5     # fewer runs than this are drawn one by one: their band would fill the figure
# Okabe and Ito's colours. Hue and marker tell the sides apart, lightness and dashes the encoders.
COLOURS, DASHES = (("#0072B2", "#56B4E9"), ("#D55E00", "#E69F00")), ("-", (0, (4, 1.5)), (0, (1, 1.2)))
DOTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
FAR_OFF = 0.25   # of |d_src|: a visitor so far from the plane is drawn hollow
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

# ---- figures -----------------------------------------------------------------------------------------------
def figures_of(grids):
    """The figures that the grids allow, a list of (name of the file, caption, function that makes it)."""
    more = [figure for _, figures in further(grids) for figure in figures(grids)]
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
    """[(module, function)] of what has a section of the report and figures of its own for these grids."""
    found = [(derive, derived_figures)] if derive.transfers(grids) else []
    if any(grid.header.get("xlrs") or grid.written or "+" in grid.src for grid in grids):
        import generate  # which imports torch
        found.append((generate, partial(written_figures, generate.ranked)))
    if any(grid.visits for grid in grids):
        found.append((visit, visitor_figures))
    return found

def draw_figure(name, make, out):
    """Write one figure of figures_of() to out/figures as PNG and PDF, the same bytes each time."""
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

def plane_figure(grids, visitors=False):
    """Figs. 3 and 10 for a task and pair: a panel for each language; several encoders make a column each.
    visitors: with those that were placed (ours)."""
    from matplotlib.patheffects import withStroke
    encoders, halo = group(grids, "encoder_name").values(), [withStroke(linewidth=2, foreground="white")]
    figure, panels = canvas(min(len(encoders), 2), max(len(encoders), 2), 3.15, sharex=True, sharey=True)
    for (side, of), ax in zip(product((0, 1), encoders), panels.flat, strict=True):
        grid, axis = of[0], np.array(of[0].plane)
        whole = [run for run in of if run.points.keys() - run.axes] or of   # where others have lines alone
        height = mean(normalise(whole, grid.square)[0])[:, side].reshape(len(axis), -1).T  # (a2, a1)
        height = np.ma.masked_invalid(height)
        ax.set_facecolor("0.85")  # what is not evaluated stays grey
        ax.contourf(axis, axis, height, levels=(-1, *LEVELS, 101), colors=SHADES)
        if reached := [level for level in LEVELS if height.count() and height.min() < level <= height.max()]:
            contours = ax.contour(axis, axis, height, levels=reached, colors="0.25", linewidths=0.8)
            for text in ax.clabel(contours, fmt=lambda level: f"{level:.2f}".lstrip("0"), fontsize=7,
                                  manual=free_places(contours, axis)):
                text.set_rotation(0)
        for point, name in ((BOTH, grid.pair), (SRC, grid.languages[0]), (TGT, grid.languages[1])):
            ax.plot(*point, "o", color="black", markeredgecolor="white", markersize=5)
            ax.annotate(name, point, (4, 4), textcoords="offset points", weight="bold", path_effects=halo)
        encoder = grid.encoder_name.removeprefix("scratch").lstrip(", ")   # it is the pair's own
        name = ", ".join(filter(None, (f"{grid.task_name} {grid.pair}", encoder)))
        title(ax, f"{name}\nscore on {grid.languages[side]}", whole, grid.square)
        ax.set(xlim=axis[[0, -1]], ylim=axis[[0, -1]], aspect="equal", xticks=axis[::5], yticks=axis[::5],
               xlabel="α₁", ylabel="α₂")
        if visitors:
            draw_visitors(ax, of, halo)
    return figure

def draw_visitors(ax, of, halo):
    """Visitors of a case, means over seeds, their names and distances from the plane in |d_src| below; each
    source-only model's way as a thin line. What is further off the plane than FAR_OFF is hollow."""
    long = mean([grid.header["norm_src"] for grid in of]) or math.nan
    found = {name: numbers.mean(0)[:3] / (1, 1, long)
             for name, numbers in visit.placed(of).items() if name not in visit.CORNERS}
    for number, (*at, off) in enumerate(found.values(), 1):
        ax.plot(*at, "D", color="#CC79A7", mfc="white" if off > FAR_OFF else None, ms=3.5)
        side = (4, 2), (-8, 2), (-2, 4), (-2, -9)   # of one that lies where another does, too
        ax.annotate(str(number), at, side[number % 4], textcoords="offset points", size=6, path_effects=halo)
    key = [f"{number}\u00a0{name}\u00a0{found[name][2]:.2f}" for number, name in enumerate(found, 1)]
    ax.set_xlabel("α₁\n" + fill(", ".join(key), 62, break_on_hyphens=False), size=6)
    for way in (grid.visits["way"] for grid in of if "way" in grid.visits):
        ax.plot(*zip(*((point["a1"], point["a2"]) for point in way)), color="#CC79A7", lw=.7)
        for point in way:
            ax.plot(point["a1"], point["a2"], "o", color="#CC79A7", ms=2, mew=.5,
                    mfc="white" if point["distance"] > FAR_OFF * long else None)

def visitor_figures(grids):
    """The figures of visitors, as those of figures_of."""
    grids, drawn = [grid for grid in sound(grids) if grid.visits], []
    for names, of in group(grids, *PAIR).items():
        name, label = "-".join(names), f"{of[0].task_name} {of[0].pair}"
        drawn += [(f"visitors-{name}", f"Visitors at the plane: {label}", partial(plane_figure, of, True)),
                  (f"remedies-{name}", f"How far a remedy gets: {label}", partial(remedies_figure, of))]
    return drawn

def remedies_figure(grids):
    """The target's score of each visitor as a bar, by how far along Eq. 1 it gets; grey: its two models."""
    every = cases(grids)
    figure, panels = canvas(len(every), 1, 3)
    for of, ax in zip(every, panels.flat, strict=True):
        names = []
        for y, (name, numbers) in enumerate(visit.placed(of).items()):
            a1, *_, target, nearest = numbers.mean(0)
            ax.barh(y, target, color="0.75" if name in visit.CORNERS else COLOURS[1][1],
                    xerr=moments(numbers)[2][-2], error_kw={"elinewidth": .8})
            ax.plot(nearest, y, "|", color="black")
            names.append(f"{name}, {round(1 - a1, 2) + 0:.2f}")
        ax.set_yticks(range(len(names)), names, size=7)
        ax.set(ylim=(len(names) - .5, -.5), ylabel="α along Eq. 1")
        ax.set_xlabel(f"{of[0].metrics[0]} of the target; |: at the nearest point", loc="right")
        title(ax, f"{of[0].task_name} {of[0].pair}, {of[0].encoder_name}", of, [])
    return figure

def free_places(contours, axis):
    """A place (2,) for each level's number: where its lines are far from models, frame and other numbers."""
    taken, found = [np.add(model, (0.1, 0.05)) for model in (BOTH, SRC, TGT)], []   # where names stand, too
    for lines in contours.allsegs:
        line = np.concatenate(lines)
        frame = np.minimum(line - axis[0], axis[-1] - line).min(1)
        gaps = np.linalg.norm(line[:, None] - np.array(taken + found), axis=2).min(1)
        room = np.minimum(gaps, frame)
        if room.max(initial=0) > 0.06:
            found.append(line[room.argmax()])
    return found

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

def derived_figures(grids):
    """The figures of derived languages, as figures_of has its own."""
    found = derive.transfers(grids)
    aligned = [each for each in found if each.p1]
    surface = {"slope": "slope of target\nat zero-shot", "lowest": "lowest source\nscore on Eq. 1",
               "angle": "angle, degrees"}
    drawn = [("ingredients", "Delta of each derived language", partial(bars_figure, found)),
             ("ingredients-alignment", "Delta against alignment",
              partial(points_figure, aligned, {"delta": "Delta, points"})),
             ("ingredients-surface", "Target's slope, source's flatness and angle against alignment",
              partial(points_figure, aligned, surface))]
    return drawn if aligned else drawn[:1]

def bars_figure(found):
    """Delta of each derived language, a bar a task; lines: standard deviation over seeds."""
    tasks, names = group(found, "task"), sorted({each.name for each in found})
    width = 1 / (len(tasks) + 1)
    figure, [[ax]] = canvas(1, 1, 1 + .08 * len(names) / width)
    for number, ((task,), of) in enumerate(tasks.items()):
        y = [names.index(each.name) + (number - (len(tasks) - 1) / 2) * width for each in of]
        ax.barh(y, [each.delta for each in of], width, color=DOTS[number % 4], label=task,
                xerr=[moments(each.deltas)[2] for each in of], error_kw={"elinewidth": .8})
    ax.axvline(0, color="black", lw=.6)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="Delta, points", ylim=(len(names) - .5, -.5))
    figure.legend(loc="outside upper right", ncols=4, handlelength=1)
    return figure

def points_figure(found, labels):
    """Panels of {attribute: label} against alignment: a point a task, joined for each derived language."""
    figure, panels = canvas(len(labels), 1, .6 + 1.8 / len(labels) ** .5, sharex=True)
    of_name, srcs = group(found, "name"), {each.src for each in found}
    languages = sorted(of_name.values(), key=lambda of: of[0].alignment)
    at = np.log10([.02, *(max(.1, of[0].alignment) for of in languages), 1000])
    for (attribute, label), ax in zip(labels.items(), panels.flat, strict=True):
        for number, ((task,), of) in enumerate(group(found, "task").items()):
            look = {"marker": "os^D"[number % 4], "color": DOTS[number % 4], "lw": 0}
            ax.plot([], [], **look, label=task)
            for each in of:
                ax.plot(each.alignment, getattr(each, attribute), **look, mfc="white" if each.align else None)
        for of, left, right in zip(languages, np.diff(at), np.diff(at)[1:]):
            x, y = of[0].alignment, [getattr(each, attribute) for each in of]
            ax.plot([x, x], [min(y), max(y)], color="0.7", lw=.8, zorder=0)
            side, name = 1 if right > left else -1, of[0].short if len(srcs) == 1 else of[0].name
            if ax is panels[0, 0]:   # beside the point, where there is more room
                ax.annotate(name, (x, max(y)), (5 * side, 0), textcoords="offset points", size=6, va="center",
                            ha="left" if side > 0 else "right")
        ax.set_ylabel(label)
    ax.set_xscale("symlog", linthresh=.1)   # P@1 may be 0, and differs most where it is small
    ax.set_xticks([0, .1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    ax.set(xlim=(-.02, 1000), xlabel="alignment, P@1 in %; hollow: with --align")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower right", ncols=4, handlelength=1)
    return figure

def written_figures(ranked, grids):
    """The figures of what is written and of XLRS, as figures_of has its own; ranked: of generate."""
    grids = [grid for grid in sound(grids) if not grid.control]
    told, logged = [grid for grid in grids if grid.writes], [grid for grid in grids if grid.log]
    drawn = []
    if told:
        drawn += [("wrong-language", "Words in a wrong language on both lines", partial(words_figure, told))]
    if logged:
        drawn += [("xlrs-steps", "XLRS in fine-tuning", partial(steps_figure, logged)),
                  ("xlrs-target", "XLRS and the target's score",
                   partial(scatter_figure, logged, ranked(logged)))]
    return drawn

def words_figure(grids):
    """% of the target's words in another language on Eq. 1 and 2: a line a pair, its mean over seeds."""
    figure, [panels] = canvas(1, 2, 2.3, sharey=True)
    for equation, ax in zip((1, 2), panels):
        for number, of in enumerate(cases(grids)):
            points = of[0].on_line(equation)
            ax.plot(of[0].line, [wrong_words(of, at) for at in points], color=DOTS[number % 4],
                    ls=DASHES[number // 4 % 3], label=f"{of[0].encoder_name}, {of[0].pair}")
        ax.set(xlabel="α", ylabel="words in a wrong language, %" if equation == 1 else None)
        title(ax, f"Eq. {equation}", grids, grids[0].on_line(equation))
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure

def steps_figure(grids):
    """XLRS of each source-only model by steps, from before fine-tuning (step 0) on; dotted: random pairs."""
    figure, [[ax]] = canvas(1, 1, 2.6)
    for number, of in enumerate(cases(grids)):
        for grid in of:
            steps = [0, *(record["step"] for record in grid.log)]
            values = [grid.header["xlrs"]["pretrained"], *(record["xlrs"] for record in grid.log)]
            for kind, style in ((0, "-"), (1, ":")):
                ax.plot(steps, [value[kind] for value in values], style, color=DOTS[number % 4],
                        label=None if kind or grid is not of[0] else f"{grid.task_name}, {grid.pair}")
    ax.set(xlabel="step", ylabel="XLRS; dotted: random pairs")
    figure.legend(loc="outside upper center", ncols=2)
    return figure

def scatter_figure(grids, ranked):
    """The target's score against XLRS, a point a dev scoring; in words, rank correlation and n."""
    every = group(grids, "task", "encoder", "tgt")
    figure, panels = canvas(len(every), 1, 2.4)
    known = {(grid.task, grid.encoder, grid.tgt): (n, spearman) for grid, n, spearman in ranked}
    for (key, runs), ax in zip(every.items(), panels.flat, strict=True):
        for number, (src, of) in enumerate(group(runs, "src").items()):
            points = [(record["xlrs"][0], record["score"][of[0].metrics[0]])
                      for grid in of for record in grid.log]
            ax.plot(*zip(*points), "os^D"[number % 4], color=DOTS[number % 4], label=src[0], ms=3)
        n, spearman = known.get(key, (0, math.nan))
        ax.set_title(f"{runs[0].task_name} on {runs[0].tgt}: Spearman {spearman:.2f}, n = {n}", loc="left")
        ax.set(xlabel="XLRS", ylabel=f"{runs[0].metrics[0]} of the target")
        ax.legend(title="trained on")
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
        values = [(name.split(": ")[1], pooled.get(name, math.nan)) for name, _, _ in rules]
        measured = [f"{name} = {'over 1000' if value > 1000 else f'{value:.3f}'}" for name, value in values]
        each = [follows(found, rules) for found in (pairs if "XLM-R" in claim else alone)]
        found = judge(follows(pooled, rules), each, ", ".join(measured))
        rows.append({"claim": claim, "paper": paper} | found)
    return rows

@np.errstate(all="ignore")  # what is divided by nothing is NaN or infinite
def numbers(grids):
    """What the rules ask of some grids, {name: number}; NaN or left out where the grids do not tell."""
    full = sound(grids)
    found = of_lines(full) | of_models(full) | of_parts(grids)
    by_encoder = [group(of, "encoder_name") for of in group(full, *PAIR).values()]
    compared = [(numbers(of["XLM-R",]), numbers(of["mBERT",])) for of in by_encoder
                if {("XLM-R",), ("mBERT",)} <= of.keys()]
    for key in list(found):
        gaps = [xlmr.get(key, math.nan) - mbert.get(key, math.nan) for xlmr, mbert in compared]
        found[f"{key}, XLM-R - mBERT"] = mean(gaps)
    return found

def of_lines(full):
    """The numbers of shape() for both lines and sides, and for mBERT."""
    found = {}
    for equation, (side, name) in product((1, 2), enumerate(SIDES)):
        found |= {f"{name}, Eq. {equation}: {key}": both[side] for key, both in shape(full, equation).items()}
    of_mbert = shape([grid for grid in full if grid.encoder_name == "mBERT"], 1)
    return found | {f"mBERT, Eq. 1: {key}": np.mean(both) for key, both in of_mbert.items()}

def of_models(full):
    """Numbers of the three models and of what is around them: geometry, error, variance, slopes, planes."""
    found = {"zero-shot: error": mean([100 - grid.points[SRC][1] for grid in full if SRC in grid.points])}
    for name, (low, high) in INSIDE.items():
        found[f"{name}: runs inside"] = mean([low <= getattr(run, name) <= high for run in full if run.known])
    planes = cases([grid for grid in full if {*grid.square} <= grid.points.keys()])
    surfaces = [mean(normalise(case, case[0].square)[0]) for case in planes]  # (points, sides)
    found["plane: share lost"] = mean([np.mean(surface[:, 1] < KEEPS) for surface in surfaces])
    if full:
        source, target = mean([normalise(case, [SRC])[1][0] for case in cases(full)])
        found["zero-shot: variance, source / target"] = source / target
        (source, target), (_, bilingual) = mean([slopes(case) for case in cases(full)])
        found["zero-shot: slope, source / target"] = source / target
        found["target: slope, zero-shot / bilingual"] = target / bilingual
    return found

def of_parts(grids):
    """Numbers of footnote 2: what changes where the head or the encoder alone is interpolated."""
    heads = [shape(sound(grids, "head"), equation).get("largest change", [math.nan]) for equation in (1, 2)]
    gaps = []   # from each run to the same one with its encoder alone
    for runs in group(sound(grids) + sound(grids, "encoder"), *CASE, "seed").values():
        points = sorted(set.intersection(*(set(run.points) for run in runs)))
        gaps += [mean(abs(np.diff([normalise([run], points)[0] for run in runs], axis=0)).ravel())]
    return {"head alone: largest change": np.max(np.concatenate(heads)),
            "encoder alone: mean difference": mean(gaps)}

# ---- report ------------------------------------------------------------------------------------------------
HOW = """Mean ± standard deviation over seeds, 0 to 100, on the target's dev set, but for two source columns.
Flatness is the lowest mean source score on Eq. 1 from alpha 0 to 1, over the bilingual model's; R squared
says how straight the target's climb there is."""
SHOWN = {"source": (SRC, 0), "zero-shot": (SRC, 1), "bilingual": (BOTH, 1), "target only": (TGT, 1),
         "bilingual on source": (BOTH, 0)}

def summary(grids):
    """A row {column: cell} for each task, metric, encoder and pair; scores over the seeds."""
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
                rows.append({"task": such[0].task_name, "encoder": encoder, "pair": of[0].pair,
                             "model": model, "yours": f"{np.mean(found):.1f}", "published": score,
                             "source": source, "hint": "far" if abs(gap) > FAR else ""})
    return rows

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
        for name in dict.fromkeys(name for each in settings for name in each):
            values = sorted({str(each.get(name)) for each in settings})
            if len(values) > 1:
                said.append(f"Mixed settings: {' '.join(key)}, {name} {' and '.join(values)}.")
    return said

def report(grids, out, command, notes="", missing=()):
    """Write out/report.md with notes (Markdown) and missing (sentences); returns a text 79 columns wide."""
    rows, found, said, pictures = summary(grids), claims(grids), remarks(grids), {}
    sections, beside = [each.section(grids) for each, _ in further(grids)], published(grids)
    for name, caption, _ in figures_of(grids):
        file = Path(out, "figures", f"{name}.png")
        if file.exists():  # by content: with one task and one pair, several figures are the same
            pictures.setdefault(file.read_bytes(), f"### {caption}\n\n![{caption}](figures/{name}.png)\n\n"
                                                   f"As [PDF](figures/{name}.pdf)")
    planes = [any({(1.0, 0.1), (1.0, -0.1)} <= {*run.points} for run in case)
              for case in cases(sound([grid for grid in grids if not grid.control]))]
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
        for name, _, make in figures_of(grids):
            draw_figure(name, make, out)
        print(report(grids, out, shlex.join(["python", *sys.argv])), f"\nFigures and report: {out}/report.md",
              sep="\n")
    except (KitError, OSError) as error:
        parser.exit(2, f"plot.py: {error}\n")

if __name__ == "__main__":
    main()
