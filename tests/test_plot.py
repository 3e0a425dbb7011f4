"""plot.py on made-up grids: the rule of each claim both ways, figures, report, command line."""

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import KIT, contents
from made_up import both, grid, like, paper, seeds, write

import plot
from grids import BOTH, SRC, TGT, sound, table

def test_the_lost_share_of_a_plane_by_hand():
    # 80 - 60 a1 keeps .95 of 80 up to a1 = 0: 6 of the 21 columns; 80 - 26 a1 up to 0.1: 7 of them
    shares = [plot.numbers([made])["plane: share lost"] for made in both(like("narrow"), paper, False)]
    assert shares == pytest.approx([15 / 21, 14 / 21])

def found(grids, claim):
    [row] = [row for row in plot.claims(grids) if row["claim"].startswith(claim)]
    return row

NARROW, DENTED, BENT = like("narrow"), like("dented", {0.1: 1, 0.9: 1}), [grid(like("bent", 0.05, 0.6))]
STEP, FALL, LEVEL = [grid(like("step"))], [grid(like("bent", 0.05, 0.5))], [grid(like("level"))]

@pytest.mark.parametrize("claim, agree, measured, differ, otherwise", [
    ("Source stays flat", [grid(like("bent", 0.02, 0.6))], "lowest score = 0.978", BENT, "= 0.944"),
    ("Target rises", [grid()], "rise = 0.325, largest fall = 0.000, R squared = 1", STEP, "squared = 0.688"),
    ("Target rises", [grid()], "R squared = 1.000", FALL, "largest fall = 0.03"),  # straight, not smooth
    ("Target rises", [grid()], "R squared = 1.000", LEVEL, "rise = 0.000, largest fall = 0.000, R squared"),
    ("Target stays flat", [grid(like("bent", 0.02, 0.6))], "lowest score = 0.975", BENT, "= 0.937"),
    ("Source rises", [grid()], "rise = 0.333", STEP, "R squared = 0.688"),
    ("Source rises", [grid()], "R squared = 1.000", FALL, "largest fall = 0.02"),
    ("Source rises", [grid()], "largest fall = 0.000", LEVEL, "rise = 0.000"),
    ("Zero-shot seeds", seeds(1, 2, 3, score=like("noisy", 0.5)), "= 0.222",       # 0.25 / 90 over 1 / 80
     seeds(1, 2, 3, score=like("noisy", 0.55)), "= 0.269"),                        # less, but not much less
    ("d_src", [grid(seed=i, norm_ratio=x) for i, x in enumerate((0.9, 1, 1.1, 3))], "runs inside = 0.750",
     [grid(norm_ratio=0.3), grid(norm_ratio=1.7, seed=2)], "runs inside = 0.000"),
    ("The angle", [grid(angle=50.0), grid(angle=61.0, seed=2)], "runs inside = 1.000",
     [grid(angle=20.0), grid(angle=90.0, seed=2)], "runs inside = 0.000"),
    ("The target surface", [grid(lines=False)], "= 2.000", [grid(like("cliff"))], "bilingual = 0.000"),
    ("The target surface", [grid(like("late"))], "over 1000", [grid(like("cliff"))], "bilingual = 0.000"),
    ("The source surface", [grid(like("sloping", 13))], "= 0.462", [grid(like("sloping", 15))], "= 0.533"),
    ("mBERT dips", [grid(DENTED)], "0.1 = 0.012", [grid(like("dented", {0.1: 1, 0.9: 0.3}))], "0.1 = 0.004"),
    ("mBERT dips", [grid(DENTED)], "0.9 = 0.012", [grid(like("dented", {0.1: 0.3, 0.9: 1}))], "0.9 = 0.004"),
    ("XLM-R has", both(NARROW, paper), "rise, XLM-R - mBERT = -0.425", both(paper, paper), "mBERT = 0.000"),
    ("XLM-R's inter", both(DENTED, paper), "= -0.00", both(DENTED, like("dented", {0.1: (3, 0)})), "= 0.0"),
    ("XLM-R's inter", both(DENTED, paper), "= -0.00", both(DENTED, like("dented", {0.1: (0, 3)})), "= 0.0"),
    ("XLM-R's target", both(NARROW, paper, False), "= -0.048", both(paper, NARROW, False), "= 0.048"),
    ("XLM-R is better", both(NARROW, paper), "= -34.000", both(paper, NARROW), "= 34.000"),
    ("Interpolating the encoder", [grid(), grid(like("shifted", 1), part="encoder")], "= 0.012",
     [grid(), grid(like("shifted", 5), part="encoder")], "= 0.058"),
    ("Interpolating the head", [grid(like("still", 1), part="head")], "largest change = 0.012",
     [grid(like("still", 4), part="head")], "largest change = 0.050"),
])
def test_rule_of_each_claim(claim, agree, measured, differ, otherwise):
    for verdict, grids, number in (("agrees", agree, measured), ("differs", differ, otherwise)):
        row = found(grids, claim)
        assert (row["verdict"], number in row["measured"]) == (verdict, True), row

