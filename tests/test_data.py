"""Reading and encoding: small files written here, golden subword ids, windows, and counts on real files where present."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import data
import heads

REAL = Path(os.environ.get("KIT_TEST_FILES", "no such folder"))   # a folder with mbert/, xlmr/ and data/, if you have one

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
    """A WordPiece tokenizer over a vocabulary made up here."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c ##a ##b ##c in dem haus . :".split()
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    return AutoTokenizer.from_pretrained(tmp_path)


def conllu(tmp_path, text=CONLLU):
    path = tmp_path / "x.conllu"
    path.write_bytes(text.encode())
    return path


def test_conllu_words_tags_heads_and_relations_without_subtypes(tmp_path):
    first, second = data.read_conllu(conllu(tmp_path))
    tag, relation = data.UPOS.index, data.RELATIONS.index
    assert first == (["in", "dem", "Haus", "."], [(tag("ADP"), 3, relation("case")), (tag("DET"), 3, relation("det")),
                                                  (tag("NOUN"), 0, relation("root")), (tag("PUNCT"), 3, relation("punct"))])
    assert second == (["_"], [(tag("X"), 0, relation("root"))])   # the form _ is a word like any other


def test_windows_line_ends_and_a_missing_last_newline_change_nothing(tmp_path):
    want = list(data.read_conllu(conllu(tmp_path)))
    assert list(data.read_conllu(conllu(tmp_path, CONLLU.replace("\n", "\r\n")))) == want
    assert list(data.read_conllu(conllu(tmp_path, CONLLU.rstrip("\n")))) == want


def test_punctuation_is_not_scored_in_trees(tmp_path):
    (_, gold), _ = data.read_trees(conllu(tmp_path), "de")
    assert [row[2] for row in gold] == [1, 1, 1, 0]
    assert [row[0] for row in gold] == [3, 3, 0, 3]


def test_wikiann_splits_at_the_first_colon_only(tmp_path):
    path = tmp_path / "train"
    path.write_text("en::\tO\nen:a:b\tB-PER\n\nen:c\tI-LOC\n")
    assert list(data.read_ner(path, "en")) == [([":", "a:b"], [(0,), (5,)]), (["c"], [(2,)])]


def test_xnli_reads_both_formats_and_quotation_marks_as_text(tmp_path):
    train, dev = tmp_path / "train.tsv", tmp_path / "dev.tsv"
    train.write_text('premise\thypo\tlabel\n"a\tb"\tcontradictory\nc\x08\td\u2028e\tneutral\n')
    assert list(data.read_xnli(train, "en")) == [(('"a', 'b"'), [(2,)]), (("c\x08", "d\u2028e"), [(1,)])]
    dev.write_text("language\tgold_label\tsentence2\tsentence1\nde\tentailment\tb\ta\nen\tcontradiction\td\tc\n")
    assert list(data.read_xnli(dev, "en")) == [(("c", "d"), [(2,)])]
    assert list(data.read_xnli(dev, "de")) == [(("a", "b"), [(0,)])]


def test_a_word_without_subwords_is_unknown_and_still_read(tokenizer):
    encoded = data.encode_words([(["a", "\u200b", "abc"], [(1,), (2,), (3,)])], tokenizer, "dev", "x")
    ids = tokenizer.convert_tokens_to_ids(["[CLS]", "a", "[UNK]", "a", "##b", "##c", "[SEP]"])
    assert list(encoded.ids) == ids and list(encoded.read) == [1, 2, 3] and list(encoded.gold) == [1, 2, 3]
    assert encoded.counts["unknown"] == 1


