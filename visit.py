"""Visitors: other models beside the three of a pair, and where they lie at its plane.

    python reproduce.py --task pos --src en --tgt de --visit start average last way few-10 few-100 silver

A visitor is a vector as the plane's corners are. Its coordinates (a1, a2) of Eq. 3 are those of the plane's
point nearest to it: how far a remedy gets from the source-only model (1, 0) to the bilingual one (0, 0); its
distance tells how much of its way is seen there. Sec. 6 of the paper names remedies; to place them is ours.
"""

import json
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import derive
import results
from grids import BOTH, SRC, cases, mean_sd, sound, table, verdict, verdicts
from results import KitError, UnitError

def first_sentences(run, unit, number):
    """The Encoded set of the first sentences of the target's training file."""
    examples = run.corpora.examples(unit.task, unit.encoder, unit.tgt, "train")
    if (begins := len(examples.begins())) < int(number):
        raise UnitError(f"{unit}: the training file of {unit.tgt} gives {begins} sentences, fewer than "
                        f"{number}.")
    return examples.first([*examples.begins(), len(examples)][int(number)])

def own_labels(run, unit, word):
    """The target's training sentences with the labels that the source-only model gives them."""
    examples = run.corpora.examples(unit.task, unit.encoder, unit.tgt, "train")
    read = examples.relabelled(gold := examples.gold.clone())   # a copy, which keeps no batches of the other
    found = run.scorer.predictions(run.finetuned(*needs(unit), [read]), read).to(gold.dtype)        # (R, K)
    kinds = found.shape[1]   # what is read but not labelled stays so, as the parser's ROOT
    gold[:, :kinds] = found.where(gold[:, :kinds] >= 0, gold[:, :kinds])
    return examples.relabelled(gold)

class Visitor(NamedTuple):
    """What there is to say of a visitor; its entry in VISITORS is all there is to add."""
    checkpoints: str = ""           # of the source-only model: it is their mean, the last, or each is a point
    taught: Callable | None = None  # (run, unit, word) -> what a model learns of the target, an Encoded
    then: bool = False              # it learns that after the source, not together with it
    models: Callable = lambda unit, word, seeds: [unit]   # those that it is the mean of, from the source-only
    apart: tuple = ()               # beginnings of the names that are not averaged, but its first model's

VISITORS = {   # N: a number, LANG: a language; `word` is what a name has in their place
    "start": Visitor(models=lambda *_: []),
    "average": Visitor("mean"),
    "average-N": Visitor("mean"),   # of the last N
    "average-seeds": Visitor(apart=("head.",), models=lambda unit, word, seeds: [   # heads start apart
        unit._replace(seed=seed) for seed in sorted(seeds, key=lambda seed: seed != unit.seed)]),
    "last": Visitor("last"),
    "way": Visitor("each"),
    "few-N": Visitor(taught=first_sentences),
    "few-N-then": Visitor(taught=first_sentences, then=True),
    "silver": Visitor(taught=own_labels),
    "with-LANG": Visitor(models=lambda unit, lang, seeds: [
        unit._replace(langs=tuple(sorted({*unit.langs, lang})))]),
}
LONGER = 10   # times the epochs, where few sentences come after the source: an epoch has few steps

def find(name):
    """(Visitor, the word of its name). Raises KitError where there is none of that name."""
    for form, entry in VISITORS.items():
        pattern = form.replace("LANG", "(.+)").replace("N", "([1-9][0-9]{0,8})")
        if matched := re.fullmatch(pattern, name):
            return entry, "".join(matched.groups())
    raise KitError(f"--visit {name!r}: there is {', '.join(VISITORS)}; N is a number, LANG a language.")

def check(args, writing):
    """Raise KitError where there is no such visitor; writing: the tasks that have no labels, but texts."""
    for name in args.visit:
        entry, word = find(name)
        if name.startswith("with-"):
            derive.parse(word)
        if entry.taught is own_labels and writing:
            raise KitError(f"--visit {name}: the task {writing[0]} has no labels; expected a task that has.")
    if args.visit and args.part != "all":
        raise KitError(f"--visit needs the plane of all parameters: leave out --part {args.part}")

def visits(args, pairs):
    """The visits of a run, Pairs that name a visitor; none of controls, nor with a language of the pair. A
    demo spares its reader those of other tasks beside POS."""
    tasks = ["pos"] if args.demo and "pos" in args.task else args.task
    return [pair._replace(visitor=name) for pair in pairs if pair.task in tasks and not pair.lr
            for name in args.visit if name.removeprefix("with-") not in sum(pair.langs(), ())]