@pytest.mark.parametrize("start, grids", [
    ("", []), ("", [grid(part="head", keep=5)]), ("Sou", [grid(keep=9)]), ("T", [grid(keep=5, angle=None)]),
    ("Target stays", [grid(keep=40)]), ("Source rises", [grid(keep=40)]), ("Zero-shot seeds", [grid()]),
    ("d_src", [grid(norm_ratio=None, angle=None)]), ("mBERT", [grid(encoder="tiny-bert")]),
    ("XLM-R", both(DENTED, paper, tgt="ru")), ("XLM-R", [grid(), grid(NARROW, encoder="xlmr-base")]),
    ("XLM-R's target", both(NARROW, paper)), ("Interpolating", [grid(), grid(part="encoder", seed=2)])])
def test_what_the_grids_do_not_tell_is_not_tested(start, grids):
    verdicts = {row["verdict"] for row in plot.claims(grids) if row["claim"].startswith(start)}
    assert verdicts == {"not tested"}

@pytest.mark.parametrize("dents, verdict, cases", [
    ([(0.05, 0.3)], "differs", "0 of 1"), ([(0.05, 0.3), (0, 0)], "mixed", "1 of 2"),  # half is not most
    ([(0.09, 0.3), (0, 0)], "differs", "1 of 2"), ([(0.05, 0.3), (0, 0), (0, 0)], "agrees", "2 of 3"),
    ([(0.05, 0.3), (0.05, 0.6), (0, 0)], "mixed", "1 of 3"),  # each dips elsewhere, the mean stays
    ([(0.3, 0.3), (0, 0), (0, 0)], "mixed", "2 of 3"),        # one drags the mean down
])
def test_a_verdict_needs_the_pooled_measure_and_most_cases(dents, verdict, cases):
    row = found([grid(like("bent", *dent), tgt=f"t{i}") for i, dent in enumerate(dents)], "Source stays flat")
    assert (row["verdict"], row["cases"]) == (verdict, cases)
    grids = [*both(NARROW, paper), grid(NARROW, tgt="ru"), *both(NARROW, paper, task="ner")[1:]]
    assert found(grids, "XLM-R has")["cases"] == "1 of 1"  # for two encoders, a case is a task and a pair

@pytest.mark.parametrize("point, side, said", [
    (SRC, 0, "source-only model 21.0 on EN"), (TGT, 1, "target-only model 19.0 on DE"),
    (BOTH, 0, "bilingual model 21.0 on EN"), (BOTH, 1, "bilingual model 19.0 on DE")])
def test_a_collapsed_run_is_named_and_left_out(point, side, said):
    bad, low = grid(seed=2, angle=0.0), grid(lambda a1, a2, seed: (90, 80 - 70 * max(a1, 0)))
    bad.points[point] = tuple((21.0, 19.0)[i] if i == side else bad.points[point][i] for i in (0, 1))
    grids = [low, bad]
    assert sound(grids) == [low] and plot.remarks([low]) == []  # a low zero-shot score is no collapse
    assert said in plot.remarks(grids)[0] and "seed 2" in plot.remarks(grids)[0]
    assert plot.summary(grids) == plot.summary([low]) and plot.claims(grids) == plot.claims([low])
    assert sound([bad, grid(part="head", seed=2)], "head") == []  # nor its parts
    assert not grid(like("sloping", 80), part="head").collapse()  # where the other two models are no points

