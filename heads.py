"""The model, an encoder and a head on it, as a point of the plane; tree decoding, and the scores.

A head sees only what was read: h (B, N, H), the encoder's last states at N read positions of B windows.
It gives `loss(h, batch)`, a scalar, and `predict(h, batch)`, integers (B, N, K). Scores are counts on the
device, (numerator, denominator) per metric: a whole dev set costs one transfer of a few integers.
"""

import copy
import hashlib
import inspect
import json
import re
import sys
from contextlib import suppress
from functools import lru_cache
from math import acos, degrees, inf, sqrt
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.func import functional_call

import results
from results import KitError
from train import autocast

transformers.logging.set_verbosity_error()   # an unused masked-language head is no news to the user
transformers.utils.logging.disable_progress_bar()
HUB = {"mbert": "bert-base-multilingual-cased", "xlmr": "xlm-roberta-large",   # Sec. 4
       "e5": "intfloat/multilingual-e5-small",   # small enough for a CPU
       "mt5": "google/mt5-base"}   # generation

class Rows(nn.Embedding):
    """The rows (R, H) of an embedding that are read; asked by the ids of the whole, but only for these.
    No other row would move: Adam without weight decay leaves alone what never had a gradient."""

    def __init__(self, whole, ids):
        """whole: an nn.Embedding; ids (R,): of the rows, ascending, its padding_idx among them."""
        place = torch.full((whole.num_embeddings,), len(ids))   # past the end for all others: an IndexError
        place[ids] = torch.arange(len(ids))
        pad = None if whole.padding_idx is None else int(place[whole.padding_idx])
        super().__init__(len(ids), whole.embedding_dim, pad, _weight=whole.weight.detach()[ids])
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def forward(self, ids):
        return super().forward(self.place[ids])

def with_rows(model, ids):
    """A copy of a model that has the rows of ids (U,) alone in its input embedding, which is never copied
    whole; but all rows where ids is None, or where more than a look-up uses them."""
    whole = model.get_input_embeddings()
    users = [m for m in model.modules() if any(p is whole.weight for p in m.parameters(recurse=False))]
    if ids is None or {*map(type, users)} != {nn.Embedding}:
        return copy.deepcopy(model)
    rows = Rows(whole, torch.unique(torch.cat([ids, torch.tensor([whole.padding_idx or 0])])))
    return copy.deepcopy(model, {id(user): rows for user in users})   # as if these were copied already

def find_rows(model):
    """(name, Rows) of a model; ("", None) where all rows are there."""
    return next(((name, m) for name, m in model.named_modules() if isinstance(m, Rows)), ("", None))

def rows_of(parameters):
    """[ids (M,) of the rows that moved] as `moved` saved them; [] where all rows are there."""
    return [ids for name, ids in parameters.items() if name.endswith(".ids")]

def moved(model, parameters, pretrained):
    """Parameters {name: tensor} as they are saved: of Rows those that moved, and their ids (M,)."""
    name, rows = find_rows(model)
    if rows is None:
        return parameters
    weight, ids = parameters[f"{name}.weight"], rows.ids.cpu()
    there = (weight != pretrained.get_input_embeddings().weight[ids]).any(1)
    return parameters | {f"{name}.weight": weight[there], f"{name}.ids": ids[there]}

def spread(model, parameters, pretrained):
    """Parameters {name: tensor} of a model from those that `moved` gave."""
    name, rows = find_rows(model)
    if rows is None:
        return parameters
    weight, found = pretrained.get_input_embeddings().weight.detach()[rows.ids.cpu()], dict(parameters)
    weight[rows.place.cpu()[found.pop(f"{name}.ids")]] = found[f"{name}.weight"]
    return found | {f"{name}.weight": weight}

def mixed(model, files, pretrained):
    """{name: float64 tensor} of a model: the mean of [(file of parameters as `moved` gave them, weight)]."""
    found, total = {}, sum(weight for _, weight in files)
    for file, weight in files:
        for name, value in spread(model, results.whole(file), pretrained).items():
            found[name] = found.get(name, 0) + value.double() * weight
    return {name: found.pop(name) / total for name in [*found]}