def made_of(args, visit):
    """The Finetuned that a visit needs beside its pair."""
    (entry, word), unit = find(visit.visitor), visit.models()[1]
    if entry.taught:
        return [unit._replace(visitor=visit.visitor, tgt=visit.tgt)]
    return entry.models(unit, word, args.seeds)

def comes_then(unit):
    """Whether a Finetuned goes on from the source-only model."""
    return bool(unit.visitor) and find(unit.visitor)[0].then

def needs(unit):
    """The models that must be there before a Finetuned is trained."""
    after = unit.visitor and (comes_then(unit) or find(unit.visitor)[0].taught is own_labels)
    return [unit._replace(visitor="", tgt="")] if after else []

def languages(unit):
    """The languages of a Finetuned's training sentences."""
    return unit.langs + ((unit.tgt,) if unit.visitor else ())

def about(run, unit):
    """What a Finetuned's settings say of its visitor."""
    before = [results.load_tensors(need.path(run.args.out), None)[0]["digest"] for need in needs(unit)]
    return {"visitor": unit.visitor, "tgt": unit.tgt, "before": before} if unit.visitor else {}

def train_sets(run, unit):
    """{lang: Encoded} that a Finetuned is trained on."""
    langs, (entry, word) = () if comes_then(unit) else unit.langs, find(unit.visitor or "start")
    sets = {lang: run.corpora.examples(unit.task, unit.encoder, lang, "train") for lang in langs}
    return dict(sorted((sets | ({unit.tgt: entry.taught(run, unit, word)} if entry.taught else {})).items()))

def keeps(args, pairs):
    """The models whose checkpoints are kept, since visits need them."""
    return {each.models()[1] for each in visits(args, pairs) if find(each.visitor)[0].checkpoints}

def checkpoint(path, step):
    return path.parent / "checkpoints" / f"step{step}.safetensors"

def checkpoints(path):
    """{step: file} of a model's checkpoints, one a dev scoring, in order."""
    log = map(json.loads, path.with_name("train.jsonl").read_text().splitlines())
    return {each["step"]: checkpoint(path, each["step"]) for each in log}

def are_kept(path, about):
    """Whether all checkpoints of a trained model are there, of its own training; about: its metadata."""
    found = {step: results.load_tensors(file, None)[0] if file.exists() else {}
             for step, file in checkpoints(path).items()}
    own = all(each.get("config") == about["config"] for each in found.values())
    return own and found[about["best_step"]]["digest"] == about["digest"]

def points_of(args, visit):
    """[(what tells a point of a visit from others, files that it is the mean of; none: the start)]"""
    files, (entry, word) = [unit.path(args.out) for unit in made_of(args, visit)], find(visit.visitor)
    if not entry.checkpoints:
        return [({}, files)]
    each = [({"step": step}, [file]) for step, file in checkpoints(files[0]).items()]
    if len(each) < int(word or 0):
        raise UnitError(f"{visit}: the source-only model has {len(each)} checkpoints, fewer than {word}.")
    mean_of = [file for _, [file] in each[-int(word or 0):]]
    return {"each": each, "last": each[-1:], "mean": [({}, mean_of)]}[entry.checkpoints]

def evaluate(run, visit, header):
    """Score a visit's points and the plane's nearest to them into its file, below header(run, visit)."""
    import torch  # not above: plot.py has no need of it
    path, points = visit.path(run.args.out, "all"), points_of(run.args, visit)
    files = list(dict.fromkeys(sum((files for _, files in points), [])))
    digests = {str(file.relative_to(run.args.out)): results.load_tensors(file, None)[0]["digest"]
               for file in files}
    header = header(run, visit) | {"visitor": visit.visitor, "points": len(points), "made_of": digests}
    with results.locked(path) as f:
        if past := results.read_lines(f, path):
            results.check_same(header, past[0], path)
        else:
            results.append_line(f, header)
        if todo := points[len(past[1:]):]:
            plane = run.plane(visit, files)
            start = torch.nn.utils.parameters_to_vector(plane.model.parameters()).detach()
        for which, of in todo:
            plane.theta.copy_(start)
            stand(run, plane, visit, of)
            line = which | plane.place(start) | scores(run, plane, visit)
            plane.move(line["a1"], line["a2"])
            results.append_line(f, line | {"nearest": scores(run, plane, visit)})
    run.ranks.say(f"{visit}: {len(todo)} of {len(points)} points placed, in {path}")

def scores(run, plane, visit):
    """{"src", "tgt": {metric: score}} of where a plane stands."""
    source, target = (run.scorer.side(plane, visit, langs)[0] for langs in visit.langs())
    return {"src": source, "tgt": target}

