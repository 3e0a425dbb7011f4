#!/usr/bin/env bash
# peft 0.21.2: the linear average of a LoRA adapter with itself is twice that adapter.
#
# add_weighted_adapter(..., combination_type="linear") multiplies the low-rank factors A and B of each
# adapter by the root of its weight and adds the As and the Bs apart. The product then also has every A with
# every other B. With weights w and 1 - w the change of the weights is w·dA + (1-w)·dB + sqrt(w(1-w))·(A1B2 +
# A2B1). Seen, as the distance from w·d1 + (1-w)·d2 over its length, for two random adapters of rank 2:
#
#     linear .5 .5   1.27      linear 1 0   0        linear 2 -1   .99       cat, any weights   0
#     linear .5 .5 of an adapter and itself: the length is 2, not 1
#
# It matters since interpolating between a model of one language and a bilingual one, averaging runs and
# adding "task vectors" are all linear in the weights, and "linear" is what they are looked up under; only
# the two ends are right, so a check at the ends passes, and a bump in the middle of the line looks like a
# finding. "cat" is exact, at the price of a rank that is the sum of both. (Installs torch and transformers.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 torch==2.13.0
"$work/venv/bin/python" - <<'END'
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
settings = LoraConfig(r=2, lora_alpha=4, target_modules=["0"])
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 5)), settings, adapter_name="source")
for name in ("both", "twin"):
    model.add_adapter(name, settings)
layer = model.base_model.model[0]
with torch.no_grad():
    for name in ("source", "both"):
        layer.lora_A[name].weight.normal_()
        layer.lora_B[name].weight.normal_()
    for part in (layer.lora_A, layer.lora_B):
        part["twin"].weight.copy_(part["source"].weight)
delta = layer.get_delta_weight

def combine(kind, first, second, weights):
    """(distance from the weighted sum over its length, the length over that of the first one's change)."""
    name = f"{kind}-{first}-{second}-{weights[0]}".replace(".", "_")
    model.add_weighted_adapter([first, second], weights, name, combination_type=kind)
    want = weights[0] * delta(first) + weights[1] * delta(second)
    off, length = (delta(name) - want).norm() / want.norm(), delta(name).norm() / delta(first).norm()
    return off.item(), length.item()

seen = {}
for kind in ("linear", "cat"):
    for weights in ([.5, .5], [1., 0.], [2., -1.]):
        seen[kind, weights[0]] = combine(kind, "source", "both", weights)[0]
        print(f"{kind} {weights}: distance from the weighted sum {seen[kind, weights[0]]:.3f} of its length")
length = combine("linear", "source", "twin", [.5, .5])[1]
print(f"linear [.5, .5] of an adapter and its copy: {length:.3f} times the adapter")
exact = all(value < 1e-5 for (kind, w), value in seen.items() if kind == "cat" or w == 1)
if not exact or min(seen["linear", .5], seen["linear", 2.]) < .1 or abs(length - 2) > 1e-4:
    raise SystemExit("The behaviour has changed.")
END
