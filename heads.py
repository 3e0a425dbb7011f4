"""The model: an encoder, what stands on it (linear and biaffine heads, their losses and predictions, tree decoding),
and the scores.

A head sees only what was read: h (B, N, H), the encoder's last hidden states at N read positions of B windows. It gives
`loss(h, batch)`, a scalar, and `predict(h, batch)`, integers (B, N, K). Scores are counts on the device, (numerator,
denominator) per score, so that a whole dev set costs one transfer of a few integers.
"""

import hashlib
import inspect
import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.func import functional_call

EARLY = ("bert", "roberta", "xlm-roberta")   # encoders whose last layer is known to be built as Reader expects
transformers.logging.set_verbosity_error()          # an unused masked-language head is no news to the user
transformers.utils.logging.disable_progress_bar()
HUB = {"mbert": "bert-base-multilingual-cased", "xlmr": "xlm-roberta-large"}   # Sec. 4


class ModelError(ValueError):
    """An encoder that cannot be used, told as a sentence for people."""


def variational_dropout(x, p, training):
    """Drop features of x (B, N, D) with probability p, the same ones at all N positions of a sequence."""
    if not training or p == 0:
        return x
    keep = torch.empty_like(x[:, :1]).bernoulli_(1 - p)   # (B, 1, D)
    return x * keep / (1 - p)


class Linear(nn.Module):
    """One linear layer on what is read (XNLI, NER, POS); variational dropout before it."""

    def __init__(self, hidden, labels, dropout=0.2):
        super().__init__()
        self.dropout = dropout
        self.out = nn.Linear(hidden, labels)

    def forward(self, h):
        """Logits (B, N, C) of h (B, N, H)."""
        return self.out(variational_dropout(h, self.dropout, self.training))

    def loss(self, h, batch):
        """Mean cross entropy over the labelled reads."""
        return F.cross_entropy(self(h).flatten(0, 1).float(), batch.gold[..., 0].flatten(), ignore_index=-1)

    def predict(self, h, batch):
        """Labels (B, N, 1)."""
        return self(h).argmax(-1, keepdim=True)