def test_parts_unfinished_runs_missing_angles_and_unlike_settings():
    grids = [grid(angle=80.0), grid(like("level"), part="encoder"), grid(like("level"), part="head")]
    assert plot.summary(grids) == plot.summary(grids[:1]) and plot.figures_of(grids[1:]) == []
    assert plot.claims(grids)[:-2] == plot.claims(grids[:1])[:-2]
    assert any("footnote 2 alone: 2 of 3 grids" in text for text in plot.remarks(grids))
    unfinished = [grids[0], grid(like("bent", 0.3, 0.6), seed=2, keep=12), grid(task="xnli", keep=12)]
    assert found(unfinished, "Source stays flat") == found(grids[:1], "Source stays flat")
    grids = [grids[0], grid(seed=2, norm_ratio=None, angle=None)]  # counts in everything else
    assert plot.numbers(grids)["angle: runs inside"] == 0 and len(plot.figures_of(grids)) == 5
    assert plot.summary(grids)[0]["angle"] == "80.0" and plot.summary(grids)[0]["seeds"] == "2"
    grids = [grid(), grid(seed=2, settings={"lr": 2e-5, "limit": 500}, scored_in="tf32")]
    assert plot.remarks(grids) == ["Mixed settings: POS mBERT, limit 500 and None.",
                                   "Mixed settings: POS mBERT, scored in fp32 and tf32."]
    grids = [grid(), grid(seed=2, settings={"lr": 2e-5, "limit": None, "select": "last"})]   # in either order
    assert plot.remarks(grids) == plot.remarks(grids[::-1]) == [
        "Mixed settings: POS mBERT, select None and last."]

def test_summary_by_hand():
    rows = plot.summary(seeds(1, 3, task="parsing", metrics=["LAS", "UAS"]))
    assert rows[0] == {"task": "Parsing", "metric": "LAS", "encoder": "mBERT", "pair": "EN-DE", "seeds": "2",
                       "source": "90.0 ± 0.0", "zero-shot": "53.0 ± 1.4", "bilingual": "80.0 ± 0.0",
                       "target only": "80.0 ± 0.0", "bilingual on source": "90.0 ± 0.0", "flatness": "1.000",
                       "R squared": "1.00", "norm ratio": "1.00 ± 0.00", "angle": "55.0 ± 0.0"}
    assert (rows[1]["metric"], rows[1]["zero-shot"], rows[1].get("flatness")) == ("UAS", "58.0 ± 1.4", None)

def drawn(grids, name, kind):
    [make] = [make for found, _, make in plot.figures_of(grids) if found == name]
    return make().findobj(kind)

def texts(grids, name):
    from matplotlib.text import Text
    return " | ".join(text.get_text() for text in drawn(grids, name, Text))

def test_what_is_drawn_and_marked_as_unfinished():
    lines = ["fig2-lines", "lines-pos", "lines-pos-en-de", "norms"]
    assert [name for name, _, _ in plot.figures_of([grid()])] == lines
    assert [name for name, _, _ in plot.figures_of(seeds(1, 2))] == lines + ["variance"]
    half, other = grid(lines=False, keep=300), grid(task="ner", tgt="ru", encoder="xlmr", keep=20)
    assert " ".join(name for name, _, _ in plot.figures_of([half, other])) == (
        "fig2-lines lines-ner lines-pos lines-ner-en-ru lines-pos-en-de plane-pos-en-de norms")
    for grids, name in (([half], "plane-pos-en-de"), ([other], "lines-ner")):
        assert "| seeds: 1, incomplete |" in texts(grids, name)
    assert "incomplete" not in texts([half], "lines-pos-en-de")  # its lines are whole
    assert plot.remarks([half, other]) == ["Incomplete: POS mBERT EN-DE seed 1, 300 of 465 points.",
                                           "Incomplete: NER XLM-R EN-RU seed 1, 20 of 65 points."]

@pytest.mark.parametrize("targets, numbers, bands, thin, said", [
    (("de", "ru", "zh"), (1,), 0, 0, "| seeds: 1 |"),
    (("de",), (1, 2, 3), 0, 12, "| thin lines: single seeds |"),
    (("de",), (1, 2, 3, 4, 5), 4, 0, "| band: 95 % of the mean over 5 seeds |"),
    (("de", "ru", "zh", "vi"), (1, 2), 4, 0, "| band: 95 % of the mean over 4 cases |")])
def test_bands_are_named_and_few_seeds_are_drawn_one_by_one(targets, numbers, bands, thin, said):
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D
    grids = [made for tgt in targets for made in seeds(*numbers, tgt=tgt)]
    lines = [line for line in drawn(grids, "fig2-lines", Line2D) if line.get_linewidth() == 0.4]
    assert (len(drawn(grids, "fig2-lines", PolyCollection)), len(lines)) == (bands, thin)
    text, with_other = (texts(of, "fig2-lines") for of in (grids, grids + seeds(1, 2, encoder="xlmr")))
    assert said in text and ("band" in text, "thin" in text) == (bands > 0, thin > 0)
    assert not bands or f"| thin lines: single seeds; {said[2:]}" in with_other  # XLM-R's comes first
    assert len(numbers) == 1 or not re.search("band|thin", texts(grids, "variance"))

