"""Plan, fine-tuning, the plane, grids and the command line, with a tiny random encoder."""

import ast
import copy
import graphlib
import itertools
import json
import shutil
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from conftest import KIT, write_encoder
from conftest import reproduce as command

import data
import grids
import heads
import reproduce as r
import results
import tasks
import train

TASKS = ["xnli", "ner", "pos", "parsing"]

def arguments(encoder, corpus, out, *more):
    """The arguments of a tiny run; of a flag given twice the last one counts."""
    where = f"--encoder {encoder} --data {corpus} --out {out} --device cpu"
    what = "--task pos --src en --tgt de --seeds 1 --epochs 1 --batch-size 8 --lr 1e-2"
    return [*where.split(), *what.split(), *more]

@pytest.fixture
def line(encoder, corpus, tmp_path):
    return partial(arguments, encoder, corpus, tmp_path / "out")

@pytest.fixture
def make(line):
    return lambda *more, task="pos": r.Run(r.parse_arguments(line("--lines-only", "--task", task, *more)))

def pair_of(run):
    return r.Pair(run.args.task[0], run.args.encoder[0], "en", "de", 1)

def whole(run):
    """Fine-tune the three models of a run and score the grid; returns its header and {point: line}."""
    pair = pair_of(run)
    for unit in pair.models():
        r.finetune(run, unit)
    r.evaluate(run, pair)
    header, *points = lines(pair.path(run.args.out, run.args.part))
    return header, {(point["a1"], point["a2"]): point for point in points}

def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]

# ---- fine-tuning ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("total, warmup", [(7, None), (10, None), (1965, None), (100, 29), (57, 57), (9, 0)])
def test_warm_up_and_decay_are_transformers_linear_schedule(total, warmup):
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    warm = int(0.1 * total) if warmup is None else warmup
    schedule = transformers.get_linear_schedule_with_warmup(adam, warm, total)
    for step in range(total):
        rate = train.Settings(total, 3e-4, [], warmup=warmup).rate(step)
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-15, abs=0)
        adam.step()
        schedule.step()

class Squares(torch.nn.Linear):
    def loss(self, batch):
        assert (out := self(batch.x)).dtype == torch.float16
        return out.float().square().mean()

@pytest.mark.parametrize("clip, gradient", [(None, 3.0), (1.0, 0.5)])
def test_fp16_leaves_steps_that_overflow_out_and_goes_on_with_its_scale(tmp_path, clip, gradient):
    def run(folder, stopped=False):
        model, batch = Squares(3, 1), Mock(x=torch.ones(1, 3), count=1)
        torch.nn.init.constant_(model.weight, 0.5)   # it gives 1.5: scales above 2 ** 14 overflow
        torch.nn.init.zeros_(model.bias)
        chosen = train.Settings(8, 1e-9, [4, 8], warmup=0, clip=clip, precision="fp16")

        def evaluate(records):
            if records and stopped:
                raise InterruptedError
            return {}, True

        with results.locked(tmp_path / folder / "train.jsonl") as journal:
            return train.train(model, lambda *_: [batch], evaluate, chosen, {}, journal, "x", results.Ranks())

    with pytest.raises(InterruptedError):
        run("stopped", stopped=True)
    about, tensors = results.load_tensors(tmp_path / "stopped/state.safetensors")
    assert about["scaler"]["scale"] == 2 ** 14 and tensors["step.weight"] == 2   # of 4
    assert tensors["exp_avg.weight"][0].tolist() == pytest.approx([gradient * (1 - .9 ** 2)] * 3, rel=1e-3)
    assert results.digest(run("stopped")[1]) == results.digest(run("whole")[1])

