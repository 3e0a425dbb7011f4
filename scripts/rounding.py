"""What a lower precision of scoring would change on a line: tf32 and bf16, simulated by rounding anywhere.

    python scripts/rounding.py --task pos --src en --tgt de --encoder FOLDER --limit 60 --seeds 1 --out OUT

The flags are those of reproduce.py; models that are not there are trained. On Eq. 1, at the points from alpha
0 to 1, what enters a product of matrices (weights, activations, attention) is rounded to the significand of
tf32 (10 bits) or bf16 (7); sums stay fp32. *Differ* and *most*: how many labels of both dev sets are others
than in fp32 at the same point, mean and largest; in the first row, than at the next point. *Score*: its
largest change. *Order*: of how many pairs of neighbouring points and sides another one is better.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import grids
import reproduce
from grids import table
from results import KitError

PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}   # what of them is rounded
BITS = {"tf32": 10, "bf16": 7}   # of the significand, beside fp32's 23

class Rounded(TorchDispatchMode):
    """While it is on, what enters a product of matrices is rounded to so many bits."""

    def __init__(self, bits):
        super().__init__()
        self.bits = bits

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if "attention" in name or "linear" in name:
            raise NotImplementedError(f"{name} multiplies inside")   # would not be rounded, in silence
        which = PRODUCTS.get(name, ())
        args = [rounded(value, self.bits) if place in which else value for place, value in enumerate(args)]
        return function(*args, **kwargs or {})

def rounded(values, bits):
    """fp32 values to the nearest that have so many bits of significand, half away from zero."""
    whole = values.contiguous().view(torch.int32)
    return (whole + (1 << 22 - bits) & -1 << 23 - bits).view(torch.float32).view(values.shape)

@torch.no_grad()
def scored(run, plane, pair, bits=None):
    """(predictions of both dev sets in one vector, scores of both sides)."""
    labels, scores = [], []
    for (lang,) in pair.langs():
        dev = run.corpora.examples(pair.task, pair.encoder, lang, "dev")
        with Rounded(bits) if bits else torch.no_grad():
            found = run.scorer.predictions(plane, dev)
        labels.append(found[dev.gold[:, 0] >= 0].flatten())
        got, of = reproduce.TASKS[pair.task].count(found, dev, lang, None)[0].tolist()
        scores.append(100 * got / max(1, of))
    return torch.cat(labels), scores

def rows(run, pair):
    """The table of a pair, {column: cell} a row."""
    plane, found = run.plane(pair), {}
    plane.model.encoder.set_attn_implementation("eager")   # its products can be seen
    for alpha in (alpha for alpha in grids.LINE if 0 <= alpha <= 1):
        plane.move(1 - alpha, 0.0)
        for name, bits in {"fp32": None, **BITS}.items():
            found.setdefault(name, []).append(scored(run, plane, pair, bits))
    exact = found.pop("fp32")
    steps = [(one != other).sum().item() for (one, _), (other, _) in itertools.pairwise(exact)]
    yield row(pair, "fp32, the next point", len(exact[0][0]), steps)
    for name, points in found.items():
        differ = [(one != other).sum().item() for (one, _), (other, _) in zip(points, exact)]
        scores, right = (np.array([score for _, score in of]) for of in (points, exact))  # (points, 2)
        order = (np.sign(np.diff(scores, axis=0)) != np.sign(np.diff(right, axis=0))).sum()
        yield row(pair, name, len(exact[0][0]), differ, f"{abs(scores - right).max():.2f}",
                  f"{order} of {np.diff(right, axis=0).size}")

def row(pair, name, labels, differ, score="", order=""):
    return {"pair": str(pair), "scored in": name, "labels": str(labels), "differ": f"{np.mean(differ):.1f}",
            "most": str(max(differ)), "score": score, "order": order}

def main():
    args = reproduce.parse_arguments()
    models, pairs = reproduce.plan(args)
    run = reproduce.Run(args)
    reproduce.check_data(run, models)
    for unit in models:
        reproduce.finetune(run, unit)
    print(table([row for pair in pairs for row in rows(run, pair)]))

if __name__ == "__main__":
    try:
        main()
    except (KitError, OSError) as e:
        print(f"rounding.py: {e}", file=sys.stderr)
        sys.exit(2)
