"""Visitors: where they lie, what they are made of and taught, that a stopped visit ends like any other, and
models for use elsewhere."""
# ruff: noqa: F811 (fixtures of other test files)

import json
import os
import random
import shutil
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from conftest import free_port, write_encoder
from made_up import seeds
from test_reproduce import arguments, line, lines, make, pair_of  # noqa: F401
from test_titles import line as titles  # noqa: F401
from test_trust import FORK, KILLED, change, kit, out, same  # noqa: F401

import data
import export
import grids
import heads
import plot
import reproduce as r
import results
import visit

ALL = "start average average-3 average-seeds last way few-3 few-12 few-3-then silver".split()
WORDS = "encoder.embeddings.word_embeddings"

@pytest.fixture(autouse=True)
def undrawn(monkeypatch, request):
    if "figures" not in request.node.name:
        monkeypatch.setattr(plot, "draw_figure", lambda *_: None)

def visited(argv, *more):
    """Run a command with --visit; returns {visitor: (header, points)} of seed 1."""
    assert r.answer(r.parse_arguments([*argv, *more])) == 0
    folder = next(r.Path(argv[argv.index("--out") + 1]).rglob("seed1.visits"))
    return {path.stem: (header, points) for path in folder.iterdir() for header, *points in [lines(path)]}

@pytest.fixture(scope="module")
def everything(encoder, corpus, tmp_path_factory):
    """A run with all visitors: its folder, its arguments, and what visited() returns."""
    out = tmp_path_factory.mktemp("everything")
    argv = arguments(encoder, corpus, out, "--lines-only", "--seeds", "1", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "draw_figure", lambda *_: None)
        return out, argv, visited(argv, "--visit", *ALL)

def flat(path, encoder):
    """The whole parameters {name: tensor} of a saved file, in float64, without the kit's own loading."""
    tensors = safetensors.torch.load_file(path)
    weight, ids = encoder.get_input_embeddings().weight.detach().double(), tensors.pop(f"{WORDS}.ids")
    weight[ids] = tensors[f"{WORDS}.weight"].double()
    return {name: p.double() for name, p in tensors.items()} | {f"{WORDS}.weight": weight}

def vector(parameters):
    return torch.cat([parameters[name].detach().flatten() for name in sorted(parameters)]).numpy()

# ---- where ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def plane():
    torch.manual_seed(0)
    model = torch.nn.Linear(2100, 2000)   # more than one piece
    corners = [{name: .04 * torch.randn_like(p) for name, p in model.named_parameters()}]
    corners += [{name: p + 1e-3 * torch.randn_like(p) for name, p in corners[0].items()} for _ in "st"]
    return heads.Plane(model, corners)

def test_a_known_point_and_an_orthogonal_vector_give_back_coordinates_and_distance(plane):
    both, src, tgt = (corner.double() for corner in plane.corners)
    d_src, d_tgt = src - both, tgt - both
    away = torch.randn(len(both), dtype=torch.float64)
    for direction in (d_src, d_tgt - (d_tgt @ d_src) / (d_src @ d_src) * d_src):
        away -= (away @ direction) / (direction @ direction) * direction
    for a1, a2, length in ((.3, -.2, 2.5), (1.4, .9, .7), (0, 1, 100)):
        there = both + a1 * d_src + a2 * d_tgt
        plane.theta.copy_(there + length * away / away.norm())
        found = plane.place(there.float())
        assert (found["a1"], found["a2"]) == pytest.approx((a1, a2), abs=1e-6)
        assert (found["distance"], found["from_start"]) == pytest.approx((length, length), rel=1e-6, abs=1e-6)

def test_the_corners_lie_where_they_are_and_one_that_is_no_other_model_is_no_obstacle(plane):
    for at in ((0, 0), (1, 0), (0, 1)):
        plane.move(*at)
        found = plane.place(plane.theta)
        assert found == {"a1": at[0], "a2": at[1], "distance": 0, "from_start": 0}
        assert "-" not in json.dumps(found)   # no -0.0, either
    d_src = plane.corners[1] - plane.corners[0]
    plane.corners[1] = plane.corners[0]
    assert plane.place(plane.theta)["a1"] == 0
    plane.corners[1] += d_src

# ---- what -------------------------------------------------------------------------------------------------