@pytest.mark.parametrize("capability, precision", [((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_a_gpu_trains_in_what_it_computes_itself(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert r.usual_precision(torch.device("cuda")) == precision
    assert r.usual_precision(torch.device("cpu")) == "fp32"

def test_all_models_of_a_seed_start_alike_head_included(make):
    run = make()
    one, other = (run.model(unit) for unit in pair_of(run).models()[:2])
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters()))
    seed2 = run.model(pair_of(run)._replace(seed=2))
    assert torch.equal(*(next(model.encoder.parameters()) for model in (one, seed2)))
    assert not torch.equal(seed2.head.out.weight, one.head.out.weight)

def test_a_training_is_plain_pytorch(make):
    """A second loop, written as in any tutorial, ends with the same parameters."""
    run = make()
    unit = pair_of(run).models()[1]
    r.finetune(run, unit)
    model, examples = run.model(unit).train(), run.corpora.examples("pos", unit.encoder, "en", "train")
    adam, order = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99)), (("en", len(examples)),)
    log, passed = lines(unit.path(run.args.out).with_name("train.jsonl")), {}
    assert [scored["step"] for scored in log] == [2, 3, 4, 5]
    for step, (_, windows) in enumerate(data.batch_order(order, 8, 1, 0)):
        if step in (0, 2, 3, 4):   # dev was scored before: the dropout masks are drawn anew
            torch.manual_seed(1_000_003 + step)
        adam.param_groups[0]["lr"] = train.Settings(5, 1e-2, []).rate(step)
        model.loss(examples.batch(windows, packed=True)).backward()
        adam.step()
        adam.zero_grad()
        passed[step + 1] = {name: p.detach().clone() for name, p in model.named_parameters()}
    best = passed[max(log, key=lambda scored: scored["mean"])["step"]]
    found, weight = run.trained(unit), run.model(unit).get_parameter(f"{WORDS}.weight").detach().clone()
    weight[found.pop(f"{WORDS}.ids")] = found[f"{WORDS}.weight"]
    assert found.keys() == best.keys()
    for name, p in (found | {f"{WORDS}.weight": weight}).items():   # a key's bias: rounding is its gradient
        assert "key.bias" in name or torch.allclose(best[name], p, atol=1e-5), name
    assert run.scorer.score(model.eval(), unit, "en") == log[-1]["score"]["en"]

WORDS = "encoder.embeddings.word_embeddings"

@pytest.mark.parametrize("kind, settings, task", [
    pytest.param(kind, settings, task, marks=[] if task == quick else pytest.mark.slow)
    for kind, settings, quick in (("Bert", dict(pad_token_id=4), "parsing"),
                                  ("XLMRoberta", dict(pad_token_id=0, max_position_embeddings=129), "xnli"),
                                  ("Albert", dict(embedding_size=16, inner_group_num=2), "pos"))
    for task in ("pos", "parsing", "xnli")])
def test_rows_that_no_sentence_reads_change_nothing_by_their_absence(
        make, tmp_path, monkeypatch, kind, settings, task):
    """As with the whole embedding to the last digit: two paddings as in e5, positions as in XLM-R, ties."""
    encoder = write_encoder(tmp_path / "it", kind, vocab_size=60, **settings)
    found = []
    for name, copied in (("rows", heads.with_rows), ("whole", lambda model, ids: copy.deepcopy(model))):
        monkeypatch.setattr(heads, "with_rows", copied)
        run = make("--encoder", str(encoder), "--out", f"{tmp_path}/{name}", task=task)
        header, points = whole(run)
        units = pair_of(run).models()
        logs = [lines(unit.path(run.args.out).with_name("train.jsonl")) for unit in units]
        saved = [run.trained(unit) for unit in units]
        found.append(((points, logs), header, saved, run.plane(pair_of(run)).corners.shape[1]))
    (same, header, saved, size), (same_too, wanted, saved_too, whole_size) = found
    assert same == same_too and size < whole_size
    for rows, parameters in zip(saved, saved_too):
        weight = run.corpora.encoder(task, str(encoder)).model.get_input_embeddings().weight.detach().clone()
        ids = rows.pop(f"{WORDS}.ids")
        assert 3 < len(ids) < len(weight) - 3   # some were read, some were not
        weight[ids] = rows[f"{WORDS}.weight"]
        assert rows.keys() == parameters.keys()
        rows[f"{WORDS}.weight"] = weight
        assert all(torch.equal(p, parameters[name]) for name, p in rows.items())
    for name in ("norm_src", "norm_tgt", "norm_ratio", "angle"):
        assert header[name] == pytest.approx(wanted[name], rel=1e-13)

def test_a_bilingual_epoch_has_one_language_a_batch_and_every_sentence_once():
    sizes = (("de", 21), ("en", 50))
    for epoch in range(2):
        order = data.batch_order(sizes, 8, 1, epoch)
        for lang, size in sizes:
            assert sorted(i for name, batch in order if name == lang for i in batch) == list(range(size))
        assert all(len(batch) <= 8 for _, batch in order) and len(order) == 3 + 7
    assert [lang for lang, _ in order] != sorted(lang for lang, _ in order)

def test_training_learns_and_logs_each_dev_scoring(make):
    run = make("--epochs", "3", task="parsing")
    unit = pair_of(run).models()[1]
    r.finetune(run, unit)
    path = unit.path(run.args.out)
    log = lines(path.with_name("train.jsonl"))
    assert len(log) == 12 and log[-1]["step"] == 15 and log[-1]["loss"] < log[0]["loss"]
    assert {*log[0]} == {"step", "lr", "loss", "score", "mean"} and {*log[0]["score"]["en"]} == {"LAS", "UAS"}
    about, tensors = results.load_tensors(path)
    best = max(log, key=lambda scored: scored["mean"])     # the first of the best
    assert (about["best_step"], about["mean"]) == (best["step"], best["score"]["en"]["LAS"])
    assert {p.name for p in path.parent.iterdir()} == {"model.safetensors", "train.jsonl"}
    assert {name.split(".")[0] for name in tensors} == {"encoder", "head"}

@pytest.mark.parametrize("task", TASKS)
def test_a_batch_cut_into_parts_has_the_same_gradient(make, task):
    run = make(task=task)
    model = run.model(pair_of(run)).eval()
    examples = run.corpora.examples(task, run.args.encoder[0], "en", "train")
    gradients, fake = [], Mock(model=model, device=run.device, settings=train.Settings(1, 1.0, [1]),
                               scaler=torch.amp.GradScaler(enabled=False))
    for parts in (1, 3, 8):
        cut = np.array_split(np.arange(8), parts)
        train.Training.accumulate(fake, [examples.batch(part) for part in cut])
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
    assert all(torch.allclose(found, gradients[0], atol=1e-5) for found in gradients) and gradients[0].any()

def test_memory_that_runs_out_means_smaller_parts_and_not_another_experiment(make, monkeypatch):
    run, loss, predictions, room = make(), heads.Model.loss, r.Scorer.predictions, 2

    def tight(self, batch):
        if len(batch.ids) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, batch)

    def tight_dev(self, predict, dev):
        if self.subwords > 100:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return predictions(self, predict, dev)

    monkeypatch.setattr(heads.Model, "loss", tight)
    monkeypatch.setattr(r.Scorer, "predictions", tight_dev)
    _, points = whole(run)
    assert len(points) == 65 and run.scorer.subwords == 80
    other, room = make("--out", run.args.out + "2"), 0
    unit = pair_of(other).models()[0]
    r.attempt(other, unit, r.finetune, unit.path(other.args.out).with_name("failed.json"))
    assert "no memory is left for it" in other.ranks.outcome(unit)

