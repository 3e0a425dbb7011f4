"""Titles from the command line: training, lines, XLRS, report; killed, in two processes, real sentences."""

import json

import pytest
import titles
from conftest import contents, real, torchrun
from test_generate import LETTERS, examples, write_generator
from test_reproduce import lines
from test_trust import KILLED, Run, kit, same  # noqa: F401

import data
import generate
import plot
import reproduce as r
import results
import tasks
from grids import load

PRESET = ("layers=1,heads=2,hidden=16,vocabulary=300,length=32,batch=8,steps=8,warmup=2,lr=1e-2,"
          "blocks=sentences")

def letters(folder, sizes):
    """Title corpora of en, fr and de, whose words are letters, and parallel files of them."""
    for number, lang in enumerate(("en", "fr", "de")):
        own = str.maketrans(LETTERS, LETTERS[8 * number:] + LETTERS[:8 * number])
        for split, size in sizes.items():
            pairs = [[text.translate(own) for text in pair] for pair in examples(size, seed=size)]
            path = folder / "title" / lang / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{json.dumps(dict(source=source, target=target))}\n"
                                    for source, target in pairs))
        (folder / f"{lang}.txt").write_text("".join(f"{source}\n" for source, _ in pairs))
    return folder

@pytest.fixture
def line(tmp_path, monkeypatch):
    """line(*more): the arguments of a tiny run; of a flag given twice the last one counts."""
    for module in (data, generate):   # models that learned nothing write to the end
        monkeypatch.setattr(module, "TARGET_SUBWORDS", 6)
    monkeypatch.setattr(plot, "draw_figure", lambda *_: None)   # figures are slow, and others test them
    folder = letters(tmp_path / "data", {"train": 40, "dev": 12})
    def arguments(*more, kind="BART"):
        encoder = tmp_path / kind
        if not encoder.exists():
            write_generator(encoder, kind)
        parallel = [str(folder / f"{lang}.txt") for lang in ("en", "fr", "de")]
        return ["--task", "title", "--src", "en", "en+fr", "--tgt", "de", "--encoder", str(encoder),
                "--data", str(folder), "--out", str(tmp_path / "out"), "--seeds", "1", "--epochs", "2",
                "--batch-size", "8", "--lr", "1e-2", "--lines-only", "--device", "cpu",
                "--parallel", *parallel, *more]
    return arguments

@pytest.mark.parametrize("kind", ["mT5", "mBART"])
def test_titles_go_through_training_line_and_report(line, tmp_path, kind, capsys):
    assert r.answer(r.parse_arguments(line(kind=kind))) == 0
    out, said = tmp_path / "out", capsys.readouterr().out
    assert "A second source language helps" in said
    told = [line for line in said.splitlines() if "is told right in" in line]
    assert len(told) == len({*told}) == 2 + 2 + 3 and not any(" of de is" in line for line in told)
    models = out / f"models/title/{kind}"
    assert {path.name for path in models.iterdir()} == {"en", "de", "de-en", "en-fr", "de-en-fr"}
    header, *points = lines(out / f"grids/title/{kind}/en+fr-de/seed1.jsonl")
    assert len(points) == 65 and header["metrics"] == list(r.TASKS["title"].metrics)
    assert set(header["dev"]) == {"en", "fr", "de"} and set(header["majority"]) == {"en+fr", "de"}
    for a1, a2, langs in ((0, 0, "de-en-fr"), (1, 0, "en-fr"), (0, 1, "de")):
        [point] = [point for point in points if (point["a1"], point["a2"]) == (a1, a2)]
        about, _ = results.load_tensors(models / langs / "seed1/model.safetensors", None)
        for lang, score in about["score"].items():
            own = point["tgt"] if lang == "de" else point["each"][lang]
            assert own["ROUGE-L"] == score["ROUGE-L"]
        of = [score["ROUGE-L"] for score in point["each"].values()]
        assert point["src"]["ROUGE-L"] == pytest.approx(sum(of) / 2, abs=1e-4)
        assert ("written" in point) == (a2 == 0)
    log = lines(models / "en-fr/seed1/train.jsonl")
    assert [record["step"] for record in header["way"]] == [record["step"] for record in log]
    about, _ = results.load_tensors(models / "en-fr/seed1/model.safetensors", None)
    kept = next(record for record in log if record["step"] == about["best_step"])
    assert header["xlrs"]["source"] == pytest.approx(kept["watched"]["de"]["xlrs"], abs=1e-4)
    assert "watched" not in lines(models / "de/seed1/train.jsonl")[0]
    figures = plot.written_figures(generate.ranked, load([out]))
    drawn = [name for name, _, make in figures if make().axes]
    assert drawn == ["wrong-language", "xlrs-steps", "xlrs-target"]
    watch, unit = generate.Watch([], [("en", "de")], None, None), r.Finetuned("title", kind, ("en",), 1)
    assert watch.targets(unit) == ["de"] and not watch.targets(unit._replace(visitor="few-10", tgt="de"))
    report = (out / "report.md").read_text()
    for text in ("## Generation", "What each --select keeps", "en+fr, zero-shot", "wrong-language words"):
        assert text in report

def test_another_task_that_writes_is_one_entry_in_the_table(line, tmp_path, monkeypatch):
    def exchanged(path, lang):
        return [(target, source) for source, target in data.read_titles(path, lang)]

    monkeypatch.setitem(tasks.TASKS, "stories", tasks.Task(
        ("ROUGE-L", "wrong-language outputs", "wrong-language words"), data.title_file, exchanged,
        data.encode_titles, (), *tasks.writes_with("scores")))
    assert r.answer(r.parse_arguments(line("--task", "stories", "--src", "en"))) == 0
    header, *points = lines(tmp_path / "out/grids/stories/BART/en-de/seed1.jsonl")
    assert header["task"] == "stories" and len(points) == 65
    assert sum("written" in point for point in points) == 2
    assert "stories" in (tmp_path / "out/report.md").read_text()

