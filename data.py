"""The corpora: fetch the files, read them, encode them into subwords, cut batches that live on the device.

    CorpusFile -> text file -> sentence (words and gold) -> windows of subword ids -> batch on the device

One idea makes all tasks one path: a window is subword ids plus the positions to read from. POS and NER read
each word's first subword, XNLI the first token, the parser the first token as ROOT and then as POS does.
To add a language, add its treebank to TREEBANKS (and its git names to UD_GIT_NAMES if it is to be fetched).
"""

import copy
import hashlib
import http.client
import io
import json
import re
import tarfile
import urllib.request
import zipfile
from bisect import bisect_right
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from itertools import chain, groupby
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from tqdm import tqdm

from results import KitError, check_locks, quiet, write

SPLITS = ("train", "dev")  # the order of all pairs below
TREEBANKS = {"ar": "UD_Arabic-PADT", "de": "UD_German-GSD", "en": "UD_English-EWT", "es": "UD_Spanish-GSD",
             "fr": "UD_French-GSD", "hi": "UD_Hindi-HDTB", "ru": "UD_Russian-GSD", "vi": "UD_Vietnamese-VTB",
             "zh": "UD_Chinese-GSD"}
INVENTED = {lang: f"UD_{lang}-Demo" for lang in ("A", "B", "C", "A.syntax-B")}  # of demo.py
UPOS = tuple("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split())
RELATIONS = tuple("""acl advcl advmod amod appos aux case cc ccomp clf compound conj cop csubj dep det
    discourse dislocated expl fixed flat goeswith iobj list mark nmod nsubj nummod obj obl orphan parataxis
    punct reparandum root vocative xcomp""".split())  # the 37 universal relations, without subtypes
ROOT = RELATIONS.index("root")
BIO = ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER")
NLI = ("entailment", "neutral", "contradiction")
TREES_1 = {"en": (12543, 2002), "ar": (6075, 909), "de": (13814, 799), "es": (14187, 1400),
           "fr": (14449, 1476), "hi": (13304, 1659), "ru": (3850, 579), "vi": (1400, 800), "zh": (3997, 500)}
TABLE_1 = {"pos": TREES_1, "parsing": TREES_1,           # of the paper, in its languages: sentences or pairs
           "xnli": dict.fromkeys(TREES_1, (392703, 2490)),
           "ner": dict.fromkeys(TREES_1, (20000, 10000)) | {"hi": (5000, 1000)}}
HEADERS_COUNTED = {("xnli", "train"): 1}  # another reader finds 392702 pairs: the header is counted (ours)
UD_URL = "https://raw.githubusercontent.com/UniversalDependencies"
UD_GIT_NAMES = {  # git's names at tag r2.7
    "ar_padt": ("0c816a00eb1451c121b98bccb720ff5b4f12261f", "aa8a128ea0914be9c8715b5b7ee317af86d932f1"),
    "de_gsd": ("3cb48b5e26f9050cd756c375cb957ef233360bdf", "1366eb0088b1dcf412a18ba35e272c7d36b1f09e"),
    "en_ewt": ("a722c07c425d7fca4b1e7be73d66996def93e925", "6378bb89648e23230216c7923c9049f9f3d81837"),
    "es_gsd": ("ab632761870d2b15a09cc9afec964f9d12df5fba", "a033908366e0d36c9102e24e249f63d8438c280d"),
    "fr_gsd": ("4a02d957349f7ac4f9f89e3913149800ffbb721a", "5ae9c9706df7185fcf4c1eb4564f8e69f349e45e"),
    "hi_hdtb": ("8ca69738107f473286661f53c6b53775b4dc23d2", "63445555c21ac6eebdd20545685e5d970f08f33a"),
    "ru_gsd": ("5365d1df1bd41a05b0e24df36b1d3dbb79b22f31", "794e031c264f199da1aeb1029b8dc7fb6bb80a9e"),
    "vi_vtb": ("450129bd3ab993ed46ef8519a509c32a9c3a8476", "366ab91cd11cdb879afca7b43c21a0c4dbfb6d5d"),
    "zh_gsd": ("fefa9694d32274ba5f761839b553527428a7e54c", "1c2adb94767ac21fcf4bda018b3f2fb1846f1511")}
PANX_SHA256 = {  # of the public WikiAnn files; of es and ru none was at hand
    "ar": ("8486f89df9dd1161f5e44f71f7ee7fd8ca3e180fb3332697bb17decb6fdc85e1",
           "36cc49f75a5176c7864a1950658c63446c528edb1b6353a0b65050de9b65b318"),
    "de": ("3ce85fb69bf38dc62dae27e08884ed951424d2c8955636f11ad137b07fd9968d",
           "82e9136e6fd8b78170a4150277e084fd57555a251f45800ff196823febf6b837"),
    "en": ("ca569a937f536cfc7e94291fbf631d394ce0c171af4523d96f366a50bd18b388",
           "e9e42f79be5eba498ac86b7b81612da5ec5ad3d194df25c2e474514434957cf4"),
    "fr": ("2acc675a8521d9e49da87ad17de158bc8860f227559d71a766ffea253ebcee3a",
           "d970aa72d52889c3dca8ee455ce451b948f4bacc3c6a5dbf4b700b375e90e56e"),
    "hi": ("c2e1720dd404b5bc4ada9bc2033663422dd578d186a5e16f65df12aefd3566cb",
           "c05eb123fc161212bf30a54574a5fca0069c621081d1a07fd9dd7fb4afe90170"),
    "vi": ("ce62ca99328882e93b06743018050fbdf63ef4814bf98601f622aae273063768",
           "6faa2c9b28a4b5d6a159f30cee56e3920e8d25dd9ffa55ddf5081150ee9f4e2a"),
    "zh": ("f814d560f696751c02977533798237d7eea313eb8d396cdaadf4806d807b31a8",
           "20c9b066303711cfc51bc790b7bcf844ab8b143e61c1343bff9ead6cf17021a8")}
ARCHIVES = {  # file under DATA: (address, SHA-256)
    "xnli/XNLI-1.0.zip": ("https://dl.fbaipublicfiles.com/XNLI/XNLI-1.0.zip",
                          "4ba1d5e1afdb7161f0f23c66dc787802ccfa8a25a3ddd3b165a35e50df346ab1"),
    "xnli/XNLI-MT-1.0.zip": ("https://dl.fbaipublicfiles.com/XNLI/XNLI-MT-1.0.zip",
                             "f732517ba2fb1d550e9f3c2aabaef6017c91ee2dcec90e878f138764d224db05"),
    "panx/panx_dataset.zip": ("https://s3.amazonaws.com/datasets.huggingface.co/wikiann/1.1.0/"
                              "panx_dataset.zip",
                              "164814b64f749ad000988b5ab45050b5116913b3db466ab173008955ddf649a4")}
# XL-Sum 2.0 (Hasan et al. 2021; CC BY-NC-SA 4.0): its name of a language, SHA-256 of the archive. It has no
# German; of vi and zh no digest was at hand. Those of ar, en and hi are of a copy whose other files agree.
XLSUM_URL = ("https://huggingface.co/datasets/csebuetnlp/xlsum/resolve/"
             "16f84e644d7eafc425634df41778d2fea930df53/data/{file}")
XLSUM = {"ar": ("arabic", "371a07df0f89d83c2ca330f56ba33cc4cd39c1b532d6886910c97dfbacfdf2b7"),
         "en": ("english", "ce2e965b9e4b8b337a801fda8b55e673fe2b17c4f3755d7fff886944633fec29"),
         "es": ("spanish", "70499154fe1d1c8df3b4667921d2c8c7b508da5473aa9387c4330b3b22288360"),
         "fr": ("french", "8d3b0734508a8612598af8e47e023d6fd4e52546543cddb0e3246d720135adf2"),
         "hi": ("hindi", "23e625cfdd596ae59bab6e1756756c4d68bf50f355437943b3e57f0593662193"),
         "ru": ("russian", "5a582ea371c981295da82b6d4c3a8f44d8e266837a86aeae199e2a49b04af3bf")}
PATIENCE = 10         # seconds for each answer of a server

MAX_SUBWORDS = 128    # App. A; with the special tokens (ours: the authors' code does not count them)
CONTEXT = 64          # the authors' code: subwords on the left of a window that were read before
DEV_WORDS = 128       # App. A: the words of a dev sentence that are parsed ...
DEV_SUBWORDS = 512    # ... and their subwords at most (ours): the positions of BERT and XLM-R
SOURCE_SUBWORDS, TARGET_SUBWORDS = 512, 64        # of a title (ours), with special tokens
PHRASES = "the house", "новый дом", "नया घर", "بيت كبير", "新 房子"   # by which `border` is found

# ---- fetching ---------------------------------------------------------------------------------------------

def sha256(content):
    return hashlib.sha256(content).hexdigest()

def git_name(content):
    """Git's name of a file's content: SHA-1 over "blob <bytes>\\0" and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

class CorpusFile(NamedTuple):
    """A corpus file, or an archive of some, described: to make one, nothing is read or fetched."""
    path: Path                       # where it stands or is to stand
    address: str | None = None       # where it is downloaded from, unless it comes out of an archive
    digest: str | None = None        # of the paper's file; None where it is not known
    digest_of: Callable = sha256     # gives the digest of a content
    archive: "CorpusFile | None" = None  # the zip or tar that holds it ...
    members: tuple[str, ...] = ()    # ... under this name, or in an archive of this name under a second one

def ud_file(folder, lang, split):
    """The CorpusFile of a treebank file under `folder`."""
    treebank = TREEBANKS[lang]
    stem = f"{lang}_{treebank.split('-')[-1].lower()}"
    digest, file = UD_GIT_NAMES.get(stem, (None, None))[SPLITS.index(split)], f"{stem}-ud-{split}.conllu"
    address = f"{UD_URL}/{treebank}/r2.7/{file}" if digest else None
    return CorpusFile(Path(folder, "ud", treebank, file), address, digest, git_name)

def ner_file(folder, lang, split):
    """The CorpusFile of a WikiAnn file under `folder`."""
    digest = PANX_SHA256.get(lang, (None, None))[SPLITS.index(split)]
    zipped = CorpusFile(Path(folder, "panx/panx_dataset.zip"), *ARCHIVES["panx/panx_dataset.zip"])
    members = f"{lang}.tar.gz", split
    return CorpusFile(Path(folder, "panx", lang, split), None, digest, sha256, zipped, members)

def xnli_file(folder, lang, split):
    """The CorpusFile of an XNLI file under `folder`; one dev file holds all languages."""
    name = "XNLI-1.0/xnli.dev.tsv" if split == "dev" else f"XNLI-MT-1.0/multinli/multinli.train.{lang}.tsv"
    zipped = f"xnli/{name.split('/')[0]}.zip"
    zipped = CorpusFile(Path(folder, zipped), *ARCHIVES[zipped])
    return CorpusFile(Path(folder, "xnli", name), archive=zipped, members=(name,))

def title_file(folder, lang, split):
    """The CorpusFile title/LANG/SPLIT.jsonl under `folder`: a JSON object a line, "source" and "target"."""
    path = Path(folder, "title", lang, f"{split}.jsonl")
    if lang not in XLSUM:
        return CorpusFile(path)
    name, digest = XLSUM[lang]
    file = f"{name}_XLSum_v2.0.tar.bz2"
    packed = CorpusFile(Path(folder, "title", file), XLSUM_URL.format(file=file), digest)
    return CorpusFile(path, archive=packed, members=(f"{name}_{'val' if split == 'dev' else split}.jsonl",))

def fetch(files):
    """Make the files be there, downloaded or out of their archives; what is there is left alone. The first
    download that fails is the last one tried. Raises KitError, which lists all that is missing then."""
    wanted = [s for s in dict.fromkeys(files) if not s.path.exists()]
    needed = dict.fromkeys(s.archive or s for s in wanted)  # an archive once
    problem = "no address is known"
    if wanted:
        with suppress(OSError):   # where nothing can be written, what is missing is told first
            check_locks(wanted[0].path)
    try:
        for file in needed:
            if file.address and not file.path.exists():
                write(file.path, download(file))
    except KitError as e:
        problem = e
    if missing := [f"{s.address or '(no address)'} -> {s.path}" for s in needed if not s.path.exists()]:
        raise KitError(f"Files are missing and could not be fetched ({problem}). Put each by hand where its "
                       f"arrow points, or run --demo, which needs no network: {'; '.join(missing)}")
    for file in wanted:
        if file.archive:
            write(file.path, unpack(file))

def download(file):
    """Bytes from a file's address, if they have its digest. Raises KitError, also where a server is silent
    for PATIENCE seconds; how long a silent name server is waited for, the system decides."""
    try:
        with urllib.request.urlopen(file.address, timeout=PATIENCE) as r:
            with tqdm.wrapattr(r, "read", total=r.length, desc=file.path.name, disable=quiet()) as shown:
                content = b"".join(iter(lambda: shown.read(1 << 20), b""))
    except (OSError, EOFError, http.client.HTTPException) as e:
        raise KitError(f"{file.address}: {e}") from None
    if (found := file.digest_of(content)) != file.digest:
        raise KitError(f"{file.address} gave {len(content)} bytes with digest {found}, expected "
                       f"{file.digest}: nothing was kept")
    return content

def unpack(file):
    """Bytes of a file out of its archive. Raises KitError, or OSError where the archive is not there."""
    path, address, digest, *_ = file.archive
    content, label = path.read_bytes(), path
    if sha256(content) != digest:
        raise KitError(f"{path} has another SHA-256 than {address}. Delete it; the kit fetches it again.")
    for name in file.members:
        content, label = member(content, name, label), f"{name} in {path}"
    return content

def member(packed, name, label):
    """Bytes of one member of a zip or a tar, bytes too, whose digest is known. Raises KitError."""
    if packed[:2] == b"PK":  # so a zip begins
        archive = zipfile.ZipFile(io.BytesIO(packed))
        names, extract = archive.namelist(), archive.open
    else:
        archive = tarfile.open(fileobj=io.BytesIO(packed))
        names, extract = archive.getnames(), archive.extractfile
    found = [n for n in names if f"/{n}".endswith(f"/{name}")]
    if not found:
        raise KitError(f"{label} does not hold {name}: put the file by hand where REFERENCE.md says.")
    return extract(min(found, key=len)).read()

def departure(file, task, lang, split, in_file):
    """A sentence unless a file of `in_file` examples is the paper's by its digest or the archive at hand."""
    paper, digest = TABLE_1.get(task, {}).get(lang), file.digest
    if digest is None and file.archive:
        with suppress(OSError, KitError):  # no archive is beside it, or a damaged one
            digest = sha256(unpack(file))
    if paper is None or digest == file.digest_of(file.path.read_bytes()):
        return None  # not of the paper: another task, an invented language; or the very file
    expected = paper[SPLITS.index(split)] - HEADERS_COUNTED.get((task, split), 0)
    if digest is None and in_file == expected:
        return f"{file.path} cannot be held against the paper's without its archive; it is used as it is."
    return (f"{file.path} is not the paper's file: its content differs ({in_file} examples, the paper's "
            f"{expected}); it is used as it is.")

def describe(task, lang, split, examples):
    """One line that counts what a file holds, beside Table 1; what there is none of is left out."""
    c, paper = examples.counts, TABLE_1.get(task, {}).get(lang)
    beside = f" (Table 1: {paper[SPLITS.index(split)]})" if paper else ""
    rest = {"words without a subword": c["unknown"], "truncated": c["truncated"],
            f"words past the {DEV_WORDS}th": c["left_out"], "words lost": examples.lost,
            "pairs with an empty sentence": c["blank"], "words with head 0 or root alone": c["roots"]}
    said = "".join(f", {n} {what}" for what, n in rest.items() if n)
    return f"{c['in_file']} in the file{beside}, {c['sentences']} used, {c['words']} words{said}"

# ---- reading ----------------------------------------------------------------------------------------------

def lines(path):
    """Yield (line number, text without its line end); Windows line ends are read too. Raises KitError."""
    n = 0
    with open(path, "rb") as f:  # bytes: only \n ends a line, whatever else a sentence may hold
        for n, raw in enumerate(f, 1):
            try:
                text = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as e:
                raise KitError(f"{path}, line {n}: byte {raw[e.start]:#04x}; expected UTF-8.") from None
            yield n, text.lstrip("\ufeff") if n == 1 else text
    if n == 0:
        raise KitError(f"{path} is empty; expected at least one sentence.")

def blocks(path):
    """Yield the runs of lines between blank lines as lists of (line number, text)."""
    for blank, block in groupby(lines(path), lambda line: not line[1].strip()):
        if not blank:
            yield list(block)

def number(label, labels, kind, path, n):
    """The place of a label of line n in the tuple `labels`. Raises KitError."""
    if label not in labels:
        raise KitError(f"{path}, line {n}: unknown {kind} {label!r}; expected one of {' '.join(labels)}.")
    return labels.index(label)

def read_conllu(path, trees=True):
    """Yield (words, rows) per sentence of a CoNLL-U 2.7 file: rows (N, 3), numbers of UPOS, head, relation;
    without trees, which a file of tags may lack, of UPOS alone. Multiword ranges (1-2) and empty nodes (8.1)
    are no words; relations lose subtypes. Raises KitError, also where most words are placeholders."""
    forms = Counter()
    for block in blocks(path):
        words, rows = [], []
        for n, text in block:
            c, where = text.split("\t"), f"{path}, line {n}"
            if text[0] == "#" and not words:
                continue
            if len(c) != 10:
                raise KitError(f"{where}: {len(c)} columns in {text[:60]!r}; expected 10, by tabs.")
            if re.fullmatch(r"\d+[-.]\d+", c[0]):
                continue
            if c[0] != str(len(words) + 1):
                raise KitError(f"{where}: word id {c[0]!r}; expected {len(words) + 1}. Is a line missing?")
            words.append(c[1])
            rows.append((number(c[3], UPOS, "UPOS", path, n),))
            if trees:
                if not re.fullmatch(r"[0-9]{1,9}", c[6]):
                    raise KitError(f"{where}: head {c[6]!r} is no number; expected 0 or a word's id.")
                rows[-1] += int(c[6]), number(c[7].split(":")[0], RELATIONS, "relation", path, n)
        if words:
            if trees:
                check_tree([row[1] for row in rows], f"{path}, lines {block[0][0]} to {block[-1][0]}")
            forms.update(word == "_" for word in words)
            yield words, rows
    if forms[True] > forms[False]:
        raise KitError(f"{path}: {forms[True]} of {forms.total()} words are the placeholder _, as where "
                       "texts are withheld by licence: run what the README beside it asks for.")

def check_tree(heads, where):
    """Raise KitError unless heads (1-based, 0 is the root) form a tree with one root word."""
    most, n = max(heads), len(heads)
    if most > n:
        raise KitError(f"{where}: head {most} of word {heads.index(most) + 1} is out of range 0 to {n}.")
    if heads.count(0) != 1:
        raise KitError(f"{where}: {heads.count(0)} words have head 0; expected exactly one root.")
    above = [0, *heads]
    for _ in range(n.bit_length()):
        above = [above[i] for i in above]  # twice as many steps up: in the end the root, or a cycle
    if any(above):
        raise KitError(f"{where}: word {min(filter(None, above))} is on a cycle of heads; expected a tree.")

def read_pos(path, lang):
    """Yield (words, gold): gold (N, 1), the UPOS of each word; heads and relations are not looked at."""
    return read_conllu(path, trees=False)

def read_trees(path, lang):
    """Yield (words, gold): gold (N, 3), head (0 is the root), relation, 1 if the word is scored (App. A)."""
    unscored = UPOS.index("PUNCT"), UPOS.index("SYM")
    for words, rows in read_conllu(path):
        yield words, [(head, relation, int(tag not in unscored)) for tag, head, relation in rows]

def read_ner(path, lang):
    """Yield (words, gold): gold (N, 1), the BIO tag of each word of a WikiAnn file. Raises KitError."""
    for block in blocks(path):
        words, gold = [], []
        for n, text in block:
            token, tab, tag = text.partition("\t")
            prefix, colon, word = token.partition(":")  # the first colon only: a word may be ":" itself
            if not tab or not colon or prefix != lang:
                raise KitError(f"{path}, line {n}: {text[:60]!r}; expected '{lang}:word', a tab and a tag.")
            words.append(word)
            gold.append((number(tag, BIO, "tag", path, n),))
        yield words, gold

def read_xnli(path, lang):
    """Yield ((premise, hypothesis), [(label,)]) of an XNLI file in either of its formats. Raises KitError.
    Plain tab-separated text: quotation marks are text. Columns are found by the names in the header."""
    rows = lines(path)
    header = next(rows)[1].split("\t")
    dev = ("sentence1", "sentence2", "gold_label", "language")
    wanted = ("premise", "hypo", "label") if "premise" in header else dev
    if missing := [w for w in wanted if w not in header]:
        raise KitError(f"{path}, line 1: no column {' or '.join(missing)} in {header}; "
                       f"expected {', '.join(wanted)}, separated by tabs.")
    for n, text in rows:
        c = text.split("\t")
        if len(c) != len(header):
            raise KitError(f"{path}, line {n}: {len(c)} columns; expected {len(header)} as in the header.")
        premise, hypothesis, label, *language = (c[header.index(w)] for w in wanted)
        if not language or language == [lang]:
            label = label.replace("contradictory", "contradiction")  # as the training files say
            yield (premise, hypothesis), [(number(label, NLI, "label", path, n),)]

def read_titles(path, lang):
    """Yield (source, target), two texts, per line. Raises KitError."""
    for n, line in lines(path):
        try:
            record = dict(json.loads(line))
        except (ValueError, TypeError):
            raise KitError(f"{path}, line {n}: {line[:60]!r} is no JSON object; "
                           'expected {"source": "...", "target": "..."}.') from None
        fields = ("text", "title") if "title" in record else ("source", "target")  # XL-Sum's, and this kit's
        for field in fields:
            if not isinstance(record.get(field), str) or not record[field].strip():
                raise KitError(f"{path}, line {n}: its {field!r} is {record.get(field)!r}; expected a text.")
            if half := re.search("[\ud800-\udfff]", record[field]):
                raise KitError(f"{path}, line {n}: its {field!r} has {half[0]!r}, half of a character (as "
                               "of an emoji that was cut in two); expected whole ones.")
        yield tuple(record[field] for field in fields)

def read_parallel(files):
    """{lang: sentences} of {lang: file}, line n of one being the translation of line n of all others; a file
    of XNLI's dev pairs has them in all its languages. Raises KitError."""
    found = {}
    for lang, path in files.items():
        if path.suffix == ".tsv":
            found[lang] = [text for texts, _ in read_xnli(path, lang) for text in texts]
            continue
        found[lang] = [text for _, text in lines(path)]
        if blank := [n for n, text in enumerate(found[lang], 1) if not text.strip()]:
            raise KitError(f"{path}, line {blank[0]} is empty; expected a sentence, which the same "
                           "line of the other files translates.")
    sizes = {lang: len(texts) for lang, texts in found.items()}
    if len({*sizes.values()}) > 1 or min(sizes.values()) < 2:
        have = ", ".join(f"{lang} in {files[lang]} has {n}" for lang, n in sizes.items())
        raise KitError(f"Parallel sentences: {have}; expected equally many, at least two, line n of "
                       "one being the translation of line n of the others.")
    return found

# ---- encoding ---------------------------------------------------------------------------------------------

class Batch(NamedTuple):
    """B windows in R rows of L subwords, a row each or packed, and N reads of each: tensors, but count."""
    ids: object        # (R, L) subword ids
    types: object      # (R, L) 1 in the second sentence of a pair, else 0
    mask: object       # (R, L) True at subwords, None where nothing is padded; packed (R, 1, L, L)
    positions: object  # (R, L) of a subword in its window; None where each window has a row of its own
    read: object       # (B, N) the places that are read, in the rows laid end to end; 0 at padding
    real: object       # (B, N) True at reads that are no padding
    order: object      # (B, N) where a read stands in the set's flat order; padding points past its end
    gold: object       # (B, N, K) gold columns of what is read, -1 at padding
    count: int         # reads with a gold label: the terms that the loss is a mean over

def pack(lengths):
    """(row (B,), place in it (B,)) of windows of so many subwords (B,), so that they need few rows: from the
    longest on, each in the first row that has room; a row is as long as the longest window."""
    ends, rows, places = [], np.zeros_like(lengths), np.zeros_like(lengths)
    for i in np.argsort(-lengths, kind="stable"):
        row = next((row for row, end in enumerate(ends) if end + lengths[i] <= lengths.max()), len(ends))
        if row == len(ends):
            ends.append(0)
        rows[i], places[i] = row, ends[row]
        ends[row] += lengths[i]
    return rows, places

class Encoded:
    """A corpus file as W windows of subword ids and R positions read in them, in file order.
    counts: what the file held; lost: scored words without a read (they cannot be right). After `to`, tensors:
    ids (T,), start (W+1,) of the windows in ids, second (W,) position of a pair's second sentence, read (R,)
    positions inside the window, read_start (W+1,), gold (R, K), new (R,) True where a sentence begins; on the
    host, for each window (W,): lengths in subwords, reads, and labelled, the reads with a gold label."""

    def __init__(self, pad):
        self.pad, self.lost, self.added, self.kept = pad, 0, [], {}
        self.counts = dict(sentences=0, words=0, unknown=0, truncated=0, left_out=0, blank=0, roots=0)

    def add(self, ids, read, gold, new=True, second=1 << 30):
        """Append a window: ids (L,), read (N > 0,), gold (N, K); `new` where a sentence begins."""
        self.added.append((np.array(ids, np.int32), np.array(read, np.int32), list(gold), new, second))

    def to(self, device):
        """Lay the windows out as flat tensors on `device` and return self."""
        import torch  # not above: it takes seconds, and the command line looks up its languages here at once
        ids, read, gold, new, second = zip(*self.added, strict=True)
        gold = np.array([*chain(*gold)], np.int32)
        self.lengths, self.reads = np.array([*map(len, ids)]), np.array([*map(len, read)])
        start, read_start = np.append(0, self.lengths.cumsum()), np.append(0, self.reads.cumsum())
        self.labelled = np.diff(np.append(0, (gold[:, 0] >= 0).cumsum())[read_start])
        begins = np.zeros(len(gold), bool)
        begins[read_start[:-1][np.array(new)]] = True
        for name, values in dict(ids=np.concatenate(ids), start=start, read=np.concatenate(read), gold=gold,
                                 read_start=read_start, second=np.array(second), new=begins).items():
            setattr(self, name, torch.from_numpy(values).to(device))
        del self.added
        return self

    def __len__(self):
        return len(self.lengths)

    def used(self):
        """(U,) the distinct subword ids of its batches, on the CPU."""
        import torch
        return torch.cat([self.ids.unique().cpu(), torch.tensor([self.pad])]).unique().long()

    def begins(self):
        """Numbers of the windows that begin a sentence, a list."""
        return self.new[self.read_start[:-1]].nonzero()[:, 0].tolist()

    def first(self, windows):
        """The set of its first windows; what it does not read stays shared."""
        few = copy.copy(self)
        few.ids, few.kept = self.ids[:self.start[windows]], {}
        few.lengths, few.reads, few.labelled = (
            each[:windows] for each in (self.lengths, self.reads, self.labelled))
        return few

    def relabelled(self, gold):
        """The same windows with other gold (R, K), for the same reads."""
        other = copy.copy(self)
        other.gold, other.kept = gold, {}
        return other

    def batch(self, windows, packed=False):
        """The Batch of window numbers (B,), a numpy array; built on the device, which is not waited for.
        packed: windows share rows, and the mask (R, 1, L, L) lets a subword see those of its window alone."""
        import torch
        device, lengths = self.ids.device, self.lengths[windows]
        L, N = int(lengths.max()), int(self.reads[windows].max())
        row, place = pack(lengths) if packed else (np.arange(len(windows)), 0)
        R = int(row.max()) + 1

        def column(values):
            return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)[:, None]

        def lay(values, fill):   # (B, L) into the rows
            laid = torch.full((R * L + 1,), fill, device=device)
            laid[to] = values
            return laid[:-1].view(R, L)

        w, slot, along = column(windows), column(row * L + place), torch.arange(max(L, N), device=device)
        at = self.start[w] + along[:L]                                                            # (B, L)
        there = at < self.start[w + 1]
        to = (slot + along[:L]).masked_fill_(~there, R * L)                # padding: a spare place at the end
        ids = lay(self.ids[at.clamp_(max=len(self.ids) - 1)].long(), self.pad)
        types, positions = lay((along[:L] >= self.second[w]).long(), 0), None
        mask = there if (lengths < L).any() else None
        if packed:
            owner = lay(column(np.arange(len(windows))).expand_as(at), -1)
            mask = owner[:, None, :, None] == owner[:, None, None]
            positions = lay(along[:L].expand_as(at), 0)
        order = self.read_start[w] + along[:N]                                                    # (B, N)
        real = order < self.read_start[w + 1]
        inside = order.clamp(max=len(self.read) - 1)
        read = (self.read[inside].long() + slot).masked_fill_(~real, 0)
        gold = self.gold[inside].long().masked_fill_(~real[..., None], -1)                        # (B, N, K)
        order = order.masked_fill_(~real, len(self.read))
        return Batch(ids, types, mask, positions, read, real, order, gold, int(self.labelled[windows].sum()))

    def cut(self, windows, tokens, waste):
        """Window numbers by length, in arrays of at most `tokens` subwords each, `waste` of them padding."""
        windows = windows[np.argsort(self.lengths[windows], kind="stable")]
        first, real, cuts = 0, 0, []
        for i, length in enumerate(self.lengths[windows].tolist()):
            padded = (i + 1 - first) * length  # with this window; those before are shorter
            if i > first and (padded > tokens or padded - real - length > waste):
                cuts.append(i)
                first, real = i, 0
            real += length
        return np.split(windows, cuts)

    def batches(self, tokens, waste=np.inf):
        """All windows as Batches by length, kept: at most `tokens` subwords each, `waste` of them padding."""
        if (tokens, waste) not in self.kept:
            cut = self.cut(np.arange(len(self)), tokens, waste)
            self.kept[tokens, waste] = [self.batch(windows) for windows in cut]
        return self.kept[tokens, waste]

