"""plot.py on made-up grids: numbers by hand, each claim's rule both ways, unfinished and broken files, the pictures."""
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import plot  # noqa: E402

TENTHS = [round(0.1 * i - 0.5, 1) for i in range(21)]
EXTRA = [0.025, 0.05, 0.075, 0.125, 0.15, 0.175, 0.825, 0.85, 0.875, 0.925, 0.95, 0.975]
LINE = sorted(TENTHS + EXTRA)


def paper(a1, a2, seed=1):
    """Surfaces as the paper describes them: flat for a language that was trained on, a linear loss without it."""
    return 90 - 30 * max(a2, 0) - 0.01 * seed * a1, 80 - (25 + seed) * max(a1, 0) - 0.01 * seed * a2


def rows(score=paper, lines=True, **fields):
    """The lines of a result file: a header with the fields given, and the points of both lines or of the plane too."""
    header = {"format": 1, "task": "pos", "metric": "accuracy", "encoder": "mbert", "src": "en", "tgt": "de", "seed": 1,
              "part": "all", "line": LINE, "plane": TENTHS, "settings": {"lr": 2e-5, "limit": None},
              "dev": {}, "models": {}, "data": {}, "norm_src": 1.0, "norm_tgt": 1.0, "norm_ratio": 1.0, "angle": 55.0}
    header.update(fields)
    header.setdefault("majority", {header["src"]: 20.0, header["tgt"]: 18.0})
    points = [(round(1 - a, 3), 0.0) for a in LINE] + [(0.0, round(1 - a, 3)) for a in LINE]
    points += [] if lines else itertools.product(TENTHS, TENTHS)
    scores = {point: np.clip(score(*point, header["seed"]), 0, 100).tolist() for point in points}
    return [header] + [{"a1": a1, "a2": a2, "src": src, "tgt": tgt} for (a1, a2), (src, tgt) in scores.items()]


def grid(score=paper, lines=True, keep=None, **fields):
    made = rows(score, lines, **fields)
    return plot.check(Path("made-up"), made if keep is None else made[:keep + 1])