# ---- the plane --------------------------------------------------------------------------------------------

def test_the_grid_has_465_distinct_points_and_the_lines_are_its_axes():
    everything, on_lines = grids.points(False), grids.points(True)
    assert len(everything) == len(set(everything)) == 441 + 24 and len(on_lines) == 65
    assert everything[:65] == on_lines                # a run of the lines can be continued to the plane
    for a in grids.LINE:
        assert (round(1 - a, 3), 0) in on_lines and (0, round(1 - a, 3)) in on_lines

def test_norms_and_angle_by_hand(make):
    run = make()
    model = run.model(pair_of(run))
    both, bias = {name: p.detach() for name, p in model.named_parameters()}, "head.out.bias"
    src = both | {bias: both[bias] + torch.tensor([3.0] + [0.0] * 16)}
    tgt = both | {bias: both[bias] + torch.tensor([2.0, 2.0] + [0.0] * 15)}
    assert heads.Plane(model, (both, src, tgt)).geometry() == pytest.approx(
        {"norm_src": 3, "norm_tgt": 8 ** 0.5, "norm_ratio": 3 / 8 ** 0.5, "angle": 45}, rel=1e-5)
    assert heads.Plane(model, (both, both, tgt)).geometry()["angle"] is None

def test_neighbouring_points_differ_as_fp32_says_also_when_training_is_in_bf16(make):
    """Weights of .04, displacements of 3e-4, as lr 2e-5 gives: in bf16 most would not move between points."""
    run = make("--precision", "bf16")
    assert run.scored_in == "fp32"
    model = run.model(pair_of(run))
    torch.manual_seed(0)
    both = {name: 0.04 * torch.randn_like(p) for name, p in model.named_parameters()}
    src = {name: p + 3e-4 * torch.randn_like(p) for name, p in both.items()}
    plane, seen, flat = heads.Plane(model, (both, src, both)), [], torch.nn.utils.parameters_to_vector
    model.register_forward_pre_hook(lambda module, _: seen.append(flat(module.parameters()).detach().clone()))
    for a1 in (0.5, 0.475):
        plane.move(a1, 0.0)
        run.scorer.score(plane, pair_of(run), "en")
    first, last = seen[0], seen[-1]
    moved = 0.025 * (flat(src.values()) - flat(both.values()))
    assert first.dtype == torch.float32 and ((first - last).abs() > 0).float().mean() > 0.9
    assert torch.allclose(first - last, moved, atol=6e-8)   # the rounding of a weight
    assert (first.bfloat16() != last.bfloat16()).float().mean() < 0.5     # what bf16 would have seen

