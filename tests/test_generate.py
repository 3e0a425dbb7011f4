"""Generation: four architectures in small random shapes, scores and XLRS against others, bad input."""

import json
import random
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from conftest import real
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import data
import generate
import heads
import results
from heads import Plane
from results import KitError
from train import Settings, choose, train

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = SimpleNamespace(tokenize=generate.words)   # for rouge-score, so that both count the same words
SMALL = dict(vocab_size=30, d_model=16, pad_token_id=0, eos_token_id=1)
T5 = dict(d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0, initializer_factor=3.0,
          decoder_start_token_id=0)
BART = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=24, init_std=1.0, dropout=0,
            bos_token_id=2, decoder_start_token_id=1)
SHAPES = {"T5": (transformers.T5Config, T5), "mT5": (transformers.MT5Config, T5),
          "BART": (transformers.BartConfig, BART),
          "mBART": (transformers.MBartConfig, BART | {"decoder_start_token_id": None})}

def write_generator(folder, kind):
    """A folder with a random model of 30 subwords, which are letters, and their tokenizer: <s> a b </s>."""
    config, settings = SHAPES[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2 - (kind == "T5"))   # models that do not write one letter for ever
        model = transformers.AutoModelForSeq2SeqLM.from_config(config(**SMALL, **settings))
        if kind == "mT5":   # its published weights have an output layer of their own
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        if kind.endswith("BART"):
            model.final_logits_bias.normal_()[0, 1] += 8
    model.save_pretrained(folder)   # and settings of decoding that are not to count
    transformers.GenerationConfig(num_beams=4, forced_bos_token_id=9, min_length=9).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<s>", "<unk>", *LETTERS])}
    words, marks = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), [("<s>", 2), ("</s>", 1)]
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=marks)
    names = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=24)
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return str(folder)

@pytest.fixture(scope="module", params=SHAPES)
def pretrained(request, tmp_path_factory):
    return generate.load_generator(write_generator(tmp_path_factory.mktemp("model"), request.param))

@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    return generate.load_generator(write_generator(tmp_path_factory.mktemp("model"), "BART"))

def examples(number=12, seed=0):
    """A sentence of letters, and as its title every other one of them."""
    rng = random.Random(seed)
    for _ in range(number):
        source = rng.choices(LETTERS, k=rng.randint(2, 9))
        yield " ".join(source), " ".join(source[::2])

def encoded(pretrained, number=12):
    return data.encode_titles([*examples(number)], pretrained.tokenizer, "dev", "test").to("cpu")

def everything(titles):
    return titles.batch(np.arange(len(titles)))

