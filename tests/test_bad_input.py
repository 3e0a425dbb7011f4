"""Bad input: each mistake is answered by one sentence that names place, value and remedy, by exit code 2 and
by nothing kept. Corrupted files end in such a sentence or are read as another, simpler reader reads them."""

import json
import random
import re
import shutil
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import reproduce as command
from conftest import write_encoder
from safetensors.torch import load_file, save_file
from test_files import corrupt

import heads
import plot
import reproduce

TREES = "ud/UD_English-EWT/en_ewt-ud-train.conllu"
FILE = {"pos": TREES, "parsing": TREES, "ner": "panx/en/train",
        "xnli": "xnli/XNLI-MT-1.0/multinli/multinli.train.en.tsv"}


class Kit:
    """A tiny run in this process: its folders, and what it said."""

    def __init__(self, encoder, corpus, folder, capsys):
        self.encoder, self.folder, self.capsys = encoder, folder, capsys
        self.data, self.out = shutil.copytree(corpus, folder / "data"), folder / "out"

    def run(self, *flags, task="pos", src="en", tgt="de", **options):
        """The exit code; what was printed is in said (stdout) and error (stderr)."""
        options = dict(encoder=self.encoder, data=self.data, out=self.out, seeds=1, epochs=1, batch_size=8,
                       lr=1e-3, device="cpu") | options
        argv = ["--task", task, "--src", src, "--tgt", tgt, "--lines-only"]
        for name, value in options.items():
            argv += [f"--{name.replace('_', '-')}", str(value)]
        try:
            code = reproduce.answer(reproduce.parse_arguments([*argv, *flags]))
        except SystemExit as stop:   # argparse
            code = stop.code
        self.said, self.error = self.capsys.readouterr()
        return code

    def refuses(self, *words, flags=(), nothing=True, **options):
        """The run ends with code 2 and one sentence that holds all words; nothing is written under OUT."""
        assert self.run(*flags, **options) == 2
        assert self.error.startswith("reproduce.py: ") and self.error.count("\n") == 1, self.error
        for word in map(str, words):
            assert word in self.error, f"{word!r} is not in {self.error!r}"
        if nothing:
            assert not self.out.exists()

    def edit(self, name, change):
        path = self.data / name
        path.write_bytes(change(path.read_bytes()))
        return path


@pytest.fixture
def kit(encoder, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plot, "draw_figure", lambda *_: None)   # figures are slow, and others test them
    return Kit(encoder, corpus, tmp_path, capsys)


@pytest.fixture(scope="session")
def finished(encoder, corpus, tmp_path_factory):
    """OUT of a finished tiny run."""
    args = reproduce.parse_arguments([
        "--task", "pos", "--src", "en", "--tgt", "de", "--lines-only", "--encoder", str(encoder), "--data",
        str(corpus), "--out", str(tmp_path_factory.mktemp("done") / "out"), "--seeds", "1", "--epochs", "1",
        "--batch-size", "8", "--lr", "1e-3", "--device", "cpu"])
    draw, plot.draw_figure = plot.draw_figure, lambda *_: None
    try:
        assert reproduce.answer(args) == 0
    finally:
        plot.draw_figure = draw
    return Path(args.out)


@pytest.fixture
def again(kit, finished):
    """A kit whose OUT is a copy of a finished run, and the paths of its model, state and grid files."""
    shutil.copytree(finished, kit.out)
    kit.model = next(kit.out.glob("models/pos/*/en/seed1/model.safetensors"))
    kit.grid = next(kit.out.glob("grids/pos/*/en-de/seed1.jsonl"))
    return kit


