"""What the report says of derived languages: table, correlations and verdicts by hand, figures, texts."""

import sys
from itertools import permutations
from pathlib import Path
from subprocess import check_output

import made_up
import numpy as np
import pytest

import derive
import plot

INV, PER, SYN, T = "en.inversion", "en.permutation", "en.syntax-hi", "en.transliteration"
TI, SHIFTED = T + ".inversion", (T, T + ".inversion", T + ".permutation", SYN + T[2:], T + ".x")

def grid(tgt, BZ, BS, p1=None, task="pos", seed=1, src="en", encoder=None, original=False, keep=None):
    """Score 80 at the bilingual model, planes down to BZ and BS; p1: of all rows, or in the loss and out."""
    parts = {} if p1 is None else {"all": p1} if isinstance(p1, int) else dict(zip(("in", "out"), p1))
    known = {"align": 5. * (len(parts) == 2), "pretraining": "scratch-original" if original else "scratch",
             "alignment": {rows: [x + 1, x - 1] for rows, x in parts.items()} or None}
    fields = dict(task=task, src=src, tgt=tgt, seed=seed, encoder=encoder or f"{tgt}{p1}{original}",
                  majority={src: 0., tgt: 0.}, angle=50. + seed, **({} if encoder else known))
    return made_up.grid(lambda a1, a2, _: (76 if a1 == .5 else 80, 80 + (BZ - 80) * a1 + (BS - 80) * a2),
                        keep=keep, **fields)

def minus(*losses, task="pos"):
    return [grid(tgt, 90 - loss, 90, *p1, task=task) for tgt, loss, *p1 in losses]

GRIDS = [grid(T, 40, 90, 10), grid(T, 44, 92, 10, seed=2), grid(TI, 10, 80, 0), grid(T, 70, 90, (84, 5)),
         *(grid(tgt, 20, 90, original=True) for tgt in (T, INV)),
         grid(INV, 75, 80, encoder="mbert"), grid(INV, 100, 80, task="parsing")]

def test_summary_by_hand():
    found = derive.summary(GRIDS)
    assert " ".join(found["POS"][0]) == "derived language P@1 BZ BS MZ Delta seeds paper: P@1 paper: Delta"
    assert [tuple(row.values()) for row in found["POS"] + found["Parsing"]] == [
        (INV + ", mBERT", "-", "75.0", "80.0", "-", "-5.0", "1", "-", "-"),
        (T, "10.0", "42.0", "91.0", "20.0", "-49.0 ± 1.4", "2", "90", "-0.5"),
        (T + ", align 5", "84.0/5.0", "70.0", "90.0", "20.0", "-20.0", "1", "-", "-"),
        (TI, "0.0", "10.0", "80.0", "-", "-70.0", "1", "0.16", "-42.7"),
        (INV, "-", "100.0", "80.0", "-", "20.0", "1", "-", "-")]

@pytest.mark.parametrize("grids", [
    [], [grid("de", 40, 80)], [grid("en", 40, 80, src=INV)], [grid("english.inversion", 40, 80)],
    [grid(T, 40, 80, original=True)], [grid(T, 40, 80, keep=11)], [grid(T, 40, 1)]])   # to come; collapsed
def test_without_a_derived_language_there_is_nothing(grids):
    assert plot.further(grids) == derive.transfers(grids) == []

@pytest.mark.parametrize("x, y, found", [   # p: in order, or one swap; ranks 1.5, 1.5, 3, 4
    ([1, 2, 3, 4], [0, 3, 1, 10], (.8, 4 / 24, 14 / (5 * 61) ** .5)),
    ([1, 1, 2, 3], [1, 2, 3, 4], (4.5 / 22.5 ** .5, 2 / 24, 3.5 / (2.75 * 5) ** .5)),
    ([3, 2, 1], [1, 2, 3], (-1, 1, -1)), ([2, 2, 2], [1, 2, 3], (np.nan,) * 3),
    ([1, 2, 3], [5, 5, 5], (np.nan,) * 3), ([1, 2], [1, 2], (np.nan,) * 3)])
