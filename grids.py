"""A result file, what it must hold, and what can be computed from it.

A *grid* is one result file: the evaluated points of one *run* (task, encoder, pair, seed); a *case* a task,
an encoder and a pair over its seeds; *sides* are source and target, by their dev sets; *normalised* is what
normalise() returns. Points are (a1, a2) of Eq. 3, lines are Eq. 1 and Eq. 2.
"""
import io
import math
from itertools import product
from pathlib import Path
from textwrap import fill, indent

import numpy as np

from results import FORMAT, KitError, read_lines

PLANE = [round(0.1 * i, 1) for i in range(-5, 16)]                                                # Sec. 4
LINE = sorted([*PLANE, 0.025, 0.05, 0.075, 0.125, 0.15, 0.175,
               0.825, 0.85, 0.875, 0.925, 0.95, 0.975])                                       # footnote 5
MARGIN = 1.0     # a model at most this many points above the most frequent class has collapsed
MIN_CASES = 3    # with fewer cases a band is over runs, though seeds of one case are no independent samples
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

class Grid:
    """One result file: header, scores {metric: {(a1, a2): (source, target)}}, points: the first of them."""
    def __init__(self, file, header):
        self.file, self.header = file, header
        for name in FIELDS:
            setattr(self, name, header[name])
        self.scores = {metric: {} for metric in self.metrics}
        self.points = self.scores[self.metrics[0]]
        self.line, self.plane = sorted(self.line), sorted(self.plane)
        self.writes = self.metrics[-1] == "wrong-language words"
        self.visits = {}  # {visitor: its points} of those that are whole, as visit.evaluate wrote them
        self.written = {}  # {(a1, a2): [[gold, output]]} of a task that writes
        self.log = header.get("way", ())  # of its source-only model: step, mean, score, xlrs: [XLRS, random]
        self.task_name = NAMES.get(self.task, self.task)
        self.encoder_name = NAMES.get(self.encoder.split("--")[-1], self.encoder)  # OWNER--NAME on the hub
        made, control = header.get("pretraining", "scratch"), header.get("control", "")
        self.control = bool(control) or made != "scratch"  # beside the experiment, in no claim of the paper
        if "pretraining" in header:  # it was made in this run, for its pair alone
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

def points(lines_only):
    """Distinct points (a1, a2) of Eq. 3, the lines first: Eq. 1 at a is (1-a, 0), Eq. 2 at a is (0, 1-a)."""
    lines = [(round(1 - a, 3), 0.0) for a in LINE] + [(0.0, round(1 - a, 3)) for a in LINE]
    plane = [] if lines_only else [(a1, a2) for a1 in PLANE for a2 in PLANE]
    return list(dict.fromkeys(lines + plane))

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
    differ += [(name, first.header.setdefault(name, log), log) for name in ("xlrs", "way")
               if (log := second.header.get(name))]   # of --parallel, which one of the two may lack
    first.log, first.written = first.header.get("way", ()), first.written | second.written
    for metric, points in second.scores.items():
        had = first.scores.get(metric, {})  # where the metrics are others, the headers differ
        differ += [(f"{metric} at {at}", had.setdefault(at, pair), pair) for at, pair in points.items()]
    differ += [(f"visitor {name}", first.visits.setdefault(name, records), records)
               for name, records in second.visits.items()]
    for what, one, other in differ:
        if one != other:
            raise KitError(f"{first.file} and {second.file} are both {first}, but differ in {what}: "
                           f"{str(one)[:80]} and {str(other)[:80]}; give only one of the two runs")

def read(path):
    """One result file as a Grid; None where there is none, or not even its header was written whole."""
    records = records_in(path) if path.exists() else []
    if not records:
        return None
    grid = check(path, records)
    for file in sorted(path.with_suffix(".visits").glob("*.jsonl")):
        if points := visit_points(file, grid):
            grid.visits[file.stem] = points
    return grid

def records_in(path):
    """The records of a file; a torn last line is not ours to cut off, so it is read from a copy."""
    return read_lines(io.BytesIO(path.read_bytes()), path)

def visit_points(file, grid):
    """The points of a visit to a Grid; None where some are still to come. Raises KitError as check does."""
    header, *points = records_in(file) or [None]
    if header is None:
        return None
    try:
        if header["models"] != grid.header.get("models"):
            raise ValueError(f"it is of other models than {grid.file}")
        for point in points:
            numbers = [point[name] for name in ("a1", "a2", "distance", "from_start")]
            scored = [side[name] for side in (point["src"], point["tgt"], *point["nearest"].values())
                      for name in grid.metrics]
            if not all(map(math.isfinite, numbers)) or not all(0 <= score <= 100 for score in scored):
                raise ValueError(f"a point in it cannot be: {point}")
        return points if len(points) >= header["points"] else None
    except (AttributeError, LookupError, TypeError, ValueError) as e:
        reason = f"it has no {e}" if isinstance(e, KeyError) else e
        raise KitError(f"{file}: {reason}; delete it, the same command makes it again") from None

