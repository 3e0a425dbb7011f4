"""The demo's corpora and its tiny encoder: repeatable, two languages, labels that follow from the text."""

from collections import Counter

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import data
import demo
from results import Ranks


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    demo.write_data(folder := tmp_path_factory.mktemp("demo"), "AB")
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trees(folder, lang, split="train"):
    """(words, [(head, relation, scored)]) of the sentences; refuses what is no tree of universal labels."""
    return data.read_trees(folder / "ud" / data.INVENTED[lang] / f"{lang}_demo-ud-{split}.conllu", lang)


def test_the_corpora_are_the_same_bytes_on_every_run(corpora):
    found = data.sha256(repr(sorted(contents(corpora).items())).encode())
    assert found == "5161654d1da859f10cde463435908802c9a948d47505d4eab0968828bbf5fb06"


def test_sentences_are_trees_and_b_differs_in_the_order_of_some_relations_and_in_most_words(corpora):
    for lang, split in (("A", "train"), ("B", "train"), ("A", "dev"), ("B", "dev")):
        found = [rows for _, rows in trees(corpora, lang, split)]
        assert len(found) == demo.SIZES[split]
        order = {(data.RELATIONS[relation], (i > head) - (i < head) if head else 0)
                 for rows in found for i, (head, relation, _) in enumerate(rows, 1)}
        assert order == {("root", 0), *((name, 1 if n > 0 else -1) for name, n in demo.ORDER[lang].items())}
    assert dict(demo.ORDER["A"].items() - demo.ORDER["B"].items()).keys() == {"obj", "amod", "aux"}
    known, words = ([word for words, _ in trees(corpora, lang) for word in words] for lang in "AB")
    assert 0.3 < sum(map(set(known).__contains__, words)) / len(words) < 0.45


@pytest.mark.parametrize("lang", "AB")
def test_names_are_valid_bio_and_every_kind_is_frequent(corpora, lang):
    count = Counter()
    for _, rows in data.read_ner(corpora / "panx" / lang / "train", lang):
        tags = [data.BIO[tag] for tag, in rows]
        assert all(tag[0] != "I" or before[2:] == tag[2:] for before, tag in zip(["O", *tags], tags))
        count.update(tags)
    assert set(count) == set(data.BIO)
    begins = [count[f"B-{kind}"] for kind in ("PER", "LOC", "ORG")]
    assert min(begins) > 0.15 * sum(begins)


@pytest.mark.parametrize("lang", "AB")
def test_a_hypothesis_is_entailed_if_it_only_leaves_words_out(corpora, lang):
    labels, new_word = Counter(), Counter()
    for (first, second), [(label,)] in data.read_xnli(
            corpora / f"xnli/XNLI-MT-1.0/multinli/multinli.train.{lang}.tsv", lang):
        labels[data.NLI[label]] += 1
        new_word[data.NLI[label]] += bool(Counter(second.split()) - Counter(first.split()))
    assert new_word["entailment"] == 0 and min(labels.values()) > 0.3 * demo.PAIRS["train"]
    assert all(new_word[label] > 0.99 * labels[label] for label in ("neutral", "contradiction"))
    assert len(list(data.read_xnli(corpora / "xnli/XNLI-1.0/xnli.dev.tsv", lang))) == demo.PAIRS["dev"]


def masked_loss(folder):
    """Mean loss over the second word of some sentences, hidden one sentence at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    assert tokenizer.tokenize(" ".join(demo.WORDS["NOUN"][:20])) == demo.WORDS["NOUN"][:20]
    losses = []
    for parts, _ in demo.pretraining_texts()[1:100]:
        ids = tokenizer(*parts, return_tensors="pt")["input_ids"]
        hidden = torch.where(torch.arange(ids.shape[1]) == 2, tokenizer.mask_token_id, ids)
        losses.append(torch.nn.functional.cross_entropy(model(hidden).logits[:, 2], ids[:, 2]).item())
    return sum(losses) / len(losses)


def test_pretraining_teaches_masked_words_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    loss, steps = demo.Pretraining.loss, []

    def stopped(self, batch):
        steps.append(batch)
        if len(steps) == 15:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(demo, "TEXTS", 200)
    for count in (0, 20):
        demo.write_encoder(tmp_path / str(count), count, Ranks())
    assert masked_loss(tmp_path / "20") < masked_loss(tmp_path / "0") - 0.1
    monkeypatch.setattr(demo.Pretraining, "loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo.write_encoder(tmp_path / "again", 20, Ranks())
    demo.write_encoder(tmp_path / "again", 20, Ranks())
    assert len(steps) < 15 + 20 and contents(tmp_path / "again") == contents(tmp_path / "20")