class Model(nn.Module):
    """An encoder and a head: an ordinary module, trained by `loss`; called, it predicts."""

    def __init__(self, encoder, head, labels, ids=None):
        """encoder: an Encoder; head: Linear or Biaffine; ids (U,): the subwords it meets, None for all."""
        super().__init__()
        self.encoder = with_rows(encoder.model, ids)
        self.takes_types, self.packed_from = encoder.takes_types, encoder.packed_from
        self.head = head(self.encoder.config.hidden_size, labels)

    def hidden(self, batch):
        """The last hidden states (B, N, H) of what is read of a batch, in fp32."""
        more = {"token_type_ids": batch.types} if self.takes_types else {}
        more |= {} if batch.positions is None else {"position_ids": batch.positions + self.packed_from}
        mask = batch.mask.long() if batch.mask is not None and batch.mask.dim() == 2 else batch.mask
        hidden = self.encoder(input_ids=batch.ids, attention_mask=mask, **more).last_hidden_state  # (R, L, H)
        return hidden.flatten(0, 1)[batch.read].float()

    def loss(self, batch):
        """The head's mean loss over the `count` terms of a batch."""
        h = self.hidden(batch)
        with torch.autocast(h.device.type, enabled=False):   # in bf16 many labels tie
            return self.head.loss(h, batch)

    def forward(self, batch, states=None):
        """Predictions (B, N, K) of a batch; states: {batch: (B, N, H)} of an encoder that does not move."""
        states = {} if states is None else states
        if batch not in states:
            states[batch] = self.hidden(batch)
        with torch.autocast(states[batch].device.type, enabled=False):
            return self.head.predict(states[batch], batch)

class Plane:
    """A model as a function of a point in the plane of three corners; the module itself is never changed.
    The corners are the rows of one matrix (3, P); a point is one product with it, written into one vector
    (P,), whose views by parameter name were made once. Parameters outside `part` stay those of `both`
    (footnote 2), buffers are the module's own, and a tied parameter moves under all its names."""

    def __init__(self, model, corners, part="all"):
        """corners: the parameters {name: tensor} of both, source and target, one after the other."""
        self.model, device = model.eval(), next(model.parameters()).device
        parameters = dict(model.named_parameters())
        moving = [name for name in parameters if part == "all" or name.startswith(part + ".")]
        sizes = [parameters[name].numel() for name in moving]
        self.corners = torch.empty(3, sum(sizes), device=device)
        self.theta = torch.empty(sum(sizes), device=device)
        self.views = {name: view.view(parameters[name].shape)
                      for name, view in zip(moving, self.theta.split(sizes))}
        self.states = {} if part == "head" else None   # of the encoder, which then are those of all points
        for number, corner in enumerate(corners):
            for name, piece in zip(moving, self.corners[number].split(sizes)):
                piece.copy_(corner[name].flatten())
            if number == 0:
                self.views |= {name: corner[name].to(device) for name in parameters if name not in moving}

    def move(self, a1, a2):
        """To both + a1 d_src + a2 d_tgt (Eq. 3), each time from the corners, and exact at each of them."""
        weights = self.corners.new_tensor([1 - a1 - a2, a1, a2])   # (3,)
        torch.mv(self.corners.T, weights, out=self.theta)

    def __call__(self, batch):
        more = () if self.states is None else (self.states,)
        return functional_call(self.model, self.views, (batch, *more))

    def ways(self):
        """Yield d_src, d_tgt and the way from `both` to where the plane stands, (3, n), of n parameters at a
        time: float64 takes twice the room."""
        for (both, *others), theta in zip(self.corners.split(1 << 22, dim=1), self.theta.split(1 << 22)):
            yield torch.stack([*others, theta]).double() - both

    def place(self, start):
        """Where it stands, on the plane or off it: coordinates of the plane's nearest point, the distance to
        that point, and to start (P,); least squares in float64."""
        gram = sum(ways @ ways.T for ways in self.ways()).cpu().numpy()
        found = np.linalg.pinv(gram[:2, :2], hermitian=True) @ gram[:2, 2]
        a1, a2 = (found.round(9) + 0.0).tolist()   # no -0.0
        off = sum((way - a1 * d_src - a2 * d_tgt).square().sum().item() for d_src, d_tgt, way in self.ways())
        gone = sum((here.double() - there).square().sum().item()
                   for here, there in zip(self.theta.split(1 << 22), start.split(1 << 22)))
        return {"a1": a1, "a2": a2, "distance": round(off ** .5, 9), "from_start": round(gone ** .5, 9)}

    def geometry(self):
        """Norms of d_src and d_tgt, their ratio, and the angle between them in degrees (App. B); float64."""
        sums = torch.zeros(3, dtype=torch.float64)
        for d_src, d_tgt, _ in self.ways():
            sums += torch.stack([d_src @ d_src, d_tgt @ d_tgt, d_src @ d_tgt]).cpu()
        norm_src, norm_tgt = sums[0].sqrt().item(), sums[1].sqrt().item()
        ratio = angle = None
        if norm_src and norm_tgt:
            cosine = sums[2].item() / norm_src / norm_tgt
            ratio, angle = norm_src / norm_tgt, degrees(acos(max(-1.0, min(1.0, cosine))))
        return {"norm_src": norm_src, "norm_tgt": norm_tgt, "norm_ratio": ratio, "angle": angle}