def test_correlations_by_hand(x, y, found):
    assert derive.correlate(x, y) == pytest.approx(found, nan_ok=True)

def test_p_is_that_of_all_orders_and_what_it_takes():
    def spearmans(n):   # of each order, by the squared differences of ranks
        apart = np.array([*permutations(range(n))]) - np.arange(n)
        return 1 - 6 * (apart ** 2).sum(1) / n / (n * n - 1)
    for order, spearman in zip(permutations(range(4)), spearmans(4), strict=True):
        p = np.mean(spearmans(4) > spearman - 1e-9)
        assert derive.correlate(range(4), order)[:2] == pytest.approx((spearman, p))
    spearman, p, _ = derive.correlate(range(9), [4, 0, 5, 1, 2, 8, 3, 6, 7])   # too many orders: drawn ones
    assert p == pytest.approx(np.mean(spearmans(9) > spearman - 1e-9), abs=.003)
    for n, least in ((4, 1), (5, .9), (6, .83), (7, .71)):
        sure = min(r for r in {*spearmans(n)} if np.mean(spearmans(n) > r - 1e-9) < .05)
        assert round(sure, 2) == least and f"{least} of {n}".lstrip("0") in derive.RULES
    assert 1 / len(spearmans(3)) > .05 and "of 3, nothing is" in derive.RULES

def test_the_papers_correlations_and_limits_follow_from_its_numbers():
    rows = [row for kind, row in derive.PAPER.items() if "transliteration" in kind]
    rows += (43, -3.8, -4.1, -.7), (11.8, -5.7, -14.3, -1.5), (4.9, -9.2, -19.1, -2.5)   # not parallel
    alignment, *deltas = zip(*rows, strict=True)
    for task, values in zip(derive.PAPER_TASKS, deltas, strict=True):
        spearman, _, pearson = derive.correlate(alignment, values)
        assert f"{spearman:.2f}, {pearson:.2f}".replace("0.", ".") == derive.PAPER_R[task]
    for kind, (_, xnli, ner, pos) in derive.PAPER.items():
        if " " not in kind:
            assert derive.LITTLE[kind] == min(xnli, pos, ner if kind == "transliteration" else 0)

@pytest.mark.parametrize("claim, verdict, cases, grids", [
    (0, "agrees", "1 of 1", minus((T, 2.3))), (0, "differs", "0 of 1", minus((T, 2.4))),
    (0, "mixed", "2 of 3", minus((T, 1)) + minus((T, 1), task="ner") + minus((T, 9), task="xnli")),
    (0, "not tested", "-", minus((T, 1), task="parsing") + minus((INV, 1), (TI, 1))),
    (1, "agrees", "3 of 3", minus((INV, 3.4), (PER, 11.9), (SYN, 1.8))),
    (1, "differs", "0 of 2", minus((INV, 3.5), (PER, 12))), (1, "mixed", "1 of 2", minus((PER, 1), (SYN, 9))),
    (1, "differs", "0 of 1", minus((SYN, 1.9), task="xnli")),
    (1, "not tested", "-", minus((INV, 1), task="ner") + [grid(INV, 89, 90, encoder="mbert")]),
    (2, "agrees", "1 of 1", minus((T, 2), (INV, 3), (TI, 6))),
    (2, "differs", "0 of 1", minus((T, 2), (INV, 3), (TI, 5))),
    (2, "agrees", "1 of 1", minus((T, 2), (SYN + ".inversion", 3), (SYN + TI[2:], 6))),
    (2, "not tested", "-", minus((T, 2), (TI, 6), (PER, 3)) + minus((INV, 1), task="xnli")),
    (3, "agrees", "1 of 1", minus(*zip(SHIFTED, (60, 80, 70, 50, 40), (1, 2, 3, 4, 5)))),   # exactly .7
    (3, "differs", "0 of 1", minus(*zip(SHIFTED, (60, 80, 70, 50), (1, 2, 3, 4)))),         # .4
    (3, "not tested", "-", minus(*zip(SHIFTED, (80, 70, 60), (1, 2, 3))) + GRIDS[3:4]),
    (3, "not tested", "-", minus(*zip(SHIFTED, (9, 9, 9, 9), range(4)))
     + minus(*zip(SHIFTED, (80, 70, 60, 50), range(4)), task="parsing")),
    (4, "agrees", "1 of 1", GRIDS[:1] + [grid(T, 41, 90, (21, 1))]), (4, "not tested", "-", GRIDS[3:4]),
    (4, "differs", "0 of 1", GRIDS[:1] + [grid(T, 39, 90, (90, 80))]),    # no better transfer
    (4, "differs", "0 of 1", GRIDS[:1] + [grid(T, 80, 90, (17, 1))])])    # no better alignment