@pytest.mark.parametrize("task", TASKS)
def test_grid_scores_at_the_corners_are_the_models_own_whatever_the_batches(make, task):
    header, points = whole(run := make(task=task))
    for corner, unit in zip(((0, 0), (1, 0), (0, 1)), pair_of(run).models()):
        log = lines(unit.path(run.args.out).with_name("train.jsonl"))
        best = max(log, key=lambda scored: scored["mean"])["score"]
        for lang, score in best.items():
            assert points[corner]["src" if lang == "en" else "tgt"] == score
    assert header["metrics"] == list(r.TASKS[task].metrics) and set(header["dev"]) == {"en", "de"}
    assert len(points) == 65
    pair = pair_of(run)
    model = run.model(pair).eval()
    score = run.scorer.score(model, pair, "en")
    for run.scorer.subwords in (1, 60, 5000):
        assert run.scorer.score(model, pair, "en") == score

@pytest.mark.parametrize("part", ["encoder", "head"])
def test_a_part_moves_alone_and_states_that_are_kept_are_those_that_a_loaded_model_has(make, part):
    """The encoder's states are computed once where the head alone moves, and anew where the encoder does."""
    header, points = whole(run := make("--part", part))
    _, everything = whole(make())
    assert header["part"] == part and points[0, 0] == everything[0, 0] and points != everything
    pair, seen = pair_of(run), []
    plane, loaded = run.plane(pair), run.plane(pair).model.eval()
    pretrained = run.corpora.encoder("pos", pair.encoder).model
    both, src, _ = (heads.spread(plane.model, run.trained(unit), pretrained) for unit in pair.models())
    plane.move(1.0, 0.0)
    for name in both:
        assert torch.equal(plane.views[name], (src if name.startswith(part) else both)[name])
    dev = [run.corpora.examples("pos", pair.encoder, lang, "dev") for lang in ("en", "de")]
    plane.model.encoder.register_forward_pre_hook(lambda *_: seen.append(1))
    for a1, a2 in ((0.0, 0.0), (1.0, 0.0), (-3.0, 4.0)):
        plane.move(a1, a2)
        loaded.load_state_dict(plane.views, strict=False)
        with torch.no_grad():
            for each in dev:
                assert torch.equal(run.scorer.predictions(plane, each), run.scorer.predictions(loaded, each))
    batches = sum(len(each.batches(run.scorer.subwords, run.scorer.waste)) for each in dev)
    assert len(seen) == batches * (1 if part == "head" else 3)

