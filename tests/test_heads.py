"""Heads, decoding, scores and encoders against brute force, enumeration, seqeval and hand-made cases."""

import itertools
import json
import random
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from conftest import real
from seqeval.metrics import f1_score
from tokenizers.normalizers import Lowercase

import data
import heads
from results import KitError

load = heads.load_encoder.__wrapped__   # without its memory

def total(scores, tree):
    return sum(scores[i, tree[i]] for i in range(1, len(tree)))

def all_trees(n):
    """Every tuple of heads (n + 1,) that makes n words a tree on ROOT, with any number of roots."""
    for tree in itertools.product([0], *[range(n + 1)] * n):
        above = tree
        for _ in range(n):
            above = [tree[i] for i in above]
        if not any(above):
            yield tree

@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_best_tree_and_are_trees_equal_the_enumeration_of_all_trees(n):
    rng, trees = np.random.default_rng(n), [tree for tree in all_trees(n) if tree[1:].count(0) == 1]
    every = torch.tensor(list(itertools.product([0], *[range(n + 1)] * n)))
    good = heads.are_trees(every, torch.ones_like(every, dtype=torch.bool))
    assert every[good].tolist() == [list(tree) for tree in trees]
    for scale in (0.01, 1, 100) * 20:
        s = rng.normal(size=(n + 1, n + 1)) * scale
        found = heads.best_tree(s)
        assert tuple(found) in trees
        assert total(s, found) == pytest.approx(max(total(s, t) for t in trees), rel=1e-9, abs=1e-9)

def best_total(s):
    """The largest total of a tree with one root by the matrix-tree theorem (Koo et al. 2007), in whole
    numbers: each tree adds 2 ** (40 * its total) to a determinant, and there are fewer than 2 ** 40."""
    w = np.array([[1 << 40 * int(x) for x in row] for row in s[1:]], dtype=object).T   # (heads, words)
    L, before = -w[1:], 1
    np.fill_diagonal(L, 0)
    np.fill_diagonal(L, -L.sum(0))
    L[0] = w[0]
    for k in range(len(L) - 1):   # Bareiss: elimination without fractions
        L[k + 1:, k + 1:] = (L[k + 1:, k + 1:] * L[k, k] - np.outer(L[k + 1:, k], L[k, k + 1:])) // before
        before = L[k, k]
    return (L[-1, -1].bit_length() - 1) // 40

def test_the_example_of_an_arborescence():
    none = -np.inf
    scores = np.array([[none] * 5, [2, none, 8, 1, 3], [7, 2, none, 0, 9], [0, 1, 2, none, 8],
                       [1, 0, 9, 4, none]], float)   # she saw old films
    assert scores.argmax(1).tolist()[1:] == [2, 4, 4, 2]   # a cycle
    assert heads.arborescence(scores).tolist() == [0, 2, 0, 4, 2]

def test_decoded_trees_equal_a_second_method_and_leave_padding_out():
    torch.manual_seed(0)
    sizes, arcs = torch.randint(2, 13, (80, 1)), torch.randint(0, 40, (80, 13, 13)).float()
    real = torch.arange(13) < sizes
    found = heads.decode(arcs.masked_fill(~real[:, None], -torch.inf), real)
    assert heads.are_trees(found, real).all() and not found[~real].any()
    for s, tree, n in zip(arcs.numpy(), found.tolist(), sizes[:, 0].tolist()):
        assert total(s[:n, :n], tree[:n]) == best_total(s[:n, :n])

def test_span_f1_equals_seqeval_on_random_tags_windows_or_not():
    rng = random.Random(0)
    for _ in range(500):
        sentences = [rng.randint(1, 8) for _ in range(rng.randint(1, 4))]
        gold, pred = ([[rng.choice(data.BIO) for _ in range(n)] for n in sentences] for _ in range(2))
        if rng.random() < 0.5:
            pred = [[p if rng.random() < 0.3 else g for g, p in zip(*two)] for two in zip(gold, pred)]
        new = torch.tensor([i == 0 for n in sentences for i in range(n)])
        flat = [torch.tensor([[data.BIO.index(t)] for s in tags for t in s]) for tags in (gold, pred)]
        (right, of), = heads.span_f1(flat[1], SimpleNamespace(gold=flat[0], new=new)).tolist()
        assert (right / of if of else 0.0) == pytest.approx(f1_score(gold, pred, zero_division=0))

def test_accuracy_and_attachment_by_hand():
    dev = SimpleNamespace(gold=torch.tensor([[1], [2], [-1], [3]]))
    assert heads.accuracy(torch.tensor([[1], [0], [0], [3]]), dev).tolist() == [[2, 3]]
    gold = [[-1, -1, 0], [2, 5, 1], [0, 30, 1], [2, 7, 1], [2, 29, 0], [-1, 4, 1]]   # at last a cut head
    pred = torch.tensor([[0, 0], [2, 5], [0, 30], [2, 8], [1, 1], [3, 4]])
    found = heads.attachment(pred, SimpleNamespace(gold=torch.tensor(gold), lost=2))
    assert found.tolist() == [[2, 4 + 2], [3, 4 + 2]]