def variational_dropout(x, p, training):
    """Drop features of x (B, N, D) with probability p, the same ones at all N positions of a sequence."""
    if not training:
        return x
    return x * torch.empty_like(x[:, :1]).bernoulli_(1 - p) / (1 - p)                   # (B, 1, D) are drawn

class Linear(nn.Module):
    """One linear layer on what is read (XNLI, NER, POS); variational dropout before it."""

    def __init__(self, hidden, labels):
        super().__init__()
        self.out = nn.Linear(hidden, labels)

    def loss(self, h, batch):
        """Mean cross entropy over the labelled reads."""
        logits = self.out(variational_dropout(h, 0.2, self.training))                   # (B, N, C)
        return F.cross_entropy(logits.flatten(0, 1), batch.gold[..., 0].flatten(), ignore_index=-1)

    def predict(self, h, batch):
        """Labels (B, N, 1)."""
        return self.out(h).argmax(-1, keepdim=True)

class Biaffine(nn.Module):
    """Biaffine arcs and labels over the words read, ROOT first (Dozat & Manning 2017).
    512 dimensions for arcs, 128 for labels (less on a small encoder); ELU, dropout 0.2 before it, 0.33 after.
    ROOT's arcs are trained too. Labels are scored under one head: gold in the loss, else the chosen one."""

    def __init__(self, hidden, labels):
        super().__init__()
        arc, label = min(512, 2 * hidden), min(128, hidden // 2)
        self.arc_dep, self.arc_head = nn.Linear(hidden, arc), nn.Linear(hidden, arc)
        self.label_dep, self.label_head = nn.Linear(hidden, label), nn.Linear(hidden, label)
        self.arc = nn.Parameter(torch.empty(arc + 1, arc).uniform_(-1, 1) / sqrt(arc))
        self.label = nn.Parameter(torch.empty(label + 1, labels, label + 1).uniform_(-1, 1) / sqrt(label))

    def inner(self, layer, h):
        return variational_dropout(F.elu(layer(h)), 0.33, self.training)

    def arcs(self, h, real):
        """Arc scores (B, N, N), dependents by heads; -inf for a word as its own head and for padding."""
        dep = F.pad(self.inner(self.arc_dep, h), (0, 1), value=1.0)                     # (B, N, A+1)
        scores = dep @ self.arc @ self.inner(self.arc_head, h).transpose(1, 2)          # (B, N, N)
        own = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
        return scores.masked_fill(own | ~real[:, None], -inf)

    def labels(self, h, heads):
        """Label scores (B, N, C) of each word under the one head that heads (B, N) gives."""
        layers = self.label_dep, self.label_head
        dep, head = (F.pad(self.inner(layer, h), (0, 1), value=1.0) for layer in layers)
        head = head.gather(1, heads[..., None].expand_as(head))                         # (B, N, D+1)
        half = (dep @ self.label.flatten(1)).unflatten(2, self.label.shape[1:])         # (B, N, C, D+1)
        return (half @ head[..., None])[..., 0]

    def loss(self, h, batch):
        """Cross entropy of the arcs plus that of the labels, each a mean over words whose head was read."""
        h = variational_dropout(h, 0.2, self.training)
        head, relation = batch.gold[..., 0], batch.gold[..., 1]                         # (B, N)
        arcs = F.cross_entropy(self.arcs(h, batch.real).flatten(0, 1), head.flatten(), ignore_index=-1)
        labels, relation = self.labels(h, head.clamp(min=0)), relation.masked_fill(head < 0, -1)
        return arcs + F.cross_entropy(labels.flatten(0, 1), relation.flatten(), ignore_index=-1)

    def predict(self, h, batch):
        """(B, N, 2): the head of each word in the best tree, and its relation."""
        heads = decode(self.arcs(h, batch.real), batch.real)
        return torch.stack([heads, self.labels(h, heads).argmax(-1)], -1)

class Encoder(NamedTuple):
    """A pretrained encoder; `model` stays on the CPU as it was loaded, each Model has a copy."""
    model: nn.Module
    tokenizer: object
    digest: str         # SHA-256 of what decides its hidden states, from encoder_digest
    takes_types: bool   # whether it tells the two sentences of a pair apart
    packed_from: int | None = None   # the position of a window's first subword, if windows can share a row

PROBE = ("Ünïcode, 2 x 3.14: don't ﬁne-tune ABC École straße Привет мир "
         "مرحبا नमस्ते 你好世界 việt\u00a0nam\u200b!")
NOT_SETTINGS = ("transformers_version", "architectures", "dtype", "torch_dtype")   # of config.json
FILES = "config.json", "*.safetensors", "tokenizer.json or vocab.* or *.model", "tokenizer_config.json"
PATIENCE = 8   # seconds for the hub to answer
OWNERS = "google-bert", "FacebookAI", "distilbert"   # on the hub, of encoders that once had no owner

def short_name(name):
    """An encoder's name in paths and figures: a local folder's own name, a hub name without its slash."""
    local = name not in HUB and (Path(name).is_dir() or name.count("/") > 1)
    path = Path(name).resolve()
    found = re.search("/models--([^/]+)/snapshots$", str(path.parent))   # where a commit is a folder's name
    return (found[1] if found else path.name) if local else name.replace("/", "--")

@lru_cache(maxsize=1)
def load_encoder(name, precision="fp32"):
    """An encoder from a local folder or the hub, fp32, without its pooler, fit to be trained in a precision.
    Raises KitError."""
    encoder = load(name, transformers.AutoModel)
    check_encoder(encoder.model, name, encoder.tokenizer.pad_token_id or 0, precision)
    return encoder._replace(packed_from=first_position(encoder.model))

def load(name, auto):
    """An Encoder as AutoModel or, where it writes too, AutoModelForSeq2SeqLM gives it. Raises KitError."""
    try:
        source, safe = find(name), dict(trust_remote_code=False)
        tokenizer = load_tokenizer(source)
        config = transformers.AutoConfig.from_pretrained(source, **safe)
        if auto is transformers.AutoModelForSeq2SeqLM and not config.is_encoder_decoder:
            raise TypeError("it is an encoder alone; to write takes an encoder-decoder: mT5, mBART or BART")
        model, info = auto.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **safe)
        if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):
            raise ValueError(f"its weights lack {len(missing)} parameters, {missing[0]} among them: they are "
                             "of another architecture than config.json, or not whole")
        if len(tokenizer) > (size := getattr(model.config, "vocab_size", inf)):
            raise ValueError(f"it has {size} subwords, its tokenizer {len(tokenizer)}, of another encoder")
    except Exception as e:   # the library raises a dozen kinds, all of them about what it found
        reason = (str(e).strip() or repr(e)).splitlines()[0]
        readers = transformers.utils.is_sentencepiece_available, transformers.utils.is_protobuf_available
        if re.search("sentencepiece|protobuf|tiktoken", str(e)) and not all(there() for there in readers):
            reason = "its SentencePiece model takes pip install sentencepiece protobuf, or a tokenizer.json"
        raise KitError(f"The encoder {name!r} could not be loaded ({reason}). Expected {', '.join(HUB)} or "
                       "a name on the hub and a network, or a local folder from save_pretrained.") from None
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions(model))
    model.pooler = None   # the paper reads the last hidden state
    if spoilt := [key for key, value in model.named_parameters() if not value.sum().isfinite()]:
        raise KitError(f"The encoder {name!r} is broken: {spoilt[0]} holds NaN or infinity. Expected finite "
                       "weights, as in another copy of it.")
    takes_types = ("token_type_ids" in inspect.signature(model.forward).parameters
                   and getattr(model.config, "type_vocab_size", 0) > 1)
    return Encoder(model.eval(), tokenizer, encoder_digest(source, tokenizer, model), takes_types)

