"""The corpus files: mistakes are told with their place; corrupted files are refused or read as a plain reader
does; downloads and archives keep what is right, nothing else; a file that is not the paper's is noticed."""

import gzip
import http.client
import io
import os
import random
import re
import socket
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from conftest import real, windows
from transformers import AutoTokenizer

import data
import tasks
from results import KitError

PANX = "panx/panx_dataset.zip"
TASKS = {name: tasks.TASKS[name] for name in ("xnli", "ner", "pos", "parsing")}

@pytest.fixture(scope="session")
def tokenizer(encoder):
    return AutoTokenizer.from_pretrained(encoder)

def source(task, folder, lang="en", split="train"):
    return TASKS[task].file(folder, lang, split)

def sources(folder, names=TASKS):
    return [source(task, folder, *which) for task in names for which in product(("en", "de"), data.SPLITS)]

def load(task, path, split, tokenizer):
    return data.load(path, "en", split, TASKS[task].reader, TASKS[task].encode, tokenizer)

def refused(words, call, *args):
    """The line that a call is refused with, which holds all of words."""
    with pytest.raises(KitError) as e:
        call(*args)
    missing = [word for word in words if str(word) not in str(e.value)]
    assert not missing and "\n" not in str(e.value), f"{missing} are not in {e.value}"
    return str(e.value)

# ---- mistakes ---------------------------------------------------------------------------------------------

def line(number, text):
    """A change of one line of a file; lines count from 1."""
    def change(content):
        rows = content.split(b"\n")
        return b"\n".join([*rows[:number - 1], text, *rows[number:]])
    return change

def cell(number, column, value):
    """A change of one cell of a tab-separated file."""
    def change(content):
        cells = content.split(b"\n")[number - 1].split(b"\t")
        return line(number, b"\t".join([*cells[:column], value, *cells[column + 1:]]))(content)
    return change

TREE = "".join(f"{i}\tab\t_\tNOUN\t_\t_\t{head}\t{'dep' if head else 'root'}\t_\t_\n"
               for i, head in enumerate((2, 0, 4, 5, 3), 1))
MISTAKES = {"pos train": [
    (line(3, b"2\tab\tNOUN"), "line 3|3 columns|'2\\tab\\tNOUN'|10"),
    (lambda c: c.replace(b"\t_\n", b"\n", 1), "line 2|9 columns|10"),
    (cell(3, 3, b"NUON"), "line 3|UPOS 'NUON'|NOUN"), (cell(3, 3, b"_"), "line 3|UPOS '_'|NOUN"),
    (cell(3, 0, b"7"), "line 3|id '7'|expected 2"), (cell(3, 0, b""), "line 3|id ''|expected 2"),
    (cell(3, 1, b"a\xffb"), "line 3|byte 0xff|UTF-8"), (lambda _: b"", "empty|sentence"),
    (lambda _: b"\n\n\n", "no sentence"), (lambda _: b"# text = a\n# text = b\n", "no sentence"),
    (lambda _: b"\x00" * 400, "line 1"), (lambda c: c.replace(b"\n", b"\r"), "no sentence"),
    (lambda c: re.sub(rb"(?m)^(\d+)\t[^\t]+", rb"\1\t_", c), "the placeholder _|README"),
    (gzip.compress, "line 1|UTF-8"), (lambda c: c.decode().encode("utf-16"), "line 1|UTF-8"),
], "parsing train": [
    (cell(3, 6, b"one"), "line 3|head 'one'|no number"), (cell(3, 6, b"-1"), "line 3|head '-1'"),
    (cell(3, 6, b"_"), "line 3|head '_'"), (cell(3, 6, "３".encode()), "line 3|head '３'"),
    (cell(3, 6, b"99"), "head 99 of word 2|out of range|lines 1 to"), (cell(3, 6, b"9" * 5000), "line"),
    (cell(3, 6, b"2"), "word 2|lines 1 to"), (lambda _: TREE.encode(), "lines 1 to 5|word 3|cycle"),
    (lambda _: TREE.replace("\t0\t", "\t1\t").encode(), "lines 1 to 5|0 words have head 0"),
    (lambda _: TREE.replace("\t5\tdep", "\t0\tdep").encode(), "lines 1 to 5|2 words have head 0"),
    (cell(3, 7, b"subject"), "line 3|relation 'subject'|nsubj"),
], "ner train": [
    (line(2, b"en:ab O"), "line 2|'en:ab O'|a tab"), (line(2, b"en:ab"), "line 2|'en:ab'|a tab"),
    (line(2, b"ab\tO"), "line 2|'ab\\tO'|en:word"), (line(2, b"de:ab\tO"), "line 2|'de:ab\\tO'|en:word"),
    (line(2, b"en:ab\tB-MISC"), "line 2|tag 'B-MISC'|B-LOC"), (line(2, b"en:ab\tO\tO"), "line 2|'O\\tO'"),
    (line(2, b"en:\xe4b\tO"), "line 2|byte 0xe4|UTF-8"), (lambda _: b"", "empty"),
    (lambda _: b"\n", "no sentence"),
], "xnli train": [
    (line(1, b"premise\thypo"), "line 1|label"), (line(1, b"a\tb"), "line 1|sentence1"),
    (line(3, b"only one"), "line 3|1 columns|expected 3"), (line(3, b""), "line 3|1 columns|expected 3"),
    (cell(3, 2, b"maybe"), "line 3|label 'maybe'|neutral"), (cell(3, 2, b"-"), "line 3|label '-'|neutral"),
    (cell(3, 0, b"\xc3("), "line 3|byte 0xc3|UTF-8"), (lambda _: b"", "empty"),
    (lambda c: c.split(b"\n")[0] + b"\n", "no sentence"),
], "xnli dev": [
    (cell(1, 0, b"lang"), "line 1|language"), (cell(2, 1, b"yes"), "line 2|label 'yes'"),
    (lambda c: c.replace(b"\nen\t", b"\nxx\t"), "no sentence in language 'en'"),
    (lambda c: re.sub(rb"\nen\t[a-z]+", rb"\nen\tneutral", c), "the same|placeholder")]}

