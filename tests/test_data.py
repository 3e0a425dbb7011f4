"""Reading and encoding: small files written here, golden subword ids, windows, batches, real files."""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import real, windows, wordpiece
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import data
import heads
from results import KitError

CONLLU = """# sent_id = 1
1-2\tim\t_\t_\t_\t_\t_\t_\t_\t_
1\tin\tin\tADP\t_\t_\t3\tcase\t_\t_
2\tdem\tder\tDET\t_\t_\t3\tdet:def\t_\t_
3\tHaus\tHaus\tNOUN\t_\t_\t0\troot\t_\t_
3.1\tleer\t_\tVERB\t_\t_\t_\t_\t_\t_
4\t.\t.\tPUNCT\t_\t_\t3\tpunct\t_\t_

1\t_\t_\tX\t_\t_\t0\troot\t_\t_
"""

@pytest.fixture
def tokenizer(tmp_path):
    return wordpiece(tmp_path, "[PAD] [UNK] [CLS] [SEP] [MASK] a b c ##a ##b ##c in dem haus . :")

@pytest.fixture
def conllu(tmp_path):
    (tmp_path / "x.conllu").write_bytes(CONLLU.encode())
    return tmp_path / "x.conllu"

def test_languages_are_known_without_the_wait_for_torch():
    code = "import data, sys; sys.exit('torch' in sys.modules or 'en' not in data.TREEBANKS)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(data.__file__).parent).returncode == 0

def test_conllu_words_tags_heads_and_relations_without_subtypes(conllu):
    first, second = data.read_conllu(conllu)
    tag, relation = data.UPOS.index, data.RELATIONS.index
    assert first == (["in", "dem", "Haus", "."], [
        (tag("ADP"), 3, relation("case")), (tag("DET"), 3, relation("det")),
        (tag("NOUN"), 0, relation("root")), (tag("PUNCT"), 3, relation("punct"))])
    assert second == (["_"], [(tag("X"), 0, relation("root"))])   # the form _ is a word like any other
    (_, gold), _ = data.read_trees(conllu, "de")        # punctuation is not scored
    assert [(head, scored) for head, _, scored in gold] == [(3, 1), (3, 1), (0, 1), (3, 0)]

def test_wikiann_splits_at_the_first_colon_only(tmp_path):
    path = tmp_path / "train"
    path.write_text("en::\tO\nen:a:b\tB-PER\n\nen:c\tI-LOC\n")
    assert list(data.read_ner(path, "en")) == [([":", "a:b"], [(0,), (5,)]), (["c"], [(2,)])]

def test_xnli_reads_both_formats_and_quotation_marks_as_text(tmp_path):
    train, dev = tmp_path / "train.tsv", tmp_path / "dev.tsv"
    train.write_text('premise\thypo\tlabel\n"a\tb"\tcontradictory\nc\x08\td\u2028e\tneutral\n')
    assert list(data.read_xnli(train, "en")) == [(('"a', 'b"'), [(2,)]), (("c\x08", "d\u2028e"), [(1,)])]
    dev.write_text("language\tgold_label\tsentence2\tsentence1\n"
                   "de\tentailment\tb\ta\nen\tcontradiction\td\tc\n")
    assert list(data.read_xnli(dev, "en")) == [(("c", "d"), [(2,)])]
    assert list(data.read_xnli(dev, "de")) == [(("a", "b"), [(0,)])]

def test_limit_counts_the_whole_file(conllu, tokenizer):
    encoded = data.load(conllu, "de", "train", data.read_pos, data.encode_words, tokenizer, limit=1)
    assert [encoded.counts[name] for name in ("in_file", "sentences", "words")] == [2, 1, 4]

def test_a_word_without_subwords_is_unknown_and_still_read(tokenizer):
    encoded = data.encode_words([(["a", "\u200b", "abc"], [(1,), (2,), (3,)])], tokenizer, "dev", "x")
    ids = tokenizer.convert_tokens_to_ids(["[CLS]", "a", "[UNK]", "a", "##b", "##c", "[SEP]"])
    assert windows(encoded) == [(ids, [1, 2, 3], [(1,), (2,), (3,)], True, 1 << 30)]
    assert encoded.counts["unknown"] == 1

