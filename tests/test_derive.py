"""Derived languages: every derivation by hand in each task, and a second implementation on real files."""

from itertools import groupby

import numpy as np
import pytest
from conftest import real, windows, wordpiece
from transformers import AutoTokenizer

import data
import derive
from results import KitError

PAD, UNK, CLS, SEP, MASK, A, B, C, AA, BB, CC, V = range(12)       # subwords of the tokenizer below; how many
ALONE = 1 << 30                                                    # `second` of a window that is no pair

@pytest.fixture
def tokenizer(tmp_path):
    return wordpiece(tmp_path, "[PAD] [UNK] [CLS] [SEP] [MASK] a b c ##a ##b ##c")

def derived(given, steps, tokenizer, labels, rows=2 * V):
    encoded = data.Encoded(PAD)
    for window in given:
        encoded.add(*window)
    return windows(derive.derive(encoded, steps, tokenizer, rows, labels))

# ---- names ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("lang, base, steps", [
    ("en", "en", []), ("en.inversion", "en", ["inversion"]), ("en.syntax-hi", "en", ["syntax-hi"]),
    ("en.transliteration.permutation", "en", ["transliteration", "permutation"]),
    ("en.inversion.transliteration", "en", ["inversion", "transliteration"]),
    ("en.syntax-hi.transliteration.inversion", "en", ["syntax-hi", "transliteration", "inversion"]),
    ("A.syntax-B.inversion", "A.syntax-B", ["inversion"]), ("A.syntax-en", "A", ["syntax-en"])])
def test_names(lang, base, steps, monkeypatch):
    monkeypatch.setattr(data, "TREEBANKS", data.TREEBANKS | {"A": "UD_A", "A.syntax-B": "UD_A.B"})
    assert derive.parse(lang) == (base, tuple(steps))

@pytest.mark.parametrize("lang, says", [
    ("xx.inversion", "'xx.inversion' is no lang"), ("inversion", "is no language"), ("", "is no language"),
    ("en.back", "no transformation 'back'; there are inversion, permutation, transliteration, syntax-LANG"),
    ("en.", "no transformation ''"), ("en.inversion-hi", "no transformation 'inversion"),
    ("en.syntax", "no transformation 'syntax'"), ("en.inversion.permutation", "not both inversion and"),
    ("en.transliteration.transliteration", "at most once"), ("en.syntax-hi.syntax-de", "at most once"),
    ("en.syntax-en", "'en' is no other language"), ("en.syntax-xx", "'xx' is no other language"),
    ("en.inversion.syntax-hi", "syntax works on words, so it comes before inversion or permutation")])
def test_names_that_make_no_sense_are_refused_in_a_sentence(lang, says):
    with pytest.raises(KitError, match=says):
        derive.parse(lang)

# ---- by hand ----------------------------------------------------------------------------------------------

TWO = [([CLS, A, BB, CC, B, UNK, SEP], [1, 4, 5], [(1,), (2,), (3,)], True),   # abc b ?, then (b ?) ca
       ([CLS, B, UNK, C, AA, SEP], [3], [(4,)], False)]

def test_tags_of_two_windows_follow_the_first_subword_of_their_word(tokenizer):
    encoded = data.Encoded(PAD)
    for window in TWO:
        encoded.add(*window)
    encoded.lost, encoded.counts["in_file"] = 3, 17
    found = derive.derive(encoded, ("inversion",), tokenizer, V, data.UPOS)
    assert found.lost == 3 and found.counts == encoded.counts   # which carry over
    first, second = windows(found)
    assert first == ([CLS, UNK, B, CC, BB, A, SEP], [1, 2, 5], [(3,), (2,), (1,)], True, ALONE)
    assert second == ([CLS, AA, C, UNK, B, SEP], [2], [(4,)], False, ALONE)