@pytest.mark.parametrize("where, change, words", [(w, *mistake) for w in MISTAKES for mistake in MISTAKES[w]])
def test_a_mistake_is_told_with_its_place_and_a_remedy(corpus, tokenizer, tmp_path, where, change, words):
    (task, split), path = where.split(), tmp_path / "file"
    path.write_bytes(change(source(task, corpus, "en", split).path.read_bytes()))
    refused([path, *words.split("|"), "Correct", "delete"], load, task, path, split, tokenizer)

@pytest.mark.parametrize("task, split", [(task, split) for task in TASKS for split in data.SPLITS])
@pytest.mark.parametrize("name, change", [
    ("Windows line ends", lambda c: c.replace(b"\n", b"\r\n")), ("no last one", lambda c: c.rstrip(b"\n")),
    ("both", lambda c: c.replace(b"\n", b"\r\n").rstrip(b"\r\n")), ("blank lines", lambda c: c + b"\n \t\n"),
    ("byte order mark", lambda c: b"\xef\xbb\xbf" + c)])
def test_harmless_variants_are_read_as_the_original(corpus, tokenizer, tmp_path, task, split, name, change):
    path, other = source(task, corpus, "en", split).path, tmp_path / "file"
    other.write_bytes(change(path.read_bytes()))
    assert other.read_bytes() != path.read_bytes()
    if name == "blank lines" and task == "xnli":   # not harmless: each line is a pair
        refused(["1 columns"], load, task, other, split, tokenizer)
        return
    want, got = load(task, path, split, tokenizer), load(task, other, split, tokenizer)
    assert got.counts == want.counts and windows(got) == windows(want)

def test_tags_are_read_without_trees_and_words_some_of_which_are_placeholders(corpus, tokenizer, tmp_path):
    path, tags = source("pos", corpus).path, tmp_path / "file"
    tags.write_bytes(re.sub(rb"\t\d+\t[a-z:]+\t_\t_\n", b"\t_\t_\t_\t_\n", path.read_bytes()))
    read = list(data.read_pos(path, "en"))
    assert list(data.read_pos(tags, "en")) == read and read != list(data.read_trees(path, "en"))
    refused(["head '_'"], load, "parsing", tags, "train", tokenizer)
    some = len(read) // 3   # sentences without their text: what is withheld is the smaller part
    blocks = path.read_bytes().split(b"\n\n")
    hidden = [re.sub(rb"(?m)^(\d+)\t[^\t]+", rb"\1\t_", block) for block in blocks[:some]]
    tags.write_bytes(b"\n\n".join(hidden + blocks[some:]))
    assert [gold for _, gold in data.read_pos(tags, "en")] == [gold for _, gold in read]

