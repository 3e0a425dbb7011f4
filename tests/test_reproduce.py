"""Fine-tuning, interpolation, results and the command line, with a tiny random encoder."""

import json

import numpy as np
import pytest
import torch
import transformers
from conftest import reproduce

import data
import heads
import reproduce as r


@pytest.fixture
def bench(encoder, corpus, tmp_path):
    return lambda *more, task="pos": r.Bench(r.parse_arguments(
        ["--task", task, "--src", "en", "--tgt", "de", "--encoder", str(encoder), "--data", str(corpus), "--seeds", "1",
         "--epochs", "1", "--batch-size", "8", "--lr", "1e-2", "--device", "cpu", "--out", str(tmp_path / "out"), *more]))


def grid_of(bench):
    args = bench.args
    return r.Grid(args.task[0], args.encoder[0], "en", "de", 1)


def run(bench, kept=None):
    """Fine-tune the three models of a bench and score the grid; returns its header and points."""
    g = grid_of(bench)
    for m in g.models():
        r.finetune(bench, m)
    r.evaluate_grid(bench, g)
    header, *points = map(json.loads, g.path(bench.args.out, bench.args.part).read_text().splitlines())
    return header, {(p["a1"], p["a2"]): (p["src"], p["tgt"]) for p in points}


# ------------------------------------------------------------------------------------------------------- fine-tuning

@pytest.mark.parametrize("total", [7, 10, 125, 1965])
def test_warm_up_and_decay_are_transformers_linear_schedule(total):
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = transformers.get_linear_schedule_with_warmup(adam, int(0.1 * total), total)
    for step in range(total):
        assert r.warmup_decay(step, total) == pytest.approx(schedule.get_last_lr()[0])
        adam.step()
        schedule.step()


def test_all_models_of_a_seed_start_from_identical_parameters_head_included(bench, tmp_path):
    b, starts = bench(), []
    for i, m in enumerate(grid_of(b).models()):
        with r.locked(tmp_path / f"{i}.jsonl") as journal:
            starts.append(r.Training(b, m, r.model_config(b, m), tmp_path / "none", journal).theta.detach().clone())
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])
    reader = b.reader(b.args.encoder[0], "pos")
    other = reader.start(2)
    assert torch.equal(other[:reader.split], starts[0][:reader.split])         # the encoder is the pretrained one,
    assert not torch.equal(other[reader.split:], starts[0][reader.split:])     # the head is the seed's


def test_the_flat_vector_is_the_modules_own_parameters(bench):
    b = bench()
    reader = b.reader(b.args.encoder[0], "pos")
    encoder = transformers.AutoModel.from_pretrained(b.args.encoder[0], add_pooling_layer=False).eval()
    batch = b.examples("pos", b.args.encoder[0], "en", "dev").batch(np.arange(5))
    reader.eval()
    theta = reader.start(3)
    torch.manual_seed(3)
    head = heads.Linear(encoder.config.hidden_size, len(data.UPOS)).eval()
    mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()
    hidden = encoder(input_ids=batch.ids, attention_mask=mask, token_type_ids=batch.types).last_hidden_state
    want = head.out(hidden.flatten(0, 1)[batch.at[batch.place]]).argmax(-1)
    (found,) = reader.run(theta, batch)
    assert torch.equal(found[..., 0][batch.real], want[batch.real])
    assert all(torch.equal(reader.views(reader.flat(reader.views(theta)))[n], v) for n, v in reader.views(theta).items())


def test_the_last_layer_gives_the_same_states_when_it_works_on_the_read_positions_only(bench):
    for task in r.TASKS:
        b = bench(task=task)
        reader = b.reader(b.args.encoder[0], task).eval()
        batch = b.examples(task, b.args.encoder[0], "en", "dev").batch(np.arange(9))
        assert reader.early
        early = reader.read(batch)
        reader.early = False
        after = reader.encoder.encoder.layer[-1].attention.output
        hooks, after._forward_pre_hooks = after._forward_pre_hooks, type(after._forward_pre_hooks)()
        late = reader.read(batch)
        reader.early, after._forward_pre_hooks = True, hooks
        assert torch.allclose(early, late, atol=1e-5) and early.shape == (*batch.real.shape, early.shape[-1])