# ---- plan, ranks, files -----------------------------------------------------------------------------------

def plan(*argv):
    return r.plan(r.parse_arguments(argv))

def test_the_papers_matrix_shares_its_models():
    models, pairs = plan("--paper")
    assert len(pairs) == 2 * 4 * 15 * 3 and len(models) == 2 * 4 * 24 * 3
    one = [m.langs for m in models if (m.task, m.encoder, m.seed) == ("ner", "xlmr", 2)]
    assert len(one) == 24 and sum(len(langs) == 1 for langs in one) == 9

def test_pairs_of_one_language_are_left_out_and_both_directions_share_a_bilingual_model():
    models, pairs = plan("--task", "pos", "--src", "en", "ar", "--tgt", "en", "ar", "--seeds", "1")
    assert [(pair.src, pair.tgt) for pair in pairs] == [("en", "ar"), ("ar", "en")]
    assert sorted(m.langs for m in models) == [("ar",), ("ar", "en"), ("en",)]

def test_the_demo_pretrains_its_control_for_pos_alone():
    for asked, encoders in (("ner", "xnli"), 1), (("ner", "pos"), 2):
        assert len(r.scratch_encoders(r.parse_arguments(["--demo", "--task", *asked]))) == encoders

def test_two_encoders_of_one_name_are_refused_before_anything_is_trained(line, tmp_path):
    folders = [str(write_encoder(tmp_path / name / "encoder")) for name in "ab"]
    with pytest.raises(results.KitError, match="a/encoder.*b/encoder|b/encoder.*a/encoder"):
        plan(*line("--encoder", *folders))

def test_each_encoder_of_several_tasks_is_loaded_once(line, tmp_path):
    folders = [str(write_encoder(tmp_path / name)) for name in "ba"]
    models, _ = plan(*line("--encoder", *folders, "--task", "pos", "ner"))
    each = [key for key, _ in itertools.groupby(models, lambda model: (model.encoder, model.task))]
    assert each == [(folder, task) for folder in sorted(folders) for task in ("pos", "ner")]

def test_every_unit_is_taken_once_and_its_outcome_is_known_to_all():
    first, second = results.Ranks(), results.Ranks()
    second.store, second.rank, first.world, second.world = first.store, 1, 2, 2
    takers = [first.take(list("abcde")), second.take(list("abcde"))]
    assert [next(takers[i]) for i in (0, 1, 1, 0, 0)] == list("abcde") and not [*takers[0], *takers[1]]
    second.finish("a", "it failed")
    assert first.outcome("a") == "it failed"

def test_a_store_that_is_gone_is_told_in_a_sentence():
    ranks = results.Ranks()
    ranks.store = Mock(**{"add.side_effect": RuntimeError("Connection reset by peer\nmore")})
    with pytest.raises(results.KitError, match="Another process of this run has ended.*Connection reset"):
        ranks.barrier()

def test_files_have_the_mode_of_the_umask(tmp_path):
    results.write(tmp_path / "plan.txt", b"whole")
    results.save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)}, {})
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1

# ---- the command ------------------------------------------------------------------------------------------