def test_what_is_doubtful_is_counted_and_said(corpus, tokenizer, tmp_path):
    trees, path = source("parsing", corpus).path.read_bytes(), tmp_path / "file"
    root = next(row for row in trees.split(b"\n") if b"\t0\troot" in row)
    dep = next(row for row in trees.split(b"\n") if row and b"\t0\t" not in row and row[:1].isdigit())
    cells = dep.split(b"\t")
    for change, n in ((lambda c: c, 0), (lambda c: c.replace(root, root.replace(b"root", b"obj"), 1), 1),
                      (lambda c: c.replace(dep, b"\t".join([*cells[:7], b"root", *cells[8:]]), 1), 1)):
        path.write_bytes(change(trees))
        encoded = load("parsing", path, "train", tokenizer)
        said = data.describe("parsing", "en", "train", encoded)
        assert encoded.counts["roots"] == n and ("1 words with head 0 or root alone" in said) == bool(n)
    path.write_text("premise\thypo\tlabel\na b\t\tneutral\n \u00a0\tb\tneutral\na\tb\tneutral\n")
    encoded = load("xnli", path, "train", tokenizer)
    assert encoded.counts["blank"] == 2
    assert "2 pairs with an empty sentence" in data.describe("xnli", "en", "train", encoded)

def simple_reader(task, content, lang):
    """[(words, gold)] of a file's bytes, written again without care for errors; gold as it is spelt there."""
    rows = [row[:-1] if row.endswith("\r") else row for row in content.decode("utf-8").split("\n")]
    rows[0] = rows[0].removeprefix("\ufeff")
    if task == "xnli":
        head, pairs = rows[0].split("\t"), [row.split("\t") for row in rows[1:-1 if rows[-1] == "" else None]]
        names = "premise hypo label" if "premise" in head else "sentence1 sentence2 gold_label"
        first, second, label = map(head.index, names.split())
        return [((c[first], c[second]), [c[label].replace("contradictory", "contradiction")]) for c in pairs
                if "language" not in head or c[head.index("language")] == lang]
    sentences = [[]]
    for row in rows:
        c = row.split("\t")
        if row.strip() == "":
            sentences.append([])
        elif task == "ner":
            sentences[-1].append((c[0][len(lang) + 1:], c[1]))
        elif c[0].isdigit():
            sentences[-1].append((c[1], (c[3], int(c[6]), c[7].split(":")[0])))
    return [([w for w, _ in s], [g for _, g in s]) for s in sentences if s]

def spelt(task, gold):
    """Gold label numbers as the file spells them."""
    if task == "parsing":
        return [(data.UPOS[upos], head, data.RELATIONS[relation]) for upos, head, relation in gold]
    return [TASKS[task].labels[label] for label, in gold]