def sentencepiece(pieces, **metaspace):
    """A SentencePiece tokenizer, as XLM-R has it, of these pieces, the first ones being the likeliest."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    unigram = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
    return fast(unigram)

def fast(tokenizer, single="<s> $A </s>"):
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>",
                                   bos_token="<s>", eos_token="</s>")

def test_the_lone_word_start_piece_of_a_sentencepiece_tokenizer_is_dropped():
    t = sentencepiece("▁ ▁a b 你好".split())
    assert t("你好").input_ids == [0, 4, 7, 2]
    assert data.subwords(["你好", "ab", "▁", "c"], t) == {"你好": [7], "ab": [5, 6], "▁": [], "c": [3]}
    encoded = data.encode_words([(["你好", "▁", "ab"], [(1,), (2,), (3,)])], t, "dev", "x")
    assert [window[:2] for window in windows(encoded)] == [([0, 7, 3, 5, 6, 2], [1, 2, 3])]
    chinese, trimmed = sentencepiece(["▁", "你", "好"]), sentencepiece(["▁house", "a", "b"])
    assert data.subwords(["你好", "a"], chinese) == {"你好": [5, 6], "a": [3]}   # without ▁a
    assert data.subwords(["zab", "house"], trimmed) == {"zab": [3, 5, 6], "house": [4]}   # <unk> a b

def byte_level(space=False):
    """Byte-level BPE trained on two words, as RoBERTa has it; space: one is put before a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(["a tree", "this tree"], trainers.BpeTrainer(
        vocab_size=290, show_progress=False, initial_alphabet=alphabet,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"]))
    return fast(bpe)

@pytest.mark.parametrize("t, before", [
    (byte_level(), " "), (byte_level(space=True), ""), (sentencepiece("▁ ▁a ▁t ▁tree a r".split()), ""),
    (sentencepiece("▁ ▁a ▁tree a t r e".split(), prepend_scheme="never"), " ")])
def test_words_have_the_subwords_of_running_text_and_are_read_at_the_first(t, before):
    words = ["tree", "a", "a", "tree", "tar"]
    running = t(before + " ".join(words)).input_ids
    [(ids, read, *_)] = windows(data.encode_words([(words, [(1,)] * 5)], t, "dev", "x"))
    assert ids == running and data.border(t) == before
    firsts = [t.tokenize(before + word)[0] for word in words]
    assert t.convert_ids_to_tokens([ids[place] for place in read]) == firsts
    assert {token[0] for token in firsts} <= {"▁", "\u0120"}

def test_tokenizers_that_do_not_suit_are_refused_for_what_they_do():
    whole = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, unk_token="<unk>"))
    with pytest.raises(KitError, match="in running text otherwise than alone"):   # a text is one word
        data.subwords(["a"], fast(whole))
    after = fast(whole, single="$A </s> <s>")   # as in XLNet, which has no limit of positions: -1
    after.model_max_length = -1
    with pytest.raises(KitError, match="a special token before and after a sentence"):
        data.special(after)

def test_text_that_spells_a_special_token_is_text(tokenizer, encoder):
    tokenizer.split_special_tokens = True   # as heads.load_tokenizer has it
    assert heads.load_encoder(str(encoder)).tokenizer.split_special_tokens
    for t in (tokenizer, sentencepiece("▁ ▁a b".split())):   # that has </s> as a piece
        kit = {*t.all_special_ids} - {t.unk_token_id}
        marks = t.convert_ids_to_tokens([*kit])
        texts = ("a b", "b"), (f"a {' '.join(marks)}", f"b {marks[0]}")
        pairs = data.encode_pairs([(pair, [(1,)]) for pair in texts], t, "dev", "x")
        plain, spelt = (window[0] for window in windows(pairs))
        assert [i for i in spelt if i in kit] == [i for i in plain if i in kit] and len(spelt) > len(plain)
        assert not kit & {*chain(*data.subwords(marks, t).values())}
        [(ids, *_)] = windows(data.encode_sentences([f"a {marks[0]} b"], t))
        assert len([i for i in ids if i in kit]) == 2

@pytest.mark.parametrize("seed", range(20))
def test_windows_read_every_word_once_with_left_context(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, 2, 3, 9, 70, 200], p=[.5, .2, .2, .07, .02, .01], size=rng.integers(1, 300))
    starts, room, following = np.cumsum([0, *lengths]).tolist(), 126, 0
    for left, first, last in data.slide(starts, room):
        assert first == following < last
        assert left == (max(0, starts[first] - 64) if first else 0)   # 64 subwords that were read before
        assert starts[last] <= left + room or last == first + 1       # whole words, but for one too long
        if last < len(lengths):
            assert starts[last + 1] > left + room                     # and as many as fit
        following = last
    assert following == len(lengths)

def test_a_windowed_sentence_keeps_its_words_in_file_order(tokenizer):
    words = ["abc", "b", "ca"] * 60
    gold = [(i % 17,) for i in range(len(words))]
    encoded = data.encode_words([(words, gold), (["a"], [(5,)])], tokenizer, "dev", "x").to("cpu")
    assert encoded.gold[:, 0].tolist() == [g for g, in gold] + [5]
    assert encoded.new.nonzero()[:, 0].tolist() == [0, len(words)]    # windows are no new sentences
    assert encoded.lengths.max() <= 128 and len(encoded) > 2
    start = encoded.start[:-1].repeat_interleave(torch.from_numpy(encoded.reads))
    first = encoded.ids[start + encoded.read].tolist()                # each word's first subword
    assert tokenizer.convert_ids_to_tokens(first) == ["a", "b", "c"] * 60 + ["a"]