@lru_cache(maxsize=1)
def batch_order(sizes, batch_size, seed, epoch):
    """[(lang, window numbers)] of an epoch from (lang, number of windows) pairs.
    A batch holds one language; the batches of all are shuffled together (the authors' code)."""
    rng = np.random.default_rng([seed, epoch])
    batches = []
    for lang, size in sizes:
        shuffled = rng.permutation(size)
        batches += [(lang, shuffled[first:first + batch_size]) for first in range(0, size, batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]

def special(tokenizer):
    """(ids before, ids after) a sentence: [CLS] and [SEP] in BERT, <s> and </s> in XLM-R. Raises KitError."""
    ids, most = tokenizer("").input_ids, tokenizer.model_max_length
    marks = tokenizer("a", return_special_tokens_mask=True).special_tokens_mask
    around = len(ids) > 1 and marks[0] and marks[-1]   # XLNet has both at the end
    if not around or tokenizer.unk_token_id is None or tokenizer.pad_token_id is None:
        raise KitError(f"{tokenizer.name_or_path}: this kit needs a tokenizer with an unknown and a padding "
                       "token that puts a special token before and after a sentence, as BERT's or XLM-R's.")
    if most < MAX_SUBWORDS:
        raise KitError(f"{tokenizer.name_or_path} has {most} positions; a window needs {MAX_SUBWORDS}.")
    return ids[:1], ids[1:]

def border(tokenizer):
    """What is put before a word that is encoded alone, so that it has the subwords of running text: nothing,
    or a space, by which byte-level BPE and Gemma's subwords mark a word. Raises KitError if neither is."""
    for before in ("", " "):
        texts = [(f"{before}{a} {b}", before + a, before + b) for a, b in map(str.split, PHRASES)]
        ids = tokenizer([*chain(*texts)], add_special_tokens=False).input_ids
        if all(both == a + b for both, a, b in zip(*[iter(ids)] * 3)):
            return before
    raise KitError(f"{tokenizer.name_or_path}: its tokenizer reads words in running text otherwise than "
                   "alone, with a space before or not; expected one as BERT's, XLM-R's or RoBERTa's.")

def subwords(words, tokenizer):
    """{word: subword ids} for the distinct words; [] where the tokenizer makes nothing of a word.
    A tokenizer that puts ▁ before every text (XLM-R's) splits some into a lone ▁, dropped here, and the rest.
    """
    words, before, own = list(dict.fromkeys(words)), border(tokenizer), plain(tokenizer)
    marked = not before and tokenizer.tokenize(PHRASES[0])[0].startswith("▁")   # else ▁ is text as any other
    lone = tokenizer.backend_tokenizer.token_to_id("▁") if marked else None     # None: in no vocabulary
    texts = [before + word for word in words] or ""
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False).input_ids
    return {w: [*map(own, i[1:] if i and i[0] == lone else i)] for w, i in zip(words, ids, strict=True)}

