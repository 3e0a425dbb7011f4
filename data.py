"""The four corpora: fetch the files, read them, encode them into subwords, and cut batches that live on the device.

    text file -> sentence (words and gold) -> windows of subword ids -> batch on the device

One idea makes four tasks one path: a window is subword ids plus the positions to read from. POS and NER read each
word's first subword, XNLI reads the first token, the parser reads the first token as the artificial ROOT and then each
word's first subword. Everything after this file sees only what was read.

To add a language, add its treebank to TREEBANKS (and its git names to UD_GIT_NAMES if it is to be downloaded).
"""

import hashlib
import http.client
import io
import math
import os
import re
import tarfile
import urllib.request
import zipfile
from array import array
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

TREEBANKS = {"ar": "UD_Arabic-PADT", "de": "UD_German-GSD", "en": "UD_English-EWT", "es": "UD_Spanish-GSD",
             "fr": "UD_French-GSD", "hi": "UD_Hindi-HDTB", "ru": "UD_Russian-GSD", "vi": "UD_Vietnamese-VTB",
             "zh": "UD_Chinese-GSD"}
UPOS = tuple("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split())
RELATIONS = tuple("""acl advcl advmod amod appos aux case cc ccomp clf compound conj cop csubj dep det discourse
    dislocated expl fixed flat goeswith iobj list mark nmod nsubj nummod obj obl orphan parataxis punct reparandum
    root vocative xcomp""".split())  # the 37 universal relations, without subtypes
BIO = ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER")
NLI = ("entailment", "neutral", "contradiction")

# Table 1 of the paper: (train, dev) sentences or pairs.
TABLE_1 = {"xnli": dict.fromkeys(TREEBANKS, (392703, 2490)),
           "ner": dict.fromkeys(TREEBANKS, (20000, 10000)) | {"hi": (5000, 1000)},
           "pos": {"en": (12543, 2002), "ar": (6075, 909), "de": (13814, 799), "es": (14187, 1400),
                   "fr": (14449, 1476), "hi": (13304, 1659), "ru": (3850, 579), "vi": (1400, 800), "zh": (3997, 500)}}
TABLE_1["parsing"] = TABLE_1["pos"]

UD_URL = "https://raw.githubusercontent.com/UniversalDependencies/{treebank}/r2.7/{file}"
UD_GIT_NAMES = {  # git's name of each file at tag r2.7: SHA-1 over "blob <bytes>\0" and the content
    "ar_padt-ud-dev.conllu": "aa8a128ea0914be9c8715b5b7ee317af86d932f1",
    "ar_padt-ud-train.conllu": "0c816a00eb1451c121b98bccb720ff5b4f12261f",
    "de_gsd-ud-dev.conllu": "1366eb0088b1dcf412a18ba35e272c7d36b1f09e",
    "de_gsd-ud-train.conllu": "3cb48b5e26f9050cd756c375cb957ef233360bdf",
    "en_ewt-ud-dev.conllu": "6378bb89648e23230216c7923c9049f9f3d81837",
    "en_ewt-ud-train.conllu": "a722c07c425d7fca4b1e7be73d66996def93e925",
    "es_gsd-ud-dev.conllu": "a033908366e0d36c9102e24e249f63d8438c280d",
    "es_gsd-ud-train.conllu": "ab632761870d2b15a09cc9afec964f9d12df5fba",
    "fr_gsd-ud-dev.conllu": "5ae9c9706df7185fcf4c1eb4564f8e69f349e45e",
    "fr_gsd-ud-train.conllu": "4a02d957349f7ac4f9f89e3913149800ffbb721a",
    "hi_hdtb-ud-dev.conllu": "63445555c21ac6eebdd20545685e5d970f08f33a",
    "hi_hdtb-ud-train.conllu": "8ca69738107f473286661f53c6b53775b4dc23d2",
    "ru_gsd-ud-dev.conllu": "794e031c264f199da1aeb1029b8dc7fb6bb80a9e",
    "ru_gsd-ud-train.conllu": "5365d1df1bd41a05b0e24df36b1d3dbb79b22f31",
    "vi_vtb-ud-dev.conllu": "366ab91cd11cdb879afca7b43c21a0c4dbfb6d5d",
    "vi_vtb-ud-train.conllu": "450129bd3ab993ed46ef8519a509c32a9c3a8476",
    "zh_gsd-ud-dev.conllu": "1c2adb94767ac21fcf4bda018b3f2fb1846f1511",
    "zh_gsd-ud-train.conllu": "fefa9694d32274ba5f761839b553527428a7e54c"}
ARCHIVES = {  # file under DATA: (address, SHA-256)
    "xnli/XNLI-1.0.zip": ("https://dl.fbaipublicfiles.com/XNLI/XNLI-1.0.zip",
                          "4ba1d5e1afdb7161f0f23c66dc787802ccfa8a25a3ddd3b165a35e50df346ab1"),
    "xnli/XNLI-MT-1.0.zip": ("https://dl.fbaipublicfiles.com/XNLI/XNLI-MT-1.0.zip",
                             "f732517ba2fb1d550e9f3c2aabaef6017c91ee2dcec90e878f138764d224db05"),
    "panx/panx_dataset.zip": ("https://s3.amazonaws.com/datasets.huggingface.co/wikiann/1.1.0/panx_dataset.zip",
                              "164814b64f749ad000988b5ab45050b5116913b3db466ab173008955ddf649a4")}

MAX_SUBWORDS, CONTEXT = 128, 64      # App. A: a window, and how much of its left is context that is not scored again
DEV_WORDS, DEV_SUBWORDS = 128, 512   # App. A: a dev sentence of the parser


class DataError(ValueError):
    """A mistake in a file, a download or a setting, told as a sentence for people."""


# ---------------------------------------------------------------------------------------------------------- fetching

def ud_file(folder, lang, split):
    """Path of a treebank file under `folder`, downloaded first if absent. Raises DataError."""
    code = TREEBANKS[lang].split("-")[-1].lower()
    path = Path(folder, "ud", TREEBANKS[lang], f"{lang}_{code}-ud-{split}.conllu")
    want = UD_GIT_NAMES.get(path.name)
    if not path.exists():
        if not want:
            raise DataError(f"{path} is missing and this kit knows no address for it: put the file there by hand.")
        download(UD_URL.format(treebank=TREEBANKS[lang], file=path.name), path, want, git_name)
    return path


def ner_file(folder, lang, split):
    """Path of a WikiAnn file, taken out of its archive (downloaded if absent) if it is not there. Raises DataError."""
    path = Path(folder, "panx", lang, split)
    if not path.exists():
        inner = member(archive(folder, "panx/panx_dataset.zip", path), f"{lang}.tar.gz")
        write(path, member(io.BytesIO(inner), split, f"{lang}.tar.gz"))
    return path


def xnli_file(folder, lang, split):
    """Path of an XNLI file, taken out of its archive (downloaded if absent) if it is not there. Raises DataError."""
    name = "XNLI-1.0/xnli.dev.tsv" if split == "dev" else f"XNLI-MT-1.0/multinli/multinli.train.{lang}.tsv"
    path = Path(folder, "xnli", name)
    if not path.exists():
        write(path, member(archive(folder, f"xnli/{name.split('/')[0]}.zip", path), name))
    return path


def archive(folder, name, wanted):
    """Path of an archive under `folder`, downloaded if absent; `wanted` is the file that is to come out of it."""
    address, digest = ARCHIVES[name]
    path = Path(folder, name)
    if not path.exists():
        download(address, path, digest, sha256, wanted)
    elif sha256(path.read_bytes()) != digest:
        raise DataError(f"{path} has another SHA-256 than the archive at {address}. Delete it; the kit fetches it again.")
    return path


def member(file, name, label=None):
    """Bytes of one member of a zip (a path) or a tar.gz (an open file); nothing is unpacked by path. Raises DataError."""
    label = label or file
    try:
        if isinstance(file, Path):
            with zipfile.ZipFile(file) as z:
                return z.read(checked(z.namelist(), name, label))
        with tarfile.open(fileobj=file, mode="r:gz") as t:
            taken = t.extractfile(checked(t.getnames(), name, label))
            if taken is None:
                raise DataError(f"{label}: {name} is no plain file. Delete the archive; the kit fetches it again.")
            return taken.read()
    except DataError:
        raise
    except Exception as e:  # the two libraries raise a dozen kinds, all of them about what they found in the file
        raise DataError(f"{label} is truncated or no archive ({e}). Delete it; the kit fetches it again.") from None


def checked(names, name, label):
    """The entry of `names` that is `name`, after refusing an archive whose paths leave its folder."""
    for n in names:
        if n.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", n) or re.match(r"[A-Za-z]:", n):
            raise DataError(f"{label} holds the path {n!r}, which leaves its folder: this archive is not trusted.")
    found = [n for n in names if n == name or n == f"./{name}" or n.endswith("/" + name)]
    if not found:
        raise DataError(f"{label} does not hold {name}. Delete it; the kit fetches it again.")
    return min(found, key=len)


def download(address, path, digest, name_of, wanted=None):
    """Fetch `address` to `path` and move it into place only if name_of(bytes) == digest. Raises DataError."""
    try:
        with urllib.request.urlopen(address, timeout=60) as r:
            if not r.geturl().startswith("https://"):
                raise DataError(f"{address} was redirected to {r.geturl()}, which is not https: nothing was kept. "
                                f"Put the right file at {path} by hand.")
            parts = []
            with tqdm(total=r.length, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
                while part := r.read(1 << 20):
                    parts.append(part)
                    bar.update(len(part))
    except (OSError, EOFError, http.client.HTTPException) as e:
        by_hand = f"put it at {path}" + (f" (or the file itself at {wanted})" if wanted else "")
        raise DataError(f"{path} is not there and could not be fetched from {address} ({e}). Fetch that address "
                        f"elsewhere and {by_hand}, or run --demo, which needs no network.") from None
    content = b"".join(parts)
    if name_of(content) != digest:
        raise DataError(f"{address} gave {len(content)} bytes with digest {name_of(content)}, expected {digest}: "
                        f"nothing was kept. Try again, or put the right file at {path} by hand.")
    write(path, content)


def write(path, content):
    """Write bytes under a temporary name and move them into place, so that a file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def git_name(content):
    """Git's name of a file's content: SHA-1 over "blob <bytes>\\0" and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def departure(path, task, lang, split, in_file):
    """A sentence if a file is not the one the paper used, by its git name or its count in Table 1; else None."""
    want = UD_GIT_NAMES.get(path.name)
    if want and git_name(path.read_bytes()) != want:
        return f"{path} is not the file of the treebank's tag r2.7 that the paper used; it is used as it is."
    paper = TABLE_1[task].get(lang)
    # The paper counts 392703 XNLI training pairs, another reader of the same files 392702.
    if paper and not 0 <= paper[split == "dev"] - in_file <= (task == "xnli" and split == "train"):
        return f"{path} holds {in_file} examples, Table 1 of the paper {paper[split == 'dev']}; it is used as it is."
    return None


def describe(task, lang, split, examples):
    """One line that counts what a file holds, beside Table 1."""
    c, paper = examples.counts, TABLE_1[task].get(lang)
    line = (f"{c['in_file']} in the file" + (f" (Table 1: {paper[split == 'dev']})" if paper else "")
            + f", {c['sentences']} used, {c['words']} words, {c['windows']} windows, "
            f"{c['unknown']} words without a subword, {c['truncated']} truncated")
    return line + (f", {c['left_out']} past word {DEV_WORDS}, {examples.lost} lost" if task == "parsing" else "")


# ----------------------------------------------------------------------------------------------------------- reading

def lines(path):
    """Yield (line number, text without its line end); Windows line ends are read too. Raises DataError."""
    n = 0
    with open(path, "rb") as f:  # bytes: only \n ends a line, whatever else a sentence may hold
        for n, raw in enumerate(f, 1):
            try:
                text = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as e:
                raise DataError(f"{path}, line {n}: byte {raw[e.start]:#04x} is not UTF-8; expected a UTF-8 file.") from None
            yield n, text.lstrip("\ufeff") if n == 1 else text
    if n == 0:
        raise DataError(f"{path} is empty; expected at least one sentence.")


def blocks(path):
    """Yield the runs of lines between blank lines as lists of (line number, text)."""
    block = []
    for n, text in lines(path):
        if text.strip():
            block.append((n, text))
        elif block:
            yield block
            block = []
    if block:
        yield block


def read_conllu(path):
    """Yield (words, rows) per sentence of a CoNLL-U 2.7 file, rows being (upos, head, relation) label numbers.

    Multiword ranges (1-2) and empty nodes (8.1) are not words; relations lose their subtype. Raises DataError.
    """
    upos, relations = {u: i for i, u in enumerate(UPOS)}, {r: i for i, r in enumerate(RELATIONS)}
    for block in blocks(path):
        words, rows = [], []
        for n, text in block:
            if text[0] == "#" and not words:
                continue
            c = text.split("\t")
            if len(c) != 10:
                raise DataError(f"{path}, line {n}: {len(c)} columns in {text[:60]!r}; expected 10 separated by tabs.")
            if re.fullmatch(r"\d+[-.]\d+", c[0]):
                continue
            if c[0] != str(len(words) + 1):
                raise DataError(f"{path}, line {n}: word id {c[0]!r}; expected {len(words) + 1}. "
                                "Is a line or a blank line missing?")
            tag, relation = upos.get(c[3]), relations.get(c[7].split(":")[0])
            if tag is None:
                raise DataError(f"{path}, line {n}: unknown UPOS {c[3]!r}; expected one of {' '.join(UPOS)}.")
            if relation is None:
                raise DataError(f"{path}, line {n}: unknown relation {c[7]!r}; expected one of {' '.join(RELATIONS)}.")
            if not re.fullmatch(r"[0-9]{1,9}", c[6]):
                raise DataError(f"{path}, line {n}: head {c[6]!r} is no number; expected 0 or a word's id.")
            words.append(c[1])
            rows.append((tag, int(c[6]), relation))
        if words:
            check_tree([head for _, head, _ in rows], path, [n for n, _ in block])
            yield words, rows


def check_tree(heads, path, numbers):
    """Raise DataError unless heads (1-based, 0 is the root) form a tree with one root word."""
    where = f"{path}, lines {numbers[0]} to {numbers[-1]}"
    for i, head in enumerate(heads, 1):
        if head > len(heads):
            raise DataError(f"{where}: head {head} of word {i} is out of range; expected 0 to {len(heads)}.")
    if heads.count(0) != 1:
        raise DataError(f"{where}: {heads.count(0)} words have head 0; expected exactly one root.")
    safe = {0}
    for i in range(1, len(heads) + 1):
        seen = set()
        while i not in safe:
            if i in seen:
                raise DataError(f"{where}: word {i} is on a cycle of heads; expected a tree.")
            seen.add(i)
            i = heads[i - 1]
        safe |= seen


def read_pos(path, lang):
    """Yield (words, gold): gold (N, 1), the UPOS of each word."""
    for words, rows in read_conllu(path):
        yield words, [row[:1] for row in rows]


def read_trees(path, lang):
    """Yield (words, gold): gold (N, 3), head (0 is the root), relation, and 1 where the word is scored (App. A)."""
    unscored = UPOS.index("PUNCT"), UPOS.index("SYM")
    for words, rows in read_conllu(path):
        yield words, [(head, relation, int(tag not in unscored)) for tag, head, relation in rows]


def read_ner(path, lang):
    """Yield (words, gold): gold (N, 1), the BIO tag of each word of a WikiAnn file. Raises DataError."""
    tags = {t: i for i, t in enumerate(BIO)}
    for block in blocks(path):
        words, gold = [], []
        for n, text in block:
            token, tab, tag = text.partition("\t")
            prefix, colon, word = token.partition(":")  # the first colon only: a word may be ":" itself
            if not tab or not colon or prefix != lang:
                raise DataError(f"{path}, line {n}: {text[:60]!r}; expected '{lang}:word', a tab and a tag.")
            if tag not in tags:
                raise DataError(f"{path}, line {n}: unknown tag {tag!r}; expected one of {' '.join(BIO)}.")
            words.append(word)
            gold.append((tags[tag],))
        yield words, gold


def read_xnli(path, lang):
    """Yield ((premise, hypothesis), [(label,)]) of an XNLI file in either of its two formats. Raises DataError.

    Plain tab-separated text: quotation marks are text. Columns are found by the names in the header.
    """
    labels = {label: i for i, label in enumerate(NLI)} | {"contradictory": NLI.index("contradiction")}
    rows = lines(path)
    header = next(rows)[1].split("\t")
    train = "premise" in header
    wanted = ("premise", "hypo", "label") if train else ("sentence1", "sentence2", "gold_label", "language")
    if missing := [w for w in wanted if w not in header]:
        raise DataError(f"{path}, line 1: no column {' or '.join(missing)} in {header}; "
                        f"expected {', '.join(wanted)}, separated by tabs.")
    columns, found = [header.index(w) for w in wanted], False
    for n, text in rows:
        c = text.split("\t")
        if len(c) != len(header):
            raise DataError(f"{path}, line {n}: {len(c)} columns; expected {len(header)} as in the header.")
        premise, hypothesis, label, *language = (c[i] for i in columns)
        if language and language != [lang]:
            continue
        if label not in labels:
            raise DataError(f"{path}, line {n}: unknown label {label!r}; expected one of {', '.join(labels)}.")
        found = True
        yield (premise, hypothesis), [(labels[label],)]
    if not found:
        raise DataError(f"{path} has no pair in language {lang!r}; expected some in its column 'language'.")


# ---------------------------------------------------------------------------------------------------------- encoding

class Batch(NamedTuple):
    """B windows on the device, padded to L subwords and N read positions."""
    ids: torch.Tensor            # (B, L) subword ids
    types: torch.Tensor          # (B, L) 1 in the second sentence of a pair, else 0
    mask: torch.Tensor | None    # (B, L) True at subwords; None where nothing is padded
    at: torch.Tensor             # (R+1,) which of the B * L positions are read; the last one stands for all padding
    place: torch.Tensor          # (B, N) where in `at` a read stands; R at padding
    keep: torch.Tensor           # (R+1,) which of the B * N places are no padding; the inverse of `place`
    real: torch.Tensor           # (B, N) True at read positions that are no padding
    rows: torch.Tensor           # (B, N) where a read stands in the set's flat order; padding points past its end
    gold: torch.Tensor           # (B, N, K) gold columns of what is read, -1 at padding


class Encoded:
    """A corpus file as flat tensors: subword ids cut into windows, and the positions read in each.

    ids (T,), start (W+1,) offsets of the windows in ids, second (W,) position of a pair's second sentence,
    read (R,) positions inside the window, read_start (W+1,), gold (R, K), new (R,) True where a sentence begins,
    lost: scored words without a read (they cannot be right), counts: what the file held. Reads stand in file order.
    """

    def __init__(self, pad, columns):
        self.pad, self.columns, self.lost = pad, columns, 0
        self.counts = dict(sentences=0, words=0, windows=0, unknown=0, truncated=0, left_out=0)
        self.ids, self.start, self.second = array("i"), array("q", [0]), array("i")
        self.read, self.read_start, self.gold, self.new = array("i"), array("q", [0]), array("i"), array("b")

    def add(self, ids, read, gold, new=True, second=1 << 30):
        """Append one window: ids (L,), read (N,), gold (N, K) rows; `new` where its first read begins a sentence."""
        self.ids.extend(ids)
        self.start.append(len(self.ids))
        self.second.append(second)
        self.read.extend(read)
        self.read_start.append(len(self.read))
        self.new.extend([new] + [False] * (len(read) - 1))
        for row in gold:
            self.gold.extend(row)
        self.counts["windows"] += 1

    def to(self, device):
        """Freeze the lists into tensors on `device` and return self."""
        self.lengths = np.diff(np.frombuffer(self.start, dtype=np.int64))
        self.reads = np.diff(np.frombuffer(self.read_start, dtype=np.int64))
        for name in ("ids", "start", "second", "read", "read_start", "gold", "new"):
            values = np.frombuffer(getattr(self, name), dtype=getattr(self, name).typecode)
            setattr(self, name, torch.from_numpy(values.copy()).to(device))
        self.gold, self.new = self.gold.view(-1, self.columns), self.new.bool()
        return self

    def __len__(self):
        return len(self.lengths)

    def batch(self, windows):
        """The Batch of window numbers (B,), a numpy array; built on the device, without asking it anything."""
        device, L, N = self.ids.device, int(self.lengths[windows].max()), int(self.reads[windows].max())
        R = int(self.reads[windows].sum())
        padded = bool((self.lengths[windows] < L).any())
        w = torch.from_numpy(np.ascontiguousarray(windows)).to(device, non_blocking=True)[:, None]   # (B, 1)
        at = self.start[w] + torch.arange(L, device=device)                                         # (B, L)
        mask = at < self.start[w + 1]
        ids = self.ids[at.clamp_(max=len(self.ids) - 1)].long().masked_fill_(~mask, self.pad)
        types = (torch.arange(L, device=device) >= self.second[w]) & mask
        rows = self.read_start[w] + torch.arange(N, device=device)                                  # (B, N)
        real = rows < self.read_start[w + 1]
        rows = rows.masked_fill_(~real, len(self.read))
        inside = rows.clamp(max=len(self.read) - 1)
        count = real.sum(1, keepdim=True)                                                           # (B, 1)
        place = (count.cumsum(0) - count + torch.arange(N, device=device)).masked_fill_(~real, R)   # (B, N)
        keep = place.new_zeros(R + 1).scatter_(0, place.flatten(), torch.arange(place.numel(), device=device))
        read = self.read[inside].masked_fill_(~real, 0) + L * torch.arange(len(w), device=device)[:, None]
        return Batch(ids, types.long(), mask if padded else None, read.flatten()[keep], place, keep, real, rows,
                     self.gold[inside].long().masked_fill_(~real[..., None], -1))

    def batches(self, tokens, waste=math.inf):
        """All windows as Batches sorted by length, made once and kept; at most `tokens` subwords each, `waste` of them padding."""
        if not hasattr(self, "kept"):
            order, first, real, self.kept = np.argsort(self.lengths, kind="stable"), 0, 0, []
            for i, length in enumerate([*self.lengths[order].tolist(), math.inf]):
                padded = (i + 1 - first) * length                  # with this window; the windows before are shorter
                if i > first and (padded > tokens or padded - real - length > waste):
                    self.kept.append(self.batch(order[first:i]))
                    first, real = i, 0
                real += length
        return self.kept


def special(tokenizer, label):
    """(ids before, ids after) a sentence: [CLS] and [SEP] in BERT, <s> and </s> in XLM-R. Raises DataError."""
    ids = tokenizer("").input_ids
    if len(ids) < 2 or tokenizer.unk_token_id is None or tokenizer.pad_token_id is None:
        raise DataError(f"{label}: this kit needs a tokenizer with an unknown and a padding token that puts one special "
                        "token before and one after a sentence, as those of BERT and XLM-R do.")
    if tokenizer.model_max_length < MAX_SUBWORDS:
        raise DataError(f"{label}: the encoder has {tokenizer.model_max_length} positions; this kit's windows need "
                        f"{MAX_SUBWORDS}. Take another --encoder.")
    return ids[:1], ids[1:]


def subwords(words, tokenizer):
    """{word: subword ids} for the distinct words; [] where the tokenizer makes nothing of a word.

    XLM-R splits some words into a lone word-start piece and the rest; the lone piece is dropped.
    """
    words = list(dict.fromkeys(words))
    marked = tokenizer.tokenize("a")[:1] == ["▁a"]
    lone = tokenizer.convert_tokens_to_ids("▁") if marked else None
    ids = tokenizer(words, add_special_tokens=False, return_attention_mask=False).input_ids if words else []
    return {w: i[1:] if i and i[0] == lone else i for w, i in zip(words, ids)}


def pieces_of(examples, tokenizer, encoded):
    """Yield (words' subword ids, gold) per example; a word that is tokenised to nothing is the unknown token."""
    table = subwords((w for words, _ in examples for w in words), tokenizer)
    unknown = [tokenizer.unk_token_id]
    for words, gold in examples:
        encoded.counts["sentences"] += 1
        encoded.counts["words"] += len(words)
        encoded.counts["unknown"] += sum(not table[w] for w in words)
        yield [table[w] or unknown for w in words], gold


def slide(lengths, room, context=CONTEXT):
    """Yield (left, first, last): a window shows subwords from `left` on and reads words first to last-1 (App. A).

    lengths: subwords of each word; room: subwords in a window; after the first window, up to `context` subwords on
    the left were read before and are not read again. Only a word too long for a window is cut.
    """
    ends, first = np.cumsum(lengths), 0
    while first < len(lengths):
        left = max(0, int(ends[first]) - lengths[first] - context) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, left + room, side="right")))
        yield left, first, last
        first = last