def test_the_gradient_is_that_of_the_ordinary_module(bench):
    for task in r.TASKS:
        b = bench(task=task)
        reader = b.reader(b.args.encoder[0], task).train()
        batch, theta = b.examples(task, b.args.encoder[0], "en", "train").batch(np.arange(7)), reader.start(3)
        found, out = reader.views(theta), torch.zeros_like(theta)
        torch.manual_seed(0)   # the same dropout
        loss = reader.gradient(theta, batch, out)
        with torch.no_grad():
            for n, p in reader.named_parameters():
                p.copy_(found[n])
        torch.manual_seed(0)
        want = reader(batch)
        want.backward()
        assert torch.isclose(loss, want) and out.abs().sum() > 0
        for n, p in reader.named_parameters():
            assert torch.allclose(reader.views(out)[n], torch.zeros_like(p) if p.grad is None else p.grad, atol=1e-6), n
        reader.zero_grad()


def test_a_bilingual_epoch_has_one_language_a_batch_and_every_sentence_once():
    sets = {"de": (range(21), None), "en": (range(50), None)}
    for epoch in range(2):
        order = r.batch_order(sets, 8, 1, epoch)
        for lang, (train, _) in sets.items():
            assert sorted(i for name, batch in order if name == lang for i in batch) == list(train)
        assert all(len(batch) <= 8 for _, batch in order) and len(order) == 3 + 7
    assert [lang for lang, _ in order] != sorted(lang for lang, _ in order)


def test_training_learns_and_logs_each_dev_scoring(bench):
    b = bench("--epochs", "3")
    m = r.Model("pos", b.args.encoder[0], ("en",), 1)
    r.finetune(b, m)
    folder = m.folder(b.args.out)
    log = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len(log) == 12 and log[-1]["step"] == 15 and log[-1]["loss"] < log[0]["loss"]
    assert set(log[0]) == {"step", "lr", "loss", "score"} and set(log[0]["score"]) == {"en"}
    about, tensors = r.load(folder / "model.safetensors", None)
    best = max(log, key=lambda line: line["score"]["en"])     # the first of the best
    assert (about["best_step"], about["score"]) == (best["step"], best["score"]["en"])
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "train.jsonl"}
    assert any(n.startswith("encoder.") for n in tensors) and any(n.startswith("head.") for n in tensors)


# ----------------------------------------------------------------------------------------------------- interpolation

def test_the_grid_has_465_distinct_points_and_the_lines_are_its_axes():
    everything, lines = r.points(False), r.points(True)
    assert len(everything) == len(set(everything)) == 441 + 24 and len(lines) == 65
    assert everything[:65] == lines                                   # a run of the lines can be continued to the plane
    for a in r.LINE:
        assert (round(1 - a, 3), 0) in lines and (0, round(1 - a, 3)) in lines
    assert {a1 for a1, a2 in everything if a2 == 0} == {round(1 - a, 3) for a in r.LINE}


def test_corners_are_exact_and_other_points_are_equation_3_on_a_grid_that_is_not_square():
    torch.manual_seed(0)
    ends = torch.randn(3, 1000)
    both, src, tgt = ends
    theta = torch.empty(1000)
    for (a1, a2), end in (((0, 0), both), ((1, 0), src), ((0, 1), tgt)):
        assert torch.equal(r.interpolate(theta, ends, torch.tensor([1. - a1 - a2, a1, a2])), end)
    for a1 in (-0.5, 0.3, 1.5):
        for a2 in (0.7, 1.1):
            want = both + a1 * (src - both) + a2 * (tgt - both)
            assert torch.allclose(r.interpolate(theta, ends, torch.tensor([1 - a1 - a2, a1, a2])), want, atol=1e-5)