def plain(tokenizer):
    """A function of a subword id of a text: the unknown token's instead of that of a special one, which some
    vocabularies have as a piece (</s> in XLM-R's), so that a text can spell it."""
    unknown = dict.fromkeys(tokenizer.all_special_ids, tokenizer.unk_token_id)
    return lambda i: unknown.get(i, i)

def spell(examples, tokenizer, encoded):
    """Yield (subword ids (S,), starts (N+1,), gold) per example, and count it. starts: where each word begins
    in the ids, and at last S. A word that is tokenised to nothing is the unknown token."""
    table = subwords((w for words, _ in examples for w in words), tokenizer)
    for words, gold in examples:
        encoded.counts["sentences"] += 1
        encoded.counts["words"] += len(words)
        encoded.counts["unknown"] += sum(not table[w] for w in words)
        pieces = [table[w] or [tokenizer.unk_token_id] for w in words]
        yield [*chain(*pieces)], np.cumsum([0, *map(len, pieces)]).tolist(), gold

def slide(starts, room):
    """Yield (left, first, last): a window shows `room` subwords from `left` on, reads words first to last-1.
    starts (N+1,): as spell gives them. Only a word for which the context leaves too little room is cut."""
    first = 0
    while first < len(starts) - 1:
        left = max(0, starts[first] - CONTEXT)
        last = max(first + 1, bisect_right(starts, left + room) - 1)
        yield left, first, last
        first = last