@torch.no_grad()
def test_decoding_equals_a_loop_without_cache_one_sentence_at_a_time(pretrained):
    model, titles = generate.Generator(pretrained).eval(), encoded(pretrained)
    outputs, lengths = model(everything(titles)), set()
    for window, output in enumerate(outputs[:, 0].tolist()):
        ids, written = titles.batch(np.array([window])).ids, [model.start]
        while len(written) <= 24 and (len(written) == 1 or written[-1] != 1):
            logits = pretrained.model(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits
            written.append(logits[0, -1].argmax().item())
        assert output == written[1:] + [0] * (25 - len(written))
        lengths.add(len(written))
    assert len(outputs.unique()) > 5 and len(lengths) > 1   # else this test would show little

@pytest.mark.parametrize("kind, settings", [
    ("FSMT", BART | dict(langs=["en", "de"], src_vocab_size=30, tgt_vocab_size=30)),
    ("ProphetNet", dict(hidden_size=16, num_encoder_attention_heads=2, num_decoder_attention_heads=2,
                        num_encoder_layers=2, num_decoder_layers=2, init_std=.3))])
def test_a_decoder_that_scores_otherwise_at_once_is_refused(kind, settings, tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, kind, (getattr(transformers, f"{kind}Config"), settings))
    with pytest.raises(KitError, match=f"{kind}ForConditionalGeneration. scores a subword otherwise"):
        generate.load_generator(write_generator(tmp_path, kind))

def test_the_loss_is_the_mean_over_target_subwords(pretrained):
    model, titles, total, count = generate.Generator(pretrained).eval(), encoded(pretrained), 0.0, 0
    for source, target in examples():
        ids = torch.tensor([pretrained.tokenizer(source).input_ids])
        gold = pretrained.tokenizer(target, add_special_tokens=False).input_ids + [1]
        before = torch.tensor([[model.start, *gold[:-1]]])
        logs = pretrained.model(input_ids=ids, decoder_input_ids=before).logits[0].log_softmax(-1)
        total -= sum(logs[place, subword].item() for place, subword in enumerate(gold))
        count += len(gold)
    parts = [titles.batch(windows) for windows in np.array_split(np.arange(12), 5)]
    assert everything(titles).count == count == sum(part.count for part in parts)
    assert model.loss(everything(titles)).item() == pytest.approx(total / count, rel=1e-4)
    assert sum(model.loss(part).item() * part.count for part in parts) == pytest.approx(total, rel=1e-4)

@torch.no_grad()
def corners(pretrained):
    """Three models far from each other, as {name: parameter}."""
    for seed in range(3):
        torch.manual_seed(seed)
        yield {name: p + (.3 * p.std(correction=0) + .05) * torch.randn_like(p)
               for name, p in generate.Generator(pretrained).named_parameters()}

@pytest.mark.parametrize("part", ["all", "encoder", "decoder"])
def test_a_point_of_the_plane_equals_the_loaded_model_and_ties_stay_tied(pretrained, part):
    both, src, tgt = corners(pretrained)
    model, batch, seen = generate.Generator(pretrained), everything(encoded(pretrained)), []
    own = [(p, p.data_ptr(), p.sum()) for p in (*model.parameters(), *model.buffers())]
    plane = Plane(model, (both, src, tgt), part)
    for a1, a2 in ((0, 0), (1, 0), (0, 1), (.3, -.2), (1.5, .7)):
        plane.move(a1, a2)
        seen.append(plane(batch))
        moved = {name: (1 - a1 - a2) * both[name] + a1 * src[name] + a2 * tgt[name]
                 if part in ("all", name.split(".")[0]) else both[name] for name in both}
        rounding = 0 if (a1, a2) in ((0, 0), (1, 0), (0, 1)) else 1e-5   # a corner is that model
        assert all(torch.allclose(plane.views[name], moved[name], rtol=0, atol=rounding) for name in both)
        loaded = generate.Generator(pretrained).eval()
        missing, unexpected = loaded.load_state_dict(moved, strict=False)
        assert not unexpected and not {name for name, _ in loaded.named_parameters()} & set(missing)
        assert torch.equal(seen[-1], loaded(batch))
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert [(p, p.data_ptr(), p.sum()) for p in (*model.parameters(), *model.buffers())] == own   # as before
    separate = isinstance(pretrained.model, transformers.MT5ForConditionalGeneration)
    assert ("decoder.lm_head.weight" in both) == separate and not any("embed_tokens" in name for name in both)
    assert {name.split(".")[0] for name in both} == {"shared", "encoder", "decoder"}

def test_no_token_names_the_language_even_where_the_tokenizer_adds_one():
    letters = ["\u2581" + letter for letter in LETTERS[:20]]
    vocabulary = [(word, -1.0) for word in ("<s>", "<pad>", "</s>", "<unk>", *letters, "de_DE", "en_XX")]
    tokenizer = transformers.MBartTokenizer(vocab=vocabulary, model_max_length=24)
    assert tokenizer("a b").input_ids == [4, 5, 2, 25]   # en_XX
    plain = everything(data.encode_titles([("a b", "b")], tokenizer, "dev", "").to("cpu"))
    assert plain.ids.tolist() == [[4, 5, 2]] and plain.gold.tolist() == [[[5, 2]]]

def test_training_lowers_the_loss_and_a_killed_one_ends_with_the_same_bytes(bart, tmp_path):
    titles, settings = encoded(bart, 64), Settings(steps=30, lr=5e-3, evaluate_at=(10, 20, 30), seed=3)

    def batches(step, parts):
        return [titles.batch(part) for part in np.array_split(np.arange(16) + step % 4 * 16, parts)]

    def run(folder, killed=None):
        torch.manual_seed(0)
        model = generate.Generator(bart)
        torch.nn.init.normal_(model.shared, std=.1)

        def evaluate(records):
            if len(records) == killed:
                raise KeyboardInterrupt
            return {"mean": model(titles.batch(np.arange(8))).float().mean().item()}, True

        with results.locked(folder / "train.jsonl") as journal:
            _, best = train(model, batches, evaluate, settings, {}, journal, "test", results.Ranks())
        return results.digest(best), (folder / "train.jsonl").read_bytes()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed=1)
    assert (tmp_path / "killed" / "state.safetensors").exists()
    assert run(tmp_path / "killed") == whole
    losses = [json.loads(line)["loss"] for line in whole[1].splitlines()]
    assert losses[2] < losses[1] < losses[0] - .3