def test_norms_and_angle_by_hand():
    both = torch.tensor([1.0, 1, 1, 0])
    found = r.geometry(torch.stack([both, both + torch.tensor([3.0, 0, 0, 0]), both + torch.tensor([2.0, 2, 0, 0])]))
    assert found["norm_src"] == 3 and found["norm_tgt"] == pytest.approx(8 ** .5)
    assert found["norm_ratio"] == pytest.approx(3 / 8 ** .5) and found["angle"] == pytest.approx(45)


@pytest.mark.parametrize("task", ["xnli", "ner", "pos", "parsing"])
def test_grid_scores_at_the_corners_are_the_models_own(bench, task):
    b = bench("--lines-only", task=task)
    header, points = run(b)
    logs = [[json.loads(line) for line in (m.folder(b.args.out) / "train.jsonl").read_text().splitlines()]
            for m in grid_of(b).models()]
    for corner, log in zip(((1, 0), (0, 1), (0, 0)), logs):
        best = max(log, key=lambda line: sum(line["score"].values()))["score"]
        for lang, score in best.items():
            assert points[corner][lang == "de"] == score
    assert header["metric"] == r.TASKS[task].metrics[0] and set(header["dev"]) == {"en", "de"}
    assert len(points) == 65 and all(0 <= s <= 100 for pair in points.values() for s in pair)


def test_a_point_equals_a_model_loaded_with_the_interpolated_state_dict(bench):
    b = bench("--lines-only")
    _, points = run(b)
    g = grid_of(b)
    src, tgt, both = (r.load(m.folder(b.args.out) / "model.safetensors", None)[1] for m in g.models())
    reader = b.reader(g.encoder, "pos")
    for a1, a2 in ((0.3, 0), (0, -0.4), (1.5, 0)):
        state = {n: both[n] + a1 * (src[n] - both[n]) + a2 * (tgt[n] - both[n]) for n in both}
        for i, lang in enumerate(("en", "de")):
            dev = b.examples("pos", g.encoder, lang, "dev")
            assert r.scores(b.counts(reader, reader.flat(state), "pos", dev))[0] == pytest.approx(points[a1, a2][i], abs=0.5)


def test_scores_do_not_depend_on_the_batches(bench):
    for task in r.TASKS:
        b = bench(task=task)
        reader, dev = b.reader(b.args.encoder[0], task), b.examples(task, b.args.encoder[0], "en", "dev")
        found = []
        for size in (1, 8, 64):
            dev.__dict__.pop("kept", None)
            b.args.batch_size = size
            found.append(b.counts(reader, reader.start(1), task, dev).tolist())
        assert found[0] == found[1] == found[2]


def test_parts_leave_the_other_parameters_at_the_bilingual_model(bench):
    _, whole = run(bench("--lines-only"))
    for part in ("encoder", "head"):
        b = bench("--lines-only", "--part", part)
        header, points = run(b)
        ends = r.corners(b, grid_of(b))
        split = b.reader(b.args.encoder[0], "pos").split
        still = slice(split, None) if part == "encoder" else slice(0, split)
        moving = slice(0, split) if part == "encoder" else slice(split, None)
        assert torch.equal(ends[1, still], ends[0, still]) and torch.equal(ends[2, still], ends[0, still])
        assert not torch.equal(ends[1, moving], ends[0, moving])
        assert header["part"] == part and points[0, 0] == whole[0, 0] and points != whole


# ----------------------------------------------------------------------------------------------------- plan and ranks

def plan(*argv):
    return r.plan(r.parse_arguments(argv))


def test_the_papers_matrix_shares_its_models():
    models, grids = plan("--paper")
    assert len(grids) == 2 * 4 * 15 * 3 and len(models) == 2 * 4 * 24 * 3
    one = [m for m in models if (m.task, m.encoder, m.seed) == ("ner", "xlmr", 2)]
    assert len(one) == 24 and sum(len(m.langs) == 1 for m in one) == 9