# ---- flags -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, words", [
    (["--src", "en", "--tgt", "en"], ["--src", "--tgt", "en", "two languages"]),
    (["--limit", "0"], ["--limit", "'0'", "at least 1"]),
    (["--limit", "1.5"], ["--limit", "'1.5'"]),
    (["--seeds", "1", "-1"], ["--seeds", "'-1'", "at least 0"]),
    (["--seeds", "9" * 40], ["--seeds", "999"]),
    (["--seeds", "one"], ["--seeds", "'one'"]),
    (["--epochs", "0"], ["--epochs", "'0'", "at least 1"]),
    (["--batch-size", "-3"], ["--batch-size", "'-3'"]),
    (["--lr", "nan"], ["--lr", "'nan'"]),
    (["--lr", "inf"], ["--lr", "'inf'"]),
    (["--lr", "0"], ["--lr", "'0'"]),
    (["--task", "chunking"], ["--task", "chunking", "xnli"]),
    (["--src", "tlh"], ["tlh", "one of ar, de, en"]),
    (["--tgt", "de", "EN"], ["EN", "lower case"]),
    (["--part", "tail"], ["--part", "tail", "encoder"]),
    (["--precision", "fp8"], ["--precision", "fp8", "bf16"]),
    (["--demo"], ["--demo", "--src"]),
    (["--device", "abacus"], ["--device abacus", "cpu"]),
    (["--device", "meta"], ["--device meta", "cpu"]),
    (["--device", "mps"], ["--device mps", "cpu"]),
    (["--task", "pos,ner"], ["'pos,ner'", "by spaces"]),
])
def test_flags_that_make_no_sense(kit, flags, words):
    kit.refuses(*words, flags=flags)


def test_a_missing_flag_is_named(capsys):
    with pytest.raises(SystemExit):
        reproduce.parse_arguments([])
    assert "Run first: python reproduce.py --demo" in capsys.readouterr().err
    for argv, word in ((["--src", "en"], "--task"), (["--task", "pos"], "--src"),
                       (["--task", "pos", "--src", "en"], "--tgt")):
        with pytest.raises(SystemExit) as stop:
            reproduce.parse_arguments(argv)
        assert stop.value.code == 2 and f"{word} is missing" in capsys.readouterr().err


def test_cuda_asked_for_and_absent(kit):
    for name in ("cuda", "cuda:1"):
        kit.refuses(f"--device {name}", "cannot be used", "cpu", device=name)


@pytest.mark.parametrize("encoder, limit, words", [("mbert", "0", ["--limit", "'0'"]),
                                                   ("no/such", "1", ["'no/such'"])])