def test_transliteration_shifts_all_but_special_tokens_and_composes(tokenizer):
    first, _ = derived(TWO, ("transliteration",), tokenizer, data.UPOS)
    assert first[0] == [CLS, V + A, V + BB, V + CC, V + B, UNK, SEP] and first[1:4] == TWO[0][1:]
    for steps in (("transliteration", "inversion"), ("inversion", "transliteration")):
        _, second = derived(TWO, steps, tokenizer, data.UPOS)
        assert second == ([CLS, V + AA, V + C, UNK, V + B, SEP], [2], [(4,)], False, ALONE)
    with pytest.raises(KitError, match="an encoder with 22 subwords.* this one has 21: pretrain one"):
        derived(TWO, ("transliteration",), tokenizer, data.UPOS, rows=21)

def test_unknown_and_mask_tokens_are_no_borders_and_padding_is(tokenizer):
    ids, _ = derive.Rule(("inversion",), tokenizer, V)([CLS, A, MASK, UNK, B, SEP, SEP, PAD, C, AA], (0, 0))
    assert ids.tolist() == [CLS, B, UNK, MASK, A, SEP, SEP, PAD, AA, C]

def test_a_permutation_is_drawn_from_sentence_and_window_the_same_in_every_run(tokenizer):
    window = [CLS, A, B, C, AA, BB, CC, SEP], [1, 2, 3, 4, 5, 6], [(tag,) for tag in range(6)]
    windows = [(*window, new) for new in (True, False, True)]
    found = derived(windows, ("permutation",), tokenizer, data.UPOS)
    assert [ids for ids, *_ in found] == [
        [CLS, AA, C, B, A, BB, CC, SEP], [CLS, BB, CC, B, C, A, AA, SEP], [CLS, C, BB, CC, A, AA, B, SEP]]
    for ids, read, gold, *_ in found:
        assert read == [1, 2, 3, 4, 5, 6] and [A + tag for tag, in gold] == ids[1:-1]

def test_bio_is_repaired_from_left_to_right_across_the_windows_of_a_sentence(tokenizer):
    windows = [([CLS, A, B, C, SEP], [1, 2, 3], ["B-PER", "I-PER", "B-ORG"], True),
               ([CLS, A, B, SEP], [1, 2], ["B-PER", "B-PER"], False),
               ([CLS, A, B, C, SEP], [1, 2, 3], ["O", "I-LOC", "I-PER"], True)]
    windows = [(ids, read, [(data.BIO.index(tag),) for tag in tags], new) for ids, read, tags, new in windows]

    def tags(step, labels):
        found = derived(windows, (step,), tokenizer, labels)
        return [" ".join(data.BIO[tag] for tag, in gold) for _, _, gold, *_ in found]

    assert tags("inversion", data.BIO) == ["B-ORG B-PER I-PER", "I-PER I-PER", "B-PER B-LOC O"]
    assert tags("inversion", data.UPOS)[0] == "B-ORG I-PER B-PER"          # no BIO, no repair
    assert tags("transliteration", data.BIO)[2] == "O I-LOC I-PER"         # in order, nor is it broken

def test_a_pair_is_derived_sentence_by_sentence_and_still_read_at_its_first_token(tokenizer):
    pair = [CLS, A, B, SEP, C, AA, BB, SEP], [0], [(2,)], True, 4
    found, = derived([pair], ("inversion",), tokenizer, data.NLI)
    assert found == ([CLS, B, A, SEP, BB, AA, C, SEP], *pair[1:])

def test_heads_of_a_tree_are_renumbered(tokenizer):
    gold = [(-1, -1, 0), (2, 7, 1), (0, 8, 1), (2, 9, 0), (-1, 5, 1)]   # the last word's head was cut off
    window = [CLS, A, BB, B, C, A, SEP], [0, 1, 3, 4, 5], gold
    found, = derived([window], ("inversion",), tokenizer, data.RELATIONS)
    assert found[:2] == ([CLS, A, C, B, BB, A, SEP], [0, 1, 2, 3, 5])
    assert found[2] == [(-1, -1, 0), (-1, 5, 1), (3, 9, 0), (0, 8, 1), (3, 7, 1)]