def test_visitors_lie_where_an_independent_script_puts_them(everything, encoder):
    out, _, found = everything
    folder, encoder = out / "models/pos/encoder", transformers.AutoModel.from_pretrained(
        encoder, add_pooling_layer=False)
    steps = [each["step"] for each in lines(folder / "en/seed1/train.jsonl")]
    way = [flat(folder / f"en/seed1/checkpoints/step{step}.safetensors", encoder) for step in steps]
    mean, of_3 = ({name: sum(model[name] for model in models) / len(models) for name in way[0]}
                  for models in (way, way[-3:]))
    one, two = (flat(folder / f"en/seed{seed}/model.safetensors", encoder) for seed in (1, 2))
    runs = {name: p if "head" in name else (p + two[name]) / 2 for name, p in one.items()}
    torch.manual_seed(1)
    head = torch.nn.Linear(16, len(data.UPOS))
    start = {f"encoder.{name}": p.double() for name, p in encoder.named_parameters()} | {
        f"head.out.{name}": p.detach().double() for name, p in head.named_parameters()}
    both, src, tgt = (vector(flat(folder / lang / "seed1/model.safetensors", encoder))
                      for lang in ("de-en", "en", "de"))
    wanted = {"start": [start], "average": [mean], "average-3": [of_3], "average-seeds": [runs],
              "way": way, "last": way[-1:]}
    wanted |= {name: [flat(folder / f"en/seed1.{name}.de/model.safetensors", encoder)]
               for name in ("few-3", "few-12", "few-3-then", "silver")}
    assert found.keys() == wanted.keys() == {*ALL} and len(steps) == 4
    for name, models in wanted.items():
        header, points = found[name]
        assert header["points"] == len(points) == len(models) and header["visitor"] == name
        for point, model in zip(points, models):
            here, directions = vector(model) - both, np.stack([src - both, tgt - both], 1)
            at = np.linalg.lstsq(directions, here, rcond=None)[0]
            lengths = (np.linalg.norm(x) for x in (here - directions @ at, vector(model) - vector(start)))
            placed = [point[key] for key in ("a1", "a2", "distance", "from_start")]
            assert placed == pytest.approx([*at, *lengths], abs=1e-5), name
    points = found["way"][1]
    assert [point["step"] for point in points] == steps and found["last"][1] == points[-1:]

def test_scores_are_those_of_the_loaded_models_and_of_the_planes_points(everything):
    out, argv, found = everything
    run = r.Run(r.parse_arguments(argv))
    pair = pair_of(run)
    log, way = lines(out / "models/pos/encoder/en/seed1/train.jsonl"), found["way"][1]
    assert [point["src"] for point in way] == [scored["score"]["en"] for scored in log]
    best = max(log, key=lambda scored: scored["mean"])["step"]
    grid = grids.read(out / "grids/pos/encoder/en-de/seed1.jsonl")
    point = next(point for point in way if point["step"] == best)   # the source-only model itself
    assert (point["a1"], point["a2"], point["distance"]) == (1, 0, 0)
    assert grid.points[grids.SRC] == (point["src"]["accuracy"], point["tgt"]["accuracy"])
    assert point["nearest"] == {side: point[side] for side in ("src", "tgt")}
    plane = run.plane(pair)
    for name, (_, points) in found.items():
        for point in points:
            plane.move(point["a1"], point["a2"])
            assert point["nearest"] == visit.scores(run, plane, pair), name
    unit = pair.models()[1]._replace(visitor="few-12", tgt="de")
    model = run.finetuned(unit, [run.corpora.examples("pos", unit.encoder, "de", "dev")])
    assert found["few-12"][1][0]["tgt"] == run.scorer.score(model, pair, "de")