def encode_words(examples, tokenizer, split, name):
    """Encoded set of a list of (words, gold), for taggers: sliding windows (App. A), each word read once."""
    before, after = special(tokenizer)
    room = MAX_SUBWORDS - len(before) - len(after)
    encoded = Encoded(tokenizer.pad_token_id)
    for flat, starts, gold in spell(examples, tokenizer, encoded):
        for left, first, last in slide(starts, room):
            right = min(starts[last], left + room)
            encoded.counts["truncated"] += int(starts[last] > right)
            read = [len(before) + start - left for start in starts[first:last]]
            encoded.add([*before, *flat[left:right], *after], read, gold[first:last], new=first == 0)
    return encoded

def encode_trees(examples, tokenizer, split, name):
    """Encoded set of a list of (words, gold), for the parser: one window a sentence, the first token as ROOT.
    Train: the first 128 subwords. Dev: the first 128 words (App. A), at most 512 subwords of them (ours). A
    head that was cut off is -1; scored dev words that were cut off are lost, from the 129th on left out."""
    before, after = special(tokenizer)
    most = min(DEV_SUBWORDS, tokenizer.model_max_length) if split == "dev" else MAX_SUBWORDS
    room = most - len(before) - len(after)
    encoded = Encoded(tokenizer.pad_token_id)
    for flat, starts, gold in spell(examples, tokenizer, encoded):
        words = min(len(gold), DEV_WORDS) if split == "dev" else len(gold)
        kept = sum(start < room for start in starts[:words])  # words whose first subword is in the window
        encoded.counts["left_out"] += len(gold) - words
        encoded.counts["truncated"] += int(starts[words] > room)
        encoded.counts["roots"] += sum((head == 0) != (relation == ROOT) for head, relation, _ in gold)
        encoded.lost += sum(scored for _, _, scored in gold[kept:words])
        rows = [(head if head <= kept else -1, relation, scored) for head, relation, scored in gold[:kept]]
        read = [0, *(len(before) + start for start in starts[:kept])]
        encoded.add([*before, *flat[:min(starts[kept], room)], *after], read, [(-1, -1, 0), *rows])
    return encoded