def encode_words(examples, tokenizer, split, label):
    """Encoded set of (words, gold) examples for taggers: sliding windows that read each word's first subword once."""
    before, after = special(tokenizer, label)
    room = MAX_SUBWORDS - len(before) - len(after)
    encoded = Encoded(tokenizer.pad_token_id, columns=1)
    for pieces, gold in pieces_of(list(examples), tokenizer, encoded):
        flat = [i for piece in pieces for i in piece]
        lengths = [len(piece) for piece in pieces]
        starts = np.cumsum([0] + lengths)
        for left, first, last in slide(lengths, room):
            right = min(int(starts[last]), left + room)
            encoded.counts["truncated"] += int(starts[last] > right)
            read = [len(before) + int(starts[i]) - left for i in range(first, last)]
            encoded.add([*before, *flat[left:right], *after], read, gold[first:last], new=first == 0)
    return encoded


def encode_trees(examples, tokenizer, split, label):
    """Encoded set of (words, gold) examples for the parser: one window a sentence, the first token read as ROOT.

    Train: the first 128 subwords. Dev: the first 128 words, at most 512 subwords of them. A head that was cut off
    is -1; scored dev words that were cut off are counted as lost, words past the 128th as left out (App. A).
    """
    before, after = special(tokenizer, label)
    most = min(DEV_SUBWORDS, tokenizer.model_max_length) if split == "dev" else MAX_SUBWORDS
    encoded = Encoded(tokenizer.pad_token_id, columns=3)
    for pieces, gold in pieces_of(list(examples), tokenizer, encoded):
        words = min(len(pieces), DEV_WORDS) if split == "dev" else len(pieces)
        ends = np.cumsum([len(piece) for piece in pieces[:words]])
        room = most - len(before) - len(after)
        starts = [0, *ends[:-1].tolist()]
        kept = sum(s < room for s in starts)  # words whose first subword is in the window
        encoded.counts["left_out"] += len(pieces) - words
        encoded.counts["truncated"] += sum(e > room for e in ends.tolist())
        encoded.lost += sum(scored for _, _, scored in gold[kept:words])
        flat = [i for piece in pieces[:kept] for i in piece][:room]
        rows = [(head if head <= kept else -1, relation, scored) for head, relation, scored in gold[:kept]]
        encoded.add([*before, *flat, *after], [0] + [len(before) + s for s in starts[:kept]], [(-1, -1, 0), *rows])
    return encoded