def test_the_lone_word_start_piece_of_a_sentencepiece_tokenizer_is_dropped():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -2.0), ("b", -3.0), ("你好", -3.0)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=3))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    t = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>", pad_token="<pad>")
    assert t("你好").input_ids == [0, 4, 7, 2]
    assert data.subwords(["你好", "ab", "▁", "c"], t) == {"你好": [7], "ab": [5, 6], "▁": [], "c": [3]}
    encoded = data.encode_words([(["你好", "▁", "ab"], [(1,), (2,), (3,)])], t, "dev", "x")
    assert list(encoded.ids) == [0, 7, 3, 5, 6, 2] and list(encoded.read) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_windows_read_every_word_once_with_left_context(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, 2, 3, 9, 70, 200], p=[.5, .2, .2, .07, .02, .01], size=rng.integers(1, 300)).tolist()
    starts, room, nxt = np.cumsum([0, *lengths]), 126, 0
    for left, first, last in data.slide(lengths, room):
        assert first == nxt < last
        assert left == (max(0, starts[first] - 64) if first else 0)           # 64 subwords that were read before
        assert starts[last] <= left + room or last == first + 1               # whole words, but for one too long
        if last < len(lengths):
            assert starts[last + 1] > left + room                             # and as many as fit
        nxt = last
    assert nxt == len(lengths)


def test_a_windowed_sentence_keeps_its_words_in_file_order(tokenizer):
    words = ["abc", "b", "ca"] * 60
    gold = [(i % 17,) for i in range(len(words))]
    encoded = data.encode_words([(words, gold), (["a"], [(5,)])], tokenizer, "dev", "x").to("cpu")
    assert encoded.gold[:, 0].tolist() == [g for g, in gold] + [5]
    assert encoded.new.nonzero()[:, 0].tolist() == [0, len(words)]            # windows are no new sentences
    assert encoded.lengths.max() <= 128 and len(encoded) > 2
    first = encoded.ids[encoded.start[:-1].repeat_interleave(torch.from_numpy(encoded.reads)) + encoded.read].tolist()
    assert tokenizer.convert_ids_to_tokens(first) == ["a", "b", "c"] * 60 + ["a"]   # each word's first subword


def test_trees_are_cut_at_subwords_in_training_and_at_words_in_dev(tokenizer):
    n = 140
    gold = [(n if i == 0 else 0 if i == 1 else 2, 3, 1) for i in range(n)]    # the first word hangs on the last
    train = data.encode_trees([(["a"] * n, gold)], tokenizer, "train", "x").to("cpu")
    assert train.lengths.tolist() == [128] and train.reads.tolist() == [127]
    assert train.gold[1].tolist() == [-1, 3, 1] and train.gold[0].tolist() == [-1, -1, 0]
    dev = data.encode_trees([(["abc"] * n, gold)], tokenizer, "dev", "x").to("cpu")
    assert dev.lengths.tolist() == [2 + 3 * 128] and dev.reads.tolist() == [129]
    assert (dev.counts["left_out"], dev.lost) == (12, 0)
    long = data.encode_trees([(["abcabc"] * n, gold)], tokenizer, "dev", "x").to("cpu")   # 85 of 128 words fit into 512
    assert long.reads.tolist() == [1 + 85] and long.lost == 128 - 85 and long.counts["left_out"] == 12


def test_pairs_are_cut_from_the_longer_side(tokenizer):
    premise, hypothesis = " ".join("a" * 200), " ".join("b" * 30)
    encoded = data.encode_pairs([((premise, hypothesis), [(1,)])], tokenizer, "train", "x").to("cpu")
    batch = encoded.batch(np.array([0]))
    assert tokenizer.decode(batch.ids[0]).split() == ["[CLS]", *"a" * 95, "[SEP]", *"b" * 30, "[SEP]"]
    assert batch.types[0].tolist() == [0] * 97 + [1] * 31 and batch.at[batch.place].tolist() == [[0]]