def thousands(examples, name):
    """Where each thousand examples begin; how many are encoded is shown."""
    return tqdm(range(0, len(examples), 1000), f"{name}: subwords", unit="000", disable=quiet(), leave=False)

def encode_pairs(examples, tokenizer, split, name):
    """Encoded set of a list of ((premise, hypothesis), gold), read at the first token; the longer is cut."""
    special(tokenizer)
    encoded, own = Encoded(tokenizer.pad_token_id), plain(tokenizer)
    for i in thousands(examples, name):
        texts, gold = zip(*examples[i:i + 1000], strict=True)
        out = tokenizer(*map(list, zip(*texts, strict=True)), truncation="longest_first",
                        max_length=MAX_SUBWORDS, return_token_type_ids=True, return_special_tokens_mask=True,
                        return_attention_mask=False)
        for ids, marks, types, rows in zip(out.input_ids, out.special_tokens_mask, out.token_type_ids, gold):
            ids = [i if mark else own(i) for i, mark in zip(ids, marks)]
            encoded.add(ids, [0], rows, second=types.index(1) if 1 in types else 1 << 30)
        encoded.counts["truncated"] += sum(bool(e.overflowing) for e in out.encodings)
        encoded.counts["blank"] += sum(not all(map(str.strip, pair)) for pair in texts)
    encoded.counts["sentences"] = encoded.counts["words"] = len(examples)  # one decision a pair
    return encoded