class Biaffine(nn.Module):
    """Biaffine arcs and labels over the words read, ROOT first (Dozat & Manning 2017).

    Arc dimension 512, label dimension 128 (less on an encoder of fewer than 256 dimensions), ELU, variational dropout
    0.2 on h and 0.33 after the ELU. The arcs of the root are trained like any other. Labels are scored for one head per
    word only: the gold one in the loss, the chosen one in prediction.
    """

    def __init__(self, hidden, labels, arc=None, label=None, dropout=0.2, inner_dropout=0.33):
        super().__init__()
        arc, label = arc or min(512, 2 * hidden), label or min(128, hidden // 2)   # narrower for a toy encoder alone
        self.dropout, self.inner_dropout = dropout, inner_dropout
        self.arc_dep, self.arc_head = nn.Linear(hidden, arc), nn.Linear(hidden, arc)
        self.label_dep, self.label_head = nn.Linear(hidden, label), nn.Linear(hidden, label)
        self.arc = nn.Parameter(torch.empty(arc + 1, arc).uniform_(-1, 1) / math.sqrt(arc))
        self.label = nn.Parameter(torch.empty(label + 1, labels, label + 1).uniform_(-1, 1) / math.sqrt(label))

    def inner(self, layer, h):
        return variational_dropout(F.elu(layer(h)), self.inner_dropout, self.training)

    def arcs(self, h, real):
        """Arc scores (B, N, N) of dependents by heads, -inf for a word as its own head and for padding."""
        dep = F.pad(self.inner(self.arc_dep, h), (0, 1), value=1.0)                              # (B, N, A+1)
        scores = (dep @ self.arc @ self.inner(self.arc_head, h).transpose(1, 2)).float()         # (B, N, N)
        own = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
        return scores.masked_fill(own | ~real[:, None], -math.inf)

    def labels(self, h, heads, keep):
        """Label scores (R+1, C) of the words read, padding left out, each under the one head that heads (B, N) gives."""
        heads = heads + heads.shape[1] * torch.arange(len(heads), device=heads.device)[:, None]  # of the B * N places
        dep, head = (F.pad(self.inner(layer, h), (0, 1), value=1.0).flatten(0, 1).index_select(0, at)
                     for layer, at in ((self.label_dep, keep), (self.label_head, heads.flatten()[keep])))
        half = (dep @ self.label.flatten(1)).view(-1, *self.label.shape[1:])                     # (R+1, C, D+1)
        return torch.einsum("rcd,rd->rc", half, head).float()

    def loss(self, h, batch):
        """Cross entropy of the arcs plus that of the labels, each a mean over words whose head was read."""
        h = variational_dropout(h, self.dropout, self.training)
        head, relation = batch.gold[..., 0], batch.gold[..., 1]                                  # (B, N)
        arcs = F.cross_entropy(self.arcs(h, batch.real).flatten(0, 1), head.flatten(), ignore_index=-1)
        labels, relation = self.labels(h, head.clamp(min=0), batch.keep), relation.masked_fill(head < 0, -1)
        return arcs + F.cross_entropy(labels, relation.flatten()[batch.keep], ignore_index=-1)

    def predict(self, h, batch):
        """(B, N, 2): the head of each word in the best tree, and its relation."""
        heads = decode(self.arcs(h, batch.real), batch.real)
        return torch.stack([heads, self.labels(h, heads, batch.keep).argmax(-1)[batch.place]], -1)


# ---------------------------------------------------------------------------------------------------------- decoding

def decode(arcs, real):
    """Heads (B, N) of the best trees with one root word under arcs (B, N, N): dependents by heads, position 0 is ROOT.

    The argmax where it already is such a tree, else the exact maximum spanning arborescence.
    """
    heads = arcs.argmax(-1).masked_fill(~real, 0)                  # (B, N)
    heads[:, 0] = 0
    wrong = (~are_trees(heads, real)).nonzero()[:, 0]
    if len(wrong):
        sizes, scores = real[wrong].sum(-1).tolist(), arcs[wrong].double().cpu().numpy()
        fixed = np.zeros((len(wrong), heads.shape[1]), dtype=np.int64)
        for row, s, n in zip(fixed, scores, sizes):
            row[:n] = best_tree(s[:n, :n])
        heads[wrong] = torch.from_numpy(fixed).to(heads.device)
    return heads


def are_trees(heads, real):
    """(B,) True where heads (B, N) lead every word to position 0 and exactly one word hangs on it."""
    above = heads
    for _ in range((heads.shape[1] - 1).bit_length()):             # pointer doubling: 2**k steps up after k rounds
        above = above.gather(1, above)
    return (above == 0).all(1) & (((heads == 0) & real)[:, 1:].sum(1) == 1)


def best_tree(scores):
    """Heads (N,) of the maximum spanning arborescence with one root word; scores (N, N) dependents by heads, 0 is ROOT.

    Chu-Liu-Edmonds run once: with the root's arcs made worse by more than any tree can gain elsewhere, the best tree
    uses only one of them (Stanojevic & Cohen 2021).
    """
    s = np.nan_to_num(scores, nan=-1e30, neginf=-1e30, posinf=1e30)
    np.fill_diagonal(s, -np.inf)
    s[0] = -np.inf
    inner = s[1:][np.isfinite(s[1:])]
    s[1:, 0] -= len(s) * (inner.max() - inner.min()) + 1.0
    return arborescence(s)


def arborescence(s):
    """Heads (N,) of the maximum spanning arborescence from node 0; s (N, N) dependents by heads, -inf for no arc."""
    heads = s.argmax(1)
    heads[0] = 0
    cycle = find_cycle(heads.tolist())
    if not cycle:
        return heads
    inside = np.zeros(len(s), dtype=bool)
    inside[cycle] = True
    cycle, rest = np.flatnonzero(inside), np.flatnonzero(~inside)   # rest[0] is node 0
    n = len(rest)
    gain = s[cycle[:, None], rest] - s[cycle, heads[cycle]][:, None]   # of breaking the cycle at a node, by new head
    enter = gain.argmax(0)                                            # for each outside head: the node to break at
    out = s[rest[:, None], cycle]
    leave = out.argmax(1)                                             # for each outside dependent: its head inside
    small = np.full((n + 1, n + 1), -np.inf)                          # node n stands for the cycle
    small[:n, :n] = s[rest[:, None], rest]
    small[n, :n] = gain[enter, np.arange(n)]
    small[:n, n] = out[np.arange(n), leave]
    found = arborescence(small)
    entered = cycle[enter[found[n]]]
    heads[entered] = rest[found[n]]
    above = found[:n]
    heads[rest] = np.where(above == n, cycle[leave], rest[np.minimum(above, n - 1)])
    heads[0] = 0
    return heads


def find_cycle(heads):
    """Nodes of one cycle in heads, or None; node 0 ends every path."""
    color = [0] * len(heads)
    color[0] = -1
    for start in range(1, len(heads)):
        i = start
        while color[i] == 0:
            color[i] = start
            i = heads[i]
        if color[i] == start:                                        # met on this very walk: a cycle
            cycle, j = [i], heads[i]
            while j != i:
                cycle.append(j)
                j = heads[j]
            return cycle
    return None


# ------------------------------------------------------------------------------------------------------------ scores

def accuracy(pred, dev):
    """(1, 2) counts: right, all; pred (R, 1) and dev.gold (R, 1) in file order."""
    return torch.stack([(pred[:, 0] == dev.gold[:, 0]).sum(), (dev.gold[:, 0] >= 0).sum()])[None]


def span_f1(pred, dev):
    """(1, 2) counts: 2 * right spans, gold + predicted spans, of BIO tags 0 = O, odd = B-, even = I- of the same type.

    Tags are repaired as they are read, in gold and prediction alike: an I- that continues no span begins one (App. A).
    """
    gold, pred = spans(dev.gold[:, 0], dev.new), spans(pred[:, 0], dev.new)
    right = gold[0] & pred[0] & (gold[1] == pred[1]) & (gold[2] == pred[2])
    return torch.stack([2 * right.sum(), gold[0].sum() + pred[0].sum()])[None]


def spans(tags, new):
    """(begins, kind, end) of each position (R,): whether a span begins there, its type, and where the run ends."""
    kind = (tags + 1) // 2                                           # 0 = O, then one number a type
    before = torch.cat([kind.new_zeros(1), kind[:-1]]).masked_fill(new, 0)
    begins = (kind > 0) & ((tags % 2 == 1) | (kind != before))
    place = torch.arange(len(tags), device=tags.device)
    stops = torch.cat([(begins | (kind != before) | new)[1:], begins.new_ones(1)])   # the next position is outside
    end = torch.where(stops, place, len(tags)).flip(0).cummin(0).values.flip(0)
    return begins, kind, end


def attachment(pred, dev):
    """(2, 2) counts: LAS and UAS, right and all, over the words that are scored; lost words count as wrong."""
    scored = dev.gold[:, 2] == 1
    head = scored & (pred[:, 0] == dev.gold[:, 0])
    las, total = (head & (pred[:, 1] == dev.gold[:, 1])).sum(), scored.sum() + dev.lost
    return torch.stack([torch.stack([las, total]), torch.stack([head.sum(), total])])


# ------------------------------------------------------------------------------------------------------------- model


class Encoder(NamedTuple):
    model: nn.Module   # stays on the CPU with the pretrained parameters
    tokenizer: object
    digest: str              # SHA-256 of the parameters and the tokenizer
    pass_types: bool         # whether it tells the two sentences of a pair apart
    wide_mask: bool          # whether it takes the mask as (B, 1, 1, L)


@lru_cache(maxsize=1)
def load_encoder(name):
    """An encoder from a local folder or the hub, fp32, without its pooler. Raises ModelError with a sentence."""
    if Path(name).is_dir():
        for wanted in ("config.json", "*.safetensors", "tokenizer_config.json",
                       "tokenizer.json or vocab.txt or vocab.json or *.model"):
            if not any(found for pattern in wanted.split(" or ") for found in Path(name).glob(pattern)):
                raise ModelError(f"The encoder folder {name} has no {wanted}; expected config.json, model.safetensors and "
                                "the tokenizer's files, as save_pretrained writes them.")
    source = HUB.get(name, name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
        tokenizer("\U00010380")   # a letter that is in no vocabulary: fails where there is no unknown token
        model, info = transformers.AutoModel.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
    except Exception as e:  # the library raises a dozen kinds, all of them about what it found at `source`
        raise ModelError(f"The encoder {name!r} could not be loaded ({(str(e).strip() or repr(e)).splitlines()[0]}). "
                        f"Expected {', '.join(HUB)}, a local folder, or a name on the hub and a network.") from None
    if missing := sorted(k for k in info["missing_keys"] if "pooler" not in k):
        raise ModelError(f"The weights of the encoder {name!r} lack {len(missing)} parameters ({missing[0]}, ...): "
                        "the file is of another architecture than config.json, or not whole.")
    if len(tokenizer) > (size := getattr(model.config, "vocab_size", math.inf)):
        raise ModelError(f"The encoder {name!r} has {size} subwords, its tokenizer {len(tokenizer)}: "
                        "the tokenizer is of another encoder.")
    tokenizer.model_max_length = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", math.inf))
    model.pooler = None  # the paper reads the last hidden state
    pass_types = ("token_type_ids" in inspect.signature(model.forward).parameters
                  and getattr(model.config, "type_vocab_size", 0) > 1)
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy())
    return Encoder(model, tokenizer, digest.hexdigest(), pass_types, takes_wide_mask(model.eval(), name))


@torch.no_grad()
def takes_wide_mask(model, name):
    """Try the encoder on two short windows, one padded: does it take the mask as (B, 1, 1, L)? A 2-D mask makes it look
    inside, for which a GPU has to stop. Raises ModelError unless it gives last_hidden_state (B, L, H)."""
    ids, mask = torch.ones(2, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    try:
        narrow = model(input_ids=ids, attention_mask=mask).last_hidden_state.view(2, 4, model.config.hidden_size)
    except Exception:
        raise ModelError(f"The encoder {name!r} ({type(model).__name__}) gives no last_hidden_state for subword ids alone; "
                        "expected an encoder such as BERT or XLM-R.") from None
    try:
        wide = model(input_ids=ids, attention_mask=mask[:, None, None]).last_hidden_state
    except Exception:
        return False
    return torch.allclose(narrow[mask], wide[mask], atol=1e-5)


class Reader(nn.Module):
    """Encoder and head as a function of one flat vector theta (P,): encoder first, head after.

    Each parameter begins at a multiple of 64 elements, so that fast kernels find it aligned. The module's own parameters
    are only the start of fine-tuning; buffers are no parameters and are never interpolated.
    """

    def __init__(self, e, head, labels, device):
        super().__init__()
        self.encoder, self.pass_types, self.wide_mask = e.model, e.pass_types, e.wide_mask
        self.make_head = lambda: head(e.model.config.hidden_size, labels)
        self.head = self.make_head()
        named = [*e.model.named_parameters(prefix="encoder"), *self.head.named_parameters(prefix="head")]
        self.names, self.shapes = [n for n, _ in named], [p.shape for _, p in named]
        self.cuts = [cut for _, p in named for cut in (p.numel(), -p.numel() % 64)]   # parameter, padding, ...
        self.split = sum(-(-p.numel() // 64) * 64 for p in e.model.parameters())      # theta[split:] is the head
        self.moved = {n: b.to(device) for n, b in self.named_buffers()}
        self.tied = len(named) < len(list(self.named_parameters(remove_duplicate=False)))
        self.early = e.model.config.model_type in EARLY
        if self.early:  # after its attention, the last layer works on each position alone: only those read are needed
            after = e.model.encoder.layer[-1].attention.output
            after._forward_pre_hooks.clear()   # of an earlier Reader
            after.register_forward_pre_hook(lambda _, states: tuple(self.pick(s) for s in states))

    def views(self, theta):
        """{name: parameter} as views of theta (P,)."""
        return {n: t.view(s) for n, s, t in zip(self.names, self.shapes, theta.split(self.cuts)[::2])}

    def flat(self, named):
        """theta (P,) on the CPU from {name: tensor}."""
        pieces = [piece for n, pad in zip(self.names, self.cuts[1::2]) for piece in (named[n].flatten(), torch.zeros(pad))]
        return torch.cat(pieces).detach()

    def start(self, seed):
        """theta (P,) before fine-tuning: the pretrained encoder and the head of this seed, the same for all models."""
        torch.manual_seed(seed)
        head = self.make_head()
        return self.flat(dict([*self.encoder.named_parameters(prefix="encoder"), *head.named_parameters(prefix="head")]))

    def run(self, theta, *batches):
        """forward(*batches) with the parameters that theta (P,) holds."""
        return self.call(self.views(theta), *batches)

    def call(self, views, *batches):
        return functional_call(self, {**views, **self.moved}, batches, tie_weights=self.tied)   # looking for ties is slow

    def gradient(self, theta, batch, out):
        """The loss of a batch under theta (P,); its gradient is written into out (P,), in the precision of out."""
        views = {n: v.detach().requires_grad_() for n, v in self.views(theta).items()}
        loss = self.call(views, batch)
        found = torch.autograd.grad(loss, list(views.values()), allow_unused=True, materialize_grads=True)
        torch._foreach_copy_(list(self.views(out).values()), found)
        return loss.detach()

    def forward(self, *batches):
        """The loss of one batch in training, else the predictions (B, N, K) of each batch."""
        if self.training:
            return self.head.loss(self.read(batches[0]), batches[0])
        return [self.head.predict(self.read(batch), batch) for batch in batches]

    def read(self, batch):
        """Last hidden states (B, N, H) at the read positions of a batch."""
        extra = {"token_type_ids": batch.types} if self.pass_types else {}
        mask = batch.mask[:, None, None] if self.wide_mask and batch.mask is not None else batch.mask
        self.at = batch.at
        hidden = self.encoder(input_ids=batch.ids, attention_mask=mask, **extra).last_hidden_state
        hidden = hidden if self.early else self.pick(hidden)                                           # (1, R+1, H)
        return hidden[0].index_select(0, batch.place.flatten()).view(*batch.place.shape, -1)           # (B, N, H)

    def pick(self, states):
        """The states (B, L, H) at the positions read, as if of one window: (1, R+1, H)."""
        return states.flatten(0, 1).index_select(0, self.at)[None]
