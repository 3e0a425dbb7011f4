"""The demo's corpora and texts: repeatable, two languages, labels that follow from the text."""

from collections import Counter
from unittest.mock import Mock

import pytest
import torch
from conftest import contents

import data
import demo
import reproduce

@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    demo.write_data(folder := tmp_path_factory.mktemp("demo"), "languages")
    return folder

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

def test_texts_are_of_their_language_and_only_those_of_the_ingredients_are_parallel(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TEXTS", 200)
    found = {}
    for name in demo.LANGUAGES:
        demo.prepare(tmp_path / name, name, "text")
        for language in demo.LANGUAGES[name]:
            found[name, language] = (tmp_path / name / "text" / f"{language}.txt").read_text().splitlines()
    assert {len(lines) for lines in found.values()} == {200}
    assert all(("\t" in line) == (name != "generation") for (name, _), lines in found.items()
               for line in lines[::5])
    assert sum("\t" in line for line in found["languages", "B"]) == 40
    parallel = zip(*(found["ingredients", language] for language in ("A", "A.syntax-B")), strict=True)
    assert all(sorted(first.split()) == sorted(second.split()) for first, second in parallel)
    assert found["ingredients", "A"] != found["ingredients", "A.syntax-B"]
    back = {greek: latin for latin, greek in demo.SCRIPTS["B"].items()}
    said = [" ".join(sorted(line.translate(back).split())) for line in found["languages", "B"]]
    assert not set(said) & {" ".join(sorted(line.split())) for line in found["languages", "A"]}

def test_titles_say_what_the_sentence_does_and_dev_sets_are_parallel(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SIZES", {"train": 300, "dev": 200})
    demo.write_data(tmp_path, "generation")
    found = {(lang, split): list(data.read_titles(tmp_path / "title" / lang / f"{split}.jsonl", lang))
             for lang in "ABC" for split in ("train", "dev")}
    for source, title in found["A", "train"]:
        topic, *others = title.split()
        assert topic not in source.split() and topic in demo.WORDS["NOUN"] and len(others) < 4
        verbs = [word for word in others if word in demo.WORDS["VERB"]]   # a word may be of two classes
        assert {demo.WORDS["VERB"][demo.WORDS["VERB"].index(verb) ^ 1] for verb in verbs} & {*source.split()}
    for lang, script in demo.SCRIPTS.items():
        back = {greek: latin for latin, greek in script.items()}
        for (source, title), (other, its) in zip(found["A", "dev"], found[lang, "dev"], strict=True):
            assert sorted(other.translate(back).split()) == sorted(source.split())
            assert sorted(its.translate(back).split()) == sorted(title.split())
        lines = (tmp_path / "parallel" / f"{lang}.txt").read_text().splitlines()
        assert lines == [source for source, _ in found[lang, "dev"]]
        assert found[lang, "train"] != found["A", "train"]

def test_the_table_of_words_that_only_b_has_leaves_remedies_and_controls_out(corpora, monkeypatch):
    monkeypatch.setattr(data, "TREEBANKS", data.TREEBANKS | data.INVENTED)
    words = sum(len(words) for words, _ in trees(corpora, "B", "dev"))
    dev, run = Mock(gold=torch.zeros(words, 1)), Mock()
    run.args.task, run.args.data, run.device = ["pos"], corpora, "cpu"
    run.ranks.outcome.return_value, run.corpora.examples.return_value = "", dev
    run.finetuned = lambda unit, _: 1.0 if unit.visitor or unit.lr else 0.0   # these are wrong
    run.scorer.predictions = lambda model, dev: dev.gold + model
    plain = reproduce.Finetuned("pos", "scratch", ("A",), 1)
    few, both = plain._replace(visitor="few-10", tgt="B"), plain._replace(langs=("A", "B"))
    said = demo.notes(run, [plain, few, both, plain._replace(lr=.1)])
    assert "| A | 100.0 | 100.0 |" in said and "| A and B | 100.0 | 100.0 |" in said