class Titles(Encoded):
    """Encoded sources, each read once; the gold of a read is its target's subwords (T,), -1 past their end.
    texts: the targets as they were written, on the host."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer.pad_token_id)
        self.tokenizer, self.texts = tokenizer, []

    def to(self, device):
        super().to(device)
        self.labelled = (self.gold >= 0).sum(1).cpu().numpy()   # the loss is a mean over target subwords
        return self

    def batch(self, windows, packed=False):
        """The Batch of window numbers (B,), with gold (B, 1, T) as wide as its longest target."""
        batch = super().batch(windows, packed)
        return batch._replace(gold=batch.gold[..., :int(self.labelled[windows].max())])

    def decode(self, ids):
        """Texts of outputs (R, T), without special tokens."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

def encode_titles(examples, tokenizer, split, name):
    """Titles of (source, target) examples; what is longer than the model takes is cut and counted.
    Nothing names their language, not even where the tokenizer by itself adds a token that does (ours)."""
    most = min(TARGET_SUBWORDS, tokenizer.model_max_length)
    encoded, own = Titles(tokenizer), plain(tokenizer)
    for i in thousands(examples, name):
        sources, targets = map(list, zip(*examples[i:i + 1000], strict=True))
        windows = inputs(sources, tokenizer, SOURCE_SUBWORDS)
        written = tokenizer(targets, add_special_tokens=False, return_attention_mask=False).input_ids
        for (ids, _, cut), target in zip(windows, written, strict=True):
            gold = [*map(own, target[:most - 1]), tokenizer.eos_token_id]
            encoded.add(ids, [0], [gold + [-1] * (most - len(gold))])
            encoded.counts["truncated"] += cut + (len(target) >= most)
        encoded.texts += targets
    encoded.counts["sentences"] = encoded.counts["words"] = len(encoded.texts)  # one output each
    return encoded