def test_the_command_line_end_to_end_reuse_and_refusal(line, tmp_path, capsys):
    def again(*more):
        assert r.answer(r.parse_arguments(line(*more))) == 0
        return capsys.readouterr().out

    first, out = command(*line("--lines-only")), tmp_path / "out"
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith(f"Look first at {out}/report.md and {out}/figures/fig2-lines.png.\n")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "report.md"}
    grid, models = out / "grids/pos/encoder/en-de/seed1.jsonl", out / "models/pos/encoder"
    assert {p for p in before if p.parent.name != "figures"} == {grid, *(
        models / langs / "seed1" / name for langs in ("de", "de-en", "en")
        for name in ("model.safetensors", "train.jsonl"))}
    assert {p.suffix for p in (out / "figures").iterdir()} == {".png", ".pdf"}
    assert (out / "report.md").exists()
    said = again("--lines-only")
    assert said.count("already trained") == 3 and "65 of 65 points already in" in said
    assert before == {p: p.read_bytes() for p in before}
    refused = command(*line("--batch-size", "16"))
    assert refused.returncode == 2 and "was made with batch_size 8, this run asks for 16" in refused.stderr
    assert "65 of 465 points already in" in again() and len(lines(grid)) == 466
    said, wanted = again("--dry-run"), ("3 of 3 distinct models", "465 of 465 points", '"precision": "fp32"')
    assert all(text in said for text in wanted)

def read_nouns(path, lang):
    for words, tags in data.read_pos(path, lang):
        yield words, [(int(data.UPOS[tag] == "NOUN"),) for tag, in tags]

def test_a_task_is_one_entry_in_one_table(line, tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "nouns", tasks.Task(
        ("accuracy",), data.ud_file, read_nouns, data.encode_words, ("other", "noun"),
        *tasks.reads_with("Linear", "accuracy")))
    args = line("--task", "nouns", "--seeds", "1", "2", "--lines-only")
    assert r.answer(r.parse_arguments(args)) == 0
    header, *points = lines(tmp_path / "out/grids/nouns/encoder/en-de/seed2.jsonl")
    assert header["task"] == "nouns" and len(points) == 65
    assert "nouns" in (tmp_path / "out/report.md").read_text()
    assert r.answer(r.parse_arguments([*args, "--dry-run"])) == 0
    in_the_demo = r.parse_arguments(["--demo", "--task", "nouns"])
    assert r.settings(in_the_demo, r.Finetuned("nouns", "e", ("A",), 1))["epochs"] == 5

def test_one_diverged_model_leaves_the_rest_and_is_named(line, tmp_path, monkeypatch, capsys):
    loss, finetune, out = heads.Model.loss, r.finetune, tmp_path / "out"

    def diverging(run, unit):
        factor = float("nan") if unit.langs == ("de",) and unit.seed == 1 else 1.0
        monkeypatch.setattr(heads.Model, "loss", lambda self, batch: loss(self, batch) * factor)
        finetune(run, unit)

    monkeypatch.setattr(r, "finetune", diverging)
    one, two = (r.parse_arguments(line("--lines-only", "--seeds", *seeds)) for seeds in ("1", "12"))
    assert r.answer(one) == r.answer(two) == 3   # of the first, not one pair is whole
    assert "loss became nan" in capsys.readouterr().out
    assert (out / "models/pos/encoder/en/seed1/model.safetensors").exists()
    assert len(lines(out / "grids/pos/encoder/en-de/seed2.jsonl")) == 66
    failed = json.loads((out / "models/pos/encoder/de/seed1/failed.json").read_text())
    assert "before step" in failed["problem"] and failed["lr"] == 1e-2
    assert "pos encoder de seed 1: the loss became nan" in (out / "report.md").read_text()
    monkeypatch.undo()
    assert r.answer(two) == 0   # the same command fills what is missing
    assert not list(out.rglob("*failed*")) and (out / "grids/pos/encoder/en-de/seed1.jsonl").exists()