# ---- syntax -----------------------------------------------------------------------------------------------

CHASE = "Dogs/NOUN/2/nsubj chase/VERB/0/root big/ADJ/4/amod cats/NOUN/2/obj ./PUNCT/2/punct"
SEES = "a/NOUN/2/nsubj sees/VERB/0/root b/NOUN/2/obl"
CROSSED = "a/NOUN/3/nsubj b/NOUN/4/obj c/VERB/0/root d/VERB/3/conj"
SIX, SEVEN = (" ".join(["v/VERB/0/root", *["o/NOUN/1/obj"] * n]) for n in (6, 7))

def treebank(path, *sentences):
    with open(path, "w") as f:
        for sentence in sentences:
            for n, word in enumerate(sentence.split(), 1):
                form, tag, head, relation = word.split("/")
                f.write("\t".join((str(n), form, "_", tag, "_", "_", head, relation, "_", "_")) + "\n")
            f.write("\n")
    return path

def shares(**names):
    return {data.RELATIONS.index(name): share for name, share in names.items()}

@pytest.mark.parametrize("text, preference, order", [
    (CHASE, shares(obj=.1, amod=.8, nsubj=.4), "cats big Dogs chase ."),     # with all that hangs on it
    (SEES, shares(obl=0), "b a sees"), (SEES, shares(nsubj=1), "sees b a"),   # as near as another
    (SEES, shares(nsubj=.5), "a sees b"),
    ("very/ADV/2/advmod big/ADJ/0/root", shares(advmod=1), "very big"),      # on no noun or verb
    ("very/ADV/2/advmod big/PROPN/0/root", shares(advmod=1), "big very")])
def test_dependents_of_nouns_and_verbs_take_the_preferred_side(text, preference, order, tmp_path):
    (words, rows), = data.read_conllu(treebank(tmp_path / "x", text))
    assert " ".join(words[i] for i in derive.linearise(rows, preference)) == order

def test_readers_give_words_and_gold_in_the_new_order(tmp_path):
    path = treebank(tmp_path / "x", CHASE, SIX, CROSSED, SEVEN)
    tags = list(derive.reader(data.read_pos, shares(obj=0))(path, "en"))
    trees = list(derive.reader(data.read_trees, shares(obj=0))(path, "en"))
    assert [" ".join(words) for words, _ in tags[:2]] == ["big cats Dogs chase .", "o o o o o o v"]
    assert [data.UPOS[tag] for tag, in tags[0][1]] == "ADJ NOUN NOUN VERB PUNCT".split()
    relation = data.RELATIONS.index
    assert trees[0][1] == [(2, relation("amod"), 1), (4, relation("obj"), 1), (4, relation("nsubj"), 1),
                           (0, relation("root"), 1), (4, relation("punct"), 0)]
    assert [head for head, _, _ in trees[1][1]] == [7] * 6 + [0]
    assert trees[2:] == list(data.read_trees(path, "en"))[2:] and derive.unmoved(path) == (2, 4)

def test_preference_counts_dependents_of_nouns_and_verbs_seen_often_enough(tmp_path):
    path = treebank(tmp_path / "x", *["a/NOUN/2/obj b/VERB/0/root x/ADV/2/advmod"] * 4,
                    *["b/VERB/0/root a/NOUN/1/obj"] * 6, *["a/NOUN/2/obj b/ADJ/0/root"] * 9,
                    *["b/VERB/0/root x/ADV/1/advmod"] * 5)
    assert derive.preference(path) == shares(obj=.6)   # nine advmod are too few

# ---- real files -------------------------------------------------------------------------------------------

def back(ids, order, place):
    """Where each subword stood, by lists: a second implementation of inversion and permutation."""
    bits, found = np.random.PCG64(place), []
    for border, run in groupby(range(len(ids)), key=lambda i: ids[i] in (0, 101, 102)):   # [PAD] [CLS] [SEP]
        run = list(run)
        if not border and order == "inversion":
            run.reverse()
        if not border and order == "permutation":
            run = [i for _, i in sorted((bits.random_raw(), i) for i in run)]
        found += run
    return found