def two(gold=None):
    """A Batch of sentences of ROOT and 3 and 2 words, read at all places, its h, and a small parser."""
    torch.manual_seed(0)
    real, ids = torch.tensor([[True] * 4, [True] * 3 + [False]]), torch.randint(5, 16, (2, 4))
    read = torch.arange(8).view(2, 4) * real
    b = data.Batch(ids, torch.zeros_like(ids), None, None, read, real, None, gold, 5)
    return b, torch.randn(2, 4, 6), heads.Biaffine(6, 5).eval()

@torch.no_grad()
def test_biaffine_scores_equal_the_sum_over_all_indices():
    b, h, head = two()
    layers = head.arc_dep, head.arc_head, head.label_dep, head.label_head
    arc_d, arc_h, lab_d, lab_h = (torch.nn.functional.elu(layer(h)) for layer in layers)
    one, chosen = torch.ones(1), torch.randint(0, 3, (2, 4))
    arcs, labels = head.arcs(h, b.real), head.labels(h, chosen)
    for i, d in itertools.product(range(2), range(4)):
        want = torch.stack([torch.cat([arc_d[i, d], one]) @ head.arc @ arc_h[i, g] for g in range(4)])
        want[d] = want[~b.real[i]] = -torch.inf
        assert torch.allclose(arcs[i, d], want, atol=1e-5)
        u, v = torch.cat([lab_d[i, d], one]), torch.cat([lab_h[i, chosen[i, d]], one])
        assert torch.allclose(labels[i, d], torch.einsum("a,acb,b->c", u, head.label, v), atol=1e-5)

def test_parser_loss_trains_root_arcs_and_leaves_cut_heads_and_padding_out():
    gold = torch.tensor([[[-1, -1, 0], [0, 1, 1], [1, 2, 1], [-1, 3, 1]],        # word 3's head was cut off
                         [[-1, -1, 0], [0, 4, 1], [1, 0, 1], [-1, -1, -1]]])
    b, h, head = two(gold)
    arcs, labels = head.arcs(h, b.real).log_softmax(-1), head.labels(h, gold[..., 0].clamp(0)).log_softmax(-1)
    read = (0, 1), (0, 2), (1, 1), (1, 2)
    want = -sum(arcs[i, d, gold[i, d, 0]] + labels[i, d, gold[i, d, 1]] for i, d in read)
    assert torch.isclose(head.loss(h, b), want / 4)

def predict_as_authors(head, h, batch):
    """The tree of the largest sum of P(head) * max P(label | head) with any number of words on ROOT, and the
    labels that gave the maxima: the authors' rule in the place of Biaffine.predict."""
    under = [head.labels(h, torch.full_like(batch.read, at)) for at in range(h.shape[1])]
    best, label = torch.stack(under, 2).softmax(-1).max(-1)                             # (B, N, N) each
    scores, trees = head.arcs(h, batch.real).softmax(-1) * best, torch.zeros_like(batch.read)
    for tree, s, n in zip(trees, scores.double().numpy(), batch.real.sum(1).tolist()):
        np.fill_diagonal(s, -np.inf)
        s[0] = -np.inf
        tree[:n] = torch.from_numpy(heads.arborescence(s[:n, :n]))
    return torch.stack([trees, label.gather(2, trees[..., None])[..., 0]], -1)

@torch.no_grad()
def test_the_authors_trees_and_labels_equal_the_enumeration_of_all():
    b, h, head = two()
    for h in torch.randn(20, 2, 4, 6) * 3:
        arcs, found = head.arcs(h, b.real).softmax(-1), predict_as_authors(head, h, b)
        for i, n in enumerate((3, 2)):
            score = {}
            for tree in all_trees(n):
                p, label = head.labels(h[i:i + 1, :n + 1], torch.tensor([tree]))[0].softmax(-1).max(-1)
                score[tree, *label[1:].tolist()] = sum(arcs[i, d, tree[d]] * p[d] for d in range(1, n + 1))
            best, *labels = max(score, key=score.get)
            assert found[i, :n + 1, 0].tolist() == [*best] and found[i, 1:n + 1, 1].tolist() == labels

def test_variational_dropout_drops_the_same_features_at_all_positions():
    torch.manual_seed(0)
    x = heads.variational_dropout(torch.ones(50, 7, 40), 0.2, training=True)
    assert torch.equal(x, x[:, :1].expand_as(x)) and torch.equal(x, heads.variational_dropout(x, 0.2, False))
    assert set(x.unique().tolist()) == {0.0, 1.25} and 0.17 < (x == 0).float().mean() < 0.23

