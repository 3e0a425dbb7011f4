"""What makes the target's climb straight or bent: the line of Eq. 1 again, one thing changed at a time.

    torchrun --nproc-per-node 2 scripts/controls.py --task pos --src en --tgt de --encoder FOLDER \
        --seeds 1 2 --out controls --limit 400 --epochs 4 --lr 3e-4 1e-3 1e-4 --batch-size 16

The flags are those of reproduce.py, one task, pair and encoder with --limit and --epochs; the corpora are
there. They describe the experiment that the others are held against; each further rate is one of these.
Each row is a mean over seeds: scores of the corners; flatness and R squared of each seed's own curve, of 11
points; *step*, the length of d_src beside that of the bilingual model's parameters; ratio and angle as in
App. B; *head*, the head's share of the square of d_src. The checkpoint of a halfway source model is its last
one, at a rate that has not decayed; with more sentences the dev set that chooses a checkpoint is larger too,
the one that is measured on is not.
"""

import argparse
import copy
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from benchmark import with_random_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import heads
import plot
import reproduce
import results
import tasks
import train
from grids import r_squared, table
from results import KitError

EPOCHS, WITHIN = (1, 2, 4, 8, 16), 1.0   # see at_equal_score
MORE = 4   # times the sentences, seen once where MORE epochs of the others see them as often

def trained(base, unit, **changes):
    """(parameters as they are saved, best dev score, run) of a model fine-tuned with other settings than the
    base's."""
    told = {key: Path(str(value).strip("[]")).name for key, value in changes.items()}
    name = "-".join(f"{key}-{value}" for key, value in told.items()) or "base"
    run = copy.copy(base)
    run.args = argparse.Namespace(**vars(base.args) | changes | {"out": f"{base.args.out}/{name}"})
    run.corpora = tasks.Corpora(run.args, run.device)   # whose sentences --limit counts
    run.scorer = tasks.Scorer(run.corpora, run.ranks)
    unit = unit._replace(encoder=changes.get("encoder", unit.encoder))
    reproduce.finetune(run, unit)
    kept, _ = results.load_tensors(unit.path(run.args.out), None)
    return run.trained(unit), kept["mean"], run

def three(base, pair, **changes):
    """The corners of a pair, as `trained` gives them: both, source, target."""
    return [trained(base, unit, **changes) for unit in pair.models()]

def measure(run, pair, both, src, tgt):
    """A row's numbers from three corners, parameters as they are saved."""
    whole = run.corpora.encoder(pair.task, pair.encoder).model
    every = torch.arange(whole.get_input_embeddings().num_embeddings)
    model = run.model(pair, (), [every])   # all rows count in the length of the parameters
    both, src, tgt = (heads.spread(model, corner, whole) for corner in (both, src, tgt))
    plane, scores = heads.Plane(model, (both, src, tgt)), []
    for alpha in np.linspace(0, 1, 11):
        plane.move(1 - alpha, 0.0)
        scores.append([next(iter(run.scorer.side(plane, pair, langs)[0].values())) for langs in pair.langs()])
    scores, found = np.array(scores), plane.geometry()                              # (11, sides)
    head = sum((src[name] - both[name]).square().sum().item() for name in both if name.startswith("head."))
    whole = sum(value.square().sum().item() for value in both.values())
    return {"source": scores[0, 0], "zero-shot": scores[0, 1], "bilingual": scores[-1, 1],
            "flatness": scores[:, 0].min() / scores[-1, 0],
            "R squared": r_squared(scores / scores[-1])[1],
            "step": found["norm_src"] / whole ** .5, "ratio": found["norm_ratio"],
            "angle": found["angle"], "head": head / found["norm_src"] ** 2}

def at_equal_score(base, pair, rate, score):
    """The fewest of EPOCHS at which the source-only model is at most WITHIN points below the base's, or the
    last of them, where none is: the row's own score tells."""
    for epochs in EPOCHS:
        if trained(base, pair.models()[1], lr=[rate], epochs=epochs)[1] >= score - WITHIN:
            break
    return epochs

