"""Bad input: each mistake is answered by one sentence that names the place, the value and what to do, by exit code 2 and
by nothing kept. Corrupted files end in such a sentence or are read as another, simpler reader reads them."""

import gzip
import http.client
import io
import json
import random
import re
import shutil
import socket
import tarfile
import urllib.error
import urllib.request
import zipfile
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import KIT, write_encoder
from conftest import reproduce as command
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import data
import heads
import plot
import reproduce

FILE = {"pos": "ud/UD_English-EWT/en_ewt-ud-train.conllu", "parsing": "ud/UD_English-EWT/en_ewt-ud-train.conllu",
        "ner": "panx/en/train", "xnli": "xnli/XNLI-MT-1.0/multinli/multinli.train.en.tsv"}
XNLI_DEV = "xnli/XNLI-1.0/xnli.dev.tsv"


class Kit:
    """A tiny run in this process: its folders, and what it said."""

    def __init__(self, encoder, corpus, folder, capsys):
        self.encoder, self.folder, self.capsys = encoder, folder, capsys
        self.data, self.out = shutil.copytree(corpus, folder / "data"), folder / "out"

    def run(self, *flags, task="pos", src="en", tgt="de", **options):
        """The exit code; what was printed is in said (stdout) and error (stderr)."""
        options = dict(encoder=self.encoder, data=self.data, out=self.out, seeds=1, epochs=1, batch_size=8, lr=1e-3,
                       device="cpu") | options
        argv = ["--task", task, "--src", src, "--tgt", tgt, "--lines-only"]
        argv += [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        try:
            code = reproduce.run(reproduce.parse_arguments([*argv, *flags]))
        except SystemExit as stop:   # argparse
            code = stop.code
        self.said, self.error = self.capsys.readouterr()
        return code

    def refuses(self, *words, flags=(), nothing=True, **options):
        """The run ends with code 2 and one sentence that holds all words; nothing is written under OUT."""
        assert self.run(*flags, **options) == 2
        *usage, last = self.error.strip().split("\n")
        assert last.startswith("reproduce.py: ") and not usage or ": error: " in last and usage[0].startswith("usage: ")
        for word in map(str, words):
            assert word in last, f"{word!r} is not in {last!r}"
        if nothing:
            assert not self.out.exists()

    def edit(self, name, change):
        path = self.data / name
        path.write_bytes(change(path.read_bytes()))
        return path


@pytest.fixture
def kit(encoder, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plot, "draw", lambda *_: [])   # figures are slow, and others test them
    return Kit(encoder, corpus, tmp_path, capsys)


@pytest.fixture(scope="session")
def finished(encoder, corpus, tmp_path_factory):
    """OUT of a finished tiny run."""
    args = reproduce.parse_arguments(["--task", "pos", "--src", "en", "--tgt", "de", "--lines-only", "--encoder", str(encoder),
                                      "--data", str(corpus), "--out", str(tmp_path_factory.mktemp("done") / "out"),
                                      "--seeds", "1", "--epochs", "1", "--batch-size", "8", "--lr", "1e-3", "--device", "cpu"])
    draw, plot.draw = plot.draw, lambda *_: []
    try:
        assert reproduce.run(args) == 0
    finally:
        plot.draw = draw
    return Path(args.out)


@pytest.fixture
def again(kit, finished):
    """A kit whose OUT is a copy of a finished run, and the paths of its model, state and grid files."""
    shutil.copytree(finished, kit.out)
    kit.model = next(kit.out.glob("models/pos/*/en/seed1/model.safetensors"))
    kit.grid = next(kit.out.glob("grids/pos/*/en-de/seed1.jsonl"))
    return kit


# --------------------------------------------------------------------------------------------------------------- flags

@pytest.mark.parametrize("flags, words", [
    (["--src", "en", "--tgt", "en"], ["--src", "--tgt", "en", "two languages"]),
    (["--limit", "0"], ["--limit", "'0'", "at least 1"]),
    (["--limit", "1.5"], ["--limit", "'1.5'"]),
    (["--seeds", "1", "-1"], ["--seeds", "'-1'", "at least 0"]),
    (["--seeds", "9" * 40], ["--seeds", "999"]),
    (["--seeds", "one"], ["--seeds", "'one'"]),
    (["--epochs", "0"], ["--epochs", "'0'", "at least 1"]),
    (["--batch-size", "-3"], ["--batch-size", "'-3'"]),
    (["--lr", "nan"], ["--lr", "'nan'"]),
    (["--lr", "inf"], ["--lr", "'inf'"]),
    (["--lr", "0"], ["--lr", "'0'"]),
    (["--task", "chunking"], ["--task", "chunking", "xnli"]),
    (["--src", "tlh"], ["tlh", "there are ar, de, en"]),
    (["--tgt", "de", "EN"], ["EN", "there are ar, de, en"]),
    (["--part", "tail"], ["--part", "tail", "encoder"]),
    (["--precision", "fp8"], ["--precision", "fp8", "bf16"]),
    (["--demo"], ["--demo", "--src"]),
    (["--device", "abacus"], ["--device abacus", "cpu"]),
    (["--device", "meta"], ["--device meta", "cpu"]),
    (["--device", "mps"], ["--device mps", "cpu"]),
])
def test_flags_that_make_no_sense(kit, flags, words):
    kit.refuses(*words, flags=flags)


def test_a_missing_flag_is_named(capsys):
    for argv, word in (([], "--task"), (["--task", "pos"], "--src"), (["--task", "pos", "--src", "en"], "--tgt")):
        with pytest.raises(SystemExit) as stop:
            reproduce.parse_arguments(argv)
        assert stop.value.code == 2 and f"{word} is missing" in capsys.readouterr().err


def test_cuda_asked_for_and_absent(kit, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:1"):
        kit.refuses(f"--device {name}", "no CUDA device", "leave the flag out", device=name)


@pytest.mark.parametrize("encoder, limit, words", [("mbert", "0", ["--limit", "'0'"]),
                                                   pytest.param("no/such", "1", ["'no/such'"], marks=pytest.mark.slow)])
def test_the_command_itself_answers_with_a_sentence_and_code_2(encoder, limit, words, corpus, tmp_path):
    done = command("--task", "pos", "--src", "en", "--tgt", "de", "--limit", limit, "--encoder", encoder, "--device", "cpu",
                   "--data", corpus, "--out", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    assert all(word in done.stderr.strip().split("\n")[-1] for word in words)


# ---------------------------------------------------------------------------------------------------------- data files

def cell(line, column, value):
    """A change of one cell of a tab-separated file; lines count from 1."""
    def change(content):
        rows = content.split(b"\n")
        cells = rows[line - 1].split(b"\t")
        cells[column] = value
        rows[line - 1] = b"\t".join(cells)
        return b"\n".join(rows)
    return change


def line(number, text):
    def change(content):
        rows = content.split(b"\n")
        rows[number - 1] = text
        return b"\n".join(rows)
    return change


TREE = "".join(f"{i}\tab\t_\tNOUN\t_\t_\t{h}\t{'dep' if h else 'root'}\t_\t_\n" for i, h in enumerate((2, 0, 4, 5, 3), 1))


@pytest.mark.parametrize("task, change, words", [
    ("pos", line(3, b"2\tab\tNOUN"), ["line 3", "3 columns", "'2\\tab\\tNOUN'", "10"]),
    ("pos", lambda c: c.replace(b"\t_\n", b"\n", 1), ["line 2", "9 columns", "10"]),
    ("pos", cell(3, 3, b"NUON"), ["line 3", "UPOS 'NUON'", "NOUN"]),
    ("pos", cell(3, 3, b"_"), ["line 3", "UPOS '_'", "NOUN"]),
    ("pos", cell(3, 0, b"7"), ["line 3", "word id '7'", "expected 2"]),
    ("pos", cell(3, 0, b""), ["line 3", "word id ''", "expected 2"]),
    ("pos", cell(3, 1, b"a\xffb"), ["line 3", "byte 0xff", "UTF-8"]),
    ("pos", lambda _: b"", ["empty", "sentence"]),
    ("pos", lambda _: b"\n\n\n", ["no sentence"]),
    ("pos", lambda _: b"# text = a\n# text = b\n", ["no sentence"]),
    ("pos", lambda _: b"\x00" * 400, ["line 1"]),
    ("pos", lambda c: c.replace(b"\n", b"\r"), ["no sentence"]),
    ("pos", lambda c: gzip.compress(c), ["line 1", "UTF-8"]),
    ("pos", lambda c: c.decode().encode("utf-16"), ["line 1", "UTF-8"]),
    ("parsing", cell(3, 6, b"one"), ["line 3", "head 'one'", "no number"]),
    ("parsing", cell(3, 6, b"-1"), ["line 3", "head '-1'"]),
    ("parsing", cell(3, 6, b"_"), ["line 3", "head '_'"]),
    ("parsing", cell(3, 6, "３".encode()), ["line 3", "head '３'"]),
    ("parsing", cell(3, 6, b"99"), ["head 99 of word 2", "out of range", "lines 1 to"]),
    ("parsing", cell(3, 6, b"9" * 5000), ["line"]),
    ("parsing", cell(3, 6, b"2"), ["word 2", "lines 1 to"]),
    ("parsing", lambda _: TREE.encode(), ["lines 1 to 5", "word 3", "cycle"]),
    ("parsing", lambda _: TREE.replace("\t0\t", "\t1\t").encode(), ["lines 1 to 5", "0 words have head 0"]),
    ("parsing", lambda _: TREE.replace("\t5\tdep", "\t0\tdep").encode(), ["lines 1 to 5", "2 words have head 0"]),
    ("parsing", cell(3, 7, b"subject"), ["line 3", "relation 'subject'", "nsubj"]),
    ("ner", line(2, b"en:ab O"), ["line 2", "'en:ab O'", "a tab"]),
    ("ner", line(2, b"en:ab"), ["line 2", "'en:ab'", "a tab"]),
    ("ner", line(2, b"ab\tO"), ["line 2", "'ab\\tO'", "en:word"]),
    ("ner", line(2, b"de:ab\tO"), ["line 2", "'de:ab\\tO'", "en:word"]),
    ("ner", line(2, b"en:ab\tB-MISC"), ["line 2", "tag 'B-MISC'", "B-LOC"]),
    ("ner", line(2, b"en:ab\tO\tO"), ["line 2", "tag 'O\\tO'"]),
    ("ner", line(2, b"en:\xe4b\tO"), ["line 2", "byte 0xe4", "UTF-8"]),
    ("ner", lambda _: b"", ["empty"]),
    ("ner", lambda _: b"\n", ["no sentence"]),
    ("xnli", line(1, b"premise\thypo"), ["line 1", "label"]),
    ("xnli", line(1, b"a\tb"), ["line 1", "sentence1"]),
    ("xnli", line(3, b"only one"), ["line 3", "1 columns", "expected 3"]),
    ("xnli", line(3, b""), ["line 3", "1 columns", "expected 3"]),
    ("xnli", cell(3, 2, b"maybe"), ["line 3", "label 'maybe'", "neutral"]),
    ("xnli", cell(3, 2, b"-"), ["line 3", "label '-'", "neutral"]),
    ("xnli", cell(3, 0, b"\xc3("), ["line 3", "byte 0xc3", "UTF-8"]),
    ("xnli", lambda _: b"", ["empty"]),
    ("xnli", lambda c: c.split(b"\n")[0] + b"\n", ["no pair"]),
])
def test_a_mistake_in_a_data_file_is_told_with_its_place_and_a_remedy(kit, task, change, words):
    path = kit.edit(FILE[task], change)
    kit.refuses(path, *words, task=task)
    assert re.search(r"[Cc]orrect|[Dd]elete", kit.error), kit.error


@pytest.mark.parametrize("change, words", [
    (cell(1, 0, b"lang"), ["line 1", "language"]),
    (lambda c: c.replace(b"\nen\t", b"\nxx\t"), ["no pair in language 'en'"]),
    (cell(2, 1, b"yes"), ["line 2", "label 'yes'"]),
    (lambda c: re.sub(rb"\nen\t[a-z]+", rb"\nen\tneutral", c), ["the same", "placeholder"]),
])
def test_a_mistake_in_the_dev_file_of_xnli(kit, change, words):
    kit.refuses(kit.edit(XNLI_DEV, change), *words, task="xnli")


def test_a_data_file_that_cannot_be_read(kit):
    path = kit.data / FILE["pos"]
    path.unlink()
    path.mkdir()
    kit.refuses(path, "directory")


@pytest.mark.parametrize("task, split", [(t, s) for t in FILE for s in ("train", "dev")])
@pytest.mark.parametrize("name, change", [
    ("Windows line ends", lambda c: c.replace(b"\n", b"\r\n")), ("no last newline", lambda c: c.rstrip(b"\n")),
    ("both", lambda c: c.replace(b"\n", b"\r\n").rstrip(b"\r\n")), ("more blank lines", lambda c: c + b"\n\n"),
    ("byte order mark", lambda c: b"\xef\xbb\xbf" + c)])
def test_harmless_variants_of_a_file_are_read_as_the_original(corpus, tokenizer, tmp_path, task, split, name, change):
    t = reproduce.TASKS[task]
    path = t.file(corpus, "en", split)
    other = tmp_path / path.name
    other.write_bytes(change(path.read_bytes()))
    assert other.read_bytes() != path.read_bytes()
    want = data.load(path, "en", split, t.read, t.encode, tokenizer)
    if name == "more blank lines" and task == "xnli":   # not harmless: each line is a pair
        with pytest.raises(data.DataError, match="1 columns"):
            data.load(other, "en", split, t.read, t.encode, tokenizer)
        return
    got = data.load(other, "en", split, t.read, t.encode, tokenizer)
    assert got.counts == want.counts
    for name in ("ids", "start", "second", "read", "read_start", "gold", "new"):
        assert getattr(got, name) == getattr(want, name)


# --------------------------------------------------------------------------------------------------------- corruptions

@pytest.fixture(scope="session")
def tokenizer(encoder):
    return AutoTokenizer.from_pretrained(encoder)


def simple_reader(task, content, lang):
    """[(words, gold)] of a file's bytes, written again without care for errors; gold as the file spells it."""
    rows = [row[:-1] if row.endswith("\r") else row for row in content.decode("utf-8").split("\n")]
    rows[0] = rows[0].removeprefix("\ufeff")
    if task == "xnli":
        head, pairs = rows[0].split("\t"), [row.split("\t") for row in rows[1:-1 if rows[-1] == "" else None]]
        names = ("premise", "hypo", "label") if "premise" in head else ("sentence1", "sentence2", "gold_label")
        first, second, label = map(head.index, names)
        return [((c[first], c[second]), [c[label].replace("contradictory", "contradiction")]) for c in pairs
                if "language" not in head or c[head.index("language")] == lang]
    sentences = [[]]
    for row in rows:
        if row.strip() == "":
            sentences.append([])
        elif task == "ner":
            token, tag = row.split("\t")
            sentences[-1].append((token[len(lang) + 1:], tag))
        elif not row.startswith("#"):
            c = row.split("\t")
            if c[0].isdigit():
                sentences[-1].append((c[1], (c[3], int(c[6]), c[7].split(":")[0])))
    return [([w for w, _ in s], [g for _, g in s]) for s in sentences if s]


def spelt(task, gold):
    """Gold label numbers as the file spells them."""
    if task == "ner":
        return [data.BIO[g] for g, in gold]
    return [data.NLI[g] for g, in gold] if task == "xnli" else [(data.UPOS[u], h, data.RELATIONS[r]) for u, h, r in gold]


def corrupt(content, rng):
    """The content with one to three random mistakes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rows = content.split(b"\n")
        i, j = rng.randrange(len(rows)), rng.randrange(len(rows))
        kind = rng.choice(("flip", "flip", "cut", "end", "line", "double", "swap", "column", "columns", "insert", "blank"))
        if kind == "flip" and content:
            at = rng.randrange(len(content))
            content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1:]
            continue
        if kind == "end":
            content = content[:rng.randrange(len(content) + 1)]
            continue
        cells = rows[i].split(b"\t")
        if kind == "cut":
            rows[i] = rows[i][:rng.randrange(len(rows[i]) + 1)]
        elif kind == "line":
            del rows[i]
        elif kind == "double":
            rows.insert(i, rows[i])
        elif kind == "swap":
            rows[i], rows[j] = rows[j], rows[i]
        elif kind == "column":
            del cells[rng.randrange(len(cells))]
            rows[i] = b"\t".join(cells)
        elif kind == "columns":
            at = rng.randrange(10)
            rows = [b"\t".join(c[:at] + c[at + 1:]) for c in (row.split(b"\t") for row in rows)]
        elif kind == "insert":
            rows.insert(i, bytes(rng.choices(b"\t\r #0159-._:abOB\xc3\xa4\x00\x85", k=rng.randint(1, 12))))
        elif kind == "blank":
            rows.insert(i, rng.choice((b"", b" ", b"\r", b"\t")))
        content = b"\n".join(rows)
    return content


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("task", ["parsing", "ner", "xnli"])
def test_corrupted_files_end_in_a_sentence_or_are_read_right(corpus, tokenizer, tmp_path, task, split):
    t, path = reproduce.TASKS[task], tmp_path / "file"
    good = t.file(corpus, "en", split).read_bytes()
    read = data.read_conllu if task == "parsing" else lambda path: t.read(path, "en")
    outcome = {"refused": 0, "read": 0}
    for seed in range(120):
        path.write_bytes(corrupt(good, random.Random(f"{task} {split} {seed}")))
        try:
            encoded = data.load(path, "en", split, t.read, t.encode, tokenizer).to("cpu")
        except data.DataError as e:
            assert str(path) in str(e) and "\n" not in str(e)
            outcome["refused"] += 1
            continue
        want = simple_reader(task, path.read_bytes(), "en")
        got = [(words, spelt(task, gold)) for words, gold in read(path)]
        assert got == want, seed
        words = len(want) if task == "xnli" else sum(len(words) for words, _ in want)
        assert (encoded.counts["in_file"], encoded.counts["sentences"], encoded.counts["words"]) == (len(want), len(want), words)
        assert len(encoded.read) + encoded.lost + encoded.counts["left_out"] == words + len(want) * (task == "parsing")
        outcome["read"] += 1
    assert outcome["refused"] > 30 and outcome["read"] > 10, outcome


def test_corrupted_files_never_end_the_command_with_a_traceback(kit, monkeypatch):
    monkeypatch.setattr(reproduce, "evaluate_grid", lambda *_: None)
    monkeypatch.setattr(plot, "load", lambda _: [])
    monkeypatch.setattr(plot, "report", lambda *_: "")
    codes, good = [], {task: (kit.data / FILE[task]).read_bytes() for task in FILE}
    for seed in range(24):
        rng = random.Random(f"command {seed}")
        task = rng.choice(("pos", "ner", "xnli"))
        kit.edit(FILE[task], lambda _: corrupt(good[task], rng))
        codes.append(kit.run(task=task, out=kit.folder / f"out{seed}", src="en", tgt="de"))
        assert codes[-1] in (0, 2) and "Traceback" not in kit.error
        assert codes[-1] == 0 or not (kit.folder / f"out{seed}").exists()
        kit.edit(FILE[task], lambda _: good[task])
    assert set(codes) == {0, 2}


# ----------------------------------------------------------------------------------------------- downloads and archives

class Answer(io.BytesIO):
    """What urlopen gives: bytes, an address, headers."""

    def __init__(self, content, address, length=None):
        super().__init__(content)
        self.address, self.length, self.headers = address, length, Message()

    def geturl(self):
        return self.address


def torn(*_):
    raise http.client.IncompleteRead(b"half", 100)


def no_network(address, **_):
    raise urllib.error.URLError("Temporary failure in name resolution")


def not_found(address, **_):
    raise urllib.error.HTTPError(address, 404, "Not Found", None, None)


def broken_off(address, **_):
    answer = Answer(b"half", address, 100)
    answer.read = torn
    return answer


def no_http(address, **_):
    raise http.client.BadStatusLine("SSH-2.0-OpenSSH_9.6")


@pytest.mark.parametrize("answer, words", [
    (no_network, ["name resolution", "by hand|elsewhere", "--demo"]),
    (not_found, ["404", "elsewhere"]),
    (broken_off, ["IncompleteRead|100", "elsewhere"]),
    (no_http, ["SSH", "elsewhere"]),
    (lambda address, **_: Answer(b"<html>", address), ["6 bytes", "digest", "expected", "nothing was kept"]),
    (lambda address, **_: Answer(b"", "http://mirror.example/x"), ["http://mirror.example/x", "not https", "nothing was kept"]),
    (lambda address, **_: (_ for _ in ()).throw(TimeoutError("timed out")), ["timed out", "elsewhere"]),
])
@pytest.mark.parametrize("task", ["pos", "ner", "xnli"])
def test_a_download_that_fails_keeps_nothing_and_says_what_to_do(kit, monkeypatch, task, answer, words):
    shutil.rmtree(kit.data)
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    kit.refuses("https://", str(kit.data), task=task)
    assert all(re.search(word, kit.error) for word in words), kit.error
    assert not [path for path in kit.data.rglob("*") if path.is_file()]


def test_a_language_without_an_address_says_where_to_put_its_file(kit, monkeypatch):
    monkeypatch.setitem(data.TREEBANKS, "fi", "UD_Finnish-TDT")
    kit.refuses(kit.data / "ud/UD_Finnish-TDT/fi_tdt-ud-train.conllu", "by hand", tgt="fi")


def test_what_is_there_is_not_fetched_and_what_is_fetched_is_kept(kit, monkeypatch):
    path, fetched = kit.data / FILE["pos"], []
    content = path.read_bytes()
    monkeypatch.setitem(data.UD_GIT_NAMES, path.name, data.git_name(content))
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, **_: fetched.append(address) or Answer(content, address))
    path.unlink()
    assert kit.run() == 0 and fetched == [
        "https://raw.githubusercontent.com/UniversalDependencies/UD_English-EWT/r2.7/en_ewt-ud-train.conllu"]
    assert path.read_bytes() == content
    assert kit.run() == 0 and len(fetched) == 1


def targz(members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as t:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            t.addfile(info, io.BytesIO(content or b""))
    return packed.getvalue()


def zipped(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in members.items():
            z.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def archived(kit, monkeypatch):
    """A kit whose WikiAnn is in an archive: pack(content) puts bytes there as the archive that is expected."""
    files = {lang: {split: (kit.data / f"panx/{lang}/{split}").read_bytes() for split in ("train", "dev")} for lang in ("en", "de")}
    shutil.rmtree(kit.data / "panx")
    path = kit.data / "panx/panx_dataset.zip"
    path.parent.mkdir()

    def pack(content):
        path.write_bytes(content)
        monkeypatch.setitem(data.ARCHIVES, "panx/panx_dataset.zip", ("https://x.example/panx.zip", data.sha256(content)))

    kit.files, kit.pack, kit.archive = files, pack, path
    return kit


def wikiann(files, **changed):
    """The archive of WikiAnn: a tar.gz for each language in a zip; changed names tar.gz contents instead."""
    return zipped({f"panx_dataset/{lang}.tar.gz": changed.get(lang, targz(of)) for lang, of in files.items()})


def test_files_are_taken_out_of_an_archive(archived):
    archived.pack(wikiann(archived.files))
    assert archived.run(task="ner") == 0
    for lang, of in archived.files.items():
        for split, content in of.items():
            assert (archived.data / "panx" / lang / split).read_bytes() == content


@pytest.mark.parametrize("spoil, words", [
    (lambda files: wikiann(files)[:-200], ["panx_dataset.zip", "truncated", "Delete"]),
    (lambda files: b"", ["panx_dataset.zip", "truncated", "Delete"]),
    (lambda files: b"<html>no such file</html>", ["panx_dataset.zip", "no archive", "Delete"]),
    (lambda files: wikiann(files, en=targz(files["en"])[:-100]), ["en.tar.gz", "truncated", "Delete"]),
    (lambda files: wikiann(files, en=b""), ["en.tar.gz", "truncated", "Delete"]),
    (lambda files: wikiann(files, en=b"not a tar"), ["en.tar.gz", "no archive", "Delete"]),
    (lambda files: wikiann({"de": files["de"]}), ["does not hold en.tar.gz", "Delete"]),
    (lambda files: wikiann(files, en=targz({"dev": files["en"]["dev"]})), ["en.tar.gz", "does not hold train", "Delete"]),
    (lambda files: wikiann(files, en=targz(files["en"] | {"/etc/cron.d/x": b""})), ["'/etc/cron.d/x'", "not trusted"]),
    (lambda files: wikiann(files, en=targz({"../train": b"x"})), ["'../train'", "not trusted"]),
    (lambda files: wikiann(files, en=targz({"a/../../train": b"x"})), ["'a/../../train'", "not trusted"]),
    (lambda files: zipped({"../en.tar.gz": b"x"}), ["'../en.tar.gz'", "not trusted"]),
    (lambda files: zipped({"/en.tar.gz": b"x"}), ["'/en.tar.gz'", "not trusted"]),
    (lambda files: zipped({"C:\\en.tar.gz": b"x", "en.tar.gz": b"x"}), ["C:", "not trusted"]),
    (lambda files: wikiann(files, en=targz({"train": None})), ["en.tar.gz", "Delete"]),
])
def test_an_archive_that_is_torn_or_not_to_be_trusted(archived, spoil, words):
    archived.pack(spoil(archived.files))
    archived.refuses(*words, task="ner")
    assert [p for p in archived.data.rglob("*") if p.is_file() and "panx" in str(p)] == [archived.archive]


def test_an_archive_with_another_digest_is_refused(archived):
    archived.pack(wikiann(archived.files))
    archived.archive.write_bytes(archived.archive.read_bytes() + b"x")
    archived.refuses(archived.archive, "SHA-256", "Delete", task="ner")


def test_corrupted_archives_end_in_a_sentence_or_give_the_right_file(tmp_path):
    path, content, outcome = tmp_path / "x.zip", random.Random(0).randbytes(2000), {"refused": 0, "read": 0}
    good = {"zip": zipped({"folder/file": content, "other": b"x" * 300}), "tar": targz({"file": content, "other": b"x" * 300})}
    for seed in range(120):
        rng = random.Random(f"archive {seed}")
        kind = rng.choice(("zip", "tar"))
        packed = bytearray(good[kind])
        for _ in range(rng.choice((1, 2, 5))):
            if rng.random() < .8:
                packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
            else:
                del packed[rng.randrange(len(packed) // 2, len(packed)):]
        path.write_bytes(packed)
        try:
            got = data.member(path if kind == "zip" else io.BytesIO(packed), "file", "x")
        except data.DataError as e:
            assert "\n" not in str(e)
            outcome["refused"] += 1
        else:
            assert got == content or kind == "tar" and len(got) == len(content), seed   # a tar has no checksum of contents
            outcome["read"] += 1
    assert min(outcome.values()) > 5, outcome


# ------------------------------------------------------------------------------------------------------------ encoders

@pytest.fixture
def spoilt(encoder, tmp_path):
    """A copy of the tiny encoder to spoil."""
    return shutil.copytree(encoder, tmp_path / "encoder")


@pytest.mark.parametrize("name, words", [
    ("config.json", ["config.json"]), ("model.safetensors", ["safetensors"]), ("tokenizer_config.json", ["tokenizer"]),
    ("vocab.txt", ["tokenizer|vocab"])])
def test_an_encoder_folder_without_one_of_its_files(kit, spoilt, name, words):
    (spoilt / name).unlink()
    kit.refuses(spoilt, encoder=spoilt)
    assert all(re.search(word, kit.error) for word in words), kit.error


def rewrite(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def halve(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [
    lambda f: halve(f / "model.safetensors"),
    lambda f: (f / "model.safetensors").write_bytes(b""),
    lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"),
    lambda f: halve(f / "config.json"),
    lambda f: (f / "config.json").write_text("{}"),
    lambda f: rewrite(f, model_type="no-such-model"),
    lambda f: rewrite(f, model_type="distilbert"),
    lambda f: rewrite(f, hidden_size=32),
    lambda f: rewrite(f, num_hidden_layers=2),
    lambda f: rewrite(f, vocab_size=7),
    lambda f: (f / "tokenizer_config.json").write_text("{"),
    lambda f: (f / "vocab.txt").write_bytes(b"\xff\xfe\xff"),
    lambda f: (f / "vocab.txt").write_text((f / "vocab.txt").read_text() + "more\nwords\n"),
    lambda f: (f / "vocab.txt").write_text("a\nb\n"),
    lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}'),
    lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}'),
    lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}'),
    lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}'),
])
def test_an_encoder_folder_that_is_spoilt(kit, spoilt, spoil):
    spoil(spoilt)
    kit.refuses("tokenizer" if "GPT2" in (spoilt / "tokenizer_config.json").read_text() else spoilt, encoder=spoilt)


@pytest.mark.parametrize("name", ["no-such-encoder-at-all", "nobody/no-such-encoder", "no/such/folder", "mbert"])
def test_an_encoder_that_is_not_here_while_offline(kit, name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    kit.refuses(repr(name), "mbert", "local folder", encoder=name)


def save_model(folder, model):
    """The encoder folder with another model and the tiny tokenizer."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    model.save_pretrained(folder)
    return folder


SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


def distilbert():
    from transformers import DistilBertConfig, DistilBertModel
    return DistilBertModel(DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=128))


def roberta():
    from transformers import RobertaConfig, RobertaModel
    return RobertaModel(RobertaConfig(vocab_size=30, max_position_embeddings=130, **SMALL))


@pytest.mark.parametrize("make", [distilbert, roberta])
def test_encoders_of_other_architectures_are_used_if_they_give_last_hidden_state(kit, spoilt, make):
    assert kit.run(encoder=save_model(spoilt, make())) == 0


def t5():
    from transformers import T5Config, T5Model
    return T5Model(T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def clip():
    from transformers import CLIPConfig, CLIPModel
    return CLIPModel(CLIPConfig(text_config=dict(vocab_size=30, **SMALL), vision_config=dict(image_size=32, patch_size=16, **SMALL)))


def vit():
    from transformers import ViTConfig, ViTModel
    return ViTModel(ViTConfig(image_size=32, **SMALL))


@pytest.mark.parametrize("make", [t5, clip, vit])
def test_models_that_give_no_last_hidden_state_from_ids_alone(kit, spoilt, make):
    kit.refuses(spoilt, "last_hidden_state", encoder=save_model(spoilt, make()))


def test_a_tokenizer_without_a_fast_backend(kit, spoilt):
    from transformers import CanineConfig, CanineModel
    save_model(spoilt, CanineModel(CanineConfig(num_hash_buckets=64, max_position_embeddings=512, **SMALL)))
    (spoilt / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    kit.refuses(spoilt, "CanineTokenizer", encoder=spoilt)


def test_an_encoder_with_too_few_positions_for_a_window(kit, tmp_path):
    kit.refuses("position", encoder=write_encoder(tmp_path / "short", max_position_embeddings=16))


def test_nothing_is_fetched_where_all_is_there(kit, monkeypatch, spoilt):
    calls = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", lambda *call: calls.append(call))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *call, **_: calls.append(call) or [])
    assert kit.run(encoder=spoilt) == 0 and calls == []


def test_no_code_of_an_encoder_folder_is_run(kit, spoilt):
    ran = kit.folder / "ran"
    (spoilt / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    for settings in (dict(model_type="bert"), dict(model_type="evil")):
        rewrite(spoilt, auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": "evil.Evil"}, **settings)
        assert kit.run(encoder=spoilt, out=kit.folder / settings["model_type"]) in (0, 2)
        heads.load_encoder.cache_clear()
    assert not ran.exists() and kit.run(encoder=spoilt) == 2


# ------------------------------------------------------------------------------------------------------ while it runs

def test_out_of_memory_names_the_flag_to_lower(kit, monkeypatch):
    def cuda(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for allocate in (cuda, lambda *_: torch.empty(1 << 50), lambda *_: np.zeros(1 << 56)):
        monkeypatch.setattr(heads.Reader, "run", allocate)
        kit.refuses("memory", "--batch-size", nothing=False)
        assert not list(kit.out.rglob("*.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_nothing_of_that_model(kit, monkeypatch, value):
    calls, loss = [], heads.Linear.loss

    def soon_lost(self, h, batch):
        calls.append(1)
        return loss(self, h, batch) * (value if len(calls) == 23 else 1)

    monkeypatch.setattr(heads.Linear, "loss", soon_lost)
    kit.refuses("pos encoder", f"loss became {value}", "step", "--lr", nothing=False, epochs=2)
    kept = {str(p.parent.relative_to(kit.out)) for p in kit.out.rglob("*") if p.is_file()}
    assert kept == {"models/pos/encoder/de-en/seed1"}   # the first model had been finished; nothing is left of the second
    monkeypatch.setattr(heads.Linear, "loss", loss)
    assert kit.run(epochs=2) == 0 and "already trained" in kit.said and "continued" not in kit.said


def test_a_learning_rate_far_too_high_ends_in_a_sentence_or_a_result(kit):
    assert kit.run(lr=1e11) in (0, 2) and "Traceback" not in kit.error
    assert kit.run(lr=1e-12, out=kit.folder / "small") in (0, 2) and "Traceback" not in kit.error


# --------------------------------------------------------------------------------------------------------- result files

def about(path, change):
    """Rewrite the settings that a model file carries."""
    with reproduce.safetensors.safe_open(path, "pt") as f:
        meta = json.loads(f.metadata()["about"])
    change(meta)
    save_file(load_file(path), path, {"about": json.dumps(meta)})


@pytest.mark.parametrize("options, words", [
    (dict(lr=2e-3), ["lr 0.001", "0.002"]), (dict(epochs=2), ["epochs 1", "2"]), (dict(batch_size=4), ["batch_size 8", "4"]),
    (dict(limit=20), ["limit None", "20"]), (dict(precision="bf16"), ["precision fp32", "bf16"])])
def test_results_made_with_other_settings_are_refused_by_name(again, options, words):
    before = snapshot(again.out)
    again.refuses("model.safetensors", *words, "--out", nothing=False, **options)
    assert snapshot(again.out) == before


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results_of_another_version_are_refused(again):
    about(again.model, lambda meta: meta["config"].update(format=0))
    again.refuses(again.model, "format 0", "asks for 1", nothing=False)


def test_a_grid_of_another_version_is_refused(again):
    header, rest = again.grid.read_text().split("\n", 1)
    again.grid.write_text(json.dumps(json.loads(header) | {"format": 2}) + "\n" + rest)
    again.refuses(again.grid, "format 2", "asks for 1", nothing=False)


def test_results_of_another_encoder_or_corpus_are_refused(again, tmp_path):
    other = write_encoder(tmp_path / "other" / "encoder", hidden_size=32)
    again.refuses("encoder_digest", "--out", encoder=other, nothing=False)
    again.edit(FILE["pos"], lambda c: c + c)
    again.refuses("data", "--out", nothing=False)


@pytest.mark.parametrize("spoil", [lambda c: c[:len(c) // 2], lambda c: b"", lambda c: c[:4], lambda c: b"x" * len(c),
                                   lambda c: c.replace(b'"about"', b'"aboot"')])
def test_a_torn_model_file(again, spoil):
    again.model.write_bytes(spoil(again.model.read_bytes()))
    again.refuses(again.model, "Delete", nothing=False)
    again.model.unlink()
    before = again.grid.read_bytes()
    assert again.run() == 0 and again.grid.read_bytes() == before   # made again, the same


def test_a_model_file_with_a_flipped_bit_is_not_interpolated(again):
    content = bytearray(again.model.read_bytes())
    content[-50] ^= 4
    again.model.write_bytes(content)
    again.grid.unlink()
    again.refuses(again.model, "delete", nothing=False)


def test_a_damaged_line_of_a_grid(again):
    rows = again.grid.read_bytes().split(b"\n")
    for row in (b'{"a1": 1.0, "a2"', b"5", b'{"a1": 1.0}', b"\xff", b"[]"):
        for i in (0, 7):
            again.grid.write_bytes(b"\n".join([*rows[:i], row, *rows[i + 1:]]))
            for flags in ([], ["--dry-run"]):
                again.refuses(again.grid, nothing=False, flags=flags)
                assert re.search("[Dd]elete|move it away|restore", again.error)


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 400), marks=pytest.mark.slow)])
def test_corrupted_result_files_never_end_in_a_traceback(again, seeds):
    good, codes = snapshot(again.out), []
    paths = sorted(path for path in good if path.suffix in (".safetensors", ".jsonl"))
    for seed in seeds:
        rng = random.Random(f"results {seed}")
        path = rng.choice(paths)
        spoilt = bytearray(good[path])
        head = 1500 if rng.random() < .8 else len(spoilt)   # the settings and names stand at the beginning
        for _ in range(rng.choice((1, 3))):
            spoilt[rng.randrange(min(head, len(spoilt)))] ^= 1 << rng.randrange(8)
        if rng.random() < .3:
            spoilt = spoilt[:rng.randrange(len(spoilt))]
        path.write_bytes(spoilt)
        if rng.random() < .5:
            again.grid.unlink()   # the models are read in full
        codes.append(again.run())
        assert codes[-1] in (0, 2) and "Traceback" not in again.error, seed
        for path, content in good.items():
            path.write_bytes(content)
    assert set(codes) == {0, 2}


# ---------------------------------------------------------------------------------------------------------------- safe

def test_the_sources_hold_no_pickle_no_code_from_elsewhere_and_no_plain_http():
    for path in sorted(KIT.glob("*.py")):
        source = path.read_text()
        for word in ("pickle", "torch.load", "torch.save", "trust_remote_code=True", "http:" + "//", "eval(", "exec(",
                     "extractall", "os.system", "shell=True", "allow_pickle", "joblib"):
            found = [n for n, text in enumerate(source.split("\n"), 1) if re.search(rf"(?<![.\w]){re.escape(word)}", text)]
            assert not found, f"{path.name} lines {found}: {word}"