@torch.no_grad()
@pytest.mark.parametrize("head", [heads.Linear, heads.Biaffine])
def test_heads_compute_in_fp32_under_autocast(encoder, head):
    b, *_ = two(torch.tensor([[[-1, -1], [0, 1], [1, 2], [1, 3]]] * 2))
    model = heads.Model(load(str(encoder)), head, 5).eval()
    for parameter in model.head.parameters():   # scores that differ by less than bf16 can tell
        parameter.copy_(parameter.mean() + parameter * 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        h, loss, found = model.hidden(b), model.loss(b), model(b)
    assert h.dtype == loss.dtype == torch.float32
    assert torch.equal(loss, model.head.loss(h, b)) and torch.equal(found, model.head.predict(h, b))

@torch.no_grad()
def test_models_of_one_encoder_share_nothing(encoder):
    (b, *_), loaded = two(), load(str(encoder))
    want = loaded.model(b.ids).last_hidden_state
    first, second = (heads.Model(loaded, heads.Linear, 3).eval() for _ in range(2))
    for parameter in second.parameters():
        parameter += 1
    assert torch.equal(first.hidden(b)[b.real], want[b.real])
    assert torch.equal(loaded.model(b.ids).last_hidden_state, want)

FAMILIES = {   # a model, and where its windows may begin in one row; None: not in one row
    "Bert": 0, "Electra": 0, "Albert": 0, "Roberta": 2, "XLMRoberta": 2, "DebertaV2": None, "MPNet": None}

@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_windows_have_the_states_of_windows_alone_or_the_encoder_is_not_packed(family):
    torch.manual_seed(0)
    more = dict(relative_attention=True, pos_att_type=["p2c", "c2p"]) if family == "DebertaV2" else {}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=60, hidden_size=16, embedding_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=140, pad_token_id=1, **more)
    model = getattr(transformers, f"{family}Model")(config).eval()
    assert (first := heads.first_position(model)) == FAMILIES[family]
    if first is None:
        return
    dev = data.Encoded(1)
    for n in (5, 128, 9, 60, 2, 30):
        dev.add(torch.randint(8, 60, (n,)).tolist(), range(n), [(1,)] * n)
    encoder = heads.Encoder(model, None, "", False, first)
    model = heads.Model(encoder, heads.Linear, 3, dev.to("cpu").used()).eval()
    plain, packed = (dev.batch(np.arange(6), packed) for packed in (False, True))
    assert torch.allclose(model.hidden(plain)[plain.real], model.hidden(packed)[plain.real], atol=1e-5)
    assert packed.ids.shape == (2, 128)

def test_an_encoder_that_sees_past_its_window_is_not_packed(encoder, monkeypatch):
    """A mask that is taken for a bias of 1 lets everything through; positions that are not taken count on."""
    model = load(str(encoder)).model
    kind, forward = type(model), type(model).forward
    for lost in ("attention_mask", "position_ids"):
        monkeypatch.setattr(kind, "forward", lambda self, **given: forward(self, **given | {lost: None}))
        assert heads.first_position(model) is None
        monkeypatch.undo()
    assert heads.first_position(model) == 0

def test_an_embedding_that_is_more_than_looked_up_keeps_all_rows(encoder):
    model, ids = load(str(encoder)).model, torch.tensor([3, 5])
    assert heads.find_rows(heads.with_rows(model, ids))[1].ids.tolist() == [0, 3, 5]   # 0 is its padding
    assert heads.find_rows(heads.with_rows(model, None)) == ("", None)
    tied = heads.with_rows(model, None)
    tied.output = torch.nn.Linear(16, 26, bias=False)
    tied.output.weight = tied.get_input_embeddings().weight
    assert heads.find_rows(heads.with_rows(tied, ids)) == ("", None)
    twice = heads.with_rows(model, None)   # two look-ups of one matrix become two of its rows
    twice.other = torch.nn.Embedding.from_pretrained(twice.get_input_embeddings().weight)
    twice.other.weight = twice.get_input_embeddings().weight
    found = heads.with_rows(twice, ids)
    assert found.other is heads.find_rows(found)[1]
    with pytest.raises(IndexError):
        heads.with_rows(model, ids)(input_ids=torch.tensor([[0, 4]]))