def encode_sentences(texts, tokenizer):
    """Encoded set of sentences for XLRS, each read at all its subwords, 128 at most, but special tokens."""
    encoded = Encoded(tokenizer.pad_token_id)
    for ids, read, _ in inputs(texts, tokenizer, MAX_SUBWORDS):
        read = read or [0]   # a sentence of which the tokenizer makes nothing
        encoded.add(ids, read, [(-1,)] * len(read))
    return encoded

def inputs(texts, tokenizer, most):
    """Yield (ids, positions of the text's own subwords, whether it was cut) per text."""
    own = plain(tokenizer)
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    out = tokenizer(texts, truncation=True, max_length=min(most, tokenizer.model_max_length),
                    return_attention_mask=False, return_special_tokens_mask=True)
    for ids, marks, encoding in zip(out.input_ids, out.special_tokens_mask, out.encodings, strict=True):
        kept = [(i, mark) for i, mark in zip(ids, marks, strict=True) if not mark or i in ends]
        places = [place for place, (_, mark) in enumerate(kept) if not mark]
        yield [i if mark else own(i) for i, mark in kept], places, bool(encoding.overflowing)

def load(path, lang, split, read, encode, tokenizer, limit=None):
    """The Encoded set of a file's first `limit` sentences; counts["in_file"] is of all. Raises KitError."""
    try:
        examples = list(read(path, lang))
        labels = {row[0] for _, gold in examples for row in gold}
        if not examples:
            raise KitError(f"{path} holds no sentence in language {lang!r}; expected at least one.")
        if split == "dev" and len(labels) == 1 and len(examples) > 1:
            raise KitError(f"{path}: all labels of language {lang} are the same, as in a placeholder.")
    except KitError as e:
        raise KitError(f"{e} Correct the file, or delete it so that it is fetched again.") from None
    encoded = encode(examples[:limit], tokenizer, split, path)
    encoded.counts["in_file"] = len(examples)
    return encoded
