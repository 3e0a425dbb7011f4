"""Bad input: each mistake is answered by one sentence that names place, value and remedy, by exit code 2 and
by nothing kept. Corrupted files end in such a sentence or are read as another, simpler reader reads them."""

import errno
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from unittest.mock import Mock

import pytest
import safetensors.torch
import transformers
from conftest import KIT, contents, write_encoder
from test_files import corrupt

import data
import grids
import heads
import plot
import reproduce
import results

TREES = "ud/UD_English-EWT/en_ewt-ud-train.conllu"
FILE = {"pos": TREES, "parsing": TREES, "ner": "panx/en/train",
        "xnli": "xnli/XNLI-MT-1.0/multinli/multinli.train.en.tsv"}
TINY = dict(task="pos", src="en", tgt="de", seeds=1, epochs=1, batch_size=8, lr=1e-3, device="cpu", limit=8)
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer_config.json"
SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)

class Kit:
    """A tiny run in this process: its folders, and what it said."""

    def __init__(self, encoder, corpus, folder, capsys):
        self.encoder, self.folder, self.capsys = encoder, folder, capsys
        self.data, self.out = shutil.copytree(corpus, folder / "data"), folder / "out"

    def run(self, *flags, **options):
        """The exit code; what was printed is in said (stdout) and error (stderr)."""
        options = TINY | dict(encoder=self.encoder, data=self.data, out=self.out) | options
        for name, value in options.items():
            flags = f"--{name.replace('_', '-')}", str(value), *flags
        try:
            code = reproduce.answer(reproduce.parse_arguments(["--lines-only", *flags]))
        except SystemExit as stop:   # argparse
            code = stop.code
        self.said, self.error = self.capsys.readouterr()
        assert "Traceback" not in self.error
        return code

    def refuses(self, words, *flags, **options):
        """The run ends with code 2 and a sentence that holds all words (between |); OUT stays as it is."""
        before = self.out.exists(), files(self.out)
        assert self.run(*flags, **options) == 2
        assert self.error.startswith("reproduce.py: ") and self.error.count("\n") == 1, self.error
        for word in words.split("|"):
            assert word in self.error, f"{word!r} is not in {self.error!r}"
        assert (self.out.exists(), files(self.out)) == before

def files(folder):
    """{path: content} of all files but empty ones."""
    return {folder / name: content for name, content in contents(folder, but="").items() if content}

def edit(path, change):
    """Change the bytes of a file; None: it is gone."""
    content = change(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)

def put(**settings):
    """A change of a JSON file."""
    return lambda content: json.dumps(json.loads(content) | settings).encode()