def corrupt(content, rng):
    """The content with one to three random mistakes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rows, at, column = content.split(b"\n"), rng.randrange(len(content) + 1), rng.randrange(10)
        i, j = rng.randrange(len(rows)), rng.randrange(len(rows))
        row, before, after = rows[i], rows[:i], rows[i + 1:]
        fewer = [b"\t".join(c[:column] + c[column + 1:]) for c in (r.split(b"\t") for r in rows)]
        noise = bytes(rng.choices(b"\t\r #0159-._:abOB\xc3\xa4\x00\x85", k=rng.randint(1, 12)))
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in content[at:at + 1])
        flipped = [content[:at] + flipped + content[at + 1:]]
        content = b"\n".join(rng.choice([
            flipped, flipped, [content[:at]], before + after, [*before, row[:at % (len(row) + 1)], *after],
            [*before, row, *rows[i:]], [*before, rows[j], *after], [*before, noise, *rows[i:]], fewer,
            [*before, fewer[i], *after], [*before, rng.choice((b"", b" ", b"\r", b"\t")), *rows[i:]]]))
    return content

@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize("task", ["parsing", "ner", "xnli"])
def test_corrupted_files_end_in_a_sentence_or_are_read_right(corpus, tokenizer, tmp_path, task, split):
    path, good = tmp_path / "file", source(task, corpus, "en", split).path.read_bytes()
    refusals = 0
    for seed in range(120):
        path.write_bytes(corrupt(good, random.Random(f"{task} {split} {seed}")))
        try:
            encoded = load(task, path, split, tokenizer).to("cpu")
        except KitError as e:
            assert str(path) in str(e) and "\n" not in str(e)
            refusals += 1
            continue
        want, counts = simple_reader(task, path.read_bytes(), "en"), encoded.counts
        read = data.read_conllu(path) if task == "parsing" else TASKS[task].reader(path, "en")
        assert [(words, spelt(task, gold)) for words, gold in read] == want, seed
        words = len(want) if task == "xnli" else sum(len(words) for words, _ in want)
        roots = len(want) if task == "parsing" else 0
        assert [counts[name] for name in ("in_file", "sentences", "words")] == [len(want), len(want), words]
        assert len(encoded.read) + encoded.lost + counts["left_out"] == words + roots
    assert 30 < refusals < 110

# ---- downloads --------------------------------------------------------------------------------------------

class Answer(io.BytesIO):
    """What urlopen gives: bytes, an address, a length."""
    def __init__(self, content, address, length=None):
        super().__init__(content)
        self.length, self.geturl = length, lambda: address

def fails(error):
    def answer(*_, **__):
        raise error
    return answer

BrokenOff = type("BrokenOff", (Answer,), {"read": fails(http.client.IncompleteRead(b"half", 100))})
NO_NETWORK = fails(urllib.error.URLError("Temporary failure in name resolution"))

@pytest.mark.parametrize("answer, words", [
    (NO_NETWORK, "name resolution"), (fails(http.client.BadStatusLine("SSH-2.0-OpenSSH_9.6")), "SSH"),
    (fails(urllib.error.HTTPError("https://x.example", 404, "Not Found", None, None)), "404"),
    (lambda address, **_: BrokenOff(b"half", address, 100), "IncompleteRead"),
    (lambda address, **_: Answer(b"<html>", address), "6 bytes|digest|expected|nothing was kept"),
    (fails(TimeoutError("timed out")), "timed out")])
@pytest.mark.parametrize("task", ["pos", "ner", "xnli"])
def test_a_download_that_fails_keeps_nothing_and_says_what_to_do(tmp_path, monkeypatch, task, answer, words):
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    words = ["https://", tmp_path, "by hand", "--demo", *words.split("|")]
    refused(words, data.fetch, [source(task, tmp_path)])
    assert not list(tmp_path.rglob("*"))

def test_without_a_network_one_question_is_asked_and_all_that_is_missing_told(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, **_: asked.append(address) or NO_NETWORK())
    monkeypatch.setitem(data.TREEBANKS, "fi", "UD_Finnish-TDT")
    wanted, finnish = sources(tmp_path), source("pos", tmp_path, "fi")
    rows = refused(["--demo"], data.fetch, [finnish, *wanted]).partition("network: ")[2].split("; ")
    one_by_one = {f"{s.address} -> {s.path}" for s in wanted if s.address}
    packed = {f"{address} -> {tmp_path / name}" for name, (address, _) in data.ARCHIVES.items()}
    assert len(one_by_one) == 4 and len(packed) == 3 and len(rows) == 8   # the parser's are those of POS
    assert set(rows) == one_by_one | packed | {f"(no address) -> {finnish.path}"}
    assert len(asked) == 1 and capsys.readouterr() == ("", "")
    refused(["by hand"], data.fetch, [source("pos", Path("/proc/no"))])   # where nothing can be written, too

def test_a_server_that_is_silent_is_given_up(tmp_path, monkeypatch):
    assert data.PATIENCE <= 10
    monkeypatch.setattr(data, "PATIENCE", .1)
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:   # takes the call and never says a word
        silent = source("pos", tmp_path)._replace(address=f"https://127.0.0.1:{server.getsockname()[1]}/x")
        began = time.monotonic()
        refused(["timed out", "by hand"], data.fetch, [silent])
    assert time.monotonic() - began < 5

def test_a_source_is_described_without_a_look_at_disk_or_net(monkeypatch):
    for module, name in ((urllib.request, "urlopen"), (os, "stat"), (io, "open")):
        monkeypatch.setattr(module, name, fails(AssertionError(name)))
    ud, ner, xnli = (source(task, "D", "de", "dev") for task in ("pos", "ner", "xnli"))
    monkeypatch.undo()
    url = "https://raw.githubusercontent.com/UniversalDependencies/UD_German-GSD/r2.7/de_gsd-ud-dev.conllu"
    assert ud[:2] == (Path("D/ud/UD_German-GSD/de_gsd-ud-dev.conllu"), url) and ud.digest[:8] == "1366eb00"
    assert ud.digest_of(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"   # as git hash-object says
    assert ner[:2] == (Path("D/panx/de/dev"), None) and ner.digest[:8] == "82e9136e"
    assert (ner.archive.path, ner.members) == (Path("D/panx/panx_dataset.zip"), ("de.tar.gz", "dev"))
    assert xnli[:3] == (Path("D/xnli/XNLI-1.0/xnli.dev.tsv"), None, None)
    assert xnli == source("xnli", "D", "ar", "dev")   # so that it is fetched once
    assert (xnli.archive.path, xnli.members) == (Path("D/xnli/XNLI-1.0.zip"), ("XNLI-1.0/xnli.dev.tsv",))

def test_what_is_there_is_not_fetched_and_what_is_fetched_is_kept(corpus, tmp_path, monkeypatch):
    contents, fetched = [source("pos", corpus, "en", split).path.read_bytes() for split in data.SPLITS], []
    there = sorted(corpus.rglob("*"))
    monkeypatch.setitem(data.UD_GIT_NAMES, "en_ewt", [data.git_name(content) for content in contents])
    wanted = [source("pos", tmp_path, "en", split) for split in data.SPLITS]
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, **_: fetched.append(address) or Answer(
        contents["dev" in address], address))
    data.fetch([*sources(corpus), wanted[0]])
    assert fetched == [wanted[0].address] and sorted(corpus.rglob("*")) == there
    assert [s.path.exists() for s in wanted] == [True, False]
    data.fetch(wanted)
    assert fetched == [s.address for s in wanted] and [s.path.read_bytes() for s in wanted] == contents
    assert data.departure(wanted[1], "pos", "en", "dev", 20) is None   # a digest tells more than a count
    wanted[1].path.write_bytes(contents[1].replace(b"NOUN", b"VERB", 1))
    said = data.departure(wanted[1], "pos", "en", "dev", 2002)         # as many sentences as the paper's has
    assert said.startswith(f"{wanted[1].path} is not the paper's file") and "used as it is" in said

def targz(members, kind="gz"):
    """Bytes of a tar.gz of {name: content}."""
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode=f"w:{kind}") as t:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return packed.getvalue()

def zipped(members):
    with zipfile.ZipFile(packed := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in members.items():
            z.writestr(name, content)
    return packed.getvalue()

def wikiann(files, **changed):
    """The archive of WikiAnn: a tar.gz for each language in a zip; changed names tar.gz contents instead."""
    return zipped({f"panx_dataset/{lang}.tar.gz": changed.get(lang, targz(of)) for lang, of in files.items()})

@pytest.fixture
def files(corpus):
    """{language: {split: content}} of the tiny WikiAnn."""
    train, dev, *german = (file.path.read_bytes() for file in sources(corpus, ["ner"]))
    return {"en": {"train": train, "dev": dev}, "de": dict(zip(data.SPLITS, german, strict=True))}

@pytest.fixture
def pack(tmp_path, monkeypatch):
    """pack(content, name) puts an archive into tmp_path as the one that is expected there."""
    def put(content, name=PANX):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        monkeypatch.setitem(data.ARCHIVES, name, (f"https://x.example/{name}", data.sha256(content)))
        return tmp_path / name
    return put

def test_files_are_taken_out_of_an_archive(tmp_path, files, pack):
    pack(wikiann(files))
    wanted = sources(tmp_path, ["ner"])
    data.fetch(wanted)
    assert [s.path.read_bytes() for s in wanted] == [*files["en"].values(), *files["de"].values()]
    alone = source("ner", tmp_path)._replace(path=tmp_path / "alone", members=("train",))   # in a tar
    tar = data.CorpusFile(pack(targz(files["en"], "bz2")), *data.ARCHIVES[PANX])
    data.fetch([alone._replace(archive=tar)])
    assert alone.path.read_bytes() == files["en"]["train"]

@pytest.mark.parametrize("packed, words", [
    (lambda f: wikiann({"de": f["de"]}), "does not hold en.tar.gz"),
    (lambda f: wikiann(f, en=targz({"dev": b"x"})), "en.tar.gz|does not hold train")])
def test_what_an_archive_does_not_hold_is_told(tmp_path, files, pack, packed, words):
    path = pack(packed(files))
    refused([*words.split("|"), "by hand"], data.fetch, [source("ner", tmp_path)])
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]

# ---- is it the paper's file? ------------------------------------------------------------------------------

@pytest.mark.parametrize("task, expected", [("ner", 20000), ("xnli", 392702)])   # Table 1: and a header
def test_a_file_of_no_known_digest_is_held_against_its_archive_or_counted(tmp_path, pack, task, expected):
    pack(wikiann({"es": {"train": b"es:a\tO\n"}}))
    pack(zipped({"XNLI-MT-1.0/multinli/multinli.train.es.tsv": b"premise"}), "xnli/XNLI-MT-1.0.zip")
    file = source(task, tmp_path, "es")
    good = file.archive.path.read_bytes()
    file.archive.path.write_bytes(good + b"x")
    refused([file.archive.path, "another SHA-256", "Delete"], data.fetch, [file])
    file.archive.path.write_bytes(good)
    data.fetch([file])

    said = partial(data.departure, file, task, "es", "train")
    assert said(7) is None                                  # the archive tells more than a count
    file.path.write_bytes(file.path.read_bytes() + b"\n")
    assert "not the paper's file" in said(expected)
    file.archive.path.write_bytes(good + b"x")              # no reason to stop: the file itself is there
    assert "not the paper's file" in said(7)
    file.archive.path.unlink()
    for count in (expected - 1, expected + 1):
        assert f"differs ({count} examples, the paper's {expected})" in said(count)
    assert "without its archive" in said(expected)

def test_what_the_paper_does_not_have_is_described_without_it(corpus, tokenizer, monkeypatch):
    monkeypatch.setitem(data.TREEBANKS, "A", "UD_A-Demo")
    assert source("pos", "D", "A").path == Path("D/ud/UD_A-Demo/A_demo-ud-train.conllu")
    file = source("pos", corpus)
    examples = load("pos", file.path, "train", tokenizer)
    n = examples.counts["in_file"]
    for task, lang in (("story", "en"), ("pos", "A")):
        assert data.departure(file, task, lang, "train", n) is None
        assert data.describe(task, lang, "train", examples).startswith(f"{n} in the file, {n} used")
    assert data.describe("pos", "en", "train", examples).startswith(f"{n} in the file (Table 1: 12543), {n} ")
    code = Path(data.__file__).read_text().replace("TREEBANKS = {", 'TREEBANKS = {"sw": "UD_Sw-Own", ', 1)
    exec(code, added := {"__name__": "added"})   # as where a user has added a language to the table
    for task in ("ner", "xnli"):
        assert added["describe"](task, "sw", "train", examples).startswith(f"{n} in the file, {n} used")

@pytest.mark.parametrize("lang", ["ar", "de", "en", "fr", "hi", "vi", "zh"])
def test_the_genuine_wikiann_is_known_and_one_token_less_is_noticed(tmp_path, lang):
    for split, count in zip(data.SPLITS, data.TABLE_1["ner"][lang], strict=True):
        file, copy = source("ner", real("data"), lang, split), source("ner", tmp_path, lang, split)
        assert data.departure(file, "ner", lang, split, count) is None
        copy.path.parent.mkdir(parents=True, exist_ok=True)
        copy.path.write_bytes(file.path.read_bytes().partition(b"\n")[2])
        assert sum(1 for _ in data.read_ner(copy.path, lang)) == count
        assert "not the paper's file" in data.departure(copy, "ner", lang, split, count)
