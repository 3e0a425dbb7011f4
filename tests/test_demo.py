"""The demo's corpora and its tiny encoder: valid, repeatable, two languages, labels that follow from the sentences."""

from collections import Counter

import pytest
import torch
import transformers

import data
import demo

UPOS = set("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split())
RELATIONS = set("""acl advcl advmod amod appos aux case cc ccomp clf compound conj cop csubj dep det discourse dislocated
    expl fixed flat goeswith iobj list mark nmod nsubj nummod obj obl orphan parataxis punct reparandum root vocative
    xcomp""".split())


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    demo.write_data(folder)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def trees(folder, lang, split="train"):
    """Sentences as lists of rows of ten columns."""
    path = folder / "ud" / demo.TREEBANKS[lang] / f"{lang}_demo-ud-{split}.conllu"
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        yield [line.split("\t") for line in block.split("\n") if not line.startswith("#")]


def test_written_twice_the_corpora_are_the_same_bytes(corpora, tmp_path):
    demo.write_data(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(corpora)


@pytest.mark.parametrize("lang", demo.LANGUAGES)
@pytest.mark.parametrize("split", ["train", "dev"])
def test_every_sentence_is_a_tree_of_universal_labels(corpora, lang, split):
    for rows in trees(corpora, lang, split):
        assert all(len(row) == 10 for row in rows)
        assert [row[0] for row in rows] == [str(i) for i in range(1, len(rows) + 1)]
        assert {row[3] for row in rows} <= UPOS and {row[7] for row in rows} <= RELATIONS
        assert [row[6] == "0" for row in rows] == [row[7] == "root" for row in rows]
        data.check_tree([int(row[6]) for row in rows], "demo", [1, len(rows)])


@pytest.mark.parametrize("lang", demo.LANGUAGES)
def test_names_are_valid_bio_and_every_kind_is_frequent(corpora, lang):
    tags = Counter()
    for block in (corpora / "panx" / lang / "train").read_text(encoding="utf-8").strip().split("\n\n"):
        before = "O"
        for line in block.split("\n"):
            token, tag = line.split("\t")
            assert token.startswith(f"{lang}:")
            assert not tag.startswith("I-") or before[2:] == tag[2:]
            tags[tag] += 1
            before = tag
    assert set(tags) == set(data.BIO)
    assert min(tags[f"B-{kind}"] for kind in ("PER", "LOC", "ORG")) > 0.15 * sum(n for t, n in tags.items() if t[0] == "B")


def test_b_differs_from_a_in_word_order(corpora):
    def after_head(lang, relation):
        sides = [int(row[0]) > int(row[6]) for rows in trees(corpora, lang) for row in rows if row[7] == relation]
        return sum(sides) / len(sides)
    assert {relation: (after_head("A", relation), after_head("B", relation)) for relation in demo.ORDER["A"]} == {
        relation: (float(rank > 0), float(demo.ORDER["B"][relation] > 0)) for relation, rank in demo.ORDER["A"].items()}
    assert set(demo.FLIPPED) < set(demo.ORDER["A"])


def test_b_shares_some_of_its_words_with_a(corpora):
    known = {row[1] for rows in trees(corpora, "A") for row in rows}
    words = [row[1] for rows in trees(corpora, "B") for row in rows]
    assert 0.3 < sum(word in known for word in words) / len(words) < 0.45


@pytest.mark.parametrize("lang", demo.LANGUAGES)
def test_a_hypothesis_is_entailed_if_it_only_leaves_words_out(corpora, lang):
    pairs = list(data.read_xnli(corpora / f"xnli/XNLI-MT-1.0/multinli/multinli.train.{lang}.tsv", lang))
    labels, new_word = Counter(), Counter()
    for (premise, hypothesis), [(label,)] in pairs:
        labels[data.NLI[label]] += 1
        new_word[data.NLI[label]] += bool(Counter(hypothesis.split()) - Counter(premise.split()))
    assert new_word["entailment"] == 0
    assert all(new_word[label] > 0.99 * labels[label] for label in ("neutral", "contradiction"))
    assert min(labels.values()) > 0.3 * len(pairs)
    assert len(list(data.read_xnli(corpora / "xnli/XNLI-1.0/xnli.dev.tsv", lang))) == demo.PAIRS["dev"]


def test_pretraining_teaches_masked_words_and_the_encoder_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TEXTS", 200)
    losses = []
    for steps in (0, 20):
        folder = tmp_path / str(steps)
        demo.write_encoder(folder, steps, progress=lambda line: None)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer([" ".join(demo.WORDS["NOUN"][:20])], return_tensors="pt")["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids[0])[1:-1] == demo.WORDS["NOUN"][:20]
        assert transformers.AutoModel.from_pretrained(folder)(ids).last_hidden_state.shape == (1, 22, 64)
        losses.append(masked_loss(transformers.AutoModelForMaskedLM.from_pretrained(folder), tokenizer))
    assert losses[1] < losses[0] - 0.1


def masked_loss(model, tokenizer):
    """Mean loss over the second word of some sentences, hidden one sentence at a time."""
    losses = []
    for parts, _ in demo.pretraining_texts()[1:100]:
        ids = tokenizer(*parts, return_tensors="pt")["input_ids"]
        hidden = ids.clone()
        hidden[0, 2] = tokenizer.mask_token_id
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(model(hidden).logits[:, 2], ids[:, 2]).item())
    return sum(losses) / len(losses)