def test_the_command_itself_answers_with_a_sentence_and_code_2(encoder, limit, words, corpus, tmp_path):
    done = command("--task", "pos", "--src", "en", "--tgt", "de", "--limit", limit, "--encoder", encoder,
                   "--device", "cpu", "--data", corpus, "--out", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    assert all(word in done.stderr.strip().split("\n")[-1] for word in words)


# ---- data files: test_files.py has the mistakes themselves ------------------------------------------------

@pytest.mark.parametrize("task, change, words", [
    ("pos", lambda c: c.replace(b"\t_\n", b"\n", 1), ["line 2", "9 columns"]),
    ("parsing", lambda c: c.replace(b"\t0\troot", b"\t99\troot", 1), ["out of range"]),
    ("ner", lambda c: c.replace(b"\tO\n", b"\tB-MISC\n", 1), ["tag 'B-MISC'"]),
    ("xnli", lambda c: c.replace(b"\tneutral", b"\tmaybe", 1), ["label 'maybe'"]),
    ("pos", lambda _: b"", ["empty"])])
def test_a_mistake_in_a_data_file_ends_the_command_before_anything_is_written(kit, task, change, words):
    kit.refuses(kit.edit(FILE[task], change), *words, task=task)
    assert re.search(r"[Cc]orrect|[Dd]elete", kit.error), kit.error


def test_files_that_are_missing_are_all_named_before_anything_is_written(kit, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("Temporary failure in name resolution")

    shutil.rmtree(kit.data)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    kit.refuses("https://", "en_ewt-ud-train.conllu", "de_gsd-ud-dev.conllu", str(kit.data), "--demo")


def test_corrupted_files_never_end_the_command_with_a_traceback(kit, monkeypatch):
    monkeypatch.setattr(reproduce, "evaluate", lambda *_: None)
    monkeypatch.setattr(plot, "load", lambda _: [])
    monkeypatch.setattr(plot, "report", lambda *_: "")
    codes, good = [], {task: (kit.data / FILE[task]).read_bytes() for task in FILE}
    for seed in range(24):
        rng = random.Random(f"command {seed}")
        task = rng.choice(("pos", "ner", "xnli"))
        kit.edit(FILE[task], lambda _, of=good[task], rng=rng: corrupt(of, rng))
        codes.append(kit.run(task=task, out=kit.folder / f"out{seed}", src="en", tgt="de"))
        assert codes[-1] in (0, 2) and "Traceback" not in kit.error
        assert codes[-1] == 0 or not (kit.folder / f"out{seed}").exists()
        kit.edit(FILE[task], lambda _, of=good[task]: of)
    assert set(codes) == {0, 2}


# ---- encoders --------------------------------------------------------------------------------------------

@pytest.fixture
def spoilt(encoder, tmp_path):
    """A copy of the tiny encoder to spoil."""
    return shutil.copytree(encoder, tmp_path / "encoder")


@pytest.mark.parametrize("name, words", [
    ("config.json", ["config.json"]), ("model.safetensors", ["safetensors"]),
    ("tokenizer_config.json", ["tokenizer"]),
    ("vocab.txt", ["tokenizer|vocab"])])
def test_an_encoder_folder_without_one_of_its_files(kit, spoilt, name, words):
    (spoilt / name).unlink()
    kit.refuses(spoilt, encoder=spoilt)
    assert all(re.search(word, kit.error) for word in words), kit.error


def rewrite(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def halve(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [
    lambda f: halve(f / "model.safetensors"),
    lambda f: (f / "model.safetensors").write_bytes(b""),
    lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n"),
    lambda f: halve(f / "config.json"),
    lambda f: (f / "config.json").write_text("{}"),
    lambda f: rewrite(f, model_type="no-such-model"),
    lambda f: rewrite(f, model_type="distilbert"),
    lambda f: rewrite(f, hidden_size=32),
    lambda f: rewrite(f, num_hidden_layers=2),
    lambda f: rewrite(f, vocab_size=7),
    lambda f: (f / "tokenizer_config.json").write_text("{"),
    lambda f: (f / "vocab.txt").write_bytes(b"\xff\xfe\xff"),
    lambda f: (f / "vocab.txt").write_text((f / "vocab.txt").read_text() + "more\nwords\n"),
    lambda f: (f / "vocab.txt").write_text("a\nb\n"),
    lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}'),
    lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}'),
    lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}'),
    lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}'),
])
def test_an_encoder_folder_that_is_spoilt(kit, spoilt, spoil):
    spoil(spoilt)
    gpt2 = "GPT2" in (spoilt / "tokenizer_config.json").read_text()
    kit.refuses("tokenizer" if gpt2 else spoilt, encoder=spoilt)


