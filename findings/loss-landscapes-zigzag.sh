#!/usr/bin/env bash
# loss-landscapes 3.0.6: in a plane of three models every other column is one step off, and a line has no start.
#
# planar_interpolation promises start + i·d1 + j·d2. It walks up one column and down the next, and takes its
# step before it measures, so columns 0, 2, ... hold j = 1 to n and columns 1, 3, ... j = 0 to n - 1 of n steps.
# linear_interpolation(A, B, steps=n) measures the points 1/n to 1: B is there, A itself is not. Unless
# deepcopy_model=True is asked for, the model that was given as the start is the end model afterwards. Seen, at
# 4 steps, for three models whose loss is a parameter itself, so that a row of true points would be constant:
#
#     along d2: .25  0  .25  0 | .5  .25  .5  .25 | .75  .5  .75  .5 | 1  .75  1  .75
#     a line from 0 to 1: .25  .5  .75  1             the start model's parameter after it: 1
#
# It matters since the surface of a smooth loss comes out with teeth one step deep, or looks rough where a
# metric is steep, and since a flatness that is read off a line leaves one of its two models out.
# (Installs torch.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q loss-landscapes==3.0.6 torch==2.13.0 numpy==2.4.6 tqdm==4.70.1
"$work/venv/bin/python" - <<'END'
import numpy as np
import torch
from loss_landscapes import linear_interpolation, planar_interpolation

def model(*weights):
    """A model of two parameters, which are its outputs for the two unit vectors."""
    made = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([weights]))
    return made

def parameter(number):
    return lambda wrapped: wrapped.forward(torch.eye(2))[number].item()

both, src, tgt = model(0., 0.), model(1., 0.), model(0., 1.)
plane = planar_interpolation(both, src, tgt, parameter(1), steps=4, deepcopy_model=True)   # (d1, d2)
line = linear_interpolation(both, src, parameter(0), steps=4, deepcopy_model=True)
moved = model(0., 0.)
linear_interpolation(moved, src, parameter(0), steps=4)
print("along d2, one row for each step of it:", *plane.T.round(2).tolist(), sep="\n    ")
print("a line from 0 to 1:", line.tolist(), "the start model's parameter after it:", moved.weight[0, 0].item())
up, down = np.array([.25, .5, .75, 1]), np.array([0, .25, .5, .75])
if not (np.allclose(plane, [up, down, up, down]) and np.allclose(line, up) and moved.weight[0, 0] == 1):
    raise SystemExit("The behaviour has changed.")
END
