"""Encoders from scratch: a RoBERTa (or a BART, for what writes) pretrained on plain texts.

    python reproduce.py --encoder scratch --text en.txt --task pos --src en --tgt en.transliteration

After "When is BERT Multilingual?" (Deshpande et al. 2022) and, for the alignment loss, Align-MLM. A subword
has one row of the embeddings, and V rows further on that of its transliteration; every RoBERTa has all 2 V,
to read any derived language. It ends as an ordinary folder, with its measures in pretraining.json.
"""

import json
import math
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import data
import derive
import results
from results import KitError
from train import Settings, train

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BEGIN, PAD, END, UNKNOWN, MASK = range(5)   # their ids
POOL = 16   # batches of sentences that are drawn at once and sorted by length, to pad little (ours)

class Preset(NamedTuple):
    """Shape and schedule of a pretraining; the defaults are the paper's."""
    layers: int = 8
    heads: int = 8
    hidden: int = 512          # and four times as many in a feed-forward layer
    dropout: float = .1
    init: float = .02          # standard deviation of the first weights
    vocabulary: int = 40_000   # subwords of a language, V
    blocks: str = "joined"     # lines joined and cut, or "sentences": every line a block (ours)
    length: int = 512          # most subwords of a block
    batch: int = 128           # blocks a step
    steps: int = 500_000
    lr: float = 1e-4           # at its peak
    warmup: int = 10_000       # steps
    selected: float = .15      # share of the subwords that are predicted
    seed: int = 0

LIMITS = {"layers": (1, 999), "heads": (1, 999), "hidden": (1, 10**5), "dropout": (0, .9), "init": (1e-6, 1),
          "vocabulary": (256 + len(SPECIALS), 10**7), "length": (8, 10**5), "batch": (1, 10**6),
          "steps": (1, 10**9), "lr": (1e-12, 10), "warmup": (0, 10**9), "selected": (.001, 1),
          "seed": (0, 10**6)}

def parse_preset(text, before=""):
    """The Preset of "layers=2,hidden=64,..."; what is not named is as before or as in the paper."""
    found, base = {}, parse_preset(before) if before else Preset()
    for item in filter(None, text.split(",")):
        name, _, value = item.strip().partition("=")
        if name not in Preset._fields or name in found:
            raise KitError(f"Pretraining: {item!r}; expected NAME=VALUE between commas, each NAME once, of "
                           f"{', '.join(Preset._fields)}.")
        found[name] = value if name == "blocks" else number(name, value)
    preset = base._replace(**found)
    if preset.blocks not in ("joined", "sentences"):
        raise KitError(f"Pretraining: blocks={preset.blocks}; expected blocks=joined or blocks=sentences.")
    if preset.hidden % preset.heads:
        raise KitError(f"Pretraining: hidden={preset.hidden} is no multiple of heads={preset.heads}.")
    if preset.warmup > preset.steps:
        raise KitError(f"Pretraining: warmup={preset.warmup} is more than steps={preset.steps}: name both.")
    return preset

def number(name, value):
    kind, (low, high) = Preset.__annotations__[name], LIMITS[name]
    try:
        found = kind(value)
    except ValueError:
        found = math.nan
    if not low <= found <= high:
        raise KitError(f"Pretraining: {name}={value}; expected {kind.__name__} from {low} to {high}.")
    return found

class Scratch(NamedTuple):
    """An encoder that is pretrained here."""
    folder: str
    kind: str          # scratch, or a control: scratch-original, of one language, scratch-random, untrained
    texts: tuple       # files, of one language each ...
    steps: tuple = ()  # ... and, as derive.parse gives them, what makes of the last one a derived language
    align: float = 0.  # weight of the alignment loss
    writes: bool = False   # whether it is a BART, which rebuilds sentences