def encode_pairs(examples, tokenizer, split, label):
    """Encoded set of ((premise, hypothesis), gold) examples, read at the first token; cut from the longer side."""
    special(tokenizer, label)
    encoded, examples = Encoded(tokenizer.pad_token_id, columns=1), iter(examples)
    with tqdm(desc=f"{label}: subwords", unit=" pairs", disable=None, leave=False) as bar:
        while chunk := list(islice(examples, 1000)):
            first, second = zip(*(texts for texts, _ in chunk))
            out = tokenizer(list(first), list(second), truncation="longest_first", max_length=MAX_SUBWORDS,
                            return_attention_mask=False, return_token_type_ids=True)
            for ids, types, (_, gold) in zip(out.input_ids, out.token_type_ids, chunk):
                encoded.add(ids, [0], gold, second=types.index(1) if 1 in types else 1 << 30)
            encoded.counts["sentences"] += len(chunk)
            bar.update(len(chunk))
    encoded.counts["words"] = encoded.counts["sentences"]  # one decision a pair
    return encoded


def load(path, lang, split, read, encode, tokenizer, limit=None):
    """The Encoded set of a file's first `limit` sentences, its counts filled in for the whole file. Raises DataError."""
    in_file, labels = 0, set()

    def first_ones():
        nonlocal in_file
        try:
            for in_file, (texts, gold) in enumerate(read(path, lang), 1):
                labels.update(row[0] for row in gold)
                if limit is None or in_file <= limit:
                    yield texts, gold
            if in_file == 0:
                raise DataError(f"{path} holds no sentence; expected at least one.")
        except DataError as e:
            raise DataError(f"{e} Correct the file, or delete it so that it is fetched again.") from None

    encoded = encode(first_ones(), tokenizer, split, path)
    if split == "dev" and len(labels) == 1 and in_file > 1:
        raise DataError(f"{path}: all labels of language {lang} are the same, as in a placeholder file; expected real ones.")
    encoded.counts["in_file"] = in_file
    return encoded