def test_rouge_l_equals_rouge_score_on_a_thousand_random_pairs():
    rng, oracle, seen = random.Random(0), RougeScorer(["rougeL"], tokenizer=WORDS), set()
    for _ in range(1000):
        a, b = (" ".join(rng.choices("abcdefg\u4e2d\u6587", k=rng.randint(0, 14))) for _ in range(2))
        seen.add(found := generate.rouge_l(generate.words(a), generate.words(b)))
        assert found == pytest.approx(oracle.score(a, b)["rougeL"].fmeasure, abs=1e-12)
    assert len(seen) > 40

def test_words_of_several_languages():
    hindi = "\u0939\u093f\u0928\u094d\u0926\u0940"   # its vowel signs are no letters
    assert generate.words("Don't \u2014 go to B\u00fcRO 7!") == ("don", "t", "go", "to", "b\u00fcro", "7")
    assert generate.words("BBC\u4e2d\u6587\u7db2\uff0c2021") == ("bbc", "\u4e2d", "\u6587", "\u7db2", "2021")
    assert generate.words(hindi) == (hindi,) and generate.words("e\u0301t\u00e9 ?!") == ("\u00e9t\u00e9",)
    hidden = "Ge\u00adb\u00e4ude \u0645\u06cc\u200c\u0631\u0648\u0645 a\u200bb <extra_id_0>c<extra_id_12>"
    assert generate.words(hidden) == ("geb\u00e4ude", "\u0645\u06cc\u0631\u0648\u0645", "a", "b", "c")
    scripts = {"a7": "LATIN", "\u0416\u0438": "CYRILLIC", "\u4e2d": "CJK", hindi: "DEVANAGARI", "7": None}
    assert {word: generate.script(word) for word in scripts} == scripts

def invented(alphabet, endings, number=300, shared=()):
    """Examples of a language: words of four letters and an ending, and the `shared` ones."""
    rng = random.Random(alphabet)
    for _ in range(number):
        spelt = ["".join(rng.choices(alphabet, k=4)) + rng.choice(endings) for _ in range(6)]
        yield " ".join([*spelt, *shared]), " ".join([*spelt[:3], *shared])