def test_what_is_saved_of_rows_is_what_moved_and_nothing_of_it_is_lost(encoder):
    pretrained = load(str(encoder)).model
    model = heads.with_rows(pretrained, torch.tensor([3, 5, 7, 9]))
    name, _ = heads.find_rows(model)
    trained = {key: p.detach().clone() for key, p in model.named_parameters()}
    trained[f"{name}.weight"][[2, 4], [0, 15]] += 1.0   # one value of the rows of 5 and of 9
    saved = heads.moved(model, trained, pretrained)
    assert saved[f"{name}.ids"].tolist() == [5, 9] and saved[f"{name}.weight"].shape == (2, 16)
    for ids in ([3, 5, 7, 9], [1, 5, 8, 9, 11]):   # of a model that has these rows, or others too
        other = heads.with_rows(pretrained, torch.tensor(ids))
        whole = pretrained.get_input_embeddings().weight.detach().clone()
        whole[[5, 9], [0, 15]] += 1.0
        weight = heads.spread(other, saved, pretrained)[f"{name}.weight"]
        assert torch.equal(weight, whole[other.get_input_embeddings().ids])

@pytest.mark.parametrize("name", ["tiny", "mbert", "xlmr"])
def test_digest_is_of_vocabulary_subwords_settings_and_weights_alone(encoder, name, tmp_path):
    folder = encoder if name == "tiny" else real(name)
    first, model = transformers.AutoTokenizer.from_pretrained(folder), torch.nn.Linear(1, 1)
    first.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    again.backend_tokenizer.decoder = None   # another serialisation, the same subwords

    def digest(**changed):
        settings = json.loads((folder / "config.json").read_text()) | changed
        (tmp_path / "config.json").write_text(json.dumps(settings))
        return heads.encoder_digest(tmp_path, again, model)

    found = [heads.encoder_digest(folder, first, model)]
    assert digest(transformers_version="0", dtype="float32") == found[0]
    found.append(digest(layer_norm_eps=.1))
    model.weight.data += 1e-3
    found.append(digest())
    again.backend_tokenizer.normalizer = Lowercase()
    found.append(digest())
    again.add_tokens("no such word")
    assert len({*found, digest()}) == 5

LEAKS = {"none": lambda h: 0 * h, "pooling": lambda h: h.mean(1, keepdim=True),
         "convolution": lambda h: torch.nn.functional.pad(h, (0, 0, 0, 1))[:, 1:]}

@pytest.mark.parametrize("kind", [*LEAKS, "lost mask", "FNet"])
def test_models_that_read_padding_are_refused(encoder, kind):
    inner = load(str(encoder)).model

    class Leaking(torch.nn.Module):
        config = inner.config

        def forward(self, input_ids, attention_mask=None):
            out = inner(input_ids, attention_mask if kind in LEAKS else None)
            out.last_hidden_state += LEAKS.get(kind, LEAKS["none"])(out.last_hidden_state)
            return out

    small = dict(vocab_size=30, hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    model = transformers.FNetModel(transformers.FNetConfig(**small)).eval() if kind == "FNet" else Leaking()
    if kind == "none":
        return heads.check_encoder(model, "name")
    with pytest.raises(KitError, match="reads padding"):
        heads.check_encoder(model, "name")

def test_what_is_in_the_hubs_cache_is_found_there_under_both_names(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--google-bert--bert-base-multilingual-cased/snapshots/main"
    load(str(encoder)).model.save_pretrained(folder, max_shard_size="4KB")
    shutil.copy(encoder / "vocab.txt", folder)   # and no tokenizer_config.json
    assert len(shards := list(folder.glob("*.safetensors"))) > 1
    for name in ("mbert", "bert-base-multilingual-cased", "google-bert/bert-base-multilingual-cased"):
        assert heads.find(name) == str(folder) and load(name).tokenizer.is_fast
    assert heads.short_name(str(folder)) == "google-bert--bert-base-multilingual-cased"
    assert heads.short_name(str(shutil.copytree(encoder, tmp_path / "own/snapshots/first"))) == "first"
    shards[0].unlink()
    with pytest.raises(KitError, match="mbert"):
        load("mbert")

@pytest.mark.parametrize("answer, words", [(OSError("a\nb"), "a"), (OSError(), "OSError"), (0, "Timeout")])
def test_the_hub_is_asked_once_for_seconds_if_at_all(encoder, tmp_path, monkeypatch, answer, words):
    asked, began = [], time.monotonic()

    def model_info(_, name):
        asked.append(name)
        if answer:
            raise answer
        time.sleep(30)   # as behind a firewall that swallows everything

    assert heads.PATIENCE < 10
    monkeypatch.setattr(heads, "PATIENCE", 0.1)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(shutil.copytree(encoder, tmp_path / "mbert").parent)
    with pytest.raises(KitError, match=rf"'mbert'.*{words}[^\n]*$"):
        load("mbert")   # is never ./mbert
    assert asked == ["bert-base-multilingual-cased"] and time.monotonic() - began < 5
    assert heads.find("./mbert") == "mbert"
    assert heads.short_name("mbert") == heads.short_name("./mbert") == "mbert"
    kept = shutil.copytree(encoder, tmp_path / f"cache/models--{asked[0]}/snapshots/main")
    assert heads.find("mbert") == str(kept) and len(asked) == 1