def scratch(folder, kind, src, tgt, texts, weights, writes=False):
    """The Scratch encoders of a pair under a folder, one for each weight of the alignment loss.
    Where no language is derived it is one encoder of all texts. Raises KitError where texts do not suit."""
    *originals, derived = sorted((*src.split("+"), tgt), key=lambda lang: len(derive.parse(lang)[1]))
    (base, earlier), (other, steps) = derive.parse(originals[-1]), derive.parse(derived)
    alone, texts = kind == "scratch-original", tuple(texts)
    gives_both = steps and base == other   # the one text makes the other
    enough = len(texts) > 1 or alone or gives_both
    if earlier or not enough or steps and len(texts) > 2:   # earlier: two languages are derived
        raise KitError(f"--encoder {kind} for {src} and {tgt}: with one --text, one of the two must be "
                       "derived from the other; with two, no more than one may be derived, with more none.")
    name = f"{'+'.join(originals)}-{derived}" if steps else "-".join(Path(text).stem for text in texts)
    kept = texts[:1] if alone else texts
    if writes:
        if any(weights):
            raise KitError("--align: an encoder-decoder is pretrained without alignment; leave it out.")
        name = {"scratch": name, "scratch-original": Path(texts[0]).stem}.get(kind, f"{name}-random")
        return [Scratch(f"{folder}/{name}-bart", kind, kept, writes=True)]
    if kind != "scratch":
        name = base if alone else f"{name}-random"
        return [Scratch(f"{folder}/{name}", kind, kept, () if alone else steps)]
    weights = [align for align in weights if not align or "transliteration" in steps]
    if not weights:
        raise KitError(f"--align for {src} and {tgt}: without a transliteration there is nothing to align; "
                       "add 0 to the weights.")
    return [Scratch(f"{folder}/{name}" + (f"-align{align:g}" if align else ""), kind, texts, steps, align)
            for align in weights]

def about(encoder):
    """What a grid's header says of an encoder that was pretrained here: the alignment of its embeddings."""
    path = Path(encoder, "pretraining.json")
    made = json.loads(path.read_bytes()) if path.exists() else {}
    return made and {"alignment": made.get("P@1"), "align": made["align"], "pretraining": made["kind"]}

# ---- text -------------------------------------------------------------------------------------------------

def sentences(path):
    """The lines of a text file that are not blank. Raises KitError with file and line."""
    return (text for _, text in data.lines(path) if text.strip())

def check(texts, steps):
    """SHA-256 of each text. Raises KitError where one is of no use."""
    if any(step not in derive.ON_IDS for step in steps):
        raise KitError(f"A text has no trees to be derived by {'.'.join(steps)} from: leave syntax out.")
    for path in texts:
        if sum(1 for _ in islice(sentences(path), 2)) < 2:
            raise KitError(f"{path} has fewer than two lines; expected text, one sentence a line.")
    return [data.sha256(Path(path).read_bytes()) for path in texts]

