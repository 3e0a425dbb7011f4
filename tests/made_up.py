"""Grids that tests make up: surfaces by a formula, and result files as reproduce.py writes them."""

import itertools
import json
from pathlib import Path

import numpy as np

from grids import BOTH, check
from results import FORMAT

TENTHS = [round(0.1 * i - 0.5, 1) for i in range(21)]
LINE = sorted(TENTHS + [0.025, 0.05, 0.075, 0.125, 0.15, 0.175, 0.825, 0.85, 0.875, 0.925, 0.95, 0.975])

def paper(a1, a2, seed=1):
    """Surfaces as in the paper: flat for a language that was trained on, a linear loss without it."""
    return 90 - 30 * max(a2, 0) - 0.01 * seed * a1, 80 - (25 + seed) * max(a1, 0) - 0.01 * seed * a2

SURFACES = {  # others; k is how much there is of what makes them
    "bent": lambda a1, a2, seed, k, at: np.subtract(
        paper(a1, a2, seed), 100 * k * any(abs(1 - a - at) < 0.06 for a in (a1, a2) if 0 < a < 1)),
    "dented": lambda a1, a2, seed, k: np.subtract(paper(a1, a2, seed), np.multiply(k.get(a1, 0), a2 == 0)),
    "step": lambda a1, a2, seed: (90 - 30 * (a2 > 0.45), 80 - 30 * (a1 > 0.45)),
    "level": lambda a1, a2, seed: (90, 80),
    "late": lambda a1, a2, seed: (90, 80 - 25 * max(a1 - 0.5, 0)),   # level around the bilingual model
    "cliff": lambda a1, a2, seed: (90, 80 - 20 * min(max(a1 * 5, 0), 1)),
    "sloping": lambda a1, a2, seed, k: (90 - k * a1, 80 - 25 * a1),
    "noisy": lambda a1, a2, seed, k: (90 - k * seed * (a1 == 1), 80 - 25 * max(a1, 0) - seed * (a1 == 1)),
    "narrow": lambda a1, a2, seed: (90, 80 - 60 * max(a1, 0)),
    "shifted": lambda a1, a2, seed, k: np.subtract(paper(a1, a2, seed), k * ((a1, a2) != BOTH)),
    "still": lambda a1, a2, seed, k: (90 - k * (a1 == 0.5), 80 - k * (a2 == 0.5)),
    "steps": lambda a1, a2, seed, k: (90, 80 if a1 == 0 else 8 * (2 * k + seed)),
}

def like(name, *k):
    return lambda a1, a2, seed: SURFACES[name](a1, a2, seed, *k)

def rows(score=paper, lines=True, **fields):
    """The lines of a result file: a header with these fields, points of both lines or of the plane too."""
    header = {"format": FORMAT, "task": "pos", "metrics": ["accuracy"], "scored_in": "fp32", "part": "all",
              "encoder": "mbert", "src": "en", "tgt": "de", "seed": 1, "line": LINE, "plane": TENTHS,
              "dev": {}, "models": {}, "data": {}, "settings": {"lr": 2e-5, "limit": None}, "norm_ratio": 1.0,
              "angle": 55.0, "encoder_digest": "d", "new": "ignored"} | fields
    header.setdefault("majority", {header["src"]: 20.0, header["tgt"]: 18.0})
    points = [(round(1 - a, 3), 0.0) for a in LINE] + [(0.0, round(1 - a, 3)) for a in LINE]
    points += [] if lines else itertools.product(TENTHS, TENTHS)
    made = [header]
    for a1, a2 in dict.fromkeys(points):  # a second metric is five points more
        pair = np.clip(score(a1, a2, header["seed"]), 0, 100).tolist()
        src, tgt = ({name: x + 5 * i for i, name in enumerate(header["metrics"])} for x in pair)
        made.append({"a1": a1, "a2": a2, "src": src, "tgt": tgt, "seconds": 1})
    return made

def grid(score=paper, lines=True, keep=None, **fields):
    return check(Path("made-up"), rows(score, lines, **fields)[:None if keep is None else keep + 1])

def seeds(*numbers, **fields):
    return [grid(seed=number, **fields) for number in numbers]

def both(mbert, xlmr, lines=True, **of_xlmr):
    return [grid(mbert, lines), grid(xlmr, lines, encoder="xlm-roberta-large", **of_xlmr)]

def write(folder, tail="", keep=None, **fields):
    """A result file as reproduce.py writes it; keep: that many points only; tail: what comes after them."""
    header, *points = rows(**fields)
    name = f"seed{header['seed']}" + ("" if header["part"] == "all" else f".{header['part']}")
    pair = f"{header['src']}-{header['tgt']}"
    file = Path(folder, "grids", header["task"], header["encoder"], pair, f"{name}.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in [header, *points[:keep]]) + tail)
    return file
