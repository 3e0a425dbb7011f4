"""One optimiser loop for every training, pretraining and fine-tuning alike; it knows no task.

It is handed a model with `loss(batch)`, the batches of each step, and a `score_dev` that is called now and
then. Killed at any moment, the same call takes up the last saved state and ends with the same parameters.
"""

import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import results
from results import KitError, UnitError

MOMENTS = "step", "exp_avg", "exp_avg_sq"   # what Adam keeps of a parameter that has had a gradient

class Settings(NamedTuple):
    """What decides the steps of a training, beside its model and batches."""
    steps: int
    lr: float                  # at its peak
    evaluate_at: list          # the steps after which `score_dev` is called; the last one is `steps`
    seed: int = 0              # of dropout
    warmup: int | None = None  # steps; None: a tenth of all (App. A)
    betas: tuple = (0.9, 0.99)  # the authors' code
    clip: float | None = None  # largest norm of the gradient
    precision: str = "fp32"    # or bf16, fp16 by autocast: parameters, embeddings, normalisation stay fp32

    def rate(self, step):
        """The learning rate at a step: linear warm-up, then linear decay to 0 (App. A)."""
        warm = self.steps // 10 if self.warmup is None else self.warmup
        return self.lr * (step / warm if step < warm else (self.steps - step) / (self.steps - warm))

def autocast(device, precision):
    """The context in which a model computes in bf16 or fp16 on a type of device; of fp32 an empty one."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device, dtype, enabled=precision != "fp32")

def usual_precision(device):
    """The fastest precision of training that a device computes in itself, where nothing is lost by it."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"   # Ampere brought bf16

