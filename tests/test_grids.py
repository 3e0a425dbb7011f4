"""grids.py on made-up grids: numbers by hand, bands, slopes, broken files and torn lines."""

import re

import numpy as np
import pytest
from made_up import LINE, grid, like, seeds, write

from grids import BOTH, SRC, TGT, band, load, normalise, series, shape, slopes
from results import FORMAT, KitError

def test_normalised_scores_and_variance_by_hand():
    runs = seeds(1, 2, keep=0)
    runs[0].points.update({SRC: (76, 25)})
    assert np.isnan(normalise(runs, [SRC])[0]).all()  # without the bilingual model
    runs[0].points.update({BOTH: (80, 50)})
    runs[1].points.update({BOTH: (90, 40), SRC: (90, 30), TGT: (45, 44)})
    scores, variance = normalise(runs, [SRC, BOTH, TGT])
    assert scores[:, :2, 1] == pytest.approx(np.array([[0.5, 1], [0.75, 1]]))
    assert np.isnan(scores[0, 2]).all() and scores[1, 2] == pytest.approx([0.5, 1.1])
    assert variance[:2, 1] == pytest.approx([12.5 / 45, 50 / 45])  # of 25, 30 and 50, 40
    assert np.isnan(variance[2]).all() and scores[:, 0, 0] == pytest.approx([0.95, 1])  # one seed has none

@pytest.mark.parametrize("n,t", [(2, 12.706), (3, 4.303), (11, 2.228), (12, 2.201), (31, 2.042), (99, 1.984)])
def test_band_is_students_t(n, t):
    values = np.arange(n, dtype=float)[:, None]
    assert band(values)[1][0] * n ** 0.5 / values.std(ddof=1) == pytest.approx(t, abs=0.0025)
    mean, half = band(np.array([[1.0, 5, np.nan], [2, np.nan, np.nan], [3, np.nan, np.nan]]))
    assert mean[:2] == pytest.approx([2, 5]) and half[0] == pytest.approx(4.303 / 3 ** 0.5)
    assert np.isnan(half[1:]).all() and np.isnan(mean[2])

@pytest.mark.parametrize("targets, units, half", [
    (("de", "ru"), "runs", 3.182 * np.std([1, 2, 3, 4], ddof=1) / 10 / 2),
    (("de", "ru", "zh"), "cases", 4.303 * np.std([1.5, 3.5, 5.5], ddof=1) / 10 / 3 ** 0.5)])
def test_units_of_a_band_are_cases_or_runs_where_cases_are_few(targets, units, half):
    grids = [made for k, tgt in enumerate(targets) for made in seeds(1, 2, score=like("steps", k), tgt=tgt)]
    scores, found, _ = series(grids, 1)
    assert found == units and band(scores)[1][LINE.index(0), 1] == pytest.approx(half)

def test_points_shape_and_slopes_by_hand():
    made, at = grid(lambda a1, a2, seed: (90 - 30 * max(a2, 0), 80 - 26 * max(a1, 0) ** 2)), LINE.index(0.3)
    assert made.on_line(1)[at] == (0.7, 0.0) and made.on_line(2)[at] == (0.0, 0.7)
    assert made.on_line(1, inside=True)[0] == SRC and made.on_line(2, inside=True)[-1] == BOTH
    line, alphas = shape([made], 1), np.linspace(0, 1, 11)
    scores, chord = 1 - 26 / 80 * (1 - alphas) ** 2, 1 - 26 / 80 * (1 - alphas)
    r2 = 1 - ((scores - chord) ** 2).sum() / ((scores - scores.mean()) ** 2).sum()
    assert line["R squared"][1] == pytest.approx(r2) and line["dip at 0.1"][1] == pytest.approx(-0.00325)
    assert line["bend"] == pytest.approx([0, 0.00325]) and line["rise"] == pytest.approx([0, 26 / 80])
    for lines, length, points in ((False, 20, 465), (True, 12, 65)):  # without a plane, along Eq. 1
        made = grid(lambda a1, a2, seed: (90, 60 - 12 * a1 - 16 * a2), lines)
        assert slopes([made])[:, 1] == pytest.approx([length / 60] * 2) and len(made.points) == points
    steeper = grid(lambda a1, a2, seed: (90, 60 - 24 * a1), True, seed=2)   # beside a plane it adds nothing
    for lines, length in ((False, 20), (True, 18)):
        both = [grid(lambda a1, a2, seed: (90, 60 - 12 * a1 - 16 * a2), lines), steeper]
        assert slopes(both)[:, 1] == pytest.approx([length / 60] * 2)