def write(folder, score=paper, lines=True, tail="", keep=None, **fields):
    """A result file as reproduce.py writes it; keep: that many points only; tail: what comes after them."""
    made = rows(score, lines, **fields)[:None if keep is None else keep + 1]
    header = made[0]
    part = "" if header["part"] == "all" else f".{header['part']}"
    pair = f"{header['src']}-{header['tgt']}"
    file = Path(folder, "grids", header["task"], header["encoder"], pair, f"seed{header['seed']}{part}.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in made) + tail)
    return file


def seeds(*numbers, **fields):
    return [grid(seed=number, **fields) for number in numbers]


def of_points(seed, **points):
    """A grid with nothing but the three models, or some of them: both=(src, tgt), src=(src, tgt), tgt=(src, tgt)."""
    made = grid(seed=seed)
    made.points = {getattr(plot, name.upper()): scores for name, scores in points.items()}
    return made


# ---- numbers ---------------------------------------------------------------------------------------------------------

def test_counts_of_points():
    assert len(grid().points) == 65 and len(grid(lines=False).points) == 465


def test_normalised_scores_and_variance_by_hand():
    runs = [of_points(1, both=(80, 50), src=(76, 25)), of_points(2, both=(90, 40), src=(90, 30), tgt=(45, 44))]
    scores, variance = plot.normalise(runs, [plot.SRC, plot.BOTH, plot.TGT], side=1)
    assert scores[:, :2] == pytest.approx(np.array([[0.5, 1], [0.75, 1]]))
    assert np.isnan(scores[0, 2]) and scores[1, 2] == pytest.approx(1.1)
    assert variance[:2] == pytest.approx([12.5 / 45, 50 / 45])  # of 25 and 30, of 50 and 40, over the mean of 50 and 40
    assert np.isnan(variance[2])  # one seed has no variance
    assert plot.normalise(runs, [plot.SRC], side=0)[0][:, 0] == pytest.approx([0.95, 1])


def test_without_the_bilingual_model_nothing_is_normalised():
    assert np.isnan(plot.normalise([of_points(1, src=(76, 25))], [plot.SRC], side=0)[0]).all()


def test_band_by_hand():
    mean, half = plot.band(np.array([[1.0, 5, np.nan], [2, np.nan, np.nan], [3, np.nan, np.nan]]))
    assert mean[:2] == pytest.approx([2, 5]) and half[0] == pytest.approx(4.303 / 3 ** 0.5)
    assert np.isnan(half[1:]).all() and np.isnan(mean[2])


@pytest.mark.parametrize("n, t", [(2, 12.706), (3, 4.303), (11, 2.228), (12, 2.201), (31, 2.042), (121, 1.980)])
def test_band_uses_students_t(n, t):
    values = np.arange(n, dtype=float)[:, None]
    assert plot.band(values)[1][0] * n ** 0.5 / values.std(ddof=1) == pytest.approx(t, abs=0.0025)


def test_units_of_a_band_are_cases_or_runs_where_cases_are_few():
    def half(targets):
        grids = [grid(lambda a1, a2, seed: (90, 80 if a1 == 0 else 8 * (2 * number + seed)), tgt=target, seed=seed)
                 for number, target in enumerate(targets) for seed in (1, 2)]
        return plot.series(grids, 1, 1)[1][LINE.index(0)]
    assert half(["de", "ru"]) == pytest.approx(3.182 * np.std([1, 2, 3, 4], ddof=1) / 10 / 2)      # four runs
    assert half(["de", "ru", "zh"]) == pytest.approx(4.303 * np.std([1.5, 3.5, 5.5], ddof=1) / 10 / 3 ** 0.5)


def test_lines_are_points_of_the_plane():
    made = grid()
    at = LINE.index(0.3)
    assert made.on_line(1)[at] == (0.7, 0.0) and made.on_line(2)[at] == (0.0, 0.7)
    assert made.on_line(1, inside=True)[0] == plot.SRC and made.on_line(2, inside=True)[-1] == plot.BOTH


# ---- claims ----------------------------------------------------------------------------------------------------------

def bent(depth, at):
    """Like paper, with a dent of some depth in both surfaces around one alpha of both lines."""
    def score(a1, a2, seed):
        dent = depth * 100 * any(abs(1 - a - at) < 0.06 for a in (a1, a2) if 0 < a < 1)
        return tuple(value - dent for value in paper(a1, a2, seed))
    return score


def step(a1, a2, seed):  # all of the gain between alpha 0.5 and 0.6
    return 90 - 30 * (a2 > 0.45), 80 - 30 * (a1 > 0.45)


def level(a1, a2, seed):
    return 90, 80


def cliff_at_bilingual(a1, a2, seed):
    return 90, 80 - 20 * min(max(a1 * 5, 0), 1)


def noisy_source(a1, a2, seed):
    return 90 - 5 * (seed - 2) * (a1 == 1), 80 - 25 * max(a1, 0)


def narrow(a1, a2, seed):
    return 90, 80 - 60 * max(a1, 0)


def planes(of_mbert, of_xlmr, **xlmr):
    return [grid(of_mbert, lines=False), grid(of_xlmr, lines=False, encoder="xlmr", **xlmr)]


def shifted(points):
    return lambda a1, a2, seed: tuple(score - points * ((a1, a2) != plot.BOTH) for score in paper(a1, a2, seed))


def still(points):
    return lambda a1, a2, seed: (90 - points * (a1 == 0.5), 80 - points * (a2 == 0.5))


@pytest.mark.parametrize("claim, verdict, grids, measured", [
    ("Source stays flat", "agrees", lambda: [grid()], "lowest 1.000"),
    ("Source stays flat", "agrees", lambda: [grid(bent(0.02, 0.6))], "lowest 0.978, at alpha 0.6"),
    ("Source stays flat", "differs", lambda: [grid(bent(0.05, 0.6))], "lowest 0.944, at alpha 0.6"),
    ("Source stays flat", "not tested", lambda: [grid(keep=12)], "no run has the whole of Eq. 1"),
    ("Target rises", "agrees", lambda: [grid()], "0.675 to 1.000, R squared 1.000, largest fall 0.000"),
    ("Target rises", "differs", lambda: [grid(step)], "0.625 to 1.000, R squared 0.688"),           # not linear
    ("Target rises", "differs", lambda: [grid(bent(0.05, 0.5))], "largest fall 0.0"),              # not smooth
    ("Target rises", "differs", lambda: [grid(level)], "1.000 to 1.000"),                          # no rise
    ("Target rises", "not tested", lambda: [], "no run has the whole of Eq. 1"),
    ("Target stays flat", "agrees", lambda: [grid()], "lowest 1.000"),
    ("Target stays flat", "differs", lambda: [grid(bent(0.05, 0.6))], "lowest 0.937"),
    ("Target stays flat", "not tested", lambda: [grid(keep=40)], "no run has the whole of Eq. 2"),
    ("Source rises", "agrees", lambda: [grid()], "0.667 to 1.000"),
    ("Source rises", "differs", lambda: [grid(step)], "0.667 to 1.000"),
    ("Source rises", "not tested", lambda: [grid(keep=40)], "no run has the whole of Eq. 2"),
    ("Seeds vary more", "agrees", lambda: seeds(1, 2, 3), "target 0.0125, source 0.0000"),         # variances 1, 0.0001
    ("Seeds vary more", "differs", lambda: seeds(1, 2, 3, score=noisy_source), "target 0.0000, source 0.2778"),
    ("Seeds vary more", "not tested", lambda: [grid()], "only one seed"),
    ("d_src and d_tgt", "agrees", lambda: [grid(norm_ratio=0.8), grid(norm_ratio=1.0, seed=2)], "mean 0.90"),
    ("d_src and d_tgt", "differs", lambda: [grid(norm_ratio=1.2)], "mean 1.20"),
    ("d_src and d_tgt", "not tested", lambda: [], "no run"),
    ("The angle", "agrees", lambda: [grid(angle=50.0), grid(angle=61.0, seed=2)], "mean 55.5, from 50.0 to 61.0"),
    ("The angle", "differs", lambda: [grid(angle=75.0)], "mean 75.0"),
    ("The angle", "not tested", lambda: [grid(part="head")], "no run"),
    ("The zero-shot", "agrees", lambda: [grid()], "0.325 at the zero-shot, 0.16"),
    ("The zero-shot", "agrees", lambda: [grid(lines=False)], "at the bilingual point, in the plane"),
    ("The zero-shot", "differs", lambda: [grid(cliff_at_bilingual)], "0.000 at the zero-shot, 0.625 at the bilingual"),
    ("The zero-shot", "not tested", lambda: [grid(keep=5)], "no run has the points around"),
    ("XLM-R", "agrees", lambda: planes(narrow, paper), "XLM-R is flatter in 1 of 1"),
    ("XLM-R", "differs", lambda: planes(paper, narrow), "XLM-R is flatter in 0 of 1"),
    ("XLM-R", "not tested", lambda: planes(narrow, paper, tgt="ru"), "needs whole planes of both"),
    ("XLM-R", "not tested", lambda: [grid(), grid(encoder="xlmr")], "needs whole planes of both"),
    ("Interpolating the encoder", "agrees", lambda: [grid(), grid(shifted(1), part="encoder")], "0.012, largest 0.01"),
    ("Interpolating the encoder", "differs", lambda: [grid(), grid(shifted(5), part="encoder")], "0.058, largest 0.06"),
    ("Interpolating the encoder", "not tested", lambda: [grid(), grid(part="encoder", seed=2)], "needs runs with"),
    ("Interpolating the head", "agrees", lambda: [grid(still(1), part="head")], "largest distance 0.012 (1 run)"),
    ("Interpolating the head", "differs", lambda: [grid(still(4), part="head")], "largest distance 0.050 (1 run)"),
    ("Interpolating the head", "not tested", lambda: [grid()], "needs runs with --part head"),
])
def test_rule_of_each_claim(claim, verdict, grids, measured):
    [found] = [row for row in plot.claims(grids()) if row.claim.startswith(claim)]
    assert (found.verdict, measured in found.measured) == (verdict, True), found.measured


def test_slope_in_the_plane_is_the_length_of_the_gradient():
    case = [grid(lambda a1, a2, seed: (90, 60 - 12 * a1 - 16 * a2), lines=False)]
    assert plot.slope(case, plot.SRC, 1, (0, 1)) == pytest.approx(20 / 60)
    assert plot.slope(case, plot.SRC, 1, (0,)) == pytest.approx(12 / 60)


def test_r_squared_and_share_by_hand():
    quadratic = [grid(lambda a1, a2, seed: (90, 80 - 40 * max(a1, 0) ** 2))]
    scores = 1 - 0.5 * np.linspace(1, 0, 11) ** 2
    chord = np.linspace(0.5, 1, 11)
    r2 = 1 - ((scores - chord) ** 2).sum() / ((scores - scores.mean()) ** 2).sum()
    assert f"R squared {r2:.3f}" in plot.rises(quadratic, 1, 1)[1]
    # 80 - 60 a1 keeps .95 of 80 up to a1 = 0: 6 of the 21 columns; 80 - 26 a1 up to 0.1: 7 of them
    assert "XLM-R 0.333, mBERT 0.286" in plot.flatter(planes(narrow, paper))[1]


def test_rules_show_the_numbers_that_decide():
    rules = " ".join(claim.rule for claim in plot.claims([]))
    for number in (plot.FLAT, plot.GAP, plot.FALL, plot.LINEAR, *plot.NORM_RATIO, *plot.ANGLE, plot.STEEPER, plot.KEEPS,
                   plot.SAME):
        assert str(number) in rules
    assert {claim.verdict for claim in plot.claims([])} == {"not tested"}


def test_claims_say_how_many_cases_agree_alone_and_what_is_left_out():
    grids = [grid(), grid(bent(0.05, 0.6), task="ner"), grid(task="xnli", keep=12)]
    measured = plot.claims(grids)[0].measured
    assert "2 runs of 2 cases, 1 without the points left out" in measured and "1 of 2 cases agree" in measured


# ---- collapsed, partial and mixed runs -------------------------------------------------------------------------------

@pytest.mark.parametrize("point, side, said", [(plot.SRC, 0, "source-only model scores 21.0 on EN"),
                                               (plot.TGT, 1, "target-only model scores 19.0 on DE"),
                                               (plot.BOTH, 0, "bilingual model scores 21.0 on EN"),
                                               (plot.BOTH, 1, "bilingual model scores 19.0 on DE")])
def test_a_collapsed_run_is_named_and_left_out(point, side, said):
    bad = grid(seed=2, angle=0.0)
    bad.points[point] = tuple(bad.majority[("en", "de")[i]] + 1 if i == side else bad.points[point][i] for i in (0, 1))
    grids = [grid(), bad]
    assert plot.whole(grids) == grids[:1]
    assert said in plot.remarks(grids)[0] and "seed 2" in plot.remarks(grids)[0]
    assert plot.summary(grids) == plot.summary(grids[:1]) and plot.claims(grids) == plot.claims(grids[:1])


def test_a_low_zero_shot_score_is_no_collapse():
    low = grid(lambda a1, a2, seed: (90, 80 - 70 * max(a1, 0)))
    assert plot.whole([low]) == [low] and plot.remarks([low]) == []


def test_parts_of_a_collapsed_run_are_left_out_too():
    bad = grid()
    bad.points[plot.SRC] = (20, 20)
    assert plot.sound([bad, grid(part="encoder"), grid(part="head"), grid(part="head", seed=2)])[0].seed == 2


def test_parts_are_in_no_figure_and_no_mean():
    grids = [grid(), grid(level, part="encoder"), grid(level, part="head")]
    assert plot.summary(grids) == plot.summary(grids[:1]) and plot.claims(grids)[:9] == plot.claims(grids[:1])[:9]
    assert any("footnote 2 alone: 2 grids" in text for text in plot.remarks(grids))
    assert plot.plan(grids[1:]) == []


def test_a_run_without_an_angle_counts_in_everything_else():
    grids = [grid(), grid(seed=2, norm_ratio=None, angle=None)]
    assert "mean 55.0, from 55.0 to 55.0 (1 run)" in plot.claims(grids)[6].measured
    assert "| 1.00       | 55.0  |" in plot.summary(grids) and "2 runs" in plot.claims(grids)[0].measured
    assert plot.claims(grids[1:])[6].verdict == "not tested"


def test_unlike_settings_are_named():
    grids = [grid(), grid(seed=2, settings={"lr": 2e-5, "limit": 500})]
    assert plot.remarks(grids) == ["Mixed settings: POS mBERT, limit 500 and null."]


def test_summary_by_hand():
    head, _, row = [[cell.strip() for cell in line.split("|")[1:-1]] for line in plot.summary(seeds(1, 3)).splitlines()]
    assert dict(zip(head, row)) == {
        "task": "POS accuracy", "encoder": "mBERT", "pair": "EN-DE", "seeds": "2", "source": "90.0 ± 0.0",
        "zero-shot target": "53.0 ± 1.4", "bilingual source": "90.0 ± 0.0", "bilingual target": "80.0 ± 0.0",
        "target only": "80.0 ± 0.0", "flatness": "1.000", "norm ratio": "1.00 ± 0.00", "angle": "55.0 ± 0.0"}


# ---- reading ---------------------------------------------------------------------------------------------------------

def test_load_reads_every_part_and_seed(tmp_path):
    for fields in ({}, {"seed": 2}, {"part": "head"}, {"task": "ner", "encoder": "xlmr", "src": "ar"}):
        write(tmp_path, **fields)
    keys = [grid.key for grid in plot.load([tmp_path])]
    assert keys == [("ner", "xlmr", "ar", "de", 1, "all"), ("pos", "mbert", "en", "de", 1, "all"),
                    ("pos", "mbert", "en", "de", 1, "head"), ("pos", "mbert", "en", "de", 2, "all")]


@pytest.mark.parametrize("tail", ['{"a1": 0.3, "a2": 0.0, "sr', '{"a1"', "\x00\x00", ""])
def test_a_torn_last_line_is_left_out(tmp_path, tail):
    write(tmp_path, keep=9, tail=tail)
    [grid] = plot.load([tmp_path])
    assert len(grid.points) == 9


@pytest.mark.parametrize("text", ["", '{"format": 1, "ta'])
def test_a_file_without_a_whole_header_holds_nothing_yet(tmp_path, text):
    write(tmp_path)
    write(tmp_path, seed=2).write_text(text)
    assert [grid.seed for grid in plot.load([tmp_path])] == [1]


@pytest.mark.parametrize("old, new, said", [
    ('"format": 1', '"format": 2', "line 1: format is 2, expected 1"),
    ('"angle": 55.0', '"angle": NaN', "line 1: angle is nan, expected a value of type float"),
    ('"task": "pos"', '"task": 3', "line 1: task is 3, expected a value of type str"),
    ('"en": 20.0', '"fr": 20.0', "line 1: majority is {'fr': 20.0, 'de': 18.0}"),
    ('{"a1": 1.0,', '{"a1": 1.0', "the line is .*, expected JSON"),
    ('{"a1": 1.0,', '{"a1": 1.05,', r"line 7: \(a1, a2\) is \(1.05, 0.0\), expected a point of the lines"),
    ('"src": 89.99,', '"src": 101,', r"line 7: \(src, tgt\) is \(101, 54.0\), expected two scores from 0 to 100"),
    ('"src": 89.99,', '"src": null,', r"line 7: \(src, tgt\) is \(None, 54.0\)"),
    ('{"a1": 1.0,', '{"a1": 1.1,', r"line 7: \(src, tgt\) is .*, expected .*, as an earlier line says"),
    ('{"a1": 1.0, "a2": 0.0, "src": 89.99, "tgt": 54.0}', "[1]", r"line 7: \(a1, a2\) is \(None, None\)"),
])
def test_broken_files_are_refused_with_file_line_and_value(tmp_path, old, new, said):
    file = write(tmp_path)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(plot.ResultError, match=said) as error:
        plot.load([tmp_path])
    assert str(file) in str(error.value) and "restore the file" in str(error.value)


def test_the_same_grid_twice_counts_once_and_a_shorter_copy_adds_nothing(tmp_path):
    for name, keep in (("a", 20), ("b", None), ("c", 30)):
        write(tmp_path / name, keep=keep)
    [grid] = plot.load([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert len(grid.points) == 65


@pytest.mark.parametrize("other, said", [({"score": level}, "scores at"), ({"angle": 56.0}, "angle: 55.0 and 56.0")])
def test_contradicting_copies_are_refused(tmp_path, other, said):
    one, two = write(tmp_path / "a"), write(tmp_path / "b", **other)
    with pytest.raises(plot.ResultError, match=said) as error:
        plot.load([tmp_path / "a", tmp_path / "b"])
    assert str(one) in str(error.value) and str(two) in str(error.value)


# ---- figures ---------------------------------------------------------------------------------------------------------

def texts(grids, name):
    """All text of a figure, one string."""
    from matplotlib.text import Text
    [make] = [make for found, _, make in plot.plan(grids) if found == name]
    return " | ".join(text.get_text() for text in make().findobj(Text))


def bands(grids, name):
    from matplotlib.collections import PolyCollection
    [make] = [make for found, _, make in plot.plan(grids) if found == name]
    return len(make().findobj(PolyCollection))


def test_what_is_drawn():
    lines = ["fig2-lines", "lines-pos", "lines-pos-en-de", "norms"]
    assert [name for name, _, _ in plot.plan([grid()])] == lines
    assert [name for name, _, _ in plot.plan(seeds(1, 2))] == lines + ["variance"]
    two = [grid(lines=False), grid(task="ner", tgt="ru", encoder="xlmr")]
    assert [name for name, _, _ in plot.plan(two)] == [
        "fig2-lines", "lines-ner", "lines-pos", "lines-ner-en-ru", "lines-pos-en-de", "plane-pos-en-de", "norms"]


def test_one_seed_has_no_band_and_says_so():
    one = [grid(tgt=target) for target in ("de", "ru", "zh")]
    assert "1 seed |" in texts(one, "fig2-lines") and bands(one, "fig2-lines") == 0
    assert "2 seeds" in texts(seeds(1, 2), "fig2-lines") and bands(seeds(1, 2), "fig2-lines") == 4


def test_unfinished_lines_and_planes_are_drawn_and_marked():
    half = grid(lines=False, keep=300)
    assert "incomplete" in texts([half], "plane-pos-en-de")
    assert "incomplete" not in texts([half], "lines-pos-en-de")  # its lines are whole
    assert "1 seed, incomplete" in texts([grid(keep=20)], "lines-pos-en-de")
    assert plot.remarks([half]) == ["Incomplete: POS mBERT EN-DE seed 1, 300 of 465 points."]
    assert plot.remarks([grid(keep=20)]) == ["Incomplete: POS mBERT EN-DE seed 1, 20 of 65 points."]


def test_models_and_languages_are_named():
    said = texts([grid(lines=False), grid(lines=False, encoder="xlmr")], "plane-pos-en-de")
    for text in ("EN-DE", "EN", "DE", "POS, mBERT: score on EN", "POS, XLM-R: score on DE"):
        assert f"| {text} |" in said
    assert "0\nEN |" in texts([grid()], "lines-pos") and "1\nEN-DE |" in texts([grid()], "lines-pos")
    assert "1\nEN-X |" in texts([grid(), grid(tgt="ru")], "lines-pos")


@pytest.mark.filterwarnings("error")
def test_figures_are_png_and_pdf_and_the_same_bytes_every_time(tmp_path, monkeypatch):
    grids = [*seeds(1, 2, lines=False), grid(encoder="xlmr", lines=False, keep=300), grid(src="ar", keep=3)]
    kinds = ("fig2-lines", "plane-pos-en-de", "norms", "variance")  # the others are made by the same functions
    chosen = [figure for figure in plot.plan(grids) if figure[0] in kinds]
    monkeypatch.setattr(plot, "plan", lambda grids: chosen)
    names = plot.draw(grids, tmp_path / "a")
    assert plot.draw(grids, tmp_path / "b") == names and len(names) == 8
    assert sorted(names) == sorted(path.name for path in (tmp_path / "a" / "figures").iterdir())
    for name in names:
        first = (tmp_path / "a" / "figures" / name).read_bytes()
        assert first.startswith(b"\x89PNG" if name.endswith("png") else b"%PDF")
        assert first == (tmp_path / "b" / "figures" / name).read_bytes(), name


# ---- report and command line -----------------------------------------------------------------------------------------

def test_report_shows_everything_and_its_links_exist(tmp_path):
    bad = grid(seed=3)
    bad.points[plot.TGT] = (50, 18)
    grids = seeds(1, 2) + [bad]
    plot.draw(grids, tmp_path)
    said = plot.report(grids, tmp_path, "python reproduce.py --demo", notes="## What this shows\n\nA toy.")
    text = (tmp_path / "report.md").read_text()
    links = re.findall(r"\((figures/[^)]*)\)", text)
    assert len(links) == 6 and all((tmp_path / link).is_file() for link in links)  # both lines once, norms, variance
    for part in ("    python reproduce.py --demo\n", plot.summary(grids), "A toy.", "seed 3, the target-only model"):
        assert part in text
    for claim in plot.claims(grids):
        assert f"| {claim.claim}" in text and claim.measured in text and claim.rule in text
        assert claim.claim in said and claim.measured in said and claim.rule in said
    assert plot.summary(grids) in said and "target-only model scores 18.0" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.md"]


def test_report_without_a_single_whole_run(tmp_path):
    assert "not tested" in plot.report([], tmp_path, "x") and "## Figures" not in (tmp_path / "report.md").read_text()


def run(*arguments):
    return subprocess.run([sys.executable, ROOT / "plot.py", *map(str, arguments)], capture_output=True, text=True)


def test_command_line_joins_folders(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", seed=2)
    done = run(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert done.returncode == 0 and done.stderr == ""
    assert "agrees      Source stays flat along Eq. 1" in done.stdout and "| 2     |" in done.stdout
    command = f"    python plot.py {tmp_path}/a {tmp_path}/b --out {tmp_path}/out\n"
    assert command in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "figures" / "variance.pdf").exists()


def test_command_line_says_what_is_wrong_in_a_sentence(tmp_path, capsys):
    done = run(tmp_path / "nothing", "--out", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert f"{tmp_path}/nothing: no result files" in done.stderr and not (tmp_path / "out").exists()
    write(tmp_path)
    (tmp_path / "file").write_text("")
    assert plot.main([str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_help_comes_before_matplotlib():
    code = "import sys, plot\ntry: plot.main(['--help'])\nexcept SystemExit: print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("False\n") and "--out" in done.stdout