def load_tokenizer(source):
    """A tokenizer to which text is text, also where it spells a special token, and which reads the probe as
    tokenizer.json says: the library builds many kinds anew from the vocabulary, without that file's rules."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer("\U00010380")   # a letter of no vocabulary: fails where there is no unknown token
    if not tokenizer.is_fast:
        raise TypeError(f"{type(tokenizer).__name__} has no fast backend, as the kit needs it")
    tokenizer.split_special_tokens = True
    local, cached = Path(source, "tokenizer.json"), huggingface_hub.try_to_load_from_cache
    path = str(local if Path(source).is_dir() else cached(source, local.name))
    if Path(path).is_file():
        own, built = tokenizers.Tokenizer.from_file(path), tokenizer.backend_tokenizer
        own.no_padding()
        if own.encode(PROBE, add_special_tokens=False).tokens != tokenizer.tokenize(PROBE):
            if not results.quiet():
                print(f"warning: {path} is followed, not what {type(tokenizer).__name__} makes of it by "
                      "settings beside it or by default (do_lower_case, strip_accents ...)", file=sys.stderr)
            built.normalizer, built.pre_tokenizer, built.model = own.normalizer, own.pre_tokenizer, own.model
    return tokenizer

def positions(model):
    """How many subwords a model can take; RoBERTa and its kin count them from the padding's id + 1 on."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return len(module.weight) - module.padding_idx - 1   # I-BERT has a class of its own
    return getattr(model.config, "max_position_embeddings", inf)