def test_languages_of_different_scripts_are_told_by_script_but_for_words_they_share():
    greek = "\u03b1\u03b2\u03b3\u03b4\u03b5"
    languages = generate.Languages({"A": invented("abcde", "xy", shared=["anna"]),
                                    "B": invented(greek, greek, shared=["anna"])})
    new = "abcdx", "anna", greek, "\u0436\u0436"   # the last one is in the script of neither
    whose = [[languages.whose(word, lang) for word in new] for lang in "AB"]
    assert whose == [[1, 0, -1, -1], [-1, 0, 1, -1]]
    outputs = ["7", "anna", "eeeex"], ["eeeex", greek, "anna"], ["7"]   # one against none, one against one
    judged = [languages.judge(output, "B") for output in outputs]
    assert judged == [(True, 1, 2), (False, 1, 3), (False, 0, 0)]
    assert languages.tested == {lang: {"outputs": (60, 60), "words": (120, 120)} for lang in "AB"}

def test_a_language_may_have_several_scripts():
    latin, cyrillic, georgian = "abcde", "\u0430\u0431\u0432\u0433\u0434", "\u10d0\u10d1\u10d2\u10d3\u10d4"
    both = [*invented(cyrillic, cyrillic), *invented(latin, latin, 30)]
    told = generate.Languages({"X": both, "Y": invented(georgian, georgian)})
    assert [told.whose(word, "X") for word in ("badcea", "\u0431\u0430\u0434\u0433", georgian)] == [1, 1, -1]
    rare = [*invented(georgian, georgian), ("", ""), ("\u03b1 \u03b2", "")]   # few words make no script
    told = generate.Languages({"sr": invented(cyrillic, cyrillic), "Y": rare})
    assert told.whose("badcea", "sr") == 1 and told.whose("\u03b2\u03b1", "Y") == -1   # sr by the table

def test_the_chance_of_a_word_by_hand():
    language = generate.Language(["ab ab b 7"])   # two words, one of them seen once; three running words
    spelt = 1.1 / 12 * 1.1 / 11 * 1.1 / 11        # a begins one of two words, b follows, the word ends
    assert language.chance("ab") == pytest.approx((2 + 2 * spelt) / 5) and language.chance("\u0436") == 0

def test_languages_of_one_script_are_told_by_trigrams_and_tested_on_held_out_examples():
    pairs = {"A": list(invented("abcdefgh", ["ing", "ed"])), "B": list(invented("efghijkl", ["ung", "en"]))}
    languages = generate.Languages(pairs)
    held = {lang: [generate.words(target) for _, target in pairs[lang][::10]] for lang in pairs}
    for lang in pairs:
        told = [languages.judge(text, lang)[0] == (lang != other) for other in pairs for text in held[other]]
        own = [languages.whose(word, lang) == -1 for text in held[lang] for word in text]
        assert languages.tested[lang] == {"outputs": (sum(told), 60), "words": (90 - sum(own), 90)}
        assert sum(told) >= 57 and sum(own) <= 9
        seen = languages.languages[lang].counts
        assert sum(word not in seen for text in held[lang] for word in text) > 45   # trigrams told these
    with pytest.raises(KitError, match="1 training examples of A are too few"):
        generate.Languages({"A": [("a", "b")]})

@torch.no_grad()
def test_scores_of_outputs_in_file_order(bart):
    model, titles = generate.Generator(bart).eval(), encoded(bart)
    languages = generate.Languages({"A": invented(LETTERS[:13], "a"), "B": invented(LETTERS[13:], "z")})
    pred = torch.zeros(12, 24, dtype=torch.long)
    for batch in titles.batches(20):
        pred[batch.order[:, 0]] = model(batch)[:, 0]
    assert torch.equal(pred, model(everything(titles))[:, 0]) and len(titles.batches(20)) > 3
    texts, oracle = titles.decode(pred), RougeScorer(["rougeL"], tokenizer=WORDS)
    (f1, outputs), (elsewhere, of), (wrong, count) = generate.scores(pred, titles, "A", languages).tolist()
    pairs = zip([target for _, target in examples()], texts, strict=True)
    assert f1 == pytest.approx(sum(oracle.score(*pair)["rougeL"].fmeasure for pair in pairs))
    assert outputs == of == 12 and count == sum(len(text.split()) for text in texts) > 0
    assert wrong == sum(languages.whose(word, "A") == -1 for text in texts for word in text.split())
    assert elsewhere == sum(languages.judge(text.split(), "A")[0] for text in texts)
    assert generate.scores(titles.gold.clamp(min=0), titles, "A", languages)[0].tolist() == [12, 12]