def check(path, records):
    """The Grid of a result file's records. Raises KitError where something is missing or a point is wrong."""
    number, sides = 1, ("src", "tgt")
    try:
        if records[0]["format"] not in (2, FORMAT):  # in 2 models are trained otherwise
            raise ValueError(f"its format is {records[0]['format']}, that of this kit {FORMAT}")
        for name, kinds in FIELDS.items():
            if not isinstance(value := records[0][name], kinds) or value == [] or value != value:
                raise ValueError(f"{name} is {value!r}, which it cannot be")
        grid = Grid(path, records[0])
        expected = grid.axes.union(grid.square)
        for number, record in enumerate(records[1:], 2):
            point = record["a1"], record["a2"]
            grid.written |= {point: record["written"]} if "written" in record else {}
            if point not in expected:
                raise ValueError(f"{point} is no point of the lines or the plane that line 1 describes")
            for metric, points in grid.scores.items():
                scores = tuple(record[side][metric] for side in sides)
                if not all(0 <= score <= 100 for score in scores):
                    raise ValueError(f"{metric} is {scores}, expected two scores from 0 to 100")
                if points.setdefault(point, scores) != scores:
                    raise ValueError(f"{metric} is {scores}, an earlier line says {points[point]}")
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
    not its square (our reading). NaN stands for what is not evaluated, and for a single seed's."""
    plain = np.array([[run.points.get(at, (math.nan, math.nan)) for at in (BOTH, *points)] for run in runs])
    bilingual, plain = plain[:, :1], plain[:, 1:]
    return plain / bilingual, moments(plain)[2] ** 2 / mean(bilingual)

def wrong_words(runs, at):
    """Mean % of the target's words in another language at a point; NaN of a task that does not write."""
    told = [grid for grid in runs if grid.writes and at in grid.points]
    return mean([grid.scores[grid.metrics[-1]][at][1] for grid in told])

def moments(values):
    """Number, mean, sd (divisor n - 1) along the first axis, without NaNs; NaN if too few are left."""
    there = np.ma.masked_invalid(np.array(values, float))
    return there.count(0), np.ma.filled(there.mean(0), np.nan), np.ma.filled(there.std(0, ddof=1), np.nan)

def mean(values):
    return moments(values)[1]

def mean_sd(values, digits):
    """Mean ± standard deviation (divisor n - 1) in words, without NaNs; "-" where none is left."""
    number, middle, sd = moments(values)
    said = f"{round(float(middle), digits) + 0.0:.{digits}f}"   # no -0.0
    return "-" if not number else said + (f" ± {sd:.{digits}f}" if number > 1 else "")

def band(values):
    """Mean along the first axis and half width of its 95 % interval (ours: Student's t); NaN where n is 1."""
    number, middle, sd = moments(values)
    free = np.maximum(number - 1, 1)
    t = np.where(free > len(T975), 1.95996 + 2.3723 / free + 2.8225 / free ** 2,  # off by .0021 at most
                 np.take(T975, free - 1, mode="clip"))
    return middle, t * sd / np.sqrt(free + 1)

def series(grids, equation):
    """On a line: normalised scores (units, points, sides), what units are, mean variance (points, sides)."""
    parts = [normalise(runs, grids[0].on_line(equation)) for runs in cases(grids)]
    many = len(parts) >= MIN_CASES
    scores = np.concatenate([mean(scores)[None] if many else scores for scores, _ in parts])
    units = "cases" if many else "runs" if len(parts) > 1 else "seeds"
    return scores, units, mean([variance for _, variance in parts])

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
    """Slopes (models, sides) of a mean surface at the zero-shot and the bilingual model: lengths of gradients
    over those runs of a case that have a plane around both; where none has, sizes along Eq. 1, over all."""
    steps = 0.1 * np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
    around = np.round([*(SRC + steps), *(BOTH + steps)], 3).tolist()
    scores = normalise(case, [*map(tuple, around)])[0].reshape(-1, 2, 2, 2, 2)
    gradients = (scores[:, :, 0] - scores[:, :, 1]) / 0.2  # (runs, models, directions, sides)
    planes = np.isfinite(gradients).all((1, 2, 3))
    return np.linalg.norm(mean(gradients[planes] if planes.any() else gradients[:, :, :1]), axis=1)

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


def table(rows, gap=" | "):
    """Rows {column: cell} as a Markdown table, or with another gap as plain text."""
    cells = [[*rows[0]], *([row.get(name, "") for name in rows[0]] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(gap.join(map(str.ljust, row, widths)).rstrip() for row in cells)

def verdicts(rows):
    """The lines of claims for a screen."""
    lines = []
    for row in rows:
        lines.append(f"{row['verdict']:12}{row['claim']}")
        if row["measured"] != "-":
            lines.append(indent(fill(f"{row['measured']}; {row['cases']} cases", 67), " " * 12))
    return lines
