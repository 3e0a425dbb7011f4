"""scripts/published.py: the table by hand, the published numbers, and files that are broken."""

import subprocess
import sys

import pytest
from conftest import KIT

sys.path.insert(0, str(KIT / "scripts"))
import published

from results import KitError

HEADER = "task,encoder,language,seed 1,seed 2,seed 3"

def file(folder, *rows, header=HEADER):
    path = folder / "scores.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return path

def test_the_table_by_hand(tmp_path):
    path = file(tmp_path, "POS,one,en,90,91,92",   # variance 1; over 4 and 9: 2 / 13
                "POS,one,de,50,52,54", "POS,one,fr,50,53,56", "NER,two,en,80,80,83",       # 3 / 3
                "NER,two,de,60,60,63")
    assert published.read(path)["POS", "one"]["fr"].tolist() == [50, 53, 56]
    rows, found = published.compare(published.read(path), 0.25)
    assert [tuple(row.values()) for row in rows] == [
        ("POS", "one", "1.000", "6.500", "0.154", "yes", "1 of 2"),    # 1 is not below a quarter of 4
        ("NER", "two", "3.000", "3.000", "1.000", "no", "0 of 1")]
    assert found == {"verdict": "differs", "cases": "1 of 2",          # (1 + 3) / (6.5 + 3)
                     "measured": "variance, source / target = 0.421"}
    cases = published.read(path)
    assert published.compare(cases, 0.5)[1]["verdict"] == "mixed"      # one case of two is no more than half
    assert published.compare(cases, 1.1)[1]["verdict"] == "agrees"

def test_published_runs_and_the_kits_rule_give_the_numbers_of_the_readme():
    out = subprocess.run([sys.executable, str(KIT / "scripts/published.py")], capture_output=True, text=True)
    assert (out.returncode, out.stderr) == (0, "")
    table = [[cell.strip() for cell in line.split("|")] for line in out.stdout.splitlines()[2:11]]
    ratios = [f"{float(row[4]):.2g}" for row in table]
    assert ratios == ["0.026", "0.011", "0.002", "0.007", "0.007", "0.016", "0.032", "0.41", "0.14"]
    assert [row[:2] for row in table if row[5] == "no"] == [["XNLI", "XLM-R base"]]
    assert "agrees" in out.stdout and "8 of 9 cases" in out.stdout and published.rule()[1] == 0.25
    assert out.stdout.strip() in (KIT / "figures/published/README.md").read_text()
    assert all(len(case) == 9 and all(len(scores) == 5 for scores in case.values())
               for case in published.read(published.FILE).values())

@pytest.mark.parametrize("rows, says", [
    (["POS,one,en,90,91,92", "POS,one,de,50,52"], "line 3"),
    (["POS,one,en,90,91,x"], "line 2"),
    (["POS,one,en,90,91,nan"], "line 2"),
    (["POS,one,en,90,91,101"], "line 2"),
    (["POS,one,en,90,91,92", "POS,one,en,90,91,92"], "line 3"),
    (["POS,one,en,90,91,92"], "expected en and at least one target"),
    (["POS,one,de,90,91,92", "POS,one,fr,90,91,92"], "expected en"),
    ([], "no scores")])
def test_a_broken_file_is_told(tmp_path, rows, says):
    with pytest.raises(KitError, match=says):
        published.read(file(tmp_path, *rows))

def test_the_command_ends_in_a_sentence(tmp_path, monkeypatch, capsys):
    for path in (tmp_path / "none.csv", file(tmp_path, "a,b", header="")):
        monkeypatch.setattr(sys, "argv", ["published.py", str(path)])
        with pytest.raises(SystemExit, match="2"):
            published.main()
        said = capsys.readouterr()
        assert said.err.startswith("published.py: ") and str(path) in said.err and not said.out
