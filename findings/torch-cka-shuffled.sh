#!/usr/bin/env bash
# torch_cka 0.21: with a shuffling loader, two equal models are as unlike as two unrelated ones.
#
# compare(loader) takes one loader for both models. It goes through it twice at once, one iteration for each
# model; of a loader with shuffle=True these have two orders, so that the two models are asked about
# different inputs, pair by pair. Linear CKA of two models with the same weights, first
# and second layer, which must be 1, and of two models with weights of their own:
#
#     loader of 256 inputs              equal weights   one object, twice   other weights
#     shuffle=False, batch 64            1.00   1.00       1.00   1.00        .64    .33
#     shuffle=True, batch 64             -.01   -.02       1.00   1.00        .00    .00
#     shuffle=True, batch 256             .00    .00       1.00   1.00        .00    .01
#     the same, seeded generator          .00    .00       1.00   1.00        .00   -.01
#
# A warning says that the same loader is used, and no more. Its README shows shuffle=False without a reason,
# and asks to seed the loader, which does not help. The usual check, a model against itself, passes: of one
# object the later forward pass overwrites what was kept of the earlier one. It matters since such numbers are
# read as "fine-tuning on another language has changed this layer", and a training loader shuffles. Use
# shuffle=False. (Installs torch.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 matplotlib==3.11.2 tqdm==4.70.1 torch-cka==0.21
TQDM_DISABLE=1 "$work/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch_cka import CKA

torch.manual_seed(0)

def model(weights=None):
    net = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 12))
    if weights:
        net.load_state_dict(weights)
    return net.eval()

weights = model().state_dict()
inputs = torch.randn(256, 12)
data = TensorDataset(inputs, torch.zeros(len(inputs)))

def by_hand(one, other):
    """Unbiased linear CKA of the two outputs, all inputs at once, each model asked about the same ones."""
    def hsic(k, l):
        n = len(k)
        return (k @ l).trace() + k.sum() * l.sum() / (n - 1) / (n - 2) - 2 * (k @ l).sum() / (n - 2)
    with torch.no_grad():
        k, l = ((out @ out.T).fill_diagonal_(0) for out in (one(inputs), other(inputs)))
    return (hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()).item()

def package(one, other, **loader):
    cka = CKA(one, other, "one", "other", ["0", "2"], ["0", "2"], device="cpu")
    cka.compare(DataLoader(data, **loader))
    return cka.export()["CKA"].diag().tolist()

print("torch_cka", version("torch_cka"), "torch", torch.__version__)
other = model().state_dict()
print(f"by hand, last layer: equal weights {by_hand(model(weights), model(weights)):.4f}, "
      f"other weights {by_hand(model(weights), model(other)):.4f}")
changed = abs(package(model(weights), model(other), batch_size=256)[1] - by_hand(model(weights), model(other))) > 1e-3
for shuffle, size, seed in ((False, 64, None), (True, 64, None), (True, 256, None), (True, 256, 0)):
    def compare(one, other):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return package(one, other, shuffle=shuffle, batch_size=size, generator=generator)
    same = model(weights)
    equal, itself = compare(model(weights), model(weights)), compare(same, same)
    unlike = compare(model(weights), model(other))
    print(f"shuffle={shuffle}, batch {size}, seed {seed}: equal weights {equal[0]:.4f} {equal[1]:.4f}; one object twice "
          f"{itself[0]:.4f} {itself[1]:.4f}; other weights {unlike[0]:.4f} {unlike[1]:.4f}")
    changed |= min(itself) < .999 or (max(map(abs, equal)) > .2 if shuffle else min(equal) < .999)
if changed:
    raise SystemExit("The behaviour has changed.")
END