@pytest.mark.parametrize("task", ["pos", "parsing", "xnli"])
def test_few_sentences_are_a_bilingual_model_whose_target_file_ends_there(
        line, tmp_path, monkeypatch, task):
    """The same bytes, if both keep the last checkpoint: neither then looks at a dev set."""
    more = "--task", task, "--select", "last", "--lines-only"
    args = r.parse_arguments(line(*more, "--visit", "few-12", "few-3-then"))
    units = [unit for unit in r.plan(args)[0] if unit.visitor or unit.langs == ("en",)]
    run, seen, batch = r.Run(args), [], data.Encoded.batch
    def seen_batch(self, windows, packed=False):
        if packed:   # in training
            seen.extend((unit.visitor, int(window)) for window in windows)
        return batch(self, windows, packed)

    monkeypatch.setattr(data.Encoded, "batch", seen_batch)
    for unit in units:
        r.finetune(run, unit)
    assert sorted(window for name, window in seen if name == "few-3-then") == sorted([0, 1, 2] * visit.LONGER)
    folder = shutil.copytree(args.data, tmp_path / "short")
    path = r.TASKS[task].file(folder, "de", "train").path
    between, first = ("\n", 13) if task == "xnli" else ("\n\n", 12)   # a line of titles
    path.write_text(between.join(path.read_text().split(between)[:first]) + between)
    other = r.Run(r.parse_arguments(line(*more, "--data", str(folder), "--out", str(tmp_path / "other"))))
    both = pair_of(other).models()[0]
    r.finetune(other, both)
    few = next(unit for unit in units if unit.visitor == "few-12")
    assert results.digest(run.trained(few)) == results.digest(other.trained(both))

@pytest.mark.parametrize("task", ["pos", "parsing"])
def test_silver_labels_are_the_source_only_models_own(make, task):
    run = make(task=task)
    unit = pair_of(run).models()[1]
    r.finetune(run, unit)
    gold = run.corpora.examples(task, unit.encoder, "de", "train")
    before = gold.gold.clone()
    silver = visit.train_sets(run, unit._replace(visitor="silver", tgt="de"))["de"]
    found, kinds = run.scorer.predictions(run.finetuned(unit, [gold]), gold), 2 if task == "parsing" else 1
    read = before[:, 0] >= 0
    assert torch.equal(silver.gold[read, :kinds].long(), found[read]) and torch.equal(gold.gold, before)
    assert torch.equal(silver.gold[~read], before[~read]) and (~read).any() == (task == "parsing")
    assert not torch.equal(silver.gold, before) and torch.equal(silver.gold[:, kinds:], before[:, kinds:])

def test_a_visit_with_another_language_is_a_model_of_two_sources(line):
    args = r.parse_arguments(line("--visit", "with-fr", "with-de", "with-en"))
    models, pairs = r.plan(args)
    assert [each.visitor for each in visit.visits(args, pairs)] == ["with-fr"] and len(models) == 4
    assert models[3] == r.Finetuned("pos", args.encoder[0], ("en", "fr"), 1)

def test_a_demo_visits_pos_alone_and_only_what_visits_need_keeps_checkpoints():
    for tasks, wanted in (("xnli ner pos parsing", "pos"), ("ner xnli", "ner xnli"), ("ner pos", "pos")):
        visiting = "--visit", "few-10", "way", "--seeds", "1"
        args = r.parse_arguments(["--demo", "--task", *tasks.split(), *visiting])
        models, pairs = r.plan(args)
        assert {each.task for each in visit.visits(args, pairs)} == {*wanted.split()}
        kept = visit.keeps(args, pairs)   # nor the controls' that had no pretraining
        assert kept == {unit for unit in models if unit.langs == ("A",) and unit.task in wanted.split()
                        and not unit.visitor and not unit.encoder.endswith("-random")}
    assert not visit.keeps(args, []) and len(kept) == 1

@pytest.mark.parametrize("more, said", [
    (["--visit", "fewer-3"], "'fewer-3': there is start, average"), (["--visit", "few-0"], "'few-0'"),
    (["--visit", "with-klingon"], "'klingon' is no language"),
    (["--visit", "start", "--part", "head"], "leave out --part head"),
    (["--visit", "silver", "--task", "title"], "title has no labels")])
def test_a_visit_that_cannot_be_is_refused_in_a_sentence(line, capsys, more, said):
    with pytest.raises(SystemExit):
        r.parse_arguments(line(*more))
    assert said in capsys.readouterr().err

