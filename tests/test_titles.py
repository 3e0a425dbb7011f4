"""Titles from the command line: training, lines, XLRS, report; killed, in two processes, real sentences."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import titles
from conftest import KIT, contents, real
from test_generate import LETTERS, examples, write_generator

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

def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]

@pytest.mark.parametrize("kind", ["mT5", "mBART"])
def test_titles_go_through_training_line_and_report(line, tmp_path, kind, capsys):
    assert r.answer(r.parse_arguments(line(kind=kind))) == 0
    out, said = tmp_path / "out", capsys.readouterr().out
    assert "A second source language helps" in said
    told = [line for line in said.splitlines() if "is told right in" in line]
    assert len(told) == len({*told}) == 2 + 2 + 3 and not any(" of de is" in line for line in told)
    models = out / f"models/title/{kind}"
    assert {path.name for path in models.iterdir()} == {"en", "de", "de-en", "en-fr", "de-en-fr"}
    header, *points = read(out / f"grids/title/{kind}/en+fr-de/seed1.jsonl")
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
    log = read(models / "en-fr/seed1/train.jsonl")
    assert [record["step"] for record in header["way"]] == [record["step"] for record in log]
    about, _ = results.load_tensors(models / "en-fr/seed1/model.safetensors", None)
    kept = next(record for record in log if record["step"] == about["best_step"])
    assert header["xlrs"]["source"] == pytest.approx(kept["watched"]["de"]["xlrs"], abs=1e-4)
    assert "watched" not in read(models / "de/seed1/train.jsonl")[0]
    figures = plot.written_figures(generate.ranked, load([out]))
    drawn = [name for name, _, make in figures if make().axes]
    assert drawn == ["wrong-language", "xlrs-steps", "xlrs-target"]
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
    header, *points = read(tmp_path / "out/grids/stories/BART/en-de/seed1.jsonl")
    assert header["task"] == "stories" and len(points) == 65
    assert sum("written" in point for point in points) == 2
    assert "stories" in (tmp_path / "out/report.md").read_text()

def test_what_is_watched_changes_no_model(line, tmp_path):
    def digests(*more):
        args = r.parse_arguments(line(*more))
        run = r.Run(args)
        run.watch.read()
        for unit in r.plan(args)[0]:
            r.finetune(run, unit)
        return [results.load_tensors(unit.path(args.out))[0]["digest"] for unit in r.plan(args)[0]]

    watched, argv = digests(), line("--out", str(tmp_path / "other"))
    del argv[argv.index("--parallel"):argv.index("--out", argv.index("--parallel"))]
    args = r.parse_arguments(argv)
    run = r.Run(args)
    for unit in r.plan(args)[0]:
        r.finetune(run, unit)
    assert watched == [results.load_tensors(unit.path(args.out))[0]["digest"] for unit in r.plan(args)[0]]
    last = digests("--out", str(tmp_path / "last"), "--select", "last")
    assert last != watched
    with pytest.raises(results.KitError, match="made with"):   # other settings, so another experiment
        digests("--out", str(tmp_path / "last"), "--select", "xlrs", "--lr", "2e-2")

def test_a_further_learning_rate_stands_beside_and_in_no_claim(line, tmp_path):
    assert r.answer(r.parse_arguments(line("--lr", "1e-2", "3e-2", "--src", "en"))) == 0
    out = tmp_path / "out"
    assert read(out / "grids/title/BART/en-de/seed1.lr0.03.jsonl")[0]["settings"]["lr"] == .03
    assert (out / "models/title/BART/en/seed1.lr0.03/model.safetensors").exists()
    grids = load([out])
    assert [grid.control for grid in grids] == [False, True]
    assert grids[1].encoder_name == "BART, lr 0.03" and "BART, lr 0.03" in (out / "report.md").read_text()
    assert plot.claims(grids) == plot.claims(grids[:1])

@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_either_half_may_move_alone(line, tmp_path, part):
    assert r.answer(r.parse_arguments(line("--src", "en"))) == 0
    assert r.answer(r.parse_arguments(line("--src", "en", "--part", part))) == 0
    everything, alone = (read(tmp_path / f"out/grids/title/BART/en-de/seed1{name}.jsonl")[1:]
                         for name in ("", f".{part}"))
    assert everything[0]["src"] != alone[0]["src"] or everything[0]["tgt"] != alone[0]["tgt"]
    assert [p for p in everything if not p["a1"] and not p["a2"]][0]["src"] == [
        p for p in alone if not p["a1"] and not p["a2"]][0]["src"]
    if not load([tmp_path / "out"])[0].collapse():
        assert f"its {part} alone" in (tmp_path / "out/report.md").read_text()

# ---- in other processes -----------------------------------------------------------------------------------

@pytest.fixture
def scratch(corpus, tmp_path):
    """Arguments of a tiny run from sentences of treebanks, with a BART that is pretrained on them."""
    def arguments(out, treebanks=corpus, langs=("en", "de"), src="en", *more):
        titles.write(tmp_path / "data", treebanks, langs)
        for lang in langs:
            sources = [json.loads(line)["source"] for line in
                       (tmp_path / f"data/title/{lang}/train.jsonl").read_text().splitlines()]
            (tmp_path / f"{lang}.txt").write_text("\n".join(sources[:200]) + "\n")
        return ["--task", "title", "--src", src, "--tgt", "de", "--encoder", "scratch", "--text",
                *(str(tmp_path / f"{lang}.txt") for lang in langs), "--pretraining", PRESET, "--data",
                str(tmp_path / "data"), "--out", str(tmp_path / out), "--seeds", "1", "--epochs", "1",
                "--batch-size", "8", "--lr", "1e-2", "--lines-only", "--device", "cpu", *more]
    return arguments

@pytest.mark.slow   # two minutes; test_trust.py has its fast kin
def test_killed_and_in_two_processes_the_files_are_the_same(scratch, tmp_path):
    short = tmp_path / "short.py"   # the command, with titles of 6 subwords
    short.write_text(f"import runpy, sys\nsys.path.insert(0, {str(KIT)!r})\nimport data\n"
                     "data.TARGET_SUBWORDS = 6\n"
                     f"runpy.run_path({str(KIT / 'reproduce.py')!r}, run_name='__main__')\n")

    def start(out, *launcher):
        return subprocess.Popen([sys.executable, *launcher, short, *scratch(out)],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                start_new_session=True)

    def done(process):
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said

    done(start("whole"))
    for awaited in ("encoders/*/train.jsonl", "models/title/*/*/seed1/model.safetensors", "grids/*/*/*/*"):
        process = start("killed")
        while process.poll() is None and not list((tmp_path / "killed").glob(awaited)):
            time.sleep(.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done(start("killed"))
    done(start("two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed") == contents(tmp_path / "two")
    assert any(name.startswith("grids/") for name in contents(tmp_path / "two"))

def test_real_sentences_with_two_source_languages_run_to_the_end(scratch, tmp_path, capsys):
    argv = scratch("out", real("data"), ("en", "fr", "de"), "en+fr", "--limit", "40")
    assert r.answer(r.parse_arguments(argv)) == 0
    assert len(read(tmp_path / "out/grids/title/en-fr-de-bart/en+fr-de/seed1.jsonl")) == 66

# ---- bad input --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, said", [
    (("--part", "head"), "title has encoder and decoder"),
    (("--task", "pos", "--part", "decoder"), "pos has encoder and head"),
    (("--src", "en+xx"), "'xx' is no language"), (("--src", "en+de"), "a pair needs two"),
    (("--tgt", "de.inversion"), "languages that are not derived"), (("--select", "best"), "invalid choice")])
def test_flags_that_make_no_sense_are_told_in_a_line(line, flags, said, capsys):
    with pytest.raises(SystemExit):
        r.parse_arguments(line(*flags))
    assert said in capsys.readouterr().err

def test_selection_by_xlrs_needs_parallel_sentences(capsys):
    with pytest.raises(SystemExit):
        r.parse_arguments("--task title --src en --tgt de --select xlrs".split())
    assert "--select xlrs needs --parallel" in capsys.readouterr().err

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