def find(name):
    """Where an encoder is: a folder, local or in the hub's cache, else its name on a hub that answers."""
    source = HUB.get(name, name)   # a folder that happens to be called mbert is ./mbert
    local = Path(source).is_dir()
    folder, needed = (Path(source), FILES) if local else (cached(source), FILES[:3])   # not all have the last
    missing = [file for file in needed if not any(list(folder.glob(form)) for form in file.split(" or "))]
    if not missing:
        return str(folder)   # given a name, the library would ask the hub about each file again
    if local:
        raise FileNotFoundError(f"the folder has no {missing[0]}")
    with ThreadPool(1) as pool:   # the client's own timeout begins anew with each address of the hub
        pool.apply_async(huggingface_hub.HfApi().model_info, [source]).get(PATIENCE)
    return source

def cached(source):
    """The folder of an encoder in the hub's cache, with or without its owner, if all weights are there."""
    owner, _, name = source.rpartition("/")
    for owner in dict.fromkeys((owner, *(("", *OWNERS) if owner in ("", *OWNERS) else ()))):
        config = huggingface_hub.try_to_load_from_cache(f"{owner}/{name}".lstrip("/"), "config.json")
        folder = Path(config).parent if isinstance(config, str) else Path("no such folder")
        index = folder / "model.safetensors.index.json"
        weights = json.loads(index.read_bytes())["weight_map"] if index.exists() else {"": "*.safetensors"}
        if all(list(folder.glob(file)) for file in {*weights.values()}):
            return folder
    return Path("no such folder")

@torch.no_grad()
def check_encoder(model, name, pad=0, precision="fp32"):
    """Raise KitError unless every position of last_hidden_state (B, L, H) sees the whole sentence, but no
    padding, of subword `pad`, and the model runs by autocast in the precision of its training."""
    ids, problem = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]]), ""   # alike but for the last subword
    try:
        if model.config.is_encoder_decoder:   # whose last_hidden_state is the decoder's
            raise TypeError
        hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        if torch.equal(*hidden.view(2, 4, model.config.hidden_size)[:, 0]):
            problem = "reads from left to right: its first token, read by XNLI and the parser, sees nothing"
        elif differ(alone_and_beside(model, pad)):
            problem = "reads padding: beside a longer sentence, states and scores of a sentence are others"
    except Exception:
        problem = "gives no last_hidden_state for subword ids alone"
    if not problem and precision != "fp32":
        try:
            with autocast("cpu", precision):
                model(input_ids=ids)
        except RuntimeError as e:
            problem = f"does not run in {precision}, but with --precision fp32 ({str(e).splitlines()[0]})"
    if problem:
        raise KitError(f"The encoder {name!r} ({type(model).__name__}) {problem}. "
                       "Expected an encoder such as BERT or XLM-R.")