def mended(tags):
    """BIO tags by name, repaired as the rule is worded."""
    inside, found = None, []
    for tag in tags:
        kind = tag[2:]
        found.append("O" if tag == "O" else f"I-{kind}" if kind == inside else f"B-{kind}")
        inside = kind
    return found

FILES = {"pos": (data.ud_file, data.read_pos, data.encode_words, data.UPOS),
         "parsing": (data.ud_file, data.read_trees, data.encode_trees, data.RELATIONS),
         "ner": (data.ner_file, data.read_ner, data.encode_words, data.BIO),
         "xnli": (data.xnli_file, data.read_xnli, data.encode_pairs, data.NLI)}

@pytest.mark.parametrize("order", ["inversion", "permutation"])
@pytest.mark.parametrize("task", FILES)
def test_real_words_and_labels_are_recovered_by_the_inverse(task, order):
    source, read, encode, labels = FILES[task]
    tokenizer = AutoTokenizer.from_pretrained(real("mbert"))
    V, path = len(tokenizer), source(real("data"), "zh", "dev").path
    encoded = data.load(path, "zh", "dev", read, encode, tokenizer, 500)
    new = derive.derive(encoded, ("transliteration", order), tokenizer, 2 * V, labels)
    place, tags, repaired, moved = (-1, 0), {}, {}, 0
    for before, after in zip(windows(encoded), windows(new), strict=True):
        place = (place[0] + 1, 0) if before[3] else (place[0], place[1] + 1)
        ids, reads, gold, *rest = after
        came = back(before[0], order, place)
        moved += came != sorted(came)
        assert [i - V if i >= V else i for i in ids] == [before[0][i] for i in came]
        assert all(i >= V or i in tokenizer.all_special_ids for i in ids) and [*before[3:]] == rest
        assert reads == sorted(reads) and sorted(came[i] for i in reads) == before[1]
        was = dict(zip(before[1], before[2], strict=True))   # gold by place in the original
        if task == "ner":
            tags.setdefault(place[0], []).extend(data.BIO[was[came[i]][0]] for i in reads)
            repaired.setdefault(place[0], []).extend(data.BIO[tag] for tag, in gold)
        elif task == "parsing":
            heads = {came[i]: (came[reads[row[0]]] if row[0] > 0 else row[0], *row[1:])
                     for i, row in zip(reads, gold, strict=True)}
            assert heads == {i: (before[1][row[0]] if row[0] > 0 else row[0], *row[1:])
                             for i, row in was.items()}
        else:
            assert {came[i]: row for i, row in zip(reads, gold, strict=True)} == was
    assert repaired == {sentence: mended(found) for sentence, found in tags.items()} and moved > 400

def test_real_sentences_stay_projective_and_take_the_preferred_order():
    hindi, moved = derive.preference(data.ud_file(real("data"), "hi", "train").path), 0
    assert hindi[data.RELATIONS.index("case")] > .9 and hindi[data.RELATIONS.index("obj")] < .1
    for _, rows in data.read_conllu(data.ud_file(real("data"), "en", "dev").path):
        if not derive.movable(rows):
            continue
        order = derive.linearise(rows, hindi)
        now = {old: new for new, old in enumerate(order, 1)} | {-1: 0}
        moved += order != sorted(order)
        assert sorted(order) == list(range(len(rows)))
        new = [(rows[i][0], now[rows[i][1] - 1], rows[i][2]) for i in order]
        assert derive.linearise(new, {}) == sorted(order)
        for i, (_, head, relation) in enumerate(rows):
            share = hindi.get(relation, .5) if head and rows[head - 1][0] in derive.GOVERNORS else .5
            assert head == 0 or (now[i] > now[head - 1]) == (share > .5 if share != .5 else i + 1 > head)
    assert moved > 1000