def test_models_languages_and_encoders_are_named():
    said = texts([grid(lines=False), grid(lines=False, encoder="xlmr")], "plane-pos-en-de")
    for text in ("EN-DE", "EN", "DE", "POS EN-DE, mBERT\nscore on EN",
                 "POS EN-DE, XLM-R\nscore on DE", ".90", ".95"):
        assert f"| {text} |" in said
    from matplotlib.text import Text
    plane, own = grid(lines=False), grid(lines=False, pretraining="scratch", align=0)
    numbers = [text for text in drawn([plane], "plane-pos-en-de", Text) if text.get_text()[:1] == "."]
    assert len(numbers) > 4 and {text.get_rotation() for text in numbers} == {0}
    places = np.array([text.get_position() for text in numbers])
    assert (abs(places - 0.5) < 0.95).all()   # clear of the frame
    assert "| POS EN-DE\nscore on DE |" in texts([own], "plane-pos-en-de")   # its encoder is the pair's own
    assert "0\nEN |" in texts([grid()], "lines-pos") and "1\nEN-DE |" in texts([grid()], "lines-pos")
    assert "1\nEN-X |" in texts([grid(), grid(tgt="ru")], "lines-pos")
    names = {"tiny-bert": "tiny-bert", "FacebookAI--xlm-roberta-large": "XLM-R", "my-mbert": "my-mbert"}
    assert {name: grid(encoder=name).encoder_name for name in names} == names
    norms = texts([grid(encoder="tiny-bert"), grid(encoder="tiny-bert", task="ner")], "norms")
    assert norms.count("near the paper") == 1 and "| NER, tiny-bert |" in norms and "POS, tiny-bert" in norms

@pytest.mark.filterwarnings("error")
def test_figures_are_png_and_pdf_and_the_same_bytes_every_time(tmp_path):
    grids = [*seeds(1, 2, lines=False), grid(encoder="xlmr", lines=False, keep=300), grid(src="ar", keep=3)]
    kinds = ("fig2-lines", "plane-pos-en-de", "norms", "variance")  # the others are made by the same
    chosen = [figure for figure in plot.figures_of(grids) if figure[0] in kinds]
    for folder, (name, _, make) in itertools.product("ab", chosen):
        plot.draw_figure(name, make, tmp_path / folder)
    first, again = (contents(tmp_path / folder) for folder in "ab")
    assert len(first) == 8 and first.keys() == again.keys()
    for name, content in first.items():
        assert content.startswith(b"\x89PNG" if name.endswith("png") else b"%PDF")
        assert content == again[name], name

def test_report_shows_everything_and_its_links_exist(tmp_path):
    bad = grid(seed=3, metrics=["LAS", "UAS"])
    bad.points[TGT] = (50, 18)
    grids = seeds(1, 2, metrics=["LAS", "UAS"]) + [bad]
    for name, _, make in plot.figures_of(grids):
        plot.draw_figure(name, make, tmp_path)
    said = plot.report(grids, tmp_path, "reproduce.py --demo", "## Notes\n\nA toy.", ["NER seed 2: no."])
    text = (tmp_path / "report.md").read_text()
    links = re.findall(r"\((figures/[^)]*)\)", text)
    assert len(links) == 6 and all((tmp_path / link).is_file() for link in links)  # lines, norms, variance
    for part in ("    reproduce.py --demo\n", table(plot.summary(grids)), "A toy.", "| UAS ",
                 plot.RULES.format(0, 1), "seed 3, target-only model 18.0 on DE",
                 "## Missing\n\n- NER seed 2: no.\n\n## Scores"):
        assert part in text
    verdicts, rules = text.split("## The paper's claims")[1].split("- Source stays flat", 1)
    for row, (claim, _, *limits) in zip(plot.claims(grids), plot.CLAIMS, strict=True):
        assert re.search(f"{claim} +\\| .*{row['verdict']}.*{re.escape(row['measured'])}", verdicts)
        assert f"{row['verdict']:12}{claim}\n" in said + "\n" and all(limit in rules for limit in limits)
    assert "Missing: NER seed 2: no." in said and "18.0 on DE" in said.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.md"]
    plot.report([*grids, grid(lines=False, tgt="fr")], tmp_path / "plane", "x")
    assert "a\ncase has a plane (here 1 of 2) the gradient" in (tmp_path / "plane/report.md").read_text()
    assert "not tested" in plot.report([], tmp_path / "none", "x")  # without a single whole run
    assert "## Figures" not in (tmp_path / "none/report.md").read_text()

