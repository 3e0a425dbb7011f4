"""The benchmark and the controls on the tiny encoder: two ways score alike, a change is what it says."""

import json
import os
import subprocess
import sys

import benchmark
import controls
import numpy as np
import pytest
from conftest import KIT

import plot
import reproduce

@pytest.mark.parametrize("task", ["pos", "xnli"])
def test_kit_and_plain_loop_score_the_same_models_alike(encoder, corpus, tmp_path, monkeypatch, task):
    monkeypatch.setattr(reproduce, "train", reproduce.train)   # which is put back
    args = reproduce.parse_arguments(
        f"--task {task} --src en --tgt de --seeds 1 --epochs 1 --lr 1e-2 --batch-size {benchmark.BATCH} "
        f"--device cpu --encoder {encoder} --data {corpus} --out {tmp_path}".split())
    ways = [benchmark.Kit(args), benchmark.Plain(args)]
    sizes = [way.save() for way in ways]
    assert 0 < sizes[0] < sizes[1]
    before = {name: p.clone() for name, p in ways[1].model.named_parameters()}
    for way in ways:
        assert way.step(0, "fp32") > 0 and way.step(9, "bf16") > 0
    assert any((p != before[name]).any() for name, p in ways[1].model.named_parameters())
    counts = []
    for way in ways:
        way.load()
        counts.append(np.array([way.point(*point)[1] for point in ((0, 0), (1, 0), (0, 1), (1.5, -.5))]))
    assert (counts[0] == counts[1]).all() and len(np.unique(counts[0], axis=0)) > 1   # not one label for all

@pytest.fixture
def small(encoder, corpus, tmp_path):
    """Flags of a small experiment, the first 8 sentences of each file."""
    return (f"--task pos --src en --tgt de --seeds 1 --epochs 1 --lr 1e-2 --batch-size 4 --limit 8 "
            f"--device cpu --encoder {encoder} --data {corpus} --out {tmp_path}".split())

def test_a_control_with_more_sentences_is_trained_on_them(small, encoder):
    base, steps = reproduce.Run(reproduce.parse_arguments(small)), []
    unit = reproduce.Finetuned("pos", str(encoder), ("en",), 1)
    for changes in ({}, {"limit": [controls.MORE * 8]}):
        *_, run = controls.trained(base, unit, **changes)
        log = unit.path(run.args.out).with_name("train.jsonl").read_text().splitlines()
        steps.append(json.loads(log[-1])["step"])
    assert steps == [2, 8]

def test_controls_run_to_their_table(small, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["controls.py", *small, "--lr", "1e-2", "1e-3", "1e-4"])
    monkeypatch.setattr(controls, "EPOCHS", (1,))
    monkeypatch.setattr(plot, "draw_figure", lambda name, make, out: make())
    controls.main()
    said = capsys.readouterr().out
    rows = ("nothing", "source model halfway", "bilingual model at half the epochs",
            "4 times the sentences at as many steps", "encoder not pretrained", "rate 0.001", "rate 0.0001")
    assert all(f"\n{row} " in said for row in rows)

@pytest.mark.parametrize("command, said", [
    ("titles.py", "got nothing"), ("titles.py data en xx", "got data en xx"),
    ("titles.py no-such-folder en", "no-such-folder"),
    ("controls.py --limit 8 --epochs 1", "none/ud/"), ("rounding.py --limit 8", "none/ud/")])
def test_a_mistake_is_told_in_a_sentence_with_code_2(tmp_path, encoder, command, said):
    script, *flags = command.split()
    if script != "titles.py":   # as in reproduce.py, but for the corpora
        flags += f"--task pos --src en --tgt de --device cpu --encoder {encoder} --data none".split()
    done = subprocess.run([sys.executable, KIT / "scripts" / script, *flags], capture_output=True, text=True,
                          cwd=tmp_path, env=os.environ | {"http_proxy": "http://127.0.0.1:9",
                                                          "https_proxy": "http://127.0.0.1:9"})
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