@pytest.mark.parametrize("error", [RuntimeError("no kernel image"), None])
def test_a_unit_that_raises_is_recorded_and_a_fault_of_the_kit_is_shown_at_the_end(
        line, tmp_path, monkeypatch, capsys, error):
    finetune, out = r.finetune, tmp_path / "out"

    def failing(run, unit):
        with monkeypatch.context() as patch:
            if unit.langs == ("de",) and error:
                patch.setattr(heads.Model, "loss", Mock(side_effect=error))
            elif unit.langs == ("de",):
                patch.setattr(data, "batch_order", None)
            finetune(run, unit)

    monkeypatch.setattr(r, "finetune", failing)
    assert r.answer(r.parse_arguments(line("--lines-only", "--tgt", "de", "en", "--src", "en", "de"))) == 3
    said, reason = capsys.readouterr(), "no kernel image" if error else "'NoneType' object is not callable"
    assert (out / "models/pos/encoder/en/seed1/model.safetensors").exists() and f"({reason})" in said.out
    failed = json.loads((out / "models/pos/encoder/de/seed1/failed.json").read_text())
    assert reason in failed["problem"] and "in finetune" in failed["traceback"]
    assert ("Traceback" in said.err) == (error is None)

def test_corpus_files_that_are_gone_are_fetched_for_grids_of_finished_models(line, tmp_path, monkeypatch):
    folder, fetched = shutil.copytree(line()[3], tmp_path / "data"), []
    argv = line("--lines-only", "--data", str(folder))
    assert r.answer(r.parse_arguments(argv)) == 0
    grid, gone = next(tmp_path.glob("out/grids/**/*.jsonl")), data.ud_file(folder, "en", "train").path
    whole, content = grid.read_bytes(), gone.read_bytes()
    grid.unlink(), gone.unlink()
    monkeypatch.setattr(data, "download", lambda source: fetched.append(source.path) or content)
    assert r.answer(r.parse_arguments(argv)) == 0 and fetched == [gone] and grid.read_bytes() == whole

def test_demos_take_the_cpu_where_there_is_a_gpu():
    assert r.parse_arguments(["--demo"]).device == "cpu"
    assert r.parse_arguments(["--demo", "--device", "cuda"]).device == "cuda"
    assert r.parse_arguments("--task pos --src en --tgt de".split()).device is None

def test_a_wrong_flag_is_answered_in_one_line_before_the_slow_imports_are_announced():
    done = command("--task", "pos", "--src", "en", "--tgt", "de", "--seeds", "1,2")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "separate by spaces" in done.stderr

def test_a_state_that_says_more_than_is_taken_up_is_refused(tmp_path):
    def begin():
        with open(tmp_path / "train.jsonl", "a+b") as journal:
            return train.Training(model, train.Settings(4, 1e-3, [2, 4]), {"a": 1}, journal)
    model = torch.nn.Linear(2, 2)
    run = begin()
    model(torch.ones(1, 2)).sum().backward()
    run.adam.step()
    run.save()
    assert all(state["exp_avg"].abs().sum() > 0 for state in begin().adam.state.values())
    about, tensors = results.load_tensors(run.path)
    tensors = {name.replace("exp_avg.", "adam.0."): value.clone() for name, value in tensors.items()}
    results.save_tensors(run.path, tensors, about)
    with pytest.raises(results.KitError, match="adam.0"):
        begin()

def test_imports_form_a_list_without_a_circle():
    modules, imported = {path.stem: path for path in KIT.glob("*.py")}, {}
    for name, path in modules.items():
        nodes = [*ast.walk(ast.parse(path.read_text()))]   # those inside functions too
        found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imported[name] = found & modules.keys()
    order = [*graphlib.TopologicalSorter(imported).static_order()]   # a CycleError names the circle
    assert order[0] == "results" and order[-1] == "reproduce", imported
    assert [name for name, found in imported.items() if "plot" in found] == ["reproduce"]

def test_a_model_of_another_choice_is_not_taken_for_one_of_this(make):
    """Also where the choice is the default, which is not written down."""
    run = make("--select", "last")
    unit = pair_of(run).models()[1]
    r.finetune(run, unit)
    with pytest.raises(results.KitError, match="made with select last, this run asks for dev"):
        r.finetune(make(), unit)