@torch.no_grad()
@pytest.mark.parametrize("kind", ["generator", "encoder"])
def test_xlrs_equals_brute_force(kind, bart, encoder):
    loaded = bart if kind == "generator" else heads.load_encoder(str(encoder))
    model = (generate.Generator(bart) if kind == "generator" else heads.Model(loaded, heads.Linear, 3)).eval()
    texts = [["".join(min(c, "j") for c in source) for source, _ in examples(9, seed)] for seed in (1, 2)]

    def state(text):
        ids = torch.tensor([loaded.tokenizer(text).input_ids])
        return model.encoder(input_ids=ids).last_hidden_state[0, 1:-1].double().mean(0)

    a, b = ([state(text) for text in side] for side in texts)
    cosines = np.array([[(x @ y / x.norm() / y.norm()).item() for y in b] for x in a])
    wanted = cosines.diagonal().mean(), np.mean([cosines[i, i - 4] for i in range(9)])
    assert abs(wanted[0] - wanted[1]) > 1e-3
    sides = [data.encode_sentences(side, loaded.tokenizer).to("cpu") for side in texts]
    for tokens in (10, 1000):
        assert generate.xlrs(model, *sides, tokens=tokens) == pytest.approx(wanted, abs=1e-5)
    assert generate.xlrs(model, sides[0], sides[0])[0] == pytest.approx(1, abs=1e-5)

def test_a_rule_chooses_among_logged_records():
    logged = [(50, .1), (69.5, .5), (70, .7), (69.0, .4), (70, .6), (68.9, .2)]
    records = [{"mean": mean, "xlrs": x, "step": n} for n, (mean, x) in enumerate(logged)]
    assert [choose(records, rule)["step"] for rule in ("dev", "xlrs", "last")] == [2, 3, 5]
    assert [choose(records, "xlrs", x)["step"] for x in (0, .5, 1.1, 20)] == [4, 1, 5, 0]
    rising = [{"mean": mean, "xlrs": x} for mean, x in ((50, .5), (50.5, .6), (51.2, .9))]
    assert choose(rising, "xlrs") is rising[2]   # the second one's parameters were not kept

def test_titles_are_read_in_both_formats_cut_and_counted(bart, tmp_path):
    path, long = tmp_path / "dev.jsonl", {"text": "a " * 30, "title": "b " * 30}
    path.write_text('{"source": "a b", "target": " b"}\n' + json.dumps(long) + "\n")
    titles = data.load(path, "de", "dev", data.read_titles, data.encode_titles, bart.tokenizer)
    assert titles.texts == [" b", "b " * 30] and len(titles.to("cpu")) == 2 and titles.lost == 0
    assert [titles.counts[name] for name in ("in_file", "sentences", "words", "truncated")] == [2, 2, 2, 2]
    batch = everything(titles)
    assert batch.ids.shape == (2, 24) and batch.gold.shape == (2, 1, 24) and batch.count == 2 + 24
    assert batch.gold[0, 0, :3].tolist() == [5, 1, -1] and batch.gold[1, 0, -2:].tolist() == [5, 1]
    assert [one.gold.shape[2] for one in titles.batches(24)] == [2, 24]

@pytest.mark.parametrize("line, problem", [
    ("{source: 1}", "is no JSON object"), ("[1]", "is no JSON object"), ("", "is no JSON object"),
    ('{"source": "a"}', "'target' is None"), ('{"source": "a", "target": " "}', "'target' is ' '"),
    ('{"source": "a", "target": "b \\udc4d"}', "'target' has .*udc4d.*half of a character"),
    ('{"target": "b"}', "'source' is None"), ('{"text": 1, "title": "b"}', "'text' is 1")])