@pytest.mark.parametrize("name", ["no-such-encoder-at-all", "nobody/no-such-one", "no/such/folder", "mbert"])
def test_an_encoder_that_is_not_here_while_offline(kit, name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    kit.refuses(repr(name), "mbert", "local folder", encoder=name)


def save_model(folder, model):
    """The encoder folder with another model and the tiny tokenizer."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    model.save_pretrained(folder)
    return folder


SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


def distilbert():
    from transformers import DistilBertConfig, DistilBertModel
    return DistilBertModel(DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=32,
                                            max_position_embeddings=128))


def roberta():
    from transformers import RobertaConfig, RobertaModel
    return RobertaModel(RobertaConfig(vocab_size=30, max_position_embeddings=130, **SMALL))


@pytest.mark.parametrize("make", [distilbert, roberta])
def test_encoders_of_other_architectures_are_used_if_they_give_last_hidden_state(kit, spoilt, make):
    assert kit.run(encoder=save_model(spoilt, make())) == 0


def t5():
    from transformers import T5Config, T5Model
    return T5Model(T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def clip():
    from transformers import CLIPConfig, CLIPModel
    return CLIPModel(CLIPConfig(text_config=dict(vocab_size=30, **SMALL),
                                vision_config=dict(image_size=32, patch_size=16, **SMALL)))


def vit():
    from transformers import ViTConfig, ViTModel
    return ViTModel(ViTConfig(image_size=32, **SMALL))


@pytest.mark.parametrize("make", [t5, clip, vit])
def test_models_that_give_no_last_hidden_state_from_ids_alone(kit, spoilt, make):
    kit.refuses(spoilt, "last_hidden_state", encoder=save_model(spoilt, make()))


def test_a_tokenizer_without_a_fast_backend(kit, spoilt):
    from transformers import CanineConfig, CanineModel
    save_model(spoilt, CanineModel(CanineConfig(num_hash_buckets=64, max_position_embeddings=512, **SMALL)))
    (spoilt / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    kit.refuses(spoilt, "CanineTokenizer", encoder=spoilt)


def test_an_encoder_with_too_few_positions_for_a_window(kit, tmp_path):
    kit.refuses("position", encoder=write_encoder(tmp_path / "short", max_position_embeddings=16))


def test_nothing_is_fetched_where_all_is_there(kit, monkeypatch, spoilt):
    calls = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", lambda *call: calls.append(call))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *call, **_: calls.append(call) or [])
    assert kit.run(encoder=spoilt) == 0 and calls == []


def test_no_code_of_an_encoder_folder_is_run(kit, spoilt):
    ran = kit.folder / "ran"
    (spoilt / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    for settings in (dict(model_type="bert"), dict(model_type="evil")):
        kinds = ("AutoConfig", "AutoModel", "AutoTokenizer")
        rewrite(spoilt, auto_map=dict.fromkeys(kinds, "evil.Evil"), **settings)
        assert kit.run(encoder=spoilt, out=kit.folder / settings["model_type"]) in (0, 2)
        heads.load_encoder.cache_clear()
    assert not ran.exists() and kit.run(encoder=spoilt) == 2


# ---- while it runs ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_that_model_alone_and_keeps_nothing_of_it(kit, monkeypatch, value):
    calls, loss = [], heads.Linear.loss

    def soon_lost(self, h, batch):
        calls.append(1)
        return loss(self, h, batch) * (value if len(calls) == 23 else 1)

    monkeypatch.setattr(heads.Linear, "loss", soon_lost)
    assert kit.run(epochs=2) == 3 and f"the loss became {value}" in kit.said and "--lr" in kit.said
    kept = {str(p.parent.relative_to(kit.out)) for p in kit.out.rglob("model.safetensors")}
    assert kept == {"models/pos/encoder/de-en/seed1", "models/pos/encoder/de/seed1"}
    monkeypatch.setattr(heads.Linear, "loss", loss)
    assert kit.run(epochs=2) == 0 and "already trained" in kit.said and "continued" not in kit.said


def test_a_learning_rate_far_too_high_ends_in_a_sentence_or_a_result(kit):
    assert kit.run(lr=1e11) in (0, 3) and "Traceback" not in kit.error
    assert kit.run(lr=1e-12, out=kit.folder / "small") in (0, 2) and "Traceback" not in kit.error


# ---- result files ----------------------------------------------------------------------------------------

def about(path, change):
    """Rewrite the settings that a model file carries."""
    meta, _ = reproduce.results.load_tensors(path, tensors=False)
    change(meta)
    save_file(load_file(path), path, {"about": json.dumps(meta)})


@pytest.mark.parametrize("options, words", [
    (dict(lr=2e-3), ["lr 0.001", "0.002"]), (dict(epochs=2), ["epochs 1", "2"]),
    (dict(batch_size=4), ["batch_size 8", "4"]),
    (dict(limit=20), ["limit None", "20"]), (dict(precision="bf16"), ["precision fp32", "bf16"])])
def test_results_made_with_other_settings_are_refused_by_name(again, options, words):
    before = snapshot(again.out)
    again.refuses("model.safetensors", *words, "--out", nothing=False, **options)
    assert snapshot(again.out) == before


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results_of_another_version_are_refused(again):
    about(again.model, lambda meta: meta["config"].update(format=0))
    again.refuses(again.model, "format 0", "asks for 2", nothing=False)


def test_a_grid_of_another_version_is_refused(again):
    header, rest = again.grid.read_text().split("\n", 1)
    again.grid.write_text(json.dumps(json.loads(header) | {"format": 3}) + "\n" + rest)
    again.refuses(again.grid, "format 3", "asks for 2", nothing=False)


def test_results_of_another_encoder_or_corpus_are_refused(again, tmp_path):
    other = write_encoder(tmp_path / "other" / "encoder", hidden_size=32)
    again.refuses("encoder_digest", "--out", encoder=other, nothing=False)
    again.edit(FILE["pos"], lambda c: c + c)
    again.refuses("data", "--out", nothing=False)


@pytest.mark.parametrize("spoil", [lambda c: c[:len(c) // 2], lambda c: b"", lambda c: c[:4],
                                   lambda c: b"x" * len(c), lambda c: c.replace(b'"about"', b'"aboot"')])
def test_a_torn_model_file(again, spoil):
    again.model.write_bytes(spoil(again.model.read_bytes()))
    again.refuses(again.model, "Delete", nothing=False)
    again.model.unlink()
    before = again.grid.read_bytes()
    assert again.run() == 0 and again.grid.read_bytes() == before   # made again, the same


def test_a_model_file_with_a_flipped_bit_is_not_interpolated(again):
    content = bytearray(again.model.read_bytes())
    content[-50] ^= 4
    again.model.write_bytes(content)
    again.grid.unlink()
    again.refuses(again.model, "delete", nothing=False)


def test_a_damaged_line_of_a_grid(again):
    rows = again.grid.read_bytes().split(b"\n")
    for row in (b'{"a1": 1.0, "a2"', b"5", b'{"a1": 1.0}', b"\xff", b"[]"):
        for i in (0, 7):
            again.grid.write_bytes(b"\n".join([*rows[:i], row, *rows[i + 1:]]))
            for flags in ([], ["--dry-run"]):
                again.refuses(again.grid, nothing=False, flags=flags)
                assert re.search("[Dd]elete|move it away|restore", again.error)


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 400), marks=pytest.mark.slow)])
def test_corrupted_result_files_never_end_in_a_traceback(again, seeds):
    good, codes = snapshot(again.out), []
    paths = sorted(path for path in good if path.suffix in (".safetensors", ".jsonl"))
    for seed in seeds:
        rng = random.Random(f"results {seed}")
        path = rng.choice(paths)
        spoilt = bytearray(good[path])
        head = 1500 if rng.random() < .8 else len(spoilt)   # the settings and names stand at the beginning
        for _ in range(rng.choice((1, 3))):
            spoilt[rng.randrange(min(head, len(spoilt)))] ^= 1 << rng.randrange(8)
        if rng.random() < .3:
            spoilt = spoilt[:rng.randrange(len(spoilt))]
        path.write_bytes(spoilt)
        if rng.random() < .5:
            again.grid.unlink()   # the models are read in full
        codes.append(again.run())
        assert codes[-1] in (0, 2) and "Traceback" not in again.error, seed
        for path, content in good.items():
            path.write_bytes(content)
    assert set(codes) == {0, 2}
