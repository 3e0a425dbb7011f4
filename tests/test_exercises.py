"""The exercises. check.py: the kit's functions get full points, typical mistakes do not, no file breaks it;
bugs: each patch has the fault that it is there for; start.ipynb: it runs from top to bottom."""

import ast
import contextlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import KIT

import heads

CHECK = KIT / "exercises" / "check.py"
NAMES = "plane", "windows", "spans", "tree", "lines"

def imported(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

check = imported(CHECK, "exercises_check")

def command(*args):
    return subprocess.run([sys.executable, str(CHECK), *map(str, args)], capture_output=True, text=True)

def points(folder, name, source):
    """Of a part, in this process: which of its five checks a file passes."""
    path = Path(folder, f"{name}.py")
    path.write_text(source)
    with torch.no_grad():
        return [check.examine(each, check.load(path), path)["passed"] for each in check.PARTS[name]]

BY_THE_KIT = {   # each stub as a call into the kit
    "plane": """
import heads

def outputs(model, corners, a1, a2, inputs):
    plane = heads.Plane(model, corners)
    plane.move(a1, a2)
    return plane(inputs)
""",
    "windows": """
import data

def windows(lengths, room, context):
    data.CONTEXT, starts = context, [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    return [(left, min(starts[last], left + room), [start - left for start in starts[first:last]])
            for left, first, last in data.slide(starts, room)]
""",
    "spans": """
import torch
from types import SimpleNamespace
import heads

def encoded(sentences):
    kinds = sorted({tag[2:] for tags in sentences for tag in tags} - {""})
    ids = [0 if tag == "O" else 2 * kinds.index(tag[2:]) + 1 + (tag[0] == "I")
           for tags in sentences for tag in tags]
    return kinds, torch.tensor(ids), torch.tensor([n == 0 for tags in sentences for n in range(len(tags))])

def spans(tags):
    kinds, ids, new = encoded([tags])
    begins, kind, end = heads.spans(ids, new)
    return [(kinds[kind[n] - 1], n, end[n].item()) for n in begins.nonzero()[:, 0].tolist()]

def span_f1(gold, predicted):
    _, ids, new = encoded(gold + predicted)
    gold, predicted = ids[:, None].chunk(2)
    right, of = heads.span_f1(predicted, SimpleNamespace(gold=gold, new=new[:len(gold)]))[0].tolist()
    return 100 * right / max(1, of)
""",
    "tree": """
import heads

def best_tree(scores):
    return heads.best_tree(scores).tolist()
""",
    "lines": """
from grids import Grid, band, shape
from made_up import rows

def along(alphas, scores):
    grids = [Grid("made up", rows()[0] | {"line": alphas.tolist(), "seed": n}) for n in range(len(scores))]
    for grid, row in zip(grids, scores):
        grid.points |= {at: (score, score) for at, score in zip(grid.on_line(1), row)}
    return shape(grids, 1)

def flatness(alphas, scores):
    return along(alphas, scores)["lowest score"][0]

def r_squared(alphas, curve):
    return along(alphas, curve[None])["R squared"][1]
"""}

RIGHT = {
    "plane": """
from torch.func import functional_call

at = {}

def outputs(model, corners, a1, a2, inputs):
    both, src, tgt = corners
    theta = {n: both[n] + a1 * (src[n] - both[n]) + a2 * (tgt[n] - both[n]) for n in both}
    return functional_call(model, theta, (inputs,))
""",
    "windows": """
def windows(lengths, room, context):
    starts, found, word = [sum(lengths[:n]) for n in range(len(lengths) + 1)], [], 0
    while word < len(lengths):
        left, end = max(0, starts[word] - context), word + 1
        while end < len(lengths) and starts[end + 1] <= left + room:
            end += 1
        right = min(starts[end], left + room)
        found.append((left, right, [start - left for start in starts[word:end]]))
        word = end
    return found
""",
    "spans": """
def spans(tags):
    found, before = [], "O"
    for place, tag in enumerate(tags):
        if tag[0] == "I" and tag[2:] == before[2:]:
            found[-1] = (tag[2:], found[-1][1], place)
        elif tag != "O":
            found.append((tag[2:], place, place))
        before = tag
    return found

def span_f1(gold, predicted):
    right = of = 0
    for one, other in zip(gold, predicted):
        one, other = set(spans(one)), set(spans(other))
        right, of = right + 2 * len(one & other), of + len(one) + len(other)
    return 100 * right / of if of else 0
""",
    "tree": "\nimport numpy as np\n" + "\n".join(   # the kit's own, for the mistakes to be made in
        inspect.getsource(function) for function in (heads.best_tree, heads.arborescence)),
    "lines": """
import numpy as np

def flatness(alphas, scores):
    normalised = scores / scores[:, alphas == 1]
    return normalised.mean(0)[(alphas >= 0) & (alphas <= 1)].min()

def r_squared(alphas, curve):
    y = np.interp(np.linspace(0, 1, 11), alphas, curve)
    line = np.linspace(y[0], y[-1], 11)
    return 1 - ((y - line) ** 2).sum() / ((y - y.mean()) ** 2).sum()

def band(scores):
    return scores.mean(0), 4.303 * scores.std(0, ddof=1) / np.sqrt(3)
"""}

WRONG = {   # what a mistake is, and of the right file the words that it replaces
    "plane": {
        "shared vector moved in place": ("n: both[n] + a1 * (src[n] - both[n])",
                                         "n: both[n].add_(a1 * (src[n] - both[n]))"),
        "the model itself is moved": ("return functional_call(model, theta, (inputs,))",
                                      "model.load_state_dict(theta, strict=False); return model(inputs)"),
        "moved and put back": ("return functional_call(model, theta, (inputs,))", """
    own = {n: p.clone() for n, p in model.named_parameters()}
    model.load_state_dict(theta, strict=False)
    out = model(inputs)
    model.load_state_dict(own, strict=False)
    return out"""),
        "source and target changed places": ("both, src, tgt = corners", "both, tgt, src = corners"),
        "models instead of differences": ("a1 * (src[n] - both[n]) + a2 * (tgt[n] - both[n])",
                                          "a1 * src[n] + a2 * tgt[n]"),
        "step by step": (
            "theta = {n: both[n] + a1 * (src[n] - both[n]) + a2 * (tgt[n] - both[n]) for n in both}", """
    (b1, b2), theta = at.get(str(both), ((0, 0), both))
    theta = {n: theta[n] + (a1 - b1) * (src[n] - both[n]) + (a2 - b2) * (tgt[n] - both[n]) for n in both}
    at[str(both)] = (a1, a2), theta""")},
    "windows": {
        "off by one": ("starts[end + 1] <= left + room", "starts[end + 1] < left + room"),
        "places in the sentence": ("start - left for", "start for"),
        "no context": ("max(0, starts[word] - context)", "starts[word]"),
        "context is read again": ("in starts[word:end]", "in starts[:end] if start >= left"),
        "words are cut": ("starts[end + 1] <= left + room", "starts[end] < left + room"),
        "last subwords": ("[start - left for start in starts[word:end]]",
                          "[start - left - 1 for start in starts[word + 1:end + 1]]")},
    "spans": {
        "I- after O dropped": ('elif tag != "O":', 'elif tag[0] == "B" or tag != "O" and before != "O":'),
        "another type goes on": ('tag[2:] == before[2:]', 'before != "O"'),
        "B- goes on": ('tag[0] == "I" and tag[2:]', 'tag != "O" and tag[2:]'),
        "types do not count": ("set(spans(one)), set(spans(other))",
                               "{s[1:] for s in spans(one)}, {s[1:] for s in spans(other)}"),
        "mean over sentences": ("right, of = right + 2 * len(one & other), of + len(one) + len(other)",
                                "right += 2 * len(one & other) / max(1, len(one) + len(other)); of += 1"),
        "one long sentence": ("zip(gold, predicted)", "[(sum(gold, []), sum(predicted, []))]")},
    "tree": {
        "two roots": ("s[1:, 0] -= len(s) * (inner.max() - inner.min()) + 1.0", ""),
        "each word's best head": ("if not above.any():", "if True:"),
        "the root by its arc alone": ("s[1:, 0] -= len(s) * (inner.max() - inner.min()) + 1.0",
                                      "s[1:, 0][np.arange(len(s) - 1) != s[1:, 0].argmax()] = -np.inf"),
        "what is lost in the cycle forgotten": (" - s[cycle, heads[cycle]][:, None]", ""),
        "scores changed": ("np.nan_to_num(scores,", "np.nan_to_num(scores, copy=False,"),
        "heads by dependents": ("np.nan_to_num(scores,", "np.nan_to_num(scores.T,")},
    "lines": {
        "population sd": ("ddof=1", "ddof=0"),
        "normal distribution": ("4.303", "1.96"),
        "sd instead of its error": (" / np.sqrt(3)", ""),
        "mean before normalised": ("scores / scores[:, alphas == 1]",
                                   "scores.mean(0, keepdims=True) / scores.mean(0)[alphas == 1]"),
        "outside of 0 to 1": ("[(alphas >= 0) & (alphas <= 1)]", ""),
        "uneven points": ("""np.interp(np.linspace(0, 1, 11), alphas, curve)
    line = np.linspace(y[0], y[-1], 11)""", """curve[(alphas >= 0) & (alphas <= 1)]
    line = y[0] + alphas[(alphas >= 0) & (alphas <= 1)] * (y[-1] - y[0])"""),
        "regression": ("line = np.linspace(y[0], y[-1], 11)",
                       "line = np.polyval(np.polyfit(range(11), y, 1), range(11))")}}

@pytest.mark.parametrize("name", NAMES)
def test_the_kits_functions_and_a_solution_get_full_points(name, tmp_path):
    assert points(tmp_path, name, BY_THE_KIT[name]) == [True] * 5
    assert points(tmp_path, name, RIGHT[name]) == [True] * 5

@pytest.mark.parametrize("name, mistake", [(name, mistake) for name in NAMES for mistake in WRONG[name]])
def test_a_typical_mistake_does_not_get_full_points(name, mistake, tmp_path):
    old, new = WRONG[name][mistake]
    assert RIGHT[name].count(old) == 1
    found = points(tmp_path, name, RIGHT[name].replace(old, new))
    assert not all(found), found

def test_untouched_stubs_are_not_done_yet():
    said = command()
    assert (said.returncode, said.stderr) == (1, "") and "0 of 25 points." in said.stdout
    assert [line.split()[0] for line in said.stdout.splitlines() if "not done yet" in line] == [*NAMES]
    assert "python" in said.stdout.splitlines()[-1]
    for name in NAMES:   # a stub has a docstring, raises a sentence, and holds nothing else
        functions = ast.parse((KIT / "exercises" / f"{name}.py").read_text()).body[1:]
        assert functions and all(isinstance(each.body[0], ast.Expr) and isinstance(each.body[1], ast.Raise)
                                 and len(each.body) == 2 for each in functions)

def test_the_command_gives_points_and_exit_codes(tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(RIGHT[name])
    said = command("--folder", tmp_path, "--json", "--seconds", 60)
    found = json.loads(said.stdout)
    assert (said.returncode, found["points"], found["of"]) == (0, 25, 25)
    assert {name: (part["points"], part["of"]) for name, part in found["parts"].items()} == dict.fromkeys(
        NAMES, (5, 5))
    (tmp_path / "lines.py").write_text(RIGHT["lines"].replace("ddof=1", "ddof=0"))
    said = command("--folder", tmp_path, "lines.py", "spans", "--seconds", 60)
    assert said.returncode == 1 and "\nlines 4 of 5\n" in f"\n{said.stdout}" and "spans 5 of 5" in said.stdout
    assert "expected  [[2], [2.48434]]" in said.stdout and "got       [[2], [2.02845]]" in said.stdout
    said = command("trees")
    assert said.returncode == 2 and said.stderr.startswith("check.py: there is no part trees; expected plane")

def test_a_file_that_hangs_ends_or_breaks_costs_its_own_points_alone(tmp_path):
    for name, old, new in (
            ("windows", "    starts,", "    while context == 64: pass\n    starts,"),
            ("spans", "    found,", "    if 'I-ORG' in tags: __import__('os')._exit(0)\n    found,"),
            ("tree", "import numpy as np", "import numpy as"),
            ("lines", "return scores.mean(0)", "return input() or exit(0) or scores.mean(0)")):
        (tmp_path / f"{name}.py").write_text(RIGHT[name].replace(old, new))
    said = command("--json", "--seconds", 1, "--folder", tmp_path)
    assert said.returncode == 1 and "Traceback" not in said.stderr
    parts = json.loads(said.stdout)["parts"]
    assert {name: part["points"] for name, part in parts.items()} == {
        "windows": 4, "spans": 4, "tree": 0, "lines": 4, "plane": 0}
    got = {name: next(row["got"] for row in part["checks"] if not row["passed"])
           for name, part in parts.items()}
    assert got["windows"] == "it took more than 1 seconds" and got["spans"] == "it ended the whole process"
    assert "SyntaxError" in got["tree"] and "tree.py line 2" in got["tree"]
    assert "EOFError" in got["lines"] and "there is no" in got["plane"]
    shutil.copy(KIT / "exercises" / "spans.py", tmp_path)
    (tmp_path / "tree.py").write_text("import sys\nsys.exit(0)\n")
    said = command("spans", "tree", "--folder", tmp_path)
    assert said.returncode == 1 and "spans    not done yet" in said.stdout and "SystemExit" in said.stdout

# ---- find the bug -----------------------------------------------------------------------------------------

BUGS = [pytest.param(patch, id=patch.stem) for patch in sorted((KIT / "exercises/bugs").glob("*.patch"))]
GIT, PATCH = ("git", "apply"), ("patch", "-p1", "--quiet")

def patched(patch, folder, *command):
    """Apply a patch to the kit's files in a folder that is no checkout; names of the files that differ."""
    subprocess.run(command, cwd=folder, check=True, input=patch.read_bytes())
    return [path.name for path in folder.glob("*.py") if path.read_bytes() != (KIT / path.name).read_bytes()]

@pytest.fixture
def copied(tmp_path):
    """A folder with a copy of the kit's files."""
    for path in KIT.glob("*.py"):
        shutil.copy(path, tmp_path)
    return tmp_path

def languages(data):
    """The languages of the batches of an epoch, from first to last."""
    return "".join(lang for lang, _ in data.batch_order((("A", 64), ("B", 64)), 8, 1, 0))

def difference(heads):
    """How far what a corner of the plane gives lies from what its model gives."""
    torch.manual_seed(0)
    model, x = torch.nn.Linear(64, 1).eval().requires_grad_(False), torch.randn(9, 64)
    plane = heads.Plane(model, [dict(model.named_parameters())] * 3)
    plane.move(0, 0)
    return (plane(x) - model(x)).abs().max().item()

def pull(heads):
    """How hard the loss pulls at the arcs of each word of a sentence; number 0 is ROOT, the root word 2."""
    head, arcs = heads.Biaffine(8, 3).eval(), torch.zeros(1, 4, 4, requires_grad=True)
    head.arcs = lambda h, real: arcs
    gold = torch.tensor([[[-1, -1], [2, 0], [0, 1], [2, 2]]])
    batch = SimpleNamespace(gold=gold, real=torch.ones(1, 4, dtype=torch.bool))
    head.loss(torch.zeros(1, 4, 8), batch).backward()
    return [value > 0 for value in arcs.grad[0].abs().sum(-1).tolist()]

def signs(folder):
    """What is wrong with the kit in a folder."""
    data, heads = (imported(folder / f"{name}.py", f"patched_{name}") for name in ("data", "heads"))
    return {"one": languages(data) == "A" * 8 + "B" * 8,
            "two": 1e-4 < difference(heads) < 0.1,
            "three": pull(heads) == [False, True, False, True]}

def test_the_kit_shows_none_of_the_faults():
    assert not any(signs(KIT).values())
    assert difference(imported(KIT / "heads.py", "kits_heads")) == 0
    assert pull(imported(KIT / "heads.py", "kits_heads")) == [False, True, True, True]

@pytest.mark.parametrize("patch", BUGS)
def test_a_patch_applies_has_its_fault_alone_and_can_be_undone(patch, copied):
    for command in (GIT, PATCH):
        if shutil.which(command[0]):
            assert len(patched(patch, copied, *command)) == 1
            assert [fault for fault, there in signs(copied).items() if there] == [patch.stem]
            assert not patched(patch, copied, *command, "-R")
    headers = [line for line in patch.read_text().splitlines() if line[:1] not in " +-"]
    assert len(headers) == 1 and headers[0].endswith(" @@")   # which tells nothing of the fault

@pytest.mark.slow
@pytest.mark.parametrize("patch", BUGS)
def test_the_kit_runs_to_its_end_with_a_fault(patch, copied, encoder, corpus):
    patched(patch, copied, *GIT)
    command = ("reproduce.py --task parsing --src en --tgt de --seeds 1 --epochs 1 --lines-only --device cpu "
               f"--encoder {encoder} --data {corpus} --out out")
    done = subprocess.run([sys.executable, *command.split()], cwd=copied, capture_output=True, text=True)
    assert done.returncode == 0 and (copied / "out" / "report.md").exists(), done.stderr

# ---- the notebook -----------------------------------------------------------------------------------------

NOTEBOOK = KIT / "exercises" / "start.ipynb"

def cells():
    """The sources of the notebook's code cells."""
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"]
            if cell["cell_type"] == "code"]

def test_the_notebook_holds_no_outputs_and_its_toy_is_flat_on_a_and_climbs_on_b():
    book, said, threads = json.loads(NOTEBOOK.read_text()), io.StringIO(), torch.get_num_threads()
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book["cells"])
    assert "Colab" in "".join(book["cells"][0]["source"])
    [toy] = [source for source in cells() if "functional_call" in source]
    with contextlib.redirect_stdout(said):
        exec(toy, {})
    torch.set_num_threads(threads)
    rows = [[float(number) for number in line.split()] for line in said.getvalue().splitlines()[1:]]
    on_a, on_b = [row[1] for row in rows], [row[2] for row in rows]
    assert len(rows) == 11 and min(on_a) > 0.9 and on_b[0] < 0.6 and on_b[-1] > 0.95
    assert all(after - before > -0.01 for before, after in zip(on_b, on_b[1:]))

def test_the_notebook_installs_what_is_missing_and_leaves_torch_alone(monkeypatch):
    versions, commands = {"torch": "2.9.0+cu126", "transformers": "4.57.1", "numpy": "2.0.2"}, []

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.chdir(KIT / "exercises")
    exec(cells()[0], {})
    [command] = commands
    assert [line.split("==")[0] for line in command[-4:]] == ["-q", "transformers", "matplotlib", "tqdm"]

@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(copied):
    import nbclient
    import nbformat
    shutil.copy(KIT / "requirements.txt", copied)
    (copied / "exercises").mkdir()
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(book, timeout=900, kernel_name="python3",
                            resources={"metadata": {"path": str(copied / "exercises")}}).execute()
    found = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
    said = ["".join(output.get("text", "") for output in outputs) for outputs in found]
    assert said[0] == "installed now: nothing, all was there\n"
    assert sum("image/png" in output.get("data", {}) for output in found[2]) == 2
    assert "Look first at results/start/report.md" in said[1] and said[3].count("| accuracy | scratch") == 2
    assert all(text.count("\n") < 50 for text in said)