def test_rule_of_each_claim(claim, verdict, cases, grids):
    found = derive.claims(grids)[claim]
    assert (found["verdict"], found["cases"]) == (verdict, cases), found

@pytest.mark.filterwarnings("error")
def test_figures_hold_the_numbers(tmp_path):
    def points(ax):
        lines = [line for line in ax.lines if len(line.get_xydata()) == 1]   # no legend, nothing joined
        return {(*line.get_xydata()[0].round(9), line.get_mfc() == "white") for line in lines}
    (_, _, bars), (_, _, deltas), (_, _, surface) = plot.derived_figures(GRIDS)
    [bars], [deltas] = bars().axes, deltas().axes
    assert sorted(bar.get_width() for bar in bars.patches) == pytest.approx([-70, -49, -20, -5, 20])
    assert points(deltas) == {(10, -49, False), (0, -70, False), (44.5, -20, True)}
    assert [text.get_text() for text in deltas.texts] == ["+ inversion", "transliteration", "+ align 5"]
    found = derive.transfers([grid(T, 40, 90, 5), grid(T, 70, 90, 5, task="ner")])
    joined = plot.points_figure(found, {"delta": "Delta"}).axes[0].lines[-1]
    assert joined.get_xydata().tolist() == [[5, -50], [5, -20]]
    for ax, value in zip(surface().axes, (.475, .95, 51.5), strict=True):   # 44 to 36 and 47.6 to 40.4, of 80
        assert (10, value, False) in points(ax)
    [(_, _, alone)] = plot.derived_figures(GRIDS[6:7])   # nothing is transliterated: bars, here a single one
    plot.draw_figure("alone", alone, tmp_path)
    plot.draw_figure("surface", surface, tmp_path)
    assert len([*tmp_path.rglob("*.png")]) == 2

@pytest.mark.filterwarnings("error")
def test_both_texts_hold_everything_and_fit():
    widest = [grid(SYN + TI[2:], BZ, 100, (100, 100), "parsing", seed=BZ) for BZ in (0, 100)]
    texts = derive.section(GRIDS + minus(*zip(SHIFTED, (80, 70, 60), (1, 2, 3)), task="xnli") + widest)
    for said in ("-49.0 ± 1.4", "-50.0 ± 70.7", "0.17", ".94, .70", *(claim for claim, *_ in derive.CLAIMS)):
        assert all(said in text and "nan" not in text for text in texts), said
    assert max(map(len, texts[1].splitlines())) == 79
    assert "Alignment and Delta" not in "".join(derive.section(GRIDS[6:]))

def test_import_is_light():
    code = "import sys, derive; print({'torch', 'matplotlib', 'transformers'} & sys.modules.keys())"
    assert check_output([sys.executable, "-c", code], cwd=Path(derive.__file__).parent) == b"set()\n"