def half(content):
    return content[:len(content) // 2]

@pytest.fixture
def kit(encoder, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plot, "draw_figure", lambda *_: None)   # figures are slow, and others test them
    return Kit(encoder, corpus, tmp_path, capsys)

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder that awaits the files of a finished run."""
    return tmp_path_factory.mktemp("finished") / "out"

@pytest.fixture
def again(kit, finished):
    """A kit whose OUT holds a finished run, and the paths of a model and of the grid."""
    if not finished.exists():
        assert kit.run(out=finished) == 0 and "Look first at" in kit.said and "fig2-lines" not in kit.said
    shutil.copytree(finished, kit.out)
    kit.model = next(kit.out.glob("models/pos/*/en/seed1/model.safetensors"))
    kit.grid = next(kit.out.glob("grids/pos/*/en-de/seed1.jsonl"))
    return kit

# ---- flags ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, words", [
    ("--src en --tgt en", "--src|--tgt|en|two languages"), ("--limit 0", "--limit|'0'|at least 1"),
    ("--limit 1.5", "--limit|'1.5'"), ("--limit 1 2 3", "--limit|one number, or two"),
    ("--seeds 1 -1", "--seeds|'-1'|at least 0"),
    ("--seeds " + "9" * 40, "--seeds|999"), ("--seeds one", "--seeds|'one'"),
    ("--epochs 0", "--epochs|'0'|at least 1"), ("--batch-size -3", "--batch-size|'-3'"),
    ("--lr nan", "--lr|'nan'"), ("--lr inf", "--lr|'inf'"), ("--lr 0", "--lr|'0'"),
    ("--task chunking", "--task|chunking|xnli"), ("--task pos,ner", "'pos,ner'|by spaces"),
    ("--src en+en", "--src en+en|twice"), ("--align 5", "--align|--encoder scratch"),
    ("--tgt en.inversion --parallel", "en.inversion|--parallel"),
    ("--text en.txt", "--text|--encoder scratch"), ("--encoder scratch", "--encoder scratch|--text"),
    ("--src tlh", "tlh|one of ar, de, en"), ("--tgt de EN", "EN|lower case"),
    ("--part tail", "--part|tail|encoder"), ("--precision fp8", "--precision|fp8|bf16"),
    ("--tgt en.turned", "no transformation 'turned'"),
    ("--encoder scratch --text x", "--text|derived"),
    ("--encoder scratch --text x --tgt en.inversion", "No such file|x"),
    ("--encoder scratch --text x --tgt en.inversion --align 5", "nothing to align"),
    ("--task title --part head", "title has encoder and decoder"), ("--select best", "invalid choice"),
    ("--part decoder", "pos has encoder and head"), ("--select xlrs", "--select xlrs needs --parallel"),
    ("--src en+xx", "'xx' is no language"), ("--src en+de", "a pair needs two"),
    ("--task title --tgt de.inversion", "languages that are not derived"),
    ("--parallel --visit with-en.inversion", "en.inversion|not derived"),
    ("--demo generation --parallel x", "--demo|--src|--parallel"), ("--device abacus", "--device abacus|cpu"),
    ("--device meta", "--device meta|cpu"), ("--device mps", "--device mps|cpu"),
    ("--device cuda:99", "--device cuda:99|cannot be used|cpu")])
def test_flags_that_make_no_sense(kit, flags, words):
    kit.refuses(words, *flags.split())

def test_a_system_without_file_locks_is_told_in_a_sentence():
    command = "import sys, runpy; sys.modules['fcntl'] = None; runpy.run_path('reproduce.py')"
    done = subprocess.run([sys.executable, "-c", command], cwd=KIT, capture_output=True, text=True)
    assert done.returncode and "WSL" in done.stderr and "Traceback" not in done.stderr

@pytest.mark.parametrize("flags, said", [
    ("generation --align 5", "--align: an encoder-decoder"),
    ("languages --pretraining layer=2", "'layer=2'")])
def test_a_wrong_setting_of_a_demo_is_told_before_anything_is_written(tmp_path, capsys, flags, said):
    args = reproduce.parse_arguments(["--demo", *flags.split(), "--out", str(tmp_path / "out")])
    assert reproduce.answer(args) == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

@pytest.mark.parametrize("flags, said", [
    ("", "Run first: python reproduce.py --demo"), ("--src en", "--task is missing"),
    ("--task pos", "--src is missing"), ("--task pos --src en", "--tgt is missing")])
def test_a_missing_flag_is_named(capsys, flags, said):
    with pytest.raises(SystemExit) as stop:
        reproduce.parse_arguments(flags.split())
    assert stop.value.code == 2 and said in capsys.readouterr().err

# ---- data files: test_files.py has the mistakes themselves ------------------------------------------------

@pytest.mark.parametrize("task, change, words", [
    ("pos", lambda c: c.replace(b"\t_\n", b"\n", 1), "line 2|9 columns"), ("pos", lambda _: b"", "empty"),
    ("parsing", lambda c: c.replace(b"\t0\troot", b"\t99\troot", 1), "out of range"),
    ("ner", lambda c: c.replace(b"\tO\n", b"\tB-MISC\n", 1), "tag 'B-MISC'"),
    ("xnli", lambda c: c.replace(b"\tneutral", b"\tmaybe", 1), "label 'maybe'")])
def test_a_mistake_in_a_data_file_ends_the_command_before_anything_is_written(kit, task, change, words):
    edit(kit.data / FILE[task], change)
    kit.refuses(f"{kit.data / FILE[task]}|{words}", task=task)
    assert re.search(r"[Cc]orrect|[Dd]elete", kit.error), kit.error

def test_files_that_are_missing_are_all_named_before_anything_is_written(kit, monkeypatch):
    shutil.rmtree(kit.data)
    monkeypatch.setattr(urllib.request, "urlopen", Mock(side_effect=urllib.error.URLError("no network")))
    kit.refuses(f"https://|en_ewt-ud-train.conllu|de_gsd-ud-dev.conllu|{kit.data}|--demo")

def test_corrupted_files_end_the_command_in_a_sentence_or_a_result(kit, monkeypatch):
    monkeypatch.setattr(reproduce, "evaluate", lambda *_: None)
    monkeypatch.setattr(grids, "load", lambda _: [])
    monkeypatch.setattr(plot, "report", lambda *_: "")
    codes, good = [], {task: (kit.data / FILE[task]).read_bytes() for task in FILE}
    for seed in range(24):
        rng, out = random.Random(f"command {seed}"), kit.folder / f"out{seed}"
        task = rng.choice(("pos", "ner", "xnli"))
        (kit.data / FILE[task]).write_bytes(corrupt(good[task], rng))
        codes.append(kit.run(task=task, out=out))
        assert codes[-1] == 0 or codes[-1] == 2 and not out.exists()
        (kit.data / FILE[task]).write_bytes(good[task])
    assert set(codes) == {0, 2}

# ---- encoders ---------------------------------------------------------------------------------------------

@pytest.fixture
def spoilt(encoder, tmp_path):
    """A copy of the tiny encoder to spoil."""
    return shutil.copytree(encoder, tmp_path / "encoder")

@pytest.mark.parametrize("name, change, words", [
    (CONFIG, lambda _: None, "config.json"), (WEIGHTS, lambda _: None, "safetensors"),
    (TOKENIZER, lambda _: None, "tokenizer"), ("vocab.txt", lambda _: None, "vocab"),
    (CONFIG, half, ""), (CONFIG, lambda _: b"{}", ""), (CONFIG, put(model_type="no-such-model"), ""),
    (CONFIG, put(model_type="distilbert"), ""), (CONFIG, put(hidden_size=32), ""),
    (CONFIG, put(num_hidden_layers=2), ""), (CONFIG, put(vocab_size=7), ""), (WEIGHTS, half, ""),
    (WEIGHTS, lambda _: b"", ""), (WEIGHTS, lambda _: b"version https://git-lfs.github.com/spec/v1\n", ""),
    ("vocab.txt", lambda _: b"\xff\xfe\xff", ""), ("vocab.txt", lambda c: c + b"more\nwords\n", ""),
    ("vocab.txt", lambda _: b"a\nb\n", ""), (TOKENIZER, lambda _: b"{", ""),
    (TOKENIZER, put(tokenizer_class="CanineTokenizer"), ""), (TOKENIZER, put(tokenizer_class="Ours"), ""),
    (TOKENIZER, put(tokenizer_class="ByT5Tokenizer"), ""),
    (TOKENIZER, put(tokenizer_class="GPT2Tokenizer"), "tokenizer")])
def test_an_encoder_folder_that_is_spoilt(kit, spoilt, name, change, words):
    edit(spoilt / name, change)
    kit.refuses(words or str(spoilt), encoder=spoilt)

@pytest.mark.parametrize("name", ["no-such-encoder-at-all", "nobody/no-such-one", "no/such/folder", "mbert"])
def test_an_encoder_that_is_not_here_while_offline(kit, name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    kit.refuses(f"{name!r}|mbert|local folder", encoder=name)

@pytest.mark.parametrize("kind, settings, words", [
    ("DistilBert", dict(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=32), ""),
    ("Roberta", dict(vocab_size=30, max_position_embeddings=130, **SMALL), ""),
    ("T5", dict(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2), "last_hidden"),
    ("Bart", dict(vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1), "last_hidden"),
    ("GPT2", dict(vocab_size=30, n_embd=24, n_layer=1), "from left to right"),
    ("CLIP", dict(text_config=dict(vocab_size=30, **SMALL),
                  vision_config=dict(image_size=32, patch_size=16, **SMALL)), "last_hidden"),
    ("ViT", dict(image_size=32, **SMALL), "last_hidden"),
    ("Canine", dict(num_hash_buckets=64, max_position_embeddings=512, **SMALL), "CanineTokenizer")])
def test_other_architectures_are_used_if_they_can_be(kit, spoilt, kind, settings, words):
    config, model = (getattr(transformers, kind + part) for part in ("Config", "Model"))
    model(config(**settings)).save_pretrained(spoilt)
    if kind == "Canine":   # its tokenizer has no fast backend
        edit(spoilt / TOKENIZER, put(tokenizer_class="CanineTokenizer"))
    if words:
        kit.refuses(f"{spoilt}|{words}", encoder=spoilt)
    else:
        assert kit.run(encoder=spoilt) == 0

@pytest.mark.parametrize("name", ["embeddings.LayerNorm.bias", "encoder.layer.0.output.dense.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_an_encoder_whose_weights_are_not_finite(kit, spoilt, name, value):
    tensors = safetensors.torch.load_file(spoilt / WEIGHTS)
    tensors[name].view(-1)[3] = value
    safetensors.torch.save_file(tensors, spoilt / WEIGHTS, {"format": "pt"})
    kit.refuses(f"{spoilt}|{name} holds NaN or infinity", encoder=spoilt)
    assert "--lr" not in kit.error

def test_an_encoder_that_does_not_run_in_lower_precision(kit, spoilt):
    transformers.DebertaModel(transformers.DebertaConfig(vocab_size=30, **SMALL)).save_pretrained(spoilt)
    for precision in ("bf16", "fp16"):
        kit.refuses(f"{spoilt}|does not run in {precision}|fp32", encoder=spoilt, precision=precision)
    assert kit.run(encoder=spoilt, precision="fp32") == 0

def test_a_local_folder_may_begin_like_an_encoder_that_is_pretrained_here(kit, spoilt, monkeypatch):
    monkeypatch.chdir(spoilt.rename(spoilt.with_name("scratch-run")).parent)
    assert kit.run(encoder="scratch-run") == 0

@pytest.mark.parametrize("env, words", [
    ("WORLD_SIZE=2", "RANK is not set|torchrun"), ("RANK=3", "WORLD_SIZE is not set|torchrun"),
    ("WORLD_SIZE=2 RANK=0 MASTER_ADDR=localhost", "MASTER_PORT is not set"),
    ("WORLD_SIZE=two RANK=0 MASTER_ADDR=localhost MASTER_PORT=1", "WORLD_SIZE is two"),
    ("WORLD_SIZE=2 RANK=2 MASTER_ADDR=localhost MASTER_PORT=1", "RANK is 2"), ("WORLD_SIZE= RANK=", "")])
def test_variables_of_a_launcher_that_did_not_start_this_process(kit, monkeypatch, env, words):
    for pair in env.split():
        monkeypatch.setenv(*pair.split("="))
    if words:
        kit.refuses(words, "--dry-run")
    else:
        assert kit.run("--dry-run") == 0

@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_before_a_corpus_is_read(kit, monkeypatch, number):
    monkeypatch.setattr(results.fcntl, "flock", Mock(side_effect=OSError(number, "flock")))
    monkeypatch.setattr(data, "load", Mock(side_effect=AssertionError))
    kit.refuses(f"{kit.out} has no file locks|another folder")
    with pytest.raises(results.KitError, match="no file locks"):   # before anything is fetched
        data.fetch([data.ud_file(kit.folder / "new", "en", "train")])

def test_an_encoder_with_too_few_positions_for_a_window(kit, tmp_path):
    short = write_encoder(tmp_path / "short", max_position_embeddings=16)
    kit.refuses(f"{short} has 16 positions", encoder=short)

@pytest.mark.parametrize("kind, positions, pad, room", [
    ("Roberta", 130, 1, 128), ("Roberta", 514, 1, 512), ("Roberta", 200, 3, 196), ("IBert", 200, 1, 198)])
def test_windows_follow_the_positions_that_robertas_kind_can_use(kit, spoilt, kind, positions, pad, room):
    settings = dict(vocab_size=30, max_position_embeddings=positions, pad_token_id=pad, **SMALL)
    config = getattr(transformers, f"{kind}Config")(**settings)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(spoilt)
    edit(spoilt / TOKENIZER, put(model_max_length=10 ** 6))
    assert heads.load_encoder(str(spoilt)).tokenizer.model_max_length == room
    long = "".join(f"{i}\tabcdeabcde\t_\tX\t_\t_\t{i - 1}\t{'dep' if i > 1 else 'root'}\t_\t_\n"
                   for i in range(1, 121))
    edit(kit.data / TREES.replace("train", "dev"), lambda content: f"{long}\n".encode() + content)
    assert kit.run(encoder=spoilt, task="parsing") == 0

def test_a_tokenizer_file_is_followed_where_the_library_builds_another(kit, spoilt, capsys):
    whole = heads.load_encoder(str(spoilt)).tokenizer
    whole.save_pretrained(spoilt)
    edit(spoilt / TOKENIZER, put(do_lower_case=True))
    again = heads.load_tokenizer(str(spoilt))
    assert again(heads.PROBE).input_ids == whole(heads.PROBE).input_ids
    assert f"warning: {spoilt}/tokenizer.json is followed" in capsys.readouterr().err

def test_a_sentencepiece_model_alone_is_read_or_what_it_takes_is_said(kit, tmp_path):
    folder, name = write_encoder(tmp_path / "alone"), "sentencepiece.bpe.model"
    (folder / "vocab.txt").rename(folder / name)
    edit(folder / TOKENIZER, put(tokenizer_class="XLMRobertaTokenizer"))
    try:
        import google.protobuf
        import sentencepiece
    except ImportError:
        return kit.refuses("pip install sentencepiece protobuf|tokenizer.json", encoder=folder)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abc abd", "bcd", "a b c d e f g h i j", "ghij ab"] * 9), vocab_size=19,
        minloglevel=2, model_prefix=str(folder / name.removesuffix(".model")))
    assert google.protobuf and kit.run(encoder=folder) == 0
    pieces = sentencepiece.SentencePieceProcessor(str(folder / name))
    ids = heads.load_tokenizer(str(folder))("abd ghijab").input_ids
    assert ids[1:-1] == [i + 1 for i in pieces.encode("abd ghijab")]   # XLM-R's has a token more in front

def test_nothing_is_fetched_where_all_is_there(kit, monkeypatch, spoilt):
    calls = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", lambda *call: calls.append(call))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *call, **_: calls.append(call) or [])
    assert kit.run(encoder=spoilt) == 0 and calls == []

def test_no_code_of_an_encoder_folder_is_run(kit, spoilt):
    classes = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "evil.Evil")
    ran = kit.folder / "ran"
    (spoilt / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    for kind in ("bert", "evil"):
        edit(spoilt / CONFIG, put(auto_map=classes, model_type=kind))
        assert kit.run(encoder=spoilt, out=kit.folder / kind) in (0, 2)
        heads.load_encoder.cache_clear()
    assert not ran.exists() and kit.run(encoder=spoilt) == 2

# ---- while it runs ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("value, spoil", [
    ("nan", lambda loss, h: loss * float("nan")), ("inf", lambda loss, h: loss * float("inf")),
    ("nan", lambda loss, h: loss + (0 * h.sum()).sqrt())])   # 0, its gradient NaN: it spoils the parameters
def test_a_loss_that_is_no_number_stops_that_model_alone_and_keeps_nothing_of_it(
        kit, monkeypatch, value, spoil):
    calls, loss = [], heads.Linear.loss

    def soon_lost(self, h, batch):   # at the last step of the second model
        calls.append(1)
        return spoil(loss(self, h, batch), h) if len(calls) == 6 else loss(self, h, batch)

    monkeypatch.setattr(heads.Linear, "loss", soon_lost)
    assert kit.run("--select", "last", epochs=2) == 3 and "--lr" in kit.said
    assert f"pos encoder en seed 1: the loss became {value} before step 2" in kit.said
    kept = {str(p.parent.relative_to(kit.out)) for p in kit.out.rglob("model.safetensors")}
    assert kept == {"models/pos/encoder/de-en/seed1", "models/pos/encoder/de/seed1"}
    monkeypatch.setattr(heads.Linear, "loss", loss)
    assert kit.run("--select", "last", epochs=2) == 0
    assert "already trained" in kit.said and "continued" not in kit.said

# ---- result files -----------------------------------------------------------------------------------------

def test_a_run_that_was_finished_without_parallel_says_that_nothing_is_logged(again, tmp_path):
    texts = [tmp_path / f"{lang}.txt" for lang in ("en", "de")]
    for path in texts:
        path.write_text("a b\nc\n")
    assert again.run("--parallel", *map(str, texts)) == 0
    assert f"{again.grid}, made without --parallel: another --out logs XLRS" in again.said

def test_where_every_pair_fails_the_report_still_has_what_was_there_before(again, monkeypatch):
    monkeypatch.setattr(heads.Linear, "loss", lambda self, h, batch: h.sum() * float("nan"))
    assert again.run(seeds=2) == 3 and "the loss became nan" in again.said
    report = (again.out / "report.md").read_text()
    assert "POS encoder EN-DE seed 1" in report and "seed 2: it needs" in report

@pytest.mark.parametrize("options, words", [
    (dict(lr=2e-3), "lr 0.001|0.002"), (dict(epochs=2), "epochs 1|2"), (dict(limit=20), "limit 8|20"),
    (dict(batch_size=4), "batch_size 8|4"), (dict(precision="bf16"), "precision fp32|bf16")])
def test_results_made_with_other_settings_are_refused_by_name(again, options, words):
    again.refuses(f"model.safetensors|{words}|--out", **options)

def test_results_of_another_version_encoder_or_corpus_are_refused(again, tmp_path):
    other = write_encoder(tmp_path / "other" / "encoder", hidden_size=32)
    again.refuses("encoder_digest|--out", encoder=other)
    edit(again.grid, lambda content: content.replace(b'"format": 3', b'"format": 2'))
    again.refuses(f"{again.grid}|format 2|asks for 3")
    edit(again.model, lambda content: content.replace(rb'\"format\": 3', rb'\"format\": 0'))
    again.refuses(f"{again.model}|format 0|asks for 3")
    edit(again.data / FILE["pos"], lambda content: content + content)
    again.refuses("data|--out")

@pytest.mark.parametrize("spoil", [half, lambda _: b"", lambda c: c[:4], lambda c: b"x" * len(c),
                                   lambda c: c.replace(b'"about"', b'"aboot"')])
def test_a_torn_model_file(again, spoil):
    edit(again.model, spoil)
    again.refuses(f"{again.model}|If reproduce.py wrote it, delete it")
    again.model.unlink()
    before = again.grid.read_bytes()
    assert again.run() == 0 and again.grid.read_bytes() == before   # made again, the same

def test_a_model_file_with_a_flipped_bit_is_not_interpolated(again):
    edit(again.model, lambda content: content[:-50] + bytes([content[-50] ^ 4]) + content[-49:])
    again.grid.unlink()
    again.refuses(f"{again.model}|delete")

def test_a_damaged_line_of_a_grid(again):
    rows = again.grid.read_bytes().split(b"\n")
    for row in (b'{"a1": 1.0, "a2"', b"5", b'{"a1": 1.0}', b"\xff", b"[]"):
        for i in (0, 7):
            again.grid.write_bytes(b"\n".join([*rows[:i], row, *rows[i + 1:]]))
            for flags in ((), ("--dry-run",)):
                again.refuses(str(again.grid), *flags)
                assert re.search("[Dd]elete|move it away|restore", again.error)

@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 400), marks=pytest.mark.slow)])
def test_corrupted_result_files_end_in_a_sentence_or_a_result(again, seeds):
    good, codes = files(again.out), []
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
        assert codes[-1] in (0, 2), seed
        for path, content in good.items():
            path.write_bytes(content)
    assert set(codes) == {0, 2}