def find_device(name):
    """The torch.device to compute on. Raises KitError where it is not there."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and torch.cuda.is_available():   # more processes than GPUs share them
        name = f"cuda:{int(os.environ.get('LOCAL_RANK') or 0) % torch.cuda.device_count()}"
    try:
        if name.split(":")[0] not in ("cuda", "cpu"):
            raise RuntimeError("this kit computes on CUDA or on the CPU")
        return torch.zeros(1, device=name).device   # is it really there?
    except (RuntimeError, AssertionError) as e:
        why = str(e).splitlines()[0]
        raise KitError(f"--device {name} cannot be used ({why}); expected cuda, cuda:0 or cpu.") from None

def train(model, batches, score_dev, settings, config, journal, name, ranks):
    """Train a model and return what is kept of it: (metadata, {name: parameter}).
    batches(step, pieces): a list, the batch of a step cut into at most so many; each has `count`, the number
    of terms its loss is a mean of. score_dev(records): (record, keep) from the records before it; keep:
    these are the best parameters so far. Each record becomes a line of `journal`, the open train.jsonl,
    beside which the state is kept in state.safetensors; config: all settings, so that a state made otherwise
    is refused; name: for people; ranks: results.Ranks. Raises UnitError where the loss is no number."""
    training = Training(model, settings, config, journal)
    if training.step:
        ranks.say(f"{name}: continued after step {training.step}")
    with tqdm(total=settings.steps, initial=training.step, desc=name, unit="step", leave=False,
              disable=ranks.quiet) as bar:
        while training.step < settings.steps:
            until = min(step for step in settings.evaluate_at if step > training.step)
            loss = training.steps(until, batches, bar)
            if not math.isfinite(loss):
                results.clear(training.path.parent)
                journal.truncate(0)
                remedy = "--lr" if settings.precision != "fp16" else "--lr, or --precision fp32"
                raise UnitError(f"{name}: the loss became {loss} before step {until}; nothing of it was "
                                f"kept. Try a lower {remedy}.")
            model.eval()
            record, keep = score_dev(training.records)
            logged = {"step": until, "lr": settings.rate(until - 1), "loss": round(loss, 6), **record}
            training.record(logged, keep)
    return training.kept, training.best

def choose(records, rule, tolerance=1.0):
    """The one of a training's records, in order, that a rule keeps; the first of equals.
    dev: the highest source score, record["mean"]. last: the last. xlrs: the lowest record["xlrs"] of those at
    most `tolerance` points below the highest source score so far, asked anew at each scoring (ours);
    of records without it, dev."""
    if rule == "last":
        return records[-1]
    if rule == "dev" or "xlrs" not in records[0]:
        return max(records, key=lambda record: record["mean"])
    kept, highest = records[0], -math.inf
    for record in records:
        highest = max(highest, record["mean"])
        good = record["mean"] >= highest - tolerance
        if good and (record["xlrs"] < kept["xlrs"] or kept["mean"] < highest - tolerance):
            kept = record
    return kept

class Training:
    """The state of one training between two evaluations; it can be saved and taken up again."""

    def __init__(self, model, settings, config, journal):
        self.model, self.settings, self.config, self.journal = model, settings, config, journal
        self.path = Path(journal.name).with_name("state.safetensors")
        self.parameters = dict(model.named_parameters())
        self.device = next(iter(self.parameters.values())).device
        self.adam = torch.optim.Adam(self.parameters.values(), lr=0.0, betas=settings.betas, fused=True)
        # In fp16 small gradients would be 0: the loss is scaled up, and a step that overflows left out.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.step, self.pieces, self.kept, self.best, self.records = 0, 1, {}, {}, []
        self.saved, self.cost = time.time(), 0.0
        if self.path.exists():
            self.restore()
        # Cut, not written anew: a process killed here leaves all lines or the right ones.
        journal.truncate(sum(len(results.line(record)) for record in self.records))

    def steps(self, until, batches, bar):
        """Train up to a step; returns the mean loss on the way."""
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step)   # a resumed run drops the same units
        self.model.train()
        total, first = torch.zeros((), device=self.device), self.step
        for self.step in range(first, until):   # the attribute itself counts
            self.adam.param_groups[0]["lr"] = self.settings.rate(self.step)
            total += self.gradient(batches)
            if self.settings.clip:
                self.scaler.unscale_(self.adam)
                torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
            self.scaler.step(self.adam)
            self.scaler.update()
            self.adam.zero_grad()
            bar.update()
        self.step = until
        spoilt = 0 * sum(p.detach().sum() for p in self.parameters.values())   # NaN if the last step gave one
        return torch.where(total.isfinite(), total + spoilt, total).item() / (until - first)

    def gradient(self, batches):
        """Accumulate the gradient of a step and return its loss; in smaller pieces where memory runs out."""
        while True:
            pieces = [piece for piece in batches(self.step, self.pieces) if piece.count]
            try:
                return self.accumulate(pieces)
            except (RuntimeError, MemoryError) as e:
                if not results.out_of_memory(e) or len(pieces) < self.pieces:
                    raise
            self.pieces *= 2
            self.adam.zero_grad()
            torch.cuda.empty_cache()

    def accumulate(self, pieces):
        total, number = torch.zeros((), device=self.device), sum(piece.count for piece in pieces)
        for piece in pieces:
            with autocast(self.device.type, self.settings.precision):
                loss = self.model.loss(piece) * (piece.count / number)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def record(self, record, keep):
        """Log an evaluation, keep the parameters if they are the best, save the state if that is cheap."""
        if keep:
            self.kept = {"best_step": self.step, **record}
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.records.append(record)
        results.append_line(self.journal, record)
        # A save may cost a tenth of the time since the last one: a large model does not wait for the disk.
        if self.step < self.settings.steps and time.time() - self.saved >= 10 * self.cost:
            began = time.time()
            self.save()
            self.saved, self.cost = time.time(), time.time() - began

    def save(self):
        tensors = {f"now.{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"best.{name}": p for name, p in self.best.items()}
        tensors |= {f"{moment}.{name}": value for name, p in self.parameters.items()
                    for moment, value in self.adam.state[p].items()}
        results.save_tensors(self.path, tensors, {"config": self.config, "step": self.step,
                                                  "kept": self.kept, "pieces": self.pieces,
                                                  "scaler": self.scaler.state_dict()})

    @torch.no_grad()
    def restore(self):
        """Take up the last saved state, and drop the evaluations that were logged after it."""
        about, tensors = results.load_tensors(self.path)
        results.check_same(self.config, about["config"], self.path)
        try:
            self.step, self.kept, self.pieces = about["step"], about["kept"], about["pieces"]
            self.scaler.load_state_dict(about.get("scaler", {}))
            logged = results.read_lines(self.journal, self.journal.name)
            self.records = [record for record in logged if record["step"] <= self.step]
            for name, p in self.parameters.items():
                p.copy_(tensors.pop(f"now.{name}"))
                self.adam.state[p] = {moment: tensors.pop(f"{moment}.{name}").to(self.device)
                                      for moment in MOMENTS if f"{moment}.{name}" in tensors}
                if self.kept:
                    self.best[name] = tensors.pop(f"best.{name}").to(self.device)
            if tensors:
                raise KeyError(min(tensors))   # of another kit: what it says would be lost in silence
        except (KeyError, TypeError, ValueError, RuntimeError) as e:
            raise KitError(f"{self.path} or {self.journal.name} is damaged ({e!r}). Delete both; "
                           "the same command trains this model anew.") from None
