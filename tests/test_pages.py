"""The pages: links lead somewhere, named code is there, the README's ten lines run, REFERENCE names all."""

import importlib
import json
import re

import pytest
import torch
from conftest import KIT, write

import heads
import pretrain
import reproduce as r
from results import Ranks

PAGES = [KIT / name for name in ("README.md", "RESULTS.md", "REFERENCE.md", "EXERCISES.md", "INSTRUCTORS.md",
                                 "findings/README.md", "figures/published/README.md",
                                 "figures/real/README.md")]
MODULES = {path.stem: importlib.import_module(path.stem) for path in KIT.glob("*.py")}

def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text())

def anchors(page):
    """The anchors of a page's headings: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(page))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(KIT)))
def test_links_lead_to_files_and_headings_that_are_there(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        if not path.startswith("http"):
            there = page.parent / path if path else page
            assert there.exists() and (not anchor or anchor in anchors(there)), link

@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(KIT)))
def test_code_that_a_page_names_is_there(page):
    owners = {**MODULES, **{name: vars(module)[name] for module in MODULES.values() for name in vars(module)
                            if isinstance(vars(module)[name], type)}}
    for owner, name in re.findall(r"`(\w+)\.(\w+)`", prose(page)):
        if owner in owners and name not in ("py", "jsonl"):
            assert hasattr(owners[owner], name), f"{owner}.{name}"

def test_the_readme_can_be_read_in_one_sitting():
    text = (KIT / "README.md").read_text()
    lines, commands = text.splitlines(), re.findall(r"(?ms)^```bash\n(.*?)^```$", text)
    assert len(lines) <= 150 and all(len(line) <= 110 for line in lines if line + "\n" not in commands)

def test_the_ten_lines_run_and_are_the_kits_plane():
    [code] = re.findall(r"(?ms)^```python\n(.*?)^```$", (KIT / "README.md").read_text())
    there = {}
    exec(code, there)
    corners = [there[name] for name in ("both", "src", "tgt")]
    for at, corner in zip(((0, 0), (1, 0), (0, 1)), corners, strict=True):
        for name, value in there["point"](*at).items():
            torch.testing.assert_close(value, corner[name])
    plane = heads.Plane(there["model"], corners)
    plane.move(.3, -.2)
    for name, value in there["point"](.3, -.2).items():
        torch.testing.assert_close(value, plane.views[name])
    line, (x, gold) = there["line"], (there["x"], there["gold"])
    for score, corner in ((line[0], there["src"]), (line[-1], there["both"])):
        right = (x @ corner["weight"].T + corner["bias"]).argmax(1) == gold
        assert len(line) == 11 and abs(score - 100 * right.float().mean().item()) <= .5   # a tie of 200

def named():
    """What REFERENCE.md has between backticks."""
    return {" ".join(name.split()) for name in re.findall(r"`([^`]+)`", prose(KIT / "REFERENCE.md"))}

def keys(value, but=()):
    """All keys of nested dicts but those of the dicts under the keys in `but`, which are names themselves."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        yield from keys({} if key in but else inner, but)

def test_every_field_of_a_run_is_in_the_reference(encoder, corpus, tmp_path):
    known = named()
    for lang in ("en", "de"):
        write(tmp_path / f"{lang}.txt", ["abc def", "fed", "d e f"])
    assert r.answer(r.parse_arguments([   # the second rate diverges
        *"--task pos --src en --tgt de --seeds 1 --epochs 1 --batch-size 8 --lr 1e-2 1e11".split(),
        *f"--lines-only --select last --device cpu --encoder {encoder} --data {corpus}".split(),
        "--out", f"{tmp_path}/out", "--parallel", f"{tmp_path}/en.txt", f"{tmp_path}/de.txt"])) == 3
    files = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".jsonl", ".json", ".failed")]
    names = {"train.jsonl", "seed1.jsonl", "failed.json", "seed1.lr1e+11.failed"}
    assert {path.name for path in files} == names
    found = set()
    for path in files:
        for line in path.read_text().splitlines():
            found |= {*keys(json.loads(line), ("score", "watched", "src", "tgt", "data", "dev", "majority"))}
    assert {"watched", "xlrs", "way", "norm_ratio", "problem", "select", "a1"} <= found <= known

def test_every_field_of_a_pretraining_is_in_the_reference(tmp_path):
    text = tmp_path / "en.txt"
    text.write_text("".join(f"{a}{b} {b}{a}c\n" for a in "abcdef" for b in "ghijkl"))
    preset = pretrain.parse_preset("layers=1,heads=1,hidden=8,vocabulary=270,length=12,steps=1,warmup=0")
    encoder = pretrain.Scratch(f"{tmp_path}/made", "scratch", (text,), ("transliteration",), 1.)
    about = pretrain.pretrain(encoder, preset, "fp32", "cpu", Ranks())
    assert {*keys(about)} <= named() and "rows in the loss" in about

@pytest.mark.parametrize("report", sorted(KIT.glob("figures/*/report.md")), ids=lambda path: path.parent.name)
def test_every_column_of_a_report_is_in_the_reference(report):
    known, above, tables = named(), "", 0
    for line in report.read_text().splitlines():
        if re.fullmatch(r"-+( \| -+)+", line):
            tables += 1
            assert {name.strip() for name in above.split("|")} <= known
        above = line
    assert tables > 1