def test_what_is_watched_changes_no_model(line, tmp_path):
    def digests(*more, argv=()):
        args = r.parse_arguments([*(argv or line()), *more])
        run = r.Run(args)
        run.watch.read()
        units = [unit for unit in r.plan(args)[0] if "de" not in unit.langs]   # the others are not watched
        for unit in units:
            r.finetune(run, unit)
        return [results.load_tensors(unit.path(args.out))[0]["digest"] for unit in units]

    watched, argv = digests(), line()
    assert watched == digests("--out", str(tmp_path / "other"), argv=argv[:argv.index("--parallel")])
    last = "--out", str(tmp_path / "last"), "--select"
    assert digests(*last, "last") != watched
    with pytest.raises(results.KitError, match="made with"):   # other settings, so another experiment
        digests(*last, "xlrs", "--lr", "2e-2")

def test_a_further_learning_rate_and_either_half_stand_beside(line, tmp_path):
    out = tmp_path / "out"
    assert r.answer(r.parse_arguments(line("--lr", "1e-2", "3e-2", "--src", "en"))) == 0
    assert lines(out / "grids/title/BART/en-de/seed1.lr0.03.jsonl")[0]["settings"]["lr"] == .03
    assert (out / "models/title/BART/en/seed1.lr0.03/model.safetensors").exists()
    grids = load([out])
    assert [grid.control for grid in grids] == [False, True]
    assert grids[1].encoder_name == "BART, lr 0.03" and "BART, lr 0.03" in (out / "report.md").read_text()
    assert plot.claims(grids) == plot.claims(grids[:1])   # a further rate is in no claim
    for part in ("encoder", "decoder"):
        assert r.answer(r.parse_arguments(line("--src", "en", "--part", part))) == 0
        everything, alone = ({(point.pop("a1"), point.pop("a2")): (point["src"], point["tgt"]) for point in
                              lines(out / f"grids/title/BART/en-de/seed1{name}.jsonl")[1:]}
                             for name in ("", f".{part}"))
        assert everything[1.5, 0] != alone[1.5, 0] and everything[0, 0] == alone[0, 0]
        if not grids[0].collapse():
            assert f"its {part} alone" in (out / "report.md").read_text()

# ---- in other processes -----------------------------------------------------------------------------------

@pytest.fixture
def scratch(corpus, tmp_path):
    """Arguments of a tiny run from sentences of treebanks, with a BART that is pretrained on them."""
    def arguments(out, limit, treebanks=corpus, langs=("en", "de"), src="en"):
        titles.write(tmp_path / "data", treebanks, langs)
        for lang in langs:
            examples = lines(tmp_path / f"data/title/{lang}/train.jsonl")[:200]
            (tmp_path / f"{lang}.txt").write_text("".join(f"{each['source']}\n" for each in examples))
        return ["--task", "title", "--src", src, "--tgt", "de", "--encoder", "scratch", "--text",
                *(str(tmp_path / f"{lang}.txt") for lang in langs), "--pretraining", PRESET, "--data",
                str(tmp_path / "data"), "--out", str(tmp_path / out), "--seeds", "1", "--epochs", "1",
                "--batch-size", "8", "--lr", "1e-2", "--lines-only", "--device", "cpu", "--limit", limit]
    return arguments

@pytest.mark.slow   # two minutes; test_trust.py has its fast kin
@pytest.mark.usefixtures("kit")
def test_killed_and_in_two_processes_the_files_are_the_same(scratch, tmp_path):
    for awaited in ("encoders/*/train.jsonl", "models/title/*/*/seed1/model.safetensors", "grids/*/*/*/*"):
        run = Run(scratch("killed", "12"), {})
        run.until(lambda: list((tmp_path / "killed").glob(awaited)))
        assert run.kill() == KILLED
    for out in ("whole", "killed"):
        assert Run(scratch(out, "12"), {}).wait() == 0
    two = torchrun(*scratch("two", "12"))
    assert two.communicate() and two.returncode == 0
    same(tmp_path / "killed", contents(tmp_path / "whole"))
    same(tmp_path / "two", contents(tmp_path / "whole"))   # so small a model has collapsed: no figures
    assert list(tmp_path.glob("two/grids/**/*.jsonl"))

def test_real_sentences_with_two_source_languages_run_to_the_end(scratch, tmp_path, capsys):
    argv = scratch("out", "40", real("data"), ("en", "fr", "de"), "en+fr")
    assert r.answer(r.parse_arguments(argv)) == 0
    assert len(lines(tmp_path / "out/grids/title/en-fr-de-bart/en+fr-de/seed1.jsonl")) == 66

# ---- bad input --------------------------------------------------------------------------------------------

def test_what_does_not_fit_is_told_before_anything_is_written(line, encoder, tmp_path, capsys):
    def problem(*more):
        assert r.answer(r.parse_arguments(line(*more))) == 2
        assert not (tmp_path / "out/models").exists()
        return capsys.readouterr().err

    short = tmp_path / "de.txt"
    short.write_text("a\n")
    files = [str(tmp_path / "data" / f"{lang}.txt") for lang in ("en", "fr")]
    assert "it is an encoder alone" in problem("--encoder", str(encoder))
    assert "--parallel names no file for de" in problem("--parallel", *files)
    assert "de.txt has 1, " in problem("--parallel", *files, str(short))
    path = data.title_file(tmp_path / "data", "de", "dev").path
    path.write_text(path.read_text() + "{}\n")
    assert f"{path}, line 13: its 'source' is None; expected a text." in problem()