def train_tokenizer(texts, preset):
    """A tokenizer of byte-level BPE, trained on all texts; the same one in every run. Raises KitError."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)   # as inside a sentence
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=preset.vocabulary, special_tokens=list(SPECIALS),
                                  initial_alphabet=sorted(bpe.pre_tokenizer.alphabet()), show_progress=False)
    bpe.train_from_iterator(chain.from_iterable(map(sentences, texts)), trainer)
    if bpe.get_vocab_size() < preset.vocabulary:
        raise KitError(f"{' and '.join(map(str, texts))} make no more than {bpe.get_vocab_size()} subwords; "
                       f"vocabulary={preset.vocabulary} needs more text.")
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", BEGIN), ("</s>", END)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, model_max_length=positions(preset), bos_token="<s>", cls_token="<s>",
        eos_token="</s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")

def encode(text, tokenizer):
    """Yield the subword ids (L,) of each line of a text; two sentences apart by a tab are a pair."""
    bpe, lines = tokenizer.backend_tokenizer, sentences(text)
    bpe.encode_special_tokens = True   # "<mask>" in a text is text
    while chunk := list(islice(lines, 10_000)):
        pairs = [tuple(line.split("\t")) if line.count("\t") == 1 else line for line in chunk]
        for line in bpe.encode_batch_fast(pairs):
            yield np.array(line.ids, dtype=np.uint32)

def prepare(folder, texts, steps, preset, settings):
    """Make tokenizer and text.ids of a pretraining, unless its settings, which are written last, are there.
    text.ids (T,), uint32: all texts, or the first one and then the last one in the derived language."""
    path = folder / "pretraining.json"
    if path.exists():
        return results.check_same(settings, json.loads(path.read_bytes()), path)
    results.clear(folder)
    tokenizer = train_tokenizer(texts, preset)
    tokenizer.save_pretrained(folder)
    with open(folder / "text.ids", "wb") as f:
        for ids in chain.from_iterable(encode(text, tokenizer) for text in (texts[:1] if steps else texts)):
            ids.tofile(f)
        if steps:
            rule = derive.Rule(steps, tokenizer, 2 * preset.vocabulary)
            for place, ids in enumerate(encode(texts[-1], tokenizer)):
                rule(ids, (place, 0))[0].astype(np.uint32).tofile(f)
    results.write(path, json.dumps(settings, indent=1).encode())

# ---- batches ----------------------------------------------------------------------------------------------

class Batch(NamedTuple):
    """B blocks of up to L subwords, and the S subwords of them that are predicted; by a BART all T."""
    ids: torch.Tensor            # (B, L) as they are shown
    mask: torch.Tensor | None    # (B, L) True at subwords; None where nothing is padded
    labels: torch.Tensor         # (B, L), of a BART (B, T): the predicted subwords, -100 elsewhere
    at: torch.Tensor             # (S,) where they are, the rows of labels laid end to end
    count: int                   # S

class Blocks:
    """A memory-mapped text, cut into blocks of which each step draws some, all equally often."""

    def __init__(self, path, preset, writes=False):
        self.preset, self.writes, self.ids = preset, writes, np.memmap(path, np.uint32, "r")
        if preset.blocks == "sentences":
            self.first = np.flatnonzero(self.ids == BEGIN)
            self.lengths = np.diff(self.first, append=len(self.ids)).clip(max=preset.length)
        else:
            self.first = np.arange(0, len(self.ids) - preset.length + 1, preset.length)
            self.lengths = np.full(len(self.first), preset.length)
        if not len(self.first):
            raise KitError(f"The text makes {len(self.ids)} subwords, no block of length={preset.length}; "
                           "expected more text, a smaller length, or blocks=sentences.")

    def batches(self, step, pieces, device):
        """The Batch of a step in so many pieces, drawn from the step alone: a resumed run draws the same."""
        generator = torch.Generator().manual_seed(self.preset.seed * 1_000_003 + step)
        shown, labels = (replace_spans if self.writes else hide)(self.draw(generator), self.preset, generator)
        return [to_batch(*part, device)
                for part in zip(shown.tensor_split(pieces), labels.tensor_split(pieces), strict=True)]

    def draw(self, generator):
        """(B, L) subword ids, padded."""
        pool = POOL if self.preset.blocks == "sentences" else 1
        drawn = torch.randint(len(self.first), (pool * self.preset.batch,), generator=generator).numpy()
        drawn = drawn[np.argsort(self.lengths[drawn], kind="stable")].reshape(pool, -1)
        drawn = drawn[torch.randint(pool, (), generator=generator)]                                # (B,)
        ids = torch.full((len(drawn), self.lengths[drawn].max()), PAD)
        for row, first, length in zip(ids, self.first[drawn], self.lengths[drawn], strict=True):
            row[:length] = torch.from_numpy(self.ids[first:first + length].astype(np.int64))
        return ids

def hide(ids, preset, generator=None):
    """(shown (B, L), labels (B, L)) of ids (B, L): 15 % are selected, the labels; 80 % of them are shown as
    <mask>, 10 % as a random subword of the original half, 10 % as they are; special tokens are neither."""
    selected = (torch.rand(ids.shape, generator=generator) < preset.selected) & (ids >= len(SPECIALS))
    how = torch.rand(ids.shape, generator=generator)
    other = torch.randint(len(SPECIALS), preset.vocabulary, ids.shape, generator=generator)
    shown = torch.where(how < .8, MASK, torch.where(how < .9, other, ids))
    return torch.where(selected, shown, ids), ids.masked_fill(~selected, -100)

def replace_spans(ids, preset, generator=None):
    """(shown (B, L'), labels (B, L)) of ids (B, L): all are labels but padding; shown are spans of one to
    three subwords (ours) as one <mask> each. A `selected` share of the positions begins a span; special
    tokens are never in one."""
    begins = torch.rand(ids.shape, generator=generator) < preset.selected
    lengths = torch.randint(1, 4, ids.shape, generator=generator)
    rows = []
    for row, starts, spans in zip(ids.tolist(), begins.tolist(), lengths.tolist(), strict=True):
        shown, hidden = [], 0   # how many of the next subwords are still hidden
        for subword, start, span in zip(row, starts, spans, strict=True):
            hidden = 0 if subword < len(SPECIALS) else max(0, hidden - 1)
            if not hidden and start and subword >= len(SPECIALS):
                hidden = span
                shown.append(MASK)
            elif not hidden:
                shown.append(subword)
        rows.append(torch.tensor(shown))
    shown = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return shown, ids.masked_fill(ids == PAD, -100)

def to_batch(shown, labels, device):
    mask, at = shown != PAD, (labels.flatten() >= 0).nonzero()[:, 0]
    mask = None if mask.all() else mask.to(device)
    return Batch(shown.to(device), mask, labels.to(device), at.to(device), len(at))

# ---- model ------------------------------------------------------------------------------------------------

class Pretraining(torch.nn.Module):
    """A masked language model as train() wants it; align: weight of its alignment loss, over rows (K,)."""

    def __init__(self, preset, align=0., rows=None):
        super().__init__()
        torch.manual_seed(preset.seed)
        self.align, self.rows = align, rows
        self.masked = transformers.RobertaForMaskedLM(transformers.RobertaConfig(
            vocab_size=2 * preset.vocabulary, hidden_size=preset.hidden, num_hidden_layers=preset.layers,
            num_attention_heads=preset.heads, intermediate_size=4 * preset.hidden, type_vocab_size=1,
            hidden_dropout_prob=preset.dropout, attention_probs_dropout_prob=preset.dropout,
            initializer_range=preset.init, bos_token_id=BEGIN, pad_token_id=PAD, eos_token_id=END,
            max_position_embeddings=positions(preset) + PAD + 1))   # RoBERTa counts from PAD + 1

    def embeddings(self):
        """(2 V, H): those of the subwords, to which those of the output are tied."""
        return self.masked.get_input_embeddings().weight

    def loss(self, batch):
        """Cross entropy of the selected subwords, minus `align` times the mean cosine of e_i and e_(i+V)."""
        hidden = self.masked.roberta(batch.ids, attention_mask=batch.mask).last_hidden_state       # (B, L, H)
        logits = self.masked.lm_head(hidden.flatten(0, 1)[batch.at])                               # (S, 2 V)
        loss = F.cross_entropy(logits, batch.labels.flatten()[batch.at])
        if self.align:
            e = self.embeddings()
            loss = loss - self.align * F.cosine_similarity(e[self.rows], e[self.rows + len(e) // 2]).mean()
        return loss

class Rebuilding(torch.nn.Module):
    """A BART as train() wants it: it rebuilds what replace_spans leaves of sentences (Lewis et al. 2020)."""

    def __init__(self, preset):
        super().__init__()
        torch.manual_seed(preset.seed)
        self.masked = transformers.BartForConditionalGeneration(transformers.BartConfig(
            vocab_size=preset.vocabulary, d_model=preset.hidden, encoder_layers=preset.layers,
            decoder_layers=preset.layers, encoder_attention_heads=preset.heads,
            decoder_attention_heads=preset.heads, encoder_ffn_dim=4 * preset.hidden,
            decoder_ffn_dim=4 * preset.hidden, dropout=preset.dropout, init_std=preset.init,
            max_position_embeddings=positions(preset), bos_token_id=BEGIN, pad_token_id=PAD, eos_token_id=END,
            decoder_start_token_id=END, forced_eos_token_id=None))

    def loss(self, batch):
        """Mean cross entropy of the sentences' subwords, each after those before it."""
        return self.masked(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss

def positions(preset):
    """How many subwords an encoder can read: a block, and a window of fine-tuning."""
    return max(preset.length, data.MAX_SUBWORDS)

def halves(preset):
    """Random halves (K,) of the ids without special tokens: in the alignment loss, and left out of it."""
    generator = torch.Generator().manual_seed(preset.seed)
    ids = torch.randperm(preset.vocabulary - len(SPECIALS), generator=generator) + len(SPECIALS)
    return [half.sort().values for half in ids.tensor_split(2)]

@torch.no_grad()
def alignment(embeddings, V, rows=None):
    """[P@1 in %, the same backwards]: of the ids i in rows (K,), how many are nearest to i + V by cosine.
    embeddings (2 V, H). Special tokens are neither asked (rows: all others if None) nor among the neighbours.
    """
    unit = F.normalize(embeddings.float(), dim=1)
    ids = torch.arange(len(SPECIALS), V, device=unit.device)
    rows, found = ids if rows is None else rows, []
    for here, there in ((unit[:V], unit[V:]), (unit[V:], unit[:V])):
        nearest = [(here[part] @ there[ids].T).argmax(1) for part in rows.split(1024)]   # (1024, V) at a time
        found.append(100 * (ids[torch.cat(nearest)] == rows).float().mean().item())
    return found

# ---- pretraining ------------------------------------------------------------------------------------------

def pretrain(scratch, preset, precision, device, ranks):
    """Make a Scratch encoder unless it is there; returns its pretraining.json: settings, digests, alignment.
    ranks: results.Ranks. A killed run goes on in folder.part. Raises KitError where a text is no good or a
    folder was made otherwise, UnitError where the loss is no number."""
    folder, kind, texts, steps, align, writes = scratch
    folder, part = Path(folder), Path(f"{folder}.part")
    about = preset._asdict() | {"kind": kind, "derived by": [*steps], "align": align, "writes": writes,
                                "precision": precision, "texts": check(texts, steps)}
    if folder.exists():
        return finished(folder, about)
    with results.locked(part / "train.jsonl") as journal:
        prepare(part, texts, steps, preset, about)
        blocks = Blocks(part / "text.ids", preset, writes)
        asked = [half.to(device) for half in halves(preset)] if align else [None]
        model = (Rebuilding(preset) if writes else Pretraining(preset, align, asked[0])).to(device)
        every = max(1, min(2500, preset.steps // 20))   # steps from one saving of the state to the next
        settings = Settings(preset.steps, preset.lr, [*range(every, preset.steps, every), preset.steps],
                            preset.seed, preset.warmup, (.9, .999), 1., precision)
        if kind != "scratch-random":   # the last parameters are kept, and the model has them
            train(model, partial(blocks.batches, device=device), lambda records: ({}, False), settings, about,
                  journal, folder.name, ranks)
        model.masked.save_pretrained(part)
        about["weights"] = data.sha256((part / "model.safetensors").read_bytes())
        if "transliteration" in steps:
            found = [alignment(model.embeddings(), preset.vocabulary, rows) for rows in asked]
            about["P@1"] = dict(zip(["in the loss", "left out"] if align else ["all"], found, strict=True))
        if align:
            about["rows in the loss"] = asked[0].tolist()
        results.write(part / "pretraining.json", json.dumps(about).encode())
        for path in part.iterdir():
            path.chmod((part / "train.jsonl").stat().st_mode)   # the library leaves 0600
        part.rename(folder)
    return finished(folder, about)

def finished(folder, about):
    """The pretraining.json of an encoder folder. Raises KitError unless it is what is asked for and whole."""
    try:
        made = json.loads((folder / "pretraining.json").read_bytes())
        weights = data.sha256((folder / "model.safetensors").read_bytes())
    except (OSError, ValueError) as e:
        raise KitError(f"{folder} is there, but no encoder of this kit ({e}): move it away, or give another "
                       "--out.") from None
    results.check_same(about | {"weights": weights}, made, folder)
    results.clear(folder)
    (folder / "text.ids").unlink(missing_ok=True)
    return made