def test_load_reads_every_part_and_seed_metric_and_name(tmp_path):
    for fields in ({}, {"seed": 2}, {"part": "head"}, {"task": "ner", "encoder": "xlmr", "src": "ar"}):
        write(tmp_path / "a", **fields)
    assert [made.key for made in load([tmp_path / "a"])] == [
        ("ner", "xlmr", "ar", "de", 1, "all"), ("pos", "mbert", "en", "de", 1, "all"),
        ("pos", "mbert", "en", "de", 1, "head"), ("pos", "mbert", "en", "de", 2, "all")]
    write(tmp_path / "b", task="title", metrics=["RL", "F1"], encoder="bart", src="en+fr", tgt="en.inversion")
    [made] = load([tmp_path / "b"])
    assert made.scores["F1"][BOTH] == (95, 85) and made.points[BOTH] == (90, 80)
    assert str(made) == "Titles bart EN+FR-EN.INVERSION seed 1" and made.collapse() == ""

@pytest.mark.parametrize("tail", ['{"a1": 0.3, "a2": 0.0, "sr', '{"a1"', "\x00\x00", ""])
def test_a_torn_last_line_is_left_out_and_left_alone(tmp_path, tail):
    file = write(tmp_path, keep=9, tail=tail)
    write(tmp_path, seed=2).write_text(tail)  # not even a whole header: it holds nothing yet
    [made] = load([tmp_path])
    assert len(made.points) == 9 and file.read_text().endswith(tail)

@pytest.mark.parametrize("old, new, said", [
    (f'"format": {FORMAT}', '"format": 1', f"line 1: its format is 1, that of this kit {FORMAT}"),
    ('"angle": 55.0', '"angle": NaN', "line 1: angle is nan"),
    ('"angle": 55.0, ', "", "line 1: it has no 'angle'"),
    ('"task": "pos"', '"task": 3', "line 1: task is 3"),
    ('"metrics": ["accuracy"]', '"metrics": []', r"line 1: metrics is \[\]"),
    ('"line": [-0.5,', '"line": ["-0.5",', "line 1: .*float.*str"),
    ('"en": 20.0', '"fr": 20.0', "line 1: it has no 'en'"),
    ('{"a1": 1.0,', '{"a1": 1.0', "is damaged"),
    ('{"a1": 1.0,', '{"a1": 1.05,', r"line 7: \(1.05, 0.0\) is no point of the lines"),
    ('{"accuracy": 89.99}', '{"accuracy": 101}', r"line 7: accuracy is \(101, 54.0\), expected two"),
    ('{"accuracy": 89.99}', '{"LAS": 50}', "line 7: it has no 'accuracy'"),
    ('{"accuracy": 89.99}', '{"accuracy": NaN}', "line 7: accuracy is .*, expected two"),
    ('"src": {"accuracy": 89.99}', '"src": 89.99', "line 7: .*float"),
    ('{"a1": 1.0,', '{"a1": 1.1,', "line 7: accuracy is .*, an earlier line says"),
    ('{"a1": 1.0, "a2"', '{"a": 1.0, "a2"', "line 7: it has no 'a1'"),
])
def test_broken_files_are_refused_with_file_line_and_value(tmp_path, old, new, said):
    file = write(tmp_path)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(KitError, match=said) as error:
        load([tmp_path])
    assert str(file) in str(error.value) and re.search("restore the file|Delete the file", str(error.value))

@pytest.mark.parametrize("other, said", [
    ({"score": like("level")}, "accuracy at"), ({"metrics": ["LAS"]}, "metrics"),
    ({"angle": 56.0}, "angle: 55.0 and 56.0"), ({"models": {"src": "e"}}, "models")])
def test_copies_count_once_and_are_refused_where_they_contradict(tmp_path, other, said):
    for name, keep in (("a", 20), ("b", None), ("c", 30)):  # unknown fields may differ
        one = write(tmp_path / name, keep=keep, new=name)
    [made] = load([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert len(made.points) == 65
    two = write(tmp_path / "d", **other)
    with pytest.raises(KitError, match=said) as error:
        load([tmp_path / "c", tmp_path / "d"])
    assert str(one) in str(error.value) and str(two) in str(error.value)

def test_what_was_written_at_a_point_is_joined_with_it(tmp_path):
    file, point = write(tmp_path / "b"), '"a1": 1.0, "a2": 0.0'
    file.write_text(file.read_text().replace(point, f'{point}, "written": [["x", "y"]]'))
    write(tmp_path / "a", keep=3)
    [made] = load([tmp_path / "a", tmp_path / "b"])
    assert made.written == {SRC: [["x", "y"]]}

def test_what_parallel_logged_is_taken_from_the_file_that_has_it_and_must_not_differ(tmp_path):
    way = [{"step": 3, "mean": 50.0, "score": {"accuracy": 40.0}, "xlrs": [.5, .4]}]
    for name, more in (("a", {}), ("b", {"way": way}), ("c", {"way": [way[0] | {"step": 4}]})):
        write(tmp_path / name, **more)
    [made] = load([tmp_path / "a", tmp_path / "b"])
    assert made.log == way
    with pytest.raises(KitError, match="differ in way"):
        load([tmp_path / "b", tmp_path / "c"])