def stand(run, plane, visit, files):
    """Let a plane stand at the mean of files of parameters; without any it stays where it is."""
    import heads
    whole, apart = run.corpora.encoder(visit.task, visit.encoder).model, find(visit.visitor)[0].apart
    found = heads.mixed(plane.model, [(file, 1) for file in files], whole)
    if apart:
        own = heads.mixed(plane.model, [(files[0], 1)], whole)
        found |= {name: value for name, value in own.items() if name.startswith(apart)}
    for name, value in found.items():
        plane.views[name].copy_(value)

HOW = """Coordinates of Eq. 3, means over seeds: *source-only* is (1, 0), *bilingual* (0, 0). *Off plane*,
*from start*: distances; *nearest*: the target's score at the plane's point nearest to the visitor. *Oracle*:
the checkpoint of the source-only model that the *target's* dev score would have chosen, and no run may;
source-only is what the source's chose: what lies between the two is the price of no target data."""
RULES = """A case follows where all that is measured is above 0. *Averaging*: early checkpoints are nearer to
the start, which draws a mean to where the start is seen, too. *In order*: the smallest step of alpha = 1 - a1
from the source-only model on, by number of sentences. *Predicts*: the target's score; each visitor of a case
is one, but the start and the oracle."""
COLUMNS = "a1", "a2", "off plane", "from start", "source", "target", "nearest"
CORNERS = {"source-only": SRC, "bilingual": BOTH}

def placed(case):
    """{visitor: numbers (seeds, COLUMNS)} of a case, from the source-only model on; see HOW."""
    found, metric = {}, case[0].metrics[0]
    for grid in (grid for grid in case if grid.visits):
        seen = {name: points[0] for name, points in grid.visits.items() if name != "way"}
        if way := grid.visits.get("way"):
            seen["oracle"] = max(way, key=lambda point: point["tgt"][metric])
        rows = {name: [point[key] for key in ("a1", "a2", "distance", "from_start")]
                + [of[metric] for of in (point["src"], point["tgt"], point["nearest"]["tgt"])]
                for name, point in seen.items()}
        for name, at in CORNERS.items():
            source, target = grid.points.get(at, (math.nan, math.nan))
            rows[name] = [*at, 0.0, math.nan, source, target, target]
        for name, row in rows.items():
            found.setdefault(name, []).append(row)
    found = {name: np.array(rows) for name, rows in found.items()}
    return dict(sorted(found.items(), key=lambda each: (-each[1][:, 0].mean(), each[0] not in CORNERS)))

def summary(grids):
    """Rows {column: cell} for grids.table, one a visitor of a case: mean and sd over seeds."""
    return [{"task": case[0].task_name, "encoder": case[0].encoder_name, "pair": case[0].pair,
             "visitor": name, **dict(zip(COLUMNS, map(mean_sd, numbers.T, (2, 2, 2, 2, 1, 1, 1)))),
             "seeds": str(len(numbers))}
            for case in cases(sound(grids)) for name, numbers in placed(case).items()]

def claims(grids):
    """What the grids say to our own claims, rows as those of plot.claims, by RULES."""
    averaging, few, near = [], [], []
    for case in cases([grid for grid in sound(grids) if not grid.control]):
        found = {name: numbers.mean(0) for name, numbers in placed(case).items()}
        averaging += [[1 - found[name][0]] for name in found if re.fullmatch(r"average(-\d+)?", name)]
        for then in ("", "-then"):
            order = sorted((int(name.split("-")[1]), 1 - found[name][0]) for name in found
                           if re.fullmatch(rf"few-\d+{then}", name))
            few += [[np.diff([0, *(alpha for _, alpha in order)]).min()]] if len(order) > 1 else []
        near += [[1 - abs(found[name][-2] - found[name][-1])] for name in found
                 if name not in (*CORNERS, "start", "oracle")]
    return [{"claim": claim, "paper": "ours"} | verdict(*what) for claim, *what in (
        ("Averaging moves towards the bilingual model", averaging, "1 - a1 of the average = {:.3f}"),
        ("Few sentences move along d_src in order of k", few, "smallest step = {:.3f}"),
        ("The nearest point predicts a visitor's score", near, "1 - points apart = {:.2f}"))]

def section(grids):
    """(Markdown for report.md, text 79 columns wide) on visitors."""
    rows, said = summary(grids), claims(grids)
    shown = "task", "pair", "visitor", "a1", "a2", "off plane", "target", "nearest"
    short = [{name: row[name].split(" ±")[0][:16] for name in shown} for row in rows]
    text = ["Visitors: where other models lie at the plane", "", table(short, "  "), "", *verdicts(said)]
    return "\n\n".join(["## Visitors", HOW, table(rows), table(said), RULES]), "\n".join(text)
