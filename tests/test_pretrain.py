"""Pretraining: text, masking, losses and alignment found in a second way; encoder folders; bad input."""

import json
import os
import random
import re

import numpy as np
import pytest
import torch
from conftest import contents, torchrun
from conftest import reproduce as command
from transformers import AutoTokenizer

import data
import derive
import heads
import pretrain
from pretrain import BEGIN, END, MASK, PAD, Blocks, Pretraining, alignment, hide, parse_preset, to_batch
from results import KitError, Ranks

TINY = "layers=1,heads=2,hidden=16,vocabulary=300,length=12,batch=4,steps=20,warmup=4,lr=.01,blocks=sentences"
PRESET = parse_preset(TINY)
V, BOTH = PRESET.vocabulary, ("transliteration", "inversion")

def make(folder, texts, steps=BOTH, preset=PRESET, align=.5, precision="fp32", kind="scratch"):
    encoder = pretrain.Scratch(str(folder), kind, tuple(texts), steps, align)
    return pretrain.pretrain(encoder, preset, precision, "cpu", Ranks())

def write_text(path, letters):
    rng = random.Random(letters)
    words = ["".join(rng.choices(letters, k=rng.randint(2, 5))) for _ in range(40)]
    path.write_text("\n".join(" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(200)))
    return path

@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "a.txt", "abcdef")

@pytest.fixture(scope="module")
def made(text, tmp_path_factory):
    """(folder of an encoder of 20 steps, what was said of it)."""
    folder = tmp_path_factory.mktemp("made") / "encoder"
    return folder, make(folder, [text])

# ---- bad input --------------------------------------------------------------------------------------------

def test_a_preset_names_what_differs_from_the_paper():
    assert parse_preset("") == pretrain.Preset() and pretrain.Preset()[:3] == (8, 8, 512)
    preset = parse_preset("hidden=64, lr=2e-3,blocks=sentences")
    assert preset == pretrain.Preset(hidden=64, lr=2e-3, blocks="sentences")

@pytest.mark.parametrize("preset, says", [
    ("hiden=64", "'hiden=64'; expected NAME=VALUE .* of layers, heads, hidden"), ("lr=nan", "lr=nan; "),
    ("layers", "layers=; expected int"), ("layers=1,layers=2", "'layers=2'; .* each NAME once"),
    ("layers=two", "layers=two; expected int from 1 to 999"), ("layers=0", "layers=0"), ("layers=1.5", "int"),
    ("dropout=1", "dropout=1; expected float from 0 to 0.9"), ("vocabulary=260", "from 261 to"),
    ("blocks=words", "blocks=words; expected"), ("hidden=10,heads=3", "hidden=10 is no multiple of heads=3"),
    ("steps=9", "warmup=10000 is more than steps=9")])
def test_a_preset_that_makes_no_sense_is_refused(preset, says):
    with pytest.raises(KitError, match=says):
        parse_preset(preset)

@pytest.mark.parametrize("content, preset, says", [
    (b"", TINY, "x.txt is empty"), (b"one line\n\n", TINY, "x.txt has fewer than two lines"),
    (b"a b\nc \xff d\n", TINY, "x.txt, line 2: byte 0xff"),
    (b"a b\nc d\n", TINY, "x.txt make no more than 265 subwords; vocabulary=300 needs more text"),
    (b"a\nb\n", "vocabulary=261,length=50,steps=1,warmup=0", "no block of length=50")])
def test_a_text_of_no_use_is_refused(content, preset, says, tmp_path):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(KitError, match=says):
        make(tmp_path / "e", [tmp_path / "x.txt"], preset=parse_preset(preset))

def test_a_text_has_no_trees_to_be_derived_from(text, tmp_path):
    with pytest.raises(KitError, match="no trees to be derived by transliteration.syntax-hi"):
        make(tmp_path / "e", [text], ("transliteration", "syntax-hi"))
    assert not any(tmp_path.iterdir())

@pytest.mark.parametrize("kind, src, tgt, texts, weights, folders", [
    ("scratch", "en", T := "en.transliteration", ["a.txt"], [0, 5], [f"en-{T}", f"en-{T}-align5"]),
    ("scratch", "en.inversion", "en", ["a.txt"], [0, 5], ["en-en.inversion"]),
    ("scratch", "en", "de", ["x/b.txt", "a.txt", "c.de.txt"], [0], ["b-a-c.de"]),
    ("scratch-random", "en", "de", ["a.txt", "b.txt"], [0], ["a-b-random"]),
    ("scratch-random", "en", T, ["a.txt"], [5], [f"en-{T}-random"]),
    ("scratch-original", "en", T, ["a.txt", "b.txt"], [5], ["en"]),
    ("scratch", "en", "de", ["a.txt", "b.txt"], [0], ["a-b-bart"]),
    ("scratch-random", "en", "de", ["a.txt", "b.txt"], [0], ["a-b-random-bart"]),
    ("scratch-original", "en", "de", ["a.txt", "b.txt"], [0], ["a-bart"])])
def test_the_encoders_of_a_pair(kind, src, tgt, texts, weights, folders):
    made = pretrain.scratch("o", kind, src, tgt, texts, weights, writes=folders[0].endswith("bart"))
    assert [encoder.folder for encoder in made] == [f"o/{name}" for name in folders]
    assert all(encoder.texts == tuple(texts if kind != "scratch-original" else texts[:1]) for encoder in made)

@pytest.mark.parametrize("src, tgt, texts, says", [
    ("en", "de", 1, "must be derived from the other"), ("en", "de.inversion", 1, "must be derived from"),
    ("en.inversion", "de.permutation", 2, "no more than one"), ("en", "en.inversion", 3, "with more none"),
    ("en", "en.inversion", 1, "nothing to align")])
def test_texts_and_languages_that_do_not_go_together_are_refused(src, tgt, texts, says):
    with pytest.raises(KitError, match=says):
        pretrain.scratch("o", "scratch", src, tgt, ["a.txt", "b.txt", "c.txt"][:texts], [5])

# ---- text and batches -------------------------------------------------------------------------------------

def lines_of(folder):
    """The lines of text.ids, each a tuple of subword ids."""
    ids = np.fromfile(folder / "text.ids", np.uint32)
    return [tuple(line.tolist()) for line in np.split(ids, np.flatnonzero(ids == BEGIN)[1:])]

@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("steps", [(), BOTH])
def test_the_derived_half_is_that_of_the_last_text(files, steps, text, tmp_path):
    texts = [text, write_text(tmp_path / "b.txt", "defghi")][:files]
    pretrain.prepare(tmp_path, texts, steps, PRESET, {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (len(tokenizer), tokenizer.model_max_length) == (V, 128)
    plain = [[tuple(tokenizer(line).input_ids) for line in path.read_text().split("\n")] for path in texts]
    turned = [(BEGIN, *(i + V for i in line[-2:0:-1]), END) for line in plain[-1]]
    assert lines_of(tmp_path) == plain[0] + (turned if steps else plain[1] if files > 1 else [])

def test_a_line_may_hold_two_sentences_nothing_or_the_names_of_special_tokens(text, tmp_path):
    (tmp_path / "x.txt").write_text(f"ab cd\tef\na\tb\tc\n<s> <mask></s>\r\n \n{text.read_text()}\n\n")
    pretrain.prepare(tmp_path, [tmp_path / "x.txt"], (), PRESET, {})
    tokenizer, (pair, *found) = AutoTokenizer.from_pretrained(tmp_path), lines_of(tmp_path)
    assert pair == tuple(tokenizer("ab cd", "ef").input_ids) and pair.count(END) == 3
    assert found[0] == tuple(tokenizer("a\tb\tc").input_ids)
    assert len(found) == 202 and all(min(line[1:-1]) > MASK for line in found)

def test_a_tokenizer_is_the_same_in_every_run(text):
    assert len({pretrain.train_tokenizer([text], PRESET).backend_tokenizer.to_str() for _ in range(5)}) == 1

@pytest.mark.parametrize("blocks", ["joined", "sentences"])
def test_steps_draw_all_blocks_of_the_text_and_nothing_else(blocks, text, tmp_path):
    pretrain.prepare(tmp_path, [text], BOTH, PRESET, {})
    lines, seen = lines_of(tmp_path), set()
    flat = [i for line in lines for i in line]
    want = [line[:12] for line in lines]
    if blocks == "joined":
        want = [tuple(flat[i:i + 12]) for i in range(0, len(flat) - 11, 12)]
    drawn = Blocks(tmp_path / "text.ids", PRESET._replace(blocks=blocks, batch=64))
    for step in range(100):
        rows = drawn.draw(torch.Generator().manual_seed(step)).tolist()
        assert len(rows) == 64
        seen |= {tuple(i for i in row if i != PAD) for row in rows}
    assert seen == set(want)

def test_a_step_is_the_same_when_drawn_again_and_in_parts(text, tmp_path):
    pretrain.prepare(tmp_path, [text], BOTH, PRESET, {})
    blocks = Blocks(tmp_path / "text.ids", PRESET)
    (whole,), parts = blocks.batches(7, 1, "cpu"), blocks.batches(7, 3, "cpu")
    for name in ("ids", "labels"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert sum(part.count for part in parts) == whole.count > 0
    assert torch.equal(blocks.batches(7, 1, "cpu")[0].ids, whole.ids)
    assert not torch.equal(blocks.batches(8, 1, "cpu")[0].labels, whole.labels)

def test_selection_and_replacement_are_the_papers():
    ids = torch.randint(5, 2 * V, (1000, 1000), generator=torch.Generator().manual_seed(1))
    ids[:, :5] = torch.arange(5)
    shown, labels = hide(ids, PRESET, torch.Generator().manual_seed(0))
    selected = labels != -100
    assert torch.equal(labels[selected], ids[selected])
    assert not selected[:, :5].any() and torch.equal(shown[~selected], ids[~selected])
    assert abs(selected[:, 5:].float().mean() - .15) < .002
    was, now = ids[selected], shown[selected]
    masked, same = now == MASK, now == was
    assert abs(masked.float().mean() - .8) < .005 and abs(same.float().mean() - .1) < .005
    other = now[~masked & ~same]
    assert other.min() == 5 and other.max() == V - 1 and len(other.unique()) == V - 5   # the original half
    assert abs(other.float().mean() - (V + 4) / 2) < 3                                   # evenly

# ---- losses and alignment ---------------------------------------------------------------------------------

def test_a_span_is_replaced_by_one_mask_and_special_tokens_stay():
    rng, preset = torch.Generator().manual_seed(0), PRESET._replace(selected=.15)
    ids = torch.randint(5, V, (400, 30), generator=rng)
    ids[:, 0], ids[:, -1], ids[::2, 20:] = BEGIN, END, PAD
    ids[::2, 19], lengths = END, []
    shown, labels = pretrain.replace_spans(ids, preset, rng)
    for row, kept in zip(ids.tolist(), shown.tolist(), strict=True):
        row, kept = ([i for i in each if i != PAD] for each in (row, kept))
        assert kept[0] == BEGIN and kept[-1] == END and MASK not in row
        pattern = "".join(".{1,3}" if i == MASK else re.escape(chr(i)) for i in kept)
        assert re.fullmatch(pattern, "".join(map(chr, row)), re.DOTALL)
        lengths += [len(row) - len(kept) + kept.count(MASK)] if kept.count(MASK) == 1 else []
    assert {1, 2, 3} == set(lengths) and .09 < (shown == MASK).sum() / (ids >= 5).sum() < .15
    batch = to_batch(shown, labels, "cpu")
    assert batch.count == (ids != PAD).sum() and torch.equal(batch.labels == -100, ids == PAD)

def test_the_loss_of_rebuilding_is_the_mean_over_the_sentences(text):
    torch.manual_seed(0)
    model = pretrain.Rebuilding(PRESET._replace(dropout=0.)).eval()
    ids = torch.tensor([[BEGIN, 9, 8, 7, END], [BEGIN, 6, END, PAD, PAD]])
    shown = torch.tensor([[BEGIN, MASK, 7, END], [BEGIN, 6, END, PAD]])
    total = 0
    for row, seen in zip(ids, shown, strict=True):
        row, seen = row[row != PAD][None], seen[seen != PAD][None]
        before = torch.cat([torch.tensor([[END]]), row[:, :-1]], 1)
        logits = model.masked(input_ids=seen, decoder_input_ids=before).logits[0]
        total += torch.nn.functional.cross_entropy(logits, row[0], reduction="sum")
    batch = to_batch(shown, ids.masked_fill(ids == PAD, -100), "cpu")
    assert batch.count == 8 and torch.allclose(model.loss(batch), total / 8, atol=1e-5)

def a_batch():
    ids = torch.randint(5, 2 * V, (3, 9), generator=torch.Generator().manual_seed(2))
    ids[1, 6:] = PAD
    hidden = hide(ids, PRESET._replace(selected=.5), torch.Generator().manual_seed(3))
    return ids, to_batch(*hidden, "cpu")

def test_the_loss_is_the_librarys_own():
    model, (ids, batch) = Pretraining(PRESET._replace(init=.5)).eval(), a_batch()   # padding would be felt
    labels = torch.full_like(ids, -100).flatten()
    labels[batch.at] = ids.flatten()[batch.at]
    found = model.masked(input_ids=batch.ids, attention_mask=(ids != PAD).long(), labels=labels.view_as(ids))
    torch.testing.assert_close(model.loss(batch), found.loss)
    assert batch.count == (labels >= 0).sum() and batch.mask[1].tolist() == [True] * 6 + [False] * 3

def test_the_alignment_loss_by_hand():
    rows, (_, batch) = torch.tensor([5, 6]), a_batch()
    plain, aligned = Pretraining(PRESET).eval(), Pretraining(PRESET, 4., rows).eval()
    for model in (plain, aligned):
        with torch.no_grad():
            model.embeddings()[[5, V + 5, 6, V + 6]] = 0
            for at, place, value in ((5, 0, 1.), (V + 5, 0, 2.), (6, 0, 3.), (6, 1, 4.), (V + 6, 1, .5)):
                model.embeddings()[at, place] = value
    torch.testing.assert_close(aligned.loss(batch), plain.loss(batch) - 4 * (1 + .8) / 2)   # cosines 1, 4/5

def test_half_of_the_ordinary_subwords_is_in_the_alignment_loss():
    inside, outside = (half.tolist() for half in pretrain.halves(PRESET))
    assert sorted(inside + outside) == list(range(5, V)) and len(inside) - len(outside) in (0, 1)
    assert 50 < sum(i > V / 2 for i in inside) < 100 and pretrain.halves(PRESET)[0].tolist() == inside
    assert pretrain.halves(PRESET._replace(seed=1))[0].tolist() != inside

def test_alignment_against_brute_force():
    e = torch.randn(80, 3, generator=torch.Generator().manual_seed(1))
    e[40:] += 2 * e[:40]
    e[42] = e[10]                                                    # a special token is nobody's neighbour
    cosine = torch.nn.functional.cosine_similarity(e[:40, None], e[None, 40:], dim=-1)   # (40, 40)

    def brute(rows, scores):
        return 100 * sum(max(range(5, 40), key=lambda j: scores[i][j]) == i for i in rows) / len(rows)

    for rows in (range(5, 40), [7, 10, 33]):
        want = [brute(rows, cosine.tolist()), brute(rows, cosine.T.tolist())]
        assert alignment(e, 40, torch.tensor(rows)) == pytest.approx(want) and 0 < min(want) < max(want)
    assert alignment(e, 40) == alignment(e, 40, torch.arange(5, 40))
    assert alignment(torch.cat([e[:40], 3 * e[:40]]), 40) == [100, 100]

def test_the_loss_falls_and_the_alignment_loss_aligns(text, tmp_path):
    made = make(tmp_path / "e", [text], BOTH[:1], PRESET._replace(steps=300, batch=16, dropout=0.), align=5.)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "e" / "train.jsonl").open()]
    assert losses[-1] < losses[0] - 2
    assert min(made["P@1"]["in the loss"]) > 90 > 30 > max(made["P@1"]["left out"])

# ---- folders ----------------------------------------------------------------------------------------------

def test_an_encoder_folder_is_an_ordinary_one_and_reads_its_derived_language(made):
    folder, about = made
    encoder = heads.load_encoder(str(folder))
    assert encoder.model.config.vocab_size == 2 * V == 2 * len(encoder.tokenizer)
    encoded = data.encode_words([(["ab", "cd"], [(1,), (2,)])], encoder.tokenizer, "dev", "x")
    found = derive.derive(encoded, BOTH, encoder.tokenizer, encoder.model.config.vocab_size, data.UPOS)
    ids = found.to("cpu").batch(np.array([0])).ids
    assert ids.max() >= V and encoder.model(input_ids=ids).last_hidden_state.isfinite().all()
    longest = torch.full((1, data.MAX_SUBWORDS), V)
    assert encoder.model(input_ids=longest).last_hidden_state.shape == (1, 128, 16)
    assert about == json.loads((folder / "pretraining.json").read_text())
    assert set(about["P@1"]) == {"in the loss", "left out"} and min(about["rows in the loss"]) >= 5
    os.umask(umask := os.umask(0))
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}
    assert [path.name for path in folder.parent.iterdir()] == ["encoder"]
    assert not {"text.ids", "state.safetensors"} & {path.name for path in folder.iterdir()}

def test_the_controls_are_encoders_too_and_taken_again(text, tmp_path):
    short, weights = PRESET._replace(steps=4), {}
    for kind, number in (("scratch-original", 1), ("scratch-random", 2), ("scratch", 2)):
        texts = [text] * number
        made = make(tmp_path / kind, texts, (), short, 0., kind=kind)
        assert make(tmp_path / kind, texts, (), short, 0., kind=kind) == made and "P@1" not in made
        weights[kind] = heads.load_encoder(str(tmp_path / kind)).model.state_dict()
        assert pretrain.about(tmp_path / kind)["pretraining"] == kind
    untrained = Pretraining(short).masked.roberta.state_dict()
    same = {kind: all(torch.equal(untrained[name], found[name]) for name in untrained if "pooler" not in name)
            for kind, found in weights.items()}
    assert same == {"scratch-original": False, "scratch-random": True, "scratch": False}

def test_a_finished_encoder_is_taken_as_it_is_or_refused(made, text, tmp_path):
    folder, about = made
    before, other = (folder / "model.safetensors").stat(), tmp_path / "other"
    assert make(folder, [text]) == about and (folder / "model.safetensors").stat() == before
    for change in (dict(preset=PRESET._replace(lr=.1)), dict(align=1.), dict(steps=BOTH[:1]),
                   dict(precision="bf16"), dict(texts=[write_text(tmp_path / "b.txt", "xyz")])):
        with pytest.raises(KitError, match="was made with .*, this run asks for"):
            make(folder, **dict(texts=[text]) | change)
    other.mkdir()
    with pytest.raises(KitError, match="other is there, but no encoder of this kit .*: move it away"):
        make(other, [text])
    (other / "pretraining.json").write_text(json.dumps(about))
    (other / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(KitError, match="was made with weights"):
        make(other, [text])

def test_an_unfinished_encoder_goes_on_only_as_it_was_begun(text, tmp_path, monkeypatch):
    with monkeypatch.context() as m, pytest.raises(ZeroDivisionError):
        m.setattr(Blocks, "batches", lambda *args, **kwargs: 1 / 0)
        make(tmp_path / "e", [text])
    with pytest.raises(KitError, match="e.part/pretraining.json was made with lr 0.01, this run asks for"):
        make(tmp_path / "e", [text], preset=PRESET._replace(lr=.1))
    monkeypatch.setattr(pretrain, "train_tokenizer", None)   # nor is the text read a second time
    assert make(tmp_path / "e", [text])["lr"] == .01

def test_the_command_pretrains_what_a_pair_needs_and_two_processes_give_the_files_of_one(corpus, tmp_path):
    examples = data.read_pos(data.ud_file(corpus, "en", "train").path, "en")
    (tmp_path / "en.txt").write_text("".join(f"{' '.join(words)}\n" for words, _ in examples))
    preset = "layers=1,heads=2,hidden=16,vocabulary=270,blocks=sentences,length=32,batch=4,steps=6,warmup=2"
    flags = ["--task", "pos", "--src", "en", "--tgt", "en.inversion", "en.transliteration", "--lines-only",
             "--encoder", "scratch", "--align", "0", "5", "--text", tmp_path / "en.txt", "--seeds", "1",
             "--pretraining", preset, "--epochs", "1", "--lr", "1e-2", "--data", corpus, "--device", "cpu"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone, both = command(*flags, "--out", one), torchrun(*flags, "--out", two)
    assert alone.returncode == 0, alone.stderr
    assert both.communicate() and both.returncode == 0
    assert contents(one) == contents(two)
    names = {"en-en.inversion", "en-en.transliteration", "en-en.transliteration-align5"}
    assert {path.parent.name for path in one.glob("encoders/*/model.safetensors")} == names
    [grid] = one.glob("grids/**/*align5/*/seed1.jsonl")
    header = json.loads(grid.read_text().split("\n")[0])
    assert header["align"] == 5 and set(header["alignment"]) == {"in the loss", "left out"}
    again = command(*flags, "--out", one, "--dry-run")
    assert "9 of 9 distinct models done" in again.stdout and "to pretrain" not in again.stdout