def test_trees_are_cut_at_subwords_in_training_and_at_words_in_dev(tokenizer):
    n = 140
    gold = [(n, 3, 1), (0, 3, 1), *[(2, 3, 1)] * (n - 2)]             # the first word hangs on the last
    train = data.encode_trees([(["a"] * n, gold)], tokenizer, "train", "x").to("cpu")
    assert (train.lengths.tolist(), train.reads.tolist(), train.counts["truncated"]) == ([128], [127], 1)
    assert train.gold[1].tolist() == [-1, 3, 1] and train.gold[0].tolist() == [-1, -1, 0]
    part = data.encode_trees([(["abcab"] * n, gold)], tokenizer, "train", "x").to("cpu")
    assert part.lengths.tolist() == [128] and part.reads.tolist() == [1 + 26]   # of the last, one subword
    dev = data.encode_trees([(["abc"] * n, gold)], tokenizer, "dev", "x").to("cpu")
    assert dev.lengths.tolist() == [2 + 3 * 128] and dev.reads.tolist() == [129]
    assert (dev.counts["left_out"], dev.lost) == (12, 0)
    long = data.encode_trees([(["abcabc"] * n, gold)], tokenizer, "dev", "x").to("cpu")   # 85 words fit
    assert long.reads.tolist() == [1 + 85] and long.lost == 128 - 85 and long.counts["left_out"] == 12
    assert [int(e.labelled[0]) for e in (train, dev, long)] == [125, 127, 84]   # their heads are there too

def test_pairs_are_cut_from_the_longer_side_and_counted(tokenizer):
    lengths = (200, 30), (95, 30), (96, 30), (1, 1)
    pairs = [((" ".join("a" * a), " ".join("b" * b)), [(1,)]) for a, b in lengths]
    encoded = data.encode_pairs(pairs, tokenizer, "train", "x").to("cpu")
    assert encoded.counts["truncated"] == 2 and encoded.lengths.tolist() == [128, 128, 128, 5]
    batch = encoded.batch(np.array([0, 3]))
    assert tokenizer.decode(batch.ids[0]).split() == ["[CLS]", *"a" * 95, "[SEP]", *"b" * 30, "[SEP]"]
    assert batch.types.tolist() == [[0] * 97 + [1] * 31, [0, 0, 0, 1, 1] + [0] * 123]
    assert batch.read.tolist() == [[0], [128]] and batch.count == 2

@pytest.fixture
def dev(tokenizer):
    """101 sentences, one longer than a window; of some words the label is not known."""
    rng = np.random.default_rng(0)
    sentences = [rng.integers(-1, 17, n).tolist() for n in (*rng.integers(1, 60, 100), 200)]
    examples = [(["a"] * len(labels), [(label,) for label in labels]) for labels in sentences]
    return data.encode_words(examples, tokenizer, "dev", "x")

def test_batches_hold_every_window_once_and_pad_nothing_real(dev):
    dev.to("cpu")
    kept = {asked: dev.batches(*asked) for asked in ((200, 10**6), (200, 9), (10**6, 10**6), (10**6, 0))}
    for (tokens, waste), batches in kept.items():
        rows = torch.cat([b.order[b.real] for b in batches])
        assert sorted(rows.tolist()) == list(range(len(dev.read)))
        assert torch.equal(torch.cat([b.gold[b.real] for b in batches]), dev.gold[rows])
        assert all(b.ids.numel() <= tokens or len(b.ids) == 1 for b in batches)
        assert all((b.ids == dev.pad).sum() <= waste for b in batches)
        for b in batches:
            mask = torch.ones_like(b.ids, dtype=torch.bool) if b.mask is None else b.mask
            assert torch.equal(b.ids != dev.pad, mask) and (b.mask is None) == mask.all()
            assert (b.order[~b.real] == len(dev.read)).all() and (b.gold[~b.real] == -1).all()
            places = b.read - torch.arange(len(b.ids))[:, None] * b.ids.shape[1]
            assert torch.equal(places[b.real], dev.read[b.order[b.real]].long()) and not b.read[~b.real].any()
            assert type(b.count) is int and b.count == (b.gold[..., 0] >= 0).sum()
    assert sum(b.count for b in batches) == (dev.gold >= 0).sum() < len(dev.gold)
    assert all(dev.batches(*asked) is batches for asked, batches in kept.items())
    assert [len(dev.batches(n)) for n in (10**6, 200)] == [1, len(dev.batches(200, 10**6))]

