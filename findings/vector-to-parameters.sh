#!/usr/bin/env bash
# torch 2.13.0: after vector_to_parameters the model is the vector; two models of one vector are one model.
#
# Its documentation says that it copies slices of a vector into the parameters. It makes each parameter a
# view of the vector instead. Whatever is written to the model from then on (an optimiser's step,
# load_state_dict) is written into the vector, and into each other model that was set from it. Seen for runs
# of five steps of SGD, each of which was to start at one vector, and for two models side by side:
#
#     set from         losses at the start   vector afterwards   trained model less vector   untrained twin
#     vector           1.18  1.01  .97       moved               0                           trained as well
#     vector.clone()   1.18  1.18  1.18      as it was           .67                         as it was
#
# No exception, no warning; the first run is right, and so is any use that only scores. It matters since this
# is how a common start is kept: fine-tune on each language, or with each seed, from one vector, then
# interpolate or subtract it ("task vectors"). Each run then goes on from where the last one ended, and the
# trained model less its start is exactly 0. parameters_to_vector, the way back, does copy. Hand over
# vector.clone(), or keep the start as a cloned state_dict. (Installs torch.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'END'
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

torch.manual_seed(0)
model, twin = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)
x, y = torch.randn(64, 6), torch.randint(3, (64,))
first = {name: value.clone() for name, value in model.state_dict().items()}
start = torch.cat([value.flatten() for value in first.values()])

def fine_tune():
    """The loss before the first of five steps."""
    optimiser, losses = torch.optim.SGD(model.parameters(), lr=.5), []
    for _ in range(5):
        optimiser.zero_grad()
        losses.append(torch.nn.functional.cross_entropy(model(x), y))
        losses[-1].backward()
        optimiser.step()
    return losses[0].item()

def experiment(set_from):
    """(losses at the start of three runs, is the vector still the start, is the twin, |last model - vector|)."""
    model.load_state_dict(first)
    vector, losses = parameters_to_vector(model.parameters()).detach(), []
    assert torch.equal(vector, start)
    vector_to_parameters(set_from(vector), twin.parameters())
    for _ in range(3):
        vector_to_parameters(set_from(vector), model.parameters())
        losses.append(fine_tune())
    ends = [parameters_to_vector(each.parameters()).detach() for each in (model, twin)]
    # New memory for the parameters, so that the next experiment shares nothing with this one.
    for parameter in (*model.parameters(), *twin.parameters()):
        parameter.data = parameter.detach().clone()
    return losses, torch.equal(vector, start), torch.equal(ends[1], start), (ends[0] - vector).norm().item()

model.load_state_dict(first)
by_hand = []
for _ in range(3):
    model.load_state_dict(first)
    by_hand.append(fine_tune())
print("torch", torch.__version__)
print("docstring:", vector_to_parameters.__doc__.strip().splitlines()[0])
seen = {name: experiment(way) for name, way in (("vector", lambda v: v), ("vector.clone()", torch.clone))}
print("load_state_dict: losses at the start", *(f"{loss:.4f}" for loss in by_hand))
for name, (losses, kept, twin_kept, change) in seen.items():
    print(f"{name}: losses at the start {' '.join(f'{loss:.4f}' for loss in losses)}; the vector is "
          f"{'as it was' if kept else 'another'}, the untrained twin {'as it was' if twin_kept else 'another'}; "
          f"trained model less vector {change:.4f}")
shared, cloned = seen.values()
if cloned[0] != by_hand or len({*by_hand}) != 1 or not cloned[1] or not cloned[2] or cloned[3] < .01 or \
        shared[0][0] != by_hand[0] or len({*shared[0]}) != 3 or shared[1] or shared[2] or shared[3] != 0:
    raise SystemExit("The behaviour has changed.")
END
