#!/usr/bin/env bash
# torch 2.13.0 (CPU, bf16): inside one autocast block every checkpoint scores as the first one did.
#
# autocast keeps the half-precision copy of a parameter that it made at first use until the outermost block
# ends. It does not see that the parameter was written since: by load_state_dict, by vector_to_parameters or
# in place. It does so under no_grad as well, where no gradient needs the copy. Seen for five points between
# two models:
#
#     one autocast block around the loop:  the loss of point 0, five times, to the last bit
#     a block a point, cache_enabled=False, or functional_call with plain tensors:  five different losses
#
# It matters since that is how a line or a plane between models is scored in bf16, and how checkpoints are
# compared: write the parameters, run the dev set, next. A perfectly flat line is what some hope to find.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'END'
import contextlib
import torch

torch.manual_seed(0)
model, other = torch.nn.Linear(16, 4), torch.nn.Linear(16, 4)
first = {name: value.detach().clone() for name, value in model.state_dict().items()}
second = {name: value.detach().clone() for name, value in other.state_dict().items()}
x, y = torch.randn(32, 16), torch.randint(4, (32,))
points = [{name: first[name].lerp(second[name], a / 4) for name in first} for a in range(5)]

def in_place(state):
    for name, parameter in model.named_parameters():
        parameter.copy_(state[name])
    return model(x)

def loaded(state):
    model.load_state_dict(state)
    return model(x)

def vector(state):
    torch.nn.utils.vector_to_parameters(torch.cat([state[name].flatten() for name, _ in
                                                   model.named_parameters()]), model.parameters())
    return model(x)

def functional(state):
    return torch.func.functional_call(model, state, (x,))

@torch.no_grad()
def line(write, around, inside=contextlib.nullcontext):
    """The losses of the five points; `around` is entered once, `inside` once a point."""
    found = []
    with around():
        for state in points:
            with inside():
                found.append(torch.nn.functional.cross_entropy(write(state).float(), y).item())
    return found

half = lambda **settings: torch.autocast("cpu", torch.bfloat16, **settings)
stale = {f"{write.__name__}, one block": line(write, half) for write in (in_place, loaded, vector)}
fresh = {"in_place, a block a point": line(in_place, contextlib.nullcontext, half),
         "in_place, cache_enabled=False": line(in_place, lambda: half(cache_enabled=False)),
         "functional, one block": line(functional, half)}
for name, losses in (stale | fresh).items():
    print(f"{name}: {' '.join(f'{loss:.4f}' for loss in losses)}")
different = [{len({*losses}) for losses in seen.values()} for seen in (stale, fresh)]
if different != [{1}, {5}]:
    raise SystemExit("The behaviour has changed.")
END