def test_a_visit_that_fails_is_named_and_the_rest_goes_on(line, tmp_path, capsys):
    argv = line("--lines-only", "--visit", "few-41", "start", "average-5")
    assert r.answer(r.parse_arguments(argv)) == 3
    assert "gives 40 sentences, fewer than 41" in (report := (tmp_path / "out/report.md").read_text())
    assert "en-de seed 1, few-41: it needs" in report
    folder = next((tmp_path / "out/grids").rglob("seed1.visits"))
    assert {path.name for path in folder.iterdir()} == {"average-5.failed", "few-41.failed", "start.jsonl"}
    assert "average-5: the source-only model has 4 checkpoints, fewer than 5" in report
    capsys.readouterr()
    assert r.answer(r.parse_arguments([*argv, "--dry-run"])) == 0
    assert "1 of 3 visits done: few-41 start average-5" in capsys.readouterr().out

# ---- stopped and shared -----------------------------------------------------------------------------------

@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_visits_killed_again_and_again_end_like_those_that_nothing_disturbs(kit, out, trained):
    settings, rng, killed = dict(flags=(*kit.flags, "--visit", *ALL), epochs=1), random.Random(trained), 0
    if trained:   # without checkpoints, for which the model is trained once more
        assert kit.start(out, epochs=1).wait() == 0 and not list(out.rglob("checkpoints"))
    while (run := kit.start(out, **settings, moment=rng.randint(50, 300))).wait():
        killed += run.code == KILLED
        assert killed < 60
    assert killed >= 3
    same(out, kit.undisturbed(**settings))