def alone_and_beside(model, pad):
    """[(states (n, H) of a sentence alone, its states beside a longer one)] of four sentences."""
    ids = 1 + torch.arange(12) % 4
    ids, lengths = ids.masked_fill(ids == pad, 5), torch.tensor([2, 3, 5, 8, 12])
    mask = (torch.arange(12) < lengths[:, None]).long()                                           # (5, 12)
    padded = ids * mask + pad * (1 - mask)
    beside = model(input_ids=padded, attention_mask=mask).last_hidden_state                       # (5, 12, H)
    return [(model(input_ids=ids[None, :n]).last_hidden_state[0], states[:n])
            for n, states in zip(lengths[:-1].tolist(), beside)]

def differ(pairs):
    """Whether two tensors of states differ in one of the pairs by more than rounding."""
    return any(torch.dist(one, other) > 1e-4 * one.norm() for one, other in pairs)

@torch.no_grad()
def first_position(model):
    """The position that windows in one row begin at, 0 or after the padding's, with which their states are
    those of a row of their own; None where neither is right, as with a mask that the model does not take."""
    sizes = [119, 9]   # of a window that is as long as they get, and a short one
    ids = 8 + torch.arange(sum(sizes))[None] % max(1, model.config.vocab_size - 8)   # no special token
    owner, place = torch.arange(128) >= sizes[0], torch.cat([*map(torch.arange, sizes)])
    with suppress(Exception):   # the library's, where a model takes no such mask or positions
        alone = [model(input_ids=each).last_hidden_state for each in ids.split(sizes, 1)]
        for first in (0, (model.config.pad_token_id or 0) + 1):
            packed = model(input_ids=ids, attention_mask=(owner[:, None] == owner)[None, None],
                           position_ids=place[None] + first).last_hidden_state
            if not differ(zip(alone, packed.split(sizes, 1))):
                return first
    return None

def encoder_digest(source, tokenizer, model):
    """SHA-256 of vocabulary, subwords of a probe, settings and weights, none of which an upgrade rewrites."""
    settings, _ = transformers.PreTrainedConfig.get_config_dict(source)
    settings = {key: settings[key] for key in settings if key[0] != "_" and key not in NOT_SETTINGS}
    about = [sorted(tokenizer.get_vocab().items()), tokenizer(PROBE).input_ids, settings]
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for parameter in model.parameters():
        found.update(parameter.detach().numpy())
    return found.hexdigest()

def decode(arcs, real):
    """Heads (B, N) of the best trees with one root word; arcs (B, N, N): dependents by heads, ROOT 0.
    The argmax where it already is such a tree, else the exact maximum spanning arborescence."""
    heads = arcs.argmax(-1).masked_fill(~real, 0)                     # (B, N)
    heads[:, 0] = 0
    wrong = (~are_trees(heads, real)).nonzero()[:, 0]
    sizes, scores = real[wrong].sum(-1).tolist(), arcs[wrong].detach().double().cpu().numpy()
    for i, s, n in zip(wrong.tolist(), scores, sizes):
        heads[i, :n] = torch.from_numpy(best_tree(s[:n, :n]))
    return heads

def are_trees(heads, real):
    """(B,) True where heads (B, N) lead every word to position 0, and one word alone hangs on it."""
    above = heads
    for _ in range((heads.shape[1] - 1).bit_length()):                # 2**k steps up after k rounds
        above = above.gather(1, above)
    return (above == 0).all(1) & (((heads == 0) & real)[:, 1:].sum(1) == 1)