def test_a_line_that_is_no_title_is_told(tmp_path, line, problem):
    path = tmp_path / "dev.jsonl"
    path.write_text('{"source": "a", "target": "b"}\n' + line + "\n")
    with pytest.raises(KitError, match=f"^{path}, line 2: .*{problem}"):
        list(data.read_titles(path, "de"))

def test_where_titles_come_from(tmp_path, monkeypatch):
    with pytest.raises(KitError, match=f"(?s)no address is known.*{tmp_path}/title/de/train.jsonl"):
        data.fetch([data.title_file(tmp_path, "de", "train")])
    lines, packed = tmp_path / "lines", tmp_path / "title/french_XLSum_v2.0.tar.bz2"
    lines.write_text('{"text": "a b", "title": "a", "url": ""}\n')
    packed.parent.mkdir()
    with tarfile.open(packed, "w:bz2") as archive:
        archive.add(lines, "./french_val.jsonl")
    monkeypatch.setitem(data.XLSUM, "fr", ("french", data.sha256(packed.read_bytes())))
    french = data.title_file(tmp_path, "fr", "dev")
    data.fetch([french])
    assert french.archive.address.endswith("/data/french_XLSum_v2.0.tar.bz2")
    assert list(data.read_titles(tmp_path / "title/fr/dev.jsonl", "fr")) == [("a b", "a")]

def test_parallel_files(tmp_path):
    a, b, gap, one = (tmp_path / name for name in ("a", "b", "gap", "one"))
    for path, text in ((a, "x\ny\n"), (b, "x\ny\nz\n"), (gap, "x\n\n"), (one, "x\n")):
        path.write_text(text)
    assert data.read_parallel({"en": a, "de": a}) == {"en": ["x", "y"], "de": ["x", "y"]}
    wrong = (a, b, "a has 2, .*b has 3;"), (a, gap, "gap, line 2"), (one, one, "least")
    for first, second, problem in wrong:
        with pytest.raises(KitError, match=problem):
            data.read_parallel({"en": first, "de": second})

def test_folders_that_are_no_whole_generator_are_told(encoder, tmp_path):
    with pytest.raises(KitError, match="it is an encoder alone; to write takes an encoder-decoder"):
        generate.load_generator(str(encoder))
    for kind in SHAPES:
        with pytest.raises(KitError, match="Expected an encoder such as BERT"):
            heads.load_encoder(write_generator(tmp_path / kind, kind))
    for file, change, problem in (("config.json", {"vocab_size": 20}, "not be loaded"),
                                  ("config.json", {"num_layers": 3}, "lack . parameters"),
                                  ("tokenizer_config.json", {"pad_token": None}, "no token for .* padding")):
        folder = tmp_path / problem[:4]
        path = folder / file
        write_generator(folder, "mT5")
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(KitError, match=problem):
            generate.load_generator(str(folder))

def test_rouge_l_and_languages_on_real_text():
    folder, oracle, pairs = real("data"), RougeScorer(["rougeL"]), {}   # its own words suit plain English
    for lang in ("en", "de", "fr", "vi", "ar", "hi", "zh"):
        path = data.xnli_file(folder, lang, "train").path
        pairs[lang] = [pair for pair, _ in data.read_xnli(path, lang)][:2000]
    for pair in [pair for pair in pairs["en"][:500] if "".join(pair).isascii()]:
        found = generate.rouge_l(*map(generate.words, pair))
        assert found == pytest.approx(oracle.score(*pair)["rougeL"].fmeasure, abs=1e-12)
    for langs in (("en", "de"), ("en", "fr", "vi"), ("en", "ar", "hi", "zh")):
        tested = generate.Languages({lang: pairs[lang] for lang in langs}).tested
        assert all(right / of > .97 for lang in langs for right, of in tested[lang].values()), tested