def test_batches_hold_every_window_once_and_pad_nothing_real(tokenizer):
    rng = np.random.default_rng(0)
    examples = [(["a"] * n, [(int(i) % 17,) for i in rng.integers(0, 17, n)]) for n in rng.integers(1, 60, 100)]
    dev = data.encode_words(examples, tokenizer, "dev", "x").to("cpu")
    for tokens, waste in ((200, 10**6), (200, 9), (10**6, 10**6), (10**6, 0)):
        dev.__dict__.pop("kept", None)
        batches = dev.batches(tokens, waste)
        rows = torch.cat([b.rows[b.real] for b in batches])
        assert sorted(rows.tolist()) == list(range(len(dev.read)))
        assert torch.equal(torch.cat([b.gold[b.real] for b in batches]), dev.gold[rows])
        assert all(b.ids.numel() <= tokens or len(b.ids) == 1 for b in batches)
        assert all((b.ids == dev.pad).sum() <= waste for b in batches)
        for b in batches:
            assert torch.equal(b.ids != dev.pad, torch.ones_like(b.ids, dtype=torch.bool) if b.mask is None else b.mask)
            assert (b.rows[~b.real] == len(dev.read)).all() and (b.gold[~b.real] == -1).all()
            windows, inside = b.at[b.place] // b.ids.shape[1], b.at[b.place] % b.ids.shape[1]
            assert (windows == torch.arange(len(b.ids))[:, None])[b.real].all()
            assert torch.equal(inside[b.real], dev.read[b.rows[b.real]].long()) and (b.place[~b.real] == b.real.sum()).all()
            assert torch.equal(b.keep[b.place][b.real], torch.arange(b.real.numel()).view_as(b.real)[b.real])


def test_limit_counts_the_whole_file(tmp_path, tokenizer):
    encoded = data.load(conllu(tmp_path), "de", "train", data.read_pos, data.encode_words, tokenizer, limit=1)
    assert (encoded.counts["in_file"], encoded.counts["sentences"], encoded.counts["words"]) == (2, 1, 4)


def test_a_dev_file_whose_labels_are_all_the_same_is_refused(tmp_path, tokenizer):
    path = tmp_path / "dev"
    path.write_text("en:a\tO\n\nen:b\tO\n")
    with pytest.raises(data.DataError, match="all labels of language en are the same"):
        data.load(path, "en", "dev", data.read_ner, data.encode_words, tokenizer)


# ----------------------------------------------------------------------------------------------- where files are present

def real(name):
    if not (REAL / name).exists():
        pytest.skip("KIT_TEST_FILES names no folder with " + name)
    return REAL / name


def test_golden_ids_of_mbert():
    t = AutoTokenizer.from_pretrained(real("mbert"))
    assert data.special(t, "") == ([101], [102])
    assert data.subwords(["Hello", "world", "你好", "\u200b"], t) == {
        "Hello": [31178], "world": [11356], "你好": [2262, 3240], "\u200b": []}


def test_golden_ids_of_xlmr_without_the_lone_word_start_piece():
    t = AutoTokenizer.from_pretrained(real("xlmr"))
    assert data.special(t, "") == ([0], [2])
    assert t("Hello world!").input_ids == [0, 35378, 8999, 38, 2]
    assert data.subwords(["Hello", "world", "你好", "▁"], t) == {"Hello": [35378], "world": [8999], "你好": [124084], "▁": []}


@pytest.mark.parametrize("lang, split", [("en", "train"), ("en", "dev"), ("vi", "train"), ("vi", "dev"), ("de", "dev"),
                                         ("zh", "dev")])
def test_genuine_treebanks_have_their_git_name_and_the_counts_of_table_1(lang, split):
    path = data.ud_file(real("data"), lang, split)
    count = sum(1 for _ in data.read_conllu(path))
    assert data.departure(path, "pos", lang, split, count) is None
    assert data.departure(path, "pos", lang, split, count - 1) is not None


def test_words_equal_an_independent_count_on_a_real_treebank():
    path = data.ud_file(real("data"), "en", "train")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line[:1].isdigit()]
    want = [row[1] for row in rows if row[0].isdigit()]
    assert [w for words, _ in data.read_pos(path, "en") for w in words] == want


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_attachment_equals_an_independent_count_on_a_real_treebank(lang):
    path = data.ud_file(real("data"), lang, "dev")
    tokenizer = AutoTokenizer.from_pretrained(real("mbert"))
    dev = data.load(path, lang, "dev", data.read_trees, data.encode_trees, tokenizer).to("cpu")
    rng = np.random.default_rng(0)
    guess = np.where(rng.random((len(dev.gold), 1)) < .7, dev.gold[:, :2], rng.integers(0, 30, (len(dev.gold), 2)))
    las = uas = total = row = 0
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        words = [c for c in (line.split("\t") for line in block.split("\n") if line[0] != "#") if c[0].isdigit()]
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