def rank(number, port, argv):
    """One of two processes of a run."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    change()
    sys.exit(r.answer(r.parse_arguments(argv)))

def test_two_processes_place_what_one_does(kit, out):
    settings = dict(flags=(*kit.flags, "--visit", *ALL), epochs=1)
    port = free_port()
    ranks = [FORK.Process(target=rank, args=(number, port, kit.argv(out, **settings))) for number in "01"]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert [each.exitcode for each in ranks] == [0, 0]
    same(out, kit.undisturbed(**settings))

def test_a_model_that_is_not_what_its_training_gives_now_keeps_its_file(line, tmp_path, capsys):
    argv = line("--lines-only")
    assert r.answer(r.parse_arguments(argv)) == 0
    path = tmp_path / "out/models/pos/encoder/en/seed1/model.safetensors"
    about, tensors = results.load_tensors(path)
    tensors["head.out.bias"] += 1e-3   # as of another machine
    results.save_tensors(path, tensors, about | {"digest": results.digest(tensors)})
    before = path.read_bytes()
    for grid in (tmp_path / "out/grids").rglob("*.jsonl"):
        grid.unlink()
    for _ in "12":   # nor is the second time what the first one left taken for its checkpoints
        assert r.answer(r.parse_arguments([*argv, "--visit", "average"])) == 3
        assert "it is another model, as on another machine. Delete" in capsys.readouterr().out
        assert path.read_bytes() == before

# ---- report -----------------------------------------------------------------------------------------------

def made_up(**visits):
    """Two grids of one case with visitors {name: [(a1, target's score, nearest point's)], one a seed}."""
    found = seeds(0, 1, keep=0, encoder="e", line=[0.0, 1.0], plane=[0.0, 1.0], norm_src=2.0)
    for seed, grid in enumerate(found):
        grid.points.update({grids.BOTH: (90.0, 88.0), grids.SRC: (91.0, 70.0), grids.TGT: (60.0, 90.0)})
        for name, points in visits.items():
            points = points[seed] if name == "way" else [points[seed]]
            grid.visits[name.replace("_", "-")] = [
                {"step": step, "a1": a1, "a2": .1, "distance": .8, "from_start": 3.0,
                 "src": {"accuracy": 90.0}, "tgt": {"accuracy": score},
                 "nearest": {"src": {"accuracy": 90.0}, "tgt": {"accuracy": near}}}
                for step, (a1, score, near) in enumerate(points)]
    return found

def test_the_oracle_is_the_best_dev_scoring_by_the_target_and_no_other(tmp_path):
    found = made_up(way=[[(.5, 60.0, 60.0), (.8, 74.0, 70.0), (1.0, 70.0, 70.0)],
                         [(.6, 76.0, 60.0), (.9, 71.0, 70.0), (1.0, 70.0, 70.0)]])
    placed = visit.placed(found)
    assert placed["oracle"][:, 0].tolist() == [.8, .6] and "way" not in placed
    rows = {row["visitor"]: row for row in visit.summary(found)}
    assert rows["oracle"]["target"] == "75.0 ± 1.4" and rows["source-only"]["target"] == "70.0 ± 0.0"
    assert [*rows] == ["source-only", "oracle", "bilingual"]

def verdicts(**visits):
    return {row["claim"].split()[0]: row["verdict"] for row in visit.claims(made_up(**visits))}

def test_our_claims_follow_their_rules():
    near, far = [(.9, 71.0, 70.5)] * 2, [(.9, 71.0, 68.0)] * 2
    assert verdicts(average=near) == {"Averaging": "agrees", "Few": "not tested", "The": "agrees"}
    beyond = verdicts(average=[(1.1, 71.0, 68.0)] * 2)
    assert beyond == {"Averaging": "differs", "Few": "not tested", "The": "differs"}
    few = {f"few_{k}": [(a1, 71.0, 70.5)] * 2 for k, a1 in ((10, .9), (100, .7), (9, .95))}
    assert verdicts(**few)["Few"] == "agrees"   # 9 before 10, not "10" before "9"
    assert verdicts(**few | {"few_1000": [(.8, 71.0, 70.5)] * 2})["Few"] == "differs"
    assert verdicts(few_10=[(.9, 71.0, 71.0)] * 2, few_10_then=[(.5, 71.0, 71.0)] * 2)["Few"] == "not tested"
    assert verdicts(start=far)["The"] == "not tested" and verdicts(average=far, last=near)["The"] == "differs"

def test_figures_draw_every_visitor_and_what_is_far_off_hollow():
    found = made_up(start=[(.4, 10.0, 50.0)] * 2, average=[(.9, 71.0, 70.0)] * 2,
                    way=[[(.5, 60.0, 60.0), (1.0, 70.0, 70.0)]] * 2)
    for grid in found:
        grid.visits["average"][0]["distance"] = .2   # of |d_src| = 2
    names = [name for name, _, _ in plot.figures_of(found)]
    assert {"visitors-pos-en-de", "remedies-pos-en-de"} <= {*names}
    axes = plot.plane_figure(found, True).axes[0]
    points = [line for line in axes.lines if line.get_marker() == "D"]
    hollow = {round(line.get_xdata()[0], 1): line.get_markerfacecolor() == "white" for line in points}
    assert hollow == {.4: True, .9: False, 1: True}   # start, average, oracle
    bars = plot.remedies_figure(found).axes[0]
    assert [round(bar.get_width()) for bar in bars.patches] == [70, 70, 71, 10, 88]

def test_visits_of_other_models_and_damaged_ones_are_refused(line, tmp_path):
    visited(line("--lines-only"), "--visit", "start")
    path = next((tmp_path / "out").rglob("start.jsonl"))
    for old, new, said in (('"both": "', '"both": "f', "it is of other models than"),
                           ('"a1"', '"b1"', "no 'a1'"), ('"a2": ', '"a2": NaN, "a3": ', "cannot be"),
                           ('"nearest": {', '"nearest": 5, "x": {', ""),
                           ('"points": 1', '"points": "1"', "")):
        good = path.read_text()
        assert old in good
        path.write_text(good.replace(old, new))
        with pytest.raises(results.KitError, match=f"start.jsonl.*{said}.*[Dd]elete it"):
            grids.load([tmp_path / "out"])
        path.write_text(good)
    assert grids.load([tmp_path / "out"])[0].visits.keys() == {"start"}

# ---- export -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, task, settings", [
    ("Bert", "pos", {}), ("XLMRoberta", "ner", dict(pad_token_id=0, max_position_embeddings=129)),
    ("DistilBert", "xnli", dict(dim=16, n_layers=1, n_heads=2, hidden_dim=32))])
def test_plain_transformers_gives_the_labels_of_an_exported_model(make, tmp_path, kind, task, settings):
    run = make("--encoder", str(write_encoder(tmp_path / "its", kind, **settings)), task=task)
    unit, folder = pair_of(run).models()[1], tmp_path / "elsewhere"
    r.finetune(run, unit)
    about, tensors = results.load_tensors(unit.path(run.args.out))
    dev = run.corpora.examples(task, unit.encoder, "de", "dev")
    batch, head = dev.batch(np.arange(len(dev))), 10 * torch.randn_like(tensors["head.out.weight"])
    middle = run.finetuned(unit, [dev]).hidden(batch)[batch.real].mean(0)
    tensors |= {"head.out.weight": head, "head.out.bias": -head @ middle}   # not one label for all
    results.save_tensors(unit.path(run.args.out), tensors, about | {"digest": results.digest(tensors)})
    said = export.export([str(unit.path(run.args.out)), str(folder)], unit.encoder, r.TASKS)
    assert f"a {kind}ForTokenClassification" in said
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    wanted = run.scorer.predictions(run.finetuned(unit, [dev]), dev)[:, 0].tolist()
    found, split = [], task != "xnli"
    for words, _ in r.TASKS[task].reader(run.corpora.file(task, "de", "dev").path, "de"):
        texts = [list(words)] if split else words
        encoded = tokenizer(*texts, is_split_into_words=split, return_tensors="pt")
        labels = model(**encoded).logits[0].argmax(-1).tolist()
        owners = encoded.word_ids()
        found += [labels[owners.index(i)] for i in range(len(words))] if split else labels[:1]
    assert found == wanted and len({*wanted}) > 1
    assert [model.config.id2label[i] for i in range(3)] == list(r.TASKS[task].labels[:3])

def test_an_exported_mean_is_the_mean_by_weights_and_a_parser_goes_without_its_head(make, tmp_path):
    run = make(task="parsing")
    both, src, tgt = pair_of(run).models()
    for unit in (both, src, tgt):
        r.finetune(run, unit)
    asked = [f"{both.path(run.args.out)}=0.75", f"{src.path(run.args.out)}=0.25", str(tmp_path / "point")]
    assert "without its head" in export.export(asked, both.encoder, r.TASKS)
    plane = run.plane(pair_of(run))
    plane.move(.25, 0)
    model = transformers.AutoModel.from_pretrained(tmp_path / "point")
    name = "encoder.layer.0.output.dense.weight"
    assert torch.allclose(model.get_parameter(name), plane.views[f"encoder.{name}"], atol=1e-7)
    ids, views = heads.find_rows(plane.model)[1].ids, plane.views[f"{WORDS}.weight"]
    assert torch.allclose(model.get_input_embeddings().weight[ids], views, atol=1e-7)

def test_titles_are_visited_and_exported_too(titles, tmp_path):
    argv = titles("--src", "en", "--epochs", "1", kind="mBART")
    found = visited(argv, "--visit", "start", "average", "few-3", "few-3-then")
    assert found["start"][1][0]["from_start"] == 0 < found["average"][1][0]["distance"]
    run = r.Run(r.parse_arguments(argv))
    unit = r.plan(run.args)[1][0].models()[0]
    said = export.export([str(unit.path(run.args.out)), str(tmp_path / "elsewhere")], unit.encoder, r.TASKS)
    assert "a MBartForConditionalGeneration for transformers" in said
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "elsewhere").eval()
    dev = run.corpora.examples("title", unit.encoder, "de", "dev")
    own, batch = run.finetuned(unit, [dev]), dev.batch(np.arange(len(dev)))
    written = model.generate(input_ids=batch.ids, attention_mask=batch.mask.long())[:, 1:]
    assert torch.equal(own(batch)[:, 0, :written.shape[1]], written)

def test_an_export_that_cannot_be_is_refused_in_a_sentence(make, tmp_path):
    run = make()
    r.finetune(run, src := pair_of(run).models()[1])
    file, own = str(src.path(run.args.out)), src.encoder
    other = str(write_encoder(tmp_path / "other", vocab_size=60))
    for asked, encoder, said in (
            ([file], own, "and a FOLDER"), ([file, file], own, "and a FOLDER"),
            ([f"{file}=1.2.3", "x"], own, "expected FILE.safetensors"),
            ([file, f"{file}=-1", "x"], own, "sum to 0"),
            ([f"{file}=a", "x"], own, "expected FILE.safetensors"),
            ([file, str(tmp_path)], own, "a FOLDER that is not there yet"),
            (["none.safetensors", "x"], own, "There is no none.safetensors"),
            ([f"{other}/model.safetensors", "x"], own, "no model of this kit"),   # the encoder's own
            ([file, "x"], None, "name that one by --encoder"), ([file, "x"], other, "another encoder")):
        with pytest.raises(results.KitError, match=said):
            export.export(asked, encoder, r.TASKS)