def rows(base, pair):
    """Yield (what was changed, numbers) for one seed."""
    halfway, record = {}, train.Training.record

    def keep_half(training, logged, keep):   # an early checkpoint, of which a run keeps no parameters
        if training.step <= training.settings.steps / 2:
            now = {name: p.detach().cpu().clone() for name, p in training.parameters.items()}
            halfway.update(heads.moved(training.model, now, base.corpora.encoder(*pair[:2]).model))
        record(training, logged, keep)

    (both, _, run), (src, score, _), (tgt, _, _) = three(base, pair)
    yield "nothing", measure(run, pair, both, src, tgt)
    shutil.rmtree(pair.models()[1].path(f"{base.args.out}/select-last").parent, ignore_errors=True)
    train.Training.record = keep_half
    trained(base, pair.models()[1], select="last")
    train.Training.record = record
    yield "source model halfway", measure(run, pair, both, halfway, tgt)
    half = trained(base, pair.models()[0], epochs=max(1, base.args.epochs // 2))[0]
    yield "bilingual model at half the epochs", measure(run, pair, half, src, tgt)
    for rate in (base.args.lr or ())[1:]:
        epochs = at_equal_score(base, pair, rate, score)
        found = [each for each, _, _ in three(base, pair, lr=[rate], epochs=epochs)]
        yield f"rate {rate:g}", {"epochs": epochs} | measure(run, pair, *found)
    more = {"limit": [MORE * size for size in base.args.limit], "epochs": max(1, base.args.epochs // MORE)}
    found = [each for each, _, _ in three(base, pair, **more)]
    yield f"{MORE} times the sentences at as many steps", {"epochs": more["epochs"]} | measure(
        run, pair, *found)
    other = pair._replace(encoder=base.args.random)
    found = three(base, other, encoder=other.encoder)
    yield "encoder not pretrained", measure(found[0][2], other, *(each for each, _, _ in found))

def figure(found):
    """R squared and angle of each row against its step; found: {what was changed: [numbers, one a seed]}."""
    drawn, panels = plot.canvas(2, 1, 1.7, sharex=True)
    for ax, (key, label) in zip(panels.flat, {"R squared": "R squared", "angle": "angle, degrees"}.items()):
        for number, (name, of) in enumerate(found.items()):
            ax.plot([100 * each["step"] for each in of], [each[key] for each in of], "os^D"[number // 4 % 4],
                    color=plot.DOTS[number % 4], label=name)
        ax.set_ylabel(label)
    ax.set_xlabel(r"$|\delta_{src}|$, % of the length of the parameters")
    drawn.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return drawn

def main():
    base = reproduce.Run(reproduce.parse_arguments())
    pairs = [pair for pair in reproduce.plan(base.args)[1] if not pair.lr]
    if len({pair[:4] for pair in pairs}) > 1 or not (base.args.limit and base.args.epochs):
        sys.exit("controls.py: expected one --task, --src, --tgt and --encoder, with --limit and --epochs.")
    files = [Path(base.args.out, f"{reproduce.seed(pair)}.jsonl") for pair in pairs]
    base.args.random = f"{base.args.out}/encoders/random"
    for folder in base.ranks.take([base.args.random]):
        if not Path(folder).exists():
            with_random_weights(base.args.encoder[0], f"{folder}.part")
            Path(f"{folder}.part").rename(folder)
    base.ranks.barrier()
    for pair, path in base.ranks.take([*zip(pairs, files)]):
        with results.locked(path) as f:
            f.truncate(0)
            for name, numbers in rows(base, pair):
                results.append_line(f, {"changed": name, "epochs": base.args.epochs} | numbers)
    base.ranks.barrier()
    if base.ranks.rank == 0:
        found = {}
        for numbers in (json.loads(line) for path in files for line in path.read_text().splitlines()):
            found.setdefault(numbers.pop("changed"), []).append(numbers)
        print(table([{"changed": name, "seeds": str(len(of))} | {
            key: f"{np.mean(np.array([each[key] for each in of], float)):.3g}" for key in of[0]}
            for name, of in found.items()]))
        plot.draw_figure("controls", partial(figure, found), base.args.out)

if __name__ == "__main__":
    try:
        main()
    except (KitError, OSError) as e:
        print(f"controls.py: {e}", file=sys.stderr)
        sys.exit(2)