def test_the_text_for_the_terminal_is_narrow_with_a_block_for_each_encoder(tmp_path):
    names = {"tgt": "en.transliteration", "task": "generation", "settings": {"a" * 90: 1}}
    grids = [*seeds(1, 2, score=like("noisy", 9), **names), grid(part="head", keep=9, **names),
             *both(NARROW, paper)]
    said = plot.report(grids, tmp_path, "x", missing=["a sentence " * 20]).splitlines()
    assert max(map(len, said)) <= 79 and [x for x in said if x in ("mBERT", "XLM-R")] == ["mBERT", "XLM-R"]
    head = [line.split() for line in said if line.startswith("task")]
    assert head == [["task", "pair", "source", "zero-shot", "bilingual", "flatness"]] * 2
    assert ["POS", "EN-DE", "90.0", "54.0", "80.0", "1.000"] in [line.split() for line in said]
    assert any(line.endswith("; 1 of 1 cases") for line in said)

def run(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=KIT, capture_output=True, text=True)

def test_command_line_joins_folders_and_says_what_is_wrong_in_a_sentence(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", seed=2)
    done = run("plot.py", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert done.returncode == 0 and done.stderr == ""
    assert "agrees      Source stays flat along Eq. 1\n" in done.stdout and "EN-DE  90.0 ± 0.0" in done.stdout
    out, command = tmp_path / "out", f"    python plot.py {tmp_path}/a {tmp_path}/b --out {tmp_path}/out\n"
    assert command in (out / "report.md").read_text() and (out / "figures/norms.pdf").exists()
    (tmp_path / "file").write_text("")
    done = run("-c", "import sys\nsys.argv[1:] = ['--help']\nimport plot\ntry: plot.main()\n"
                     "except SystemExit: print({'matplotlib', 'torch'} & set(sys.modules))")
    assert done.stdout.endswith("set()\n") and "--out" in done.stdout  # help is there at once
    for folder, out, said in (("nothing", "new", "nothing: no result files"), ("a", "file", "file/figures")):
        done = run("plot.py", tmp_path / folder, "--out", tmp_path / out)
        assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
        assert f"{tmp_path}/{said}" in done.stderr and not (tmp_path / "new").exists()

def test_one_folder_is_its_own_out_and_a_mistake_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plot, "draw_figure", lambda *_: None)
    write(tmp_path / "a")
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path / "a")])
    plot.main()
    assert f"{tmp_path}/a/report.md" in capsys.readouterr().out
    for wrong in ([str(tmp_path / "a"), str(tmp_path / "b")], [], ["--colour", "x"], ["a", "--out"]):
        monkeypatch.setattr(sys, "argv", ["plot.py", *wrong])
        with pytest.raises(SystemExit) as stop:
            plot.main()
        said = capsys.readouterr()
        assert stop.value.code == 2 and not said.out and said.err.count("\n") == 1
        assert "--help" in said.err and "usage" not in said.err

def test_published_scores_stand_beside_those_of_such_runs_alone():
    level = like("level")   # 90 on the source, 80 on the target
    made = [grid(level, encoder="bert-base-multilingual-cased", tgt=tgt) for tgt in ("de", "ar")]
    made += [grid(level, encoder="xlmr", task="xnli", src="ar"), grid(level, encoder="tiny")]
    found = [(row["pair"], row["model"], row["yours"], row["published"], row["hint"])
             for row in plot.published(made)]
    assert found == [("EN-DE", "zero-shot", "80.0", "88.3", "far"),
                     ("EN-DE", "target only", "80.0", "92.9", "far")]
    both = plot.published([grid(level, task="ner", metrics=["span F1"]), grid(level)])
    assert [(row["task"], row["published"]) for row in both] == [
        ("NER", "79.7"), ("POS", "88.3"), ("POS", "92.9")]
    assert all(len(scores.split()) == 9 for *_, scores in plot.PUBLISHED)