def test_pairs_of_one_language_are_left_out_and_both_directions_share_a_bilingual_model():
    models, grids = plan("--task", "pos", "--src", "en", "ar", "--tgt", "en", "ar", "--seeds", "1")
    assert [(g.src, g.tgt) for g in grids] == [("en", "ar"), ("ar", "en")]
    assert sorted(m.langs for m in models) == [("ar",), ("ar", "en"), ("en",)]


@pytest.mark.parametrize("world", [1, 2, 5, 40])
def test_ranks_share_all_units_and_the_longest_comes_first(world):
    units = [3, 9, 1, 7, 7, 2, 8, 4]

    class Rank:
        def __init__(self, rank):
            self.rank, self.world = rank, world
    shares = [r.share(list(enumerate(units)), lambda u: u[1], Rank(i)) for i in range(world)]
    assert sorted(u for s in shares for u in s) == list(enumerate(units))
    assert all(s == sorted(s, key=lambda u: -u[1]) for s in shares)
    if world == 2:
        assert max(sum(w for _, w in s) for s in shares) <= 22   # of 41 in all


# ------------------------------------------------------------------------------------------------------ command line

def test_the_command_line_end_to_end_reuse_and_refusal(encoder, corpus, tmp_path):
    line = ["--task", "pos", "--src", "en", "--tgt", "de", "--encoder", str(encoder), "--data", str(corpus), "--seeds", "1",
            "--epochs", "1", "--lr", "1e-2", "--out", str(tmp_path / "out")]
    first = reproduce(*line, "--lines-only")
    assert first.returncode == 0, first.stderr
    out, name = tmp_path / "out", encoder.name
    for path in (*(f"models/pos/{name}/{langs}/seed1/{f}" for langs in ("en", "de", "de-en")
                   for f in ("model.safetensors", "train.jsonl")), f"grids/pos/{name}/en-de/seed1.jsonl", "report.md"):
        assert (out / path).is_file(), path
    assert {p.suffix for p in (out / "figures").iterdir()} == {".png", ".pdf"}
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and "report" not in p.name}
    again = reproduce(*line, "--lines-only")
    assert again.stdout.count("already trained") == 3 and "65 of 65 points already in" in again.stdout
    assert before == {p: p.read_bytes() for p in before}
    refused = reproduce(*line, "--lines-only", "--batch-size", "16")
    assert refused.returncode == 2 and "was made with batch_size 32, this run asks for 16" in refused.stderr
    assert "Traceback" not in refused.stderr
    whole = reproduce(*line)
    assert whole.returncode == 0 and "65 of 465 points already in" in whole.stdout
    assert len((out / f"grids/pos/{name}/en-de/seed1.jsonl").read_text().splitlines()) == 466
    dry = reproduce(*line, "--dry-run")
    assert "3 distinct models" in dry.stdout and "465 of 465 points done" in dry.stdout


@pytest.mark.parametrize("argv, said", [
    (["--task", "poss", "--src", "en", "--tgt", "de"], "choose from"),
    (["--task", "pos", "--src", "en"], "--tgt is missing"),
    (["--task", "pos", "--src", "en", "--tgt", "en"], "a pair needs two languages"),
    (["--task", "pos", "--src", "en", "--tgt", "de", "--limit", "0"], "is no number of at least 1"),
    (["--task", "pos", "--src", "en", "--tgt", "de", "--seeds", "-1"], "is no number of at least 0"),
    (["--task", "pos", "--src", "en", "--tgt", "de", "--lr", "nan"], "is no number"),
    (["--demo", "--src", "en"], "--demo brings its own"),
])
def test_wrong_flags_get_a_sentence(capsys, argv, said):
    with pytest.raises(SystemExit) as stop:
        r.parse_arguments(argv)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_an_unknown_language_gets_the_list(capsys):
    assert r.run(r.parse_arguments(["--task", "pos", "--src", "en", "--tgt", "xx"])) == 2
    assert "there are ar, de, en, es, fr, hi, ru, vi, zh" in capsys.readouterr().err