def best_tree(scores):
    """Heads (N,) of the best tree with one root word; scores (N, N): dependents by heads, 0 is ROOT.
    Chu-Liu-Edmonds runs once: where the root's arcs are made worse by more than a tree can gain elsewhere,
    the best tree uses only one of them (Stanojevic & Cohen 2021)."""
    s = np.nan_to_num(scores, nan=-1e30, neginf=-1e30, posinf=1e30)
    np.fill_diagonal(s, -np.inf)
    s[0] = -np.inf
    inner = s[1:][np.isfinite(s[1:])]
    s[1:, 0] -= len(s) * (inner.max() - inner.min()) + 1.0
    return arborescence(s)

def arborescence(s):
    """Heads (N,) of the maximum spanning arborescence from 0; s (N, N): dependents by heads, -inf: no arc.
    Four words, "she saw old films", each with its best head: she < saw, old < films, but saw < films (9) and
    films < saw (9) are a cycle. It becomes one node. An arc into it breaks one of its two arcs: ROOT to saw
    gains 7 - 9 = -2, ROOT to films 1 - 9 = -8, so the cycle is entered at saw. In the smaller tree, she and
    old hang on the node and it on ROOT; taken apart again: saw < ROOT, she < saw, films < saw, old < films.
    """
    heads = above = s.argmax(1)                                       # 0 for node 0, which has no arc
    for _ in range(len(s).bit_length()):                              # 2**k steps up: 0, or on a cycle
        above = above[above]
    if not above.any():
        return heads
    inside, node = np.zeros(len(s), bool), above[above > 0][0]
    while not inside[node]:
        inside[node], node = True, heads[node]
    cycle, rest = np.flatnonzero(inside), np.flatnonzero(~inside)     # rest[0] is node 0
    gain = s[cycle[:, None], rest] - s[cycle, heads[cycle]][:, None]  # of a node by its new head outside
    out, n = s[rest[:, None], cycle], len(rest)                       # of a node outside by its new head
    enter, leave = gain.argmax(0), out.argmax(1)                      # the best node for each one outside
    kept = np.append(rest, cycle[0])                                  # the last one stands for the cycle
    small = s[kept[:, None], kept]
    small[:n, n], small[n, :n] = out.max(1), gain.max(0)
    above = arborescence(small)                                       # (n + 1,)
    heads[rest] = np.where(above[:n] == n, cycle[leave], rest[np.minimum(above[:n], n - 1)])
    heads[cycle[enter[above[n]]]] = rest[above[n]]
    return heads

def accuracy(pred, dev):
    """(1, 2) counts: right, all; pred (R, 1) and dev.gold (R, 1) in file order."""
    return torch.stack([(pred[:, 0] == dev.gold[:, 0]).sum(), (dev.gold[:, 0] >= 0).sum()])[None]

def span_f1(pred, dev):
    """(1, 2) counts: 2 * right spans, gold + predicted spans; BIO tags: 0 = O, odd = B-, even = I- of a type.
    Both are repaired alike, as in the authors' code: an I- that continues no span begins one."""
    gold, pred = spans(dev.gold[:, 0], dev.new), spans(pred[:, 0], dev.new)
    right = gold[0] & pred[0] & (gold[1] == pred[1]) & (gold[2] == pred[2])
    return torch.stack([2 * right.sum(), gold[0].sum() + pred[0].sum()])[None]

def spans(tags, new):
    """(begins, entity, end) of each position (R,): whether a span begins there, its type, where it ends."""
    entity = (tags + 1) // 2                                            # 0 = O, then one number a type
    before = torch.cat([entity.new_zeros(1), entity[:-1]]).masked_fill(new, 0)
    begins = (entity > 0) & ((tags % 2 == 1) | (entity != before))
    stops = torch.cat([(begins | (entity != before) | new)[1:], begins.new_ones(1)])   # the next is outside
    end = torch.where(stops, torch.arange(len(tags), device=tags.device), len(tags))
    return begins, entity, end.flip(0).cummin(0).values.flip(0)

def attachment(pred, dev):
    """(2, 2) counts: LAS and UAS, right and all, over the scored words; lost words count as wrong."""
    scored = dev.gold[:, 2] == 1
    head = scored & (pred[:, 0] == dev.gold[:, 0])
    las, total = (head & (pred[:, 1] == dev.gold[:, 1])).sum(), scored.sum() + dev.lost
    return torch.stack([torch.stack([las, total]), torch.stack([head.sum(), total])])