def test_packed_windows_lie_side_by_side_and_see_themselves_alone(dev):
    windows = np.random.default_rng(1).permutation(len(dev.to("cpu")))[:32]
    plain, packed = dev.batch(windows), dev.batch(windows, packed=True)
    (rows, width), real = packed.ids.shape, dev.lengths[windows].sum()
    assert width == plain.ids.shape[1] and real <= rows * width < real + 2 * width < plain.ids.numel()
    for name in ("real", "order", "gold"):
        assert torch.equal(getattr(plain, name), getattr(packed, name))
    first, second = (b.ids.flatten()[b.read[b.real]] for b in (plain, packed))
    assert torch.equal(first, second)
    seen, met = packed.mask[:, 0], torch.zeros(rows, width, dtype=torch.bool)   # (R, L, L)
    for window, read, n in zip(windows, packed.read[:, 0].tolist(), dev.lengths[windows].tolist()):
        row, first = divmod(read - int(dev.read[dev.read_start[window]]), width)
        ids = dev.ids[dev.start[window]:dev.start[window + 1]]
        assert torch.equal(packed.ids[row, first:first + n], ids) and not met[row, first:first + n].any()
        assert packed.positions[row, first:first + n].tolist() == [*range(n)]
        assert seen[row, first:first + n].sum() == n * n and seen[row, first:first + n, first:first + n].all()
        met[row, first:first + n] = True
    assert met.sum() == real and (packed.ids[~met] == dev.pad).all()

def test_windows_are_packed_by_hand():
    rows, places = data.pack(np.array([3, 9, 2, 4, 6, 9]))   # 9, 9, 6 + 3, 4 + 2
    assert rows.tolist() == [2, 0, 3, 3, 2, 1] and places.tolist() == [6, 0, 4, 0, 0, 0]

@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_asks_the_device_nothing(dev, packed):
    dev.to("meta")   # which holds no values that could be asked for
    batch = dev.batch(np.array([3, 1]), packed)
    assert batch.ids.device.type == "meta" and batch.count == dev.labelled[[3, 1]].sum() > 0
    assert batch.real.shape == batch.read.shape == batch.gold.shape[:2] == (2, dev.reads[[3, 1]].max())

@pytest.mark.parametrize("name, ends, words", [   # in XLM-R without the lone word-start piece
    ("mbert", ([101], [102]), {"Hello": [31178], "world": [11356], "你好": [2262, 3240], "\u200b": []}),
    ("xlmr", ([0], [2]), {"Hello": [35378], "world": [8999], "你好": [124084], "▁": []})])
def test_golden_ids(name, ends, words):
    t = AutoTokenizer.from_pretrained(real(name))
    assert data.special(t) == ends and data.subwords(words, t) == words

@pytest.mark.parametrize("lang, split", [("en", "train"), ("en", "dev"), ("vi", "train"), ("vi", "dev"),
                                         ("de", "dev"), ("zh", "dev"), ("fr", "dev")])
def test_genuine_treebanks_have_their_git_name_and_the_counts_of_table_1(lang, split):
    file = data.ud_file(real("data"), lang, split)
    count = sum(1 for _ in data.read_conllu(file.path))
    assert data.departure(file, "pos", lang, split, count) is None
    assert count == data.TABLE_1["pos"][lang][data.SPLITS.index(split)]

@pytest.mark.parametrize("lang", ["en", "zh"])
def test_attachment_equals_an_independent_count_on_a_real_treebank(lang):
    path = data.ud_file(real("data"), lang, "dev").path
    tokenizer = AutoTokenizer.from_pretrained(real("mbert"))
    dev = data.load(path, lang, "dev", data.read_trees, data.encode_trees, tokenizer).to("cpu")
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 30, (len(dev.gold), 2))
    guess = np.where(rng.random((len(dev.gold), 1)) < .7, dev.gold[:, :2], drawn)
    las = uas = total = row = 0
    blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    for block, (read, _) in zip(blocks, data.read_trees(path, lang), strict=True):
        words = [c for c in map(lambda line: line.split("\t"), block.split("\n")) if c[0].isdigit()]
        assert read == [c[1] for c in words]
        row += 1   # ROOT
        for c in words[:128]:
            head, relation = guess[row]
            row += 1
            if c[3] not in ("PUNCT", "SYM"):
                total += 1
                uas += head == int(c[6])
                las += head == int(c[6]) and data.RELATIONS[relation] == c[7].split(":")[0]
    assert dev.lost == 0 and row == len(dev.gold)
    assert heads.attachment(torch.from_numpy(guess), dev).tolist() == [[las, total], [uas, total]]
