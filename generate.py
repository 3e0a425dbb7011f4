"""Sequence to sequence: an encoder-decoder that writes titles, the language it writes them in, and XLRS.

After "Why Does Zero-Shot Cross-Lingual Generation Fail? An Explanation and a Solution" (Li & Murray 2023): a
model fine-tuned on one language and asked in another answers in the first one, since fine-tuning makes its
encoder language-invariant. What is marked (ours) is our reading: neither text nor code of it was at hand.

    source, target -> subwords -> Generator -> subwords of an output -> words -> ROUGE-L, wrong-language words

A title is a window like any other: it is read once, and the gold of that read is the whole target, (B, 1, T).
"""

import copy
import json
import math
import re
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from tqdm import tqdm

import data
import heads
from results import KitError

METRICS = ("ROUGE-L", "wrong-language outputs", "wrong-language words")   # as `scores` gives them
SOURCE_SUBWORDS, TARGET_SUBWORDS = 512, 64        # (ours), with special tokens; the rest is cut and counted
FIELDS = ("source", "target"), ("text", "title")  # of a line: this kit's and those of XL-Sum

# XL-Sum 2.0 (Hasan et al. 2021; CC BY-NC-SA 4.0): its name of a language, SHA-256 of the archive. It has no
# German; of vi and zh no digest was at hand. Those of ar, en and hi are of a copy whose other files agree.
XLSUM_URL = ("https://huggingface.co/datasets/csebuetnlp/xlsum/resolve/"
             "16f84e644d7eafc425634df41778d2fea930df53/data/{file}")
XLSUM = {"ar": ("arabic", "371a07df0f89d83c2ca330f56ba33cc4cd39c1b532d6886910c97dfbacfdf2b7"),
         "en": ("english", "ce2e965b9e4b8b337a801fda8b55e673fe2b17c4f3755d7fff886944633fec29"),
         "es": ("spanish", "70499154fe1d1c8df3b4667921d2c8c7b508da5473aa9387c4330b3b22288360"),
         "fr": ("french", "8d3b0734508a8612598af8e47e023d6fd4e52546543cddb0e3246d720135adf2"),
         "hi": ("hindi", "23e625cfdd596ae59bab6e1756756c4d68bf50f355437943b3e57f0593662193"),
         "ru": ("russian", "5a582ea371c981295da82b6d4c3a8f44d8e266837a86aeae199e2a49b04af3bf")}


# ------------------------------------------------------------------------------------------------- reading

def title_file(folder, lang, split):
    """The Source of title/LANG/SPLIT.jsonl under `folder`: a JSON object a line, "source" and "target"."""
    path = Path(folder, "title", lang, f"{split}.jsonl")
    if lang not in XLSUM:
        return data.Source(path)
    name, digest = XLSUM[lang]
    file = f"{name}_XLSum_v2.0.tar.bz2"
    packed = data.Source(Path(folder, "title", file), XLSUM_URL.format(file=file), digest)
    return data.Source(path, archive=packed, members=(f"{name}_{'val' if split == 'dev' else split}.jsonl",))


def read_titles(path, lang):
    """Yield (source, target), two texts, per line. Raises KitError."""
    for n, line in data.lines(path):
        try:
            record = dict(json.loads(line))
        except (ValueError, TypeError):
            raise KitError(f"{path}, line {n}: {line[:60]!r} is no JSON object; "
                           'expected {"source": "...", "target": "..."}.') from None
        fields = FIELDS[1] if FIELDS[1][1] in record else FIELDS[0]
        for field in fields:
            if not isinstance(record.get(field), str) or not record[field].strip():
                raise KitError(f"{path}, line {n}: its {field!r} is {record.get(field)!r}; expected a text.")
        yield tuple(record[field] for field in fields)


def read_parallel(first, second):
    """(sentences, sentences) of two files, line by line each other's translation. Raises KitError."""
    found = [], []
    for path, sentences in zip((first, second), found, strict=True):
        for n, text in data.lines(path):
            if not text.strip():
                raise KitError(f"{path}, line {n} is empty; expected a sentence, whose translation is "
                               f"line {n} of the other file.")
            sentences.append(text)
    if not len(found[0]) == len(found[1]) > 1:
        raise KitError(f"{first} has {len(found[0])} lines and {second} {len(found[1])}; expected equally "
                       "many, at least two, line n of one being the translation of line n of the other.")
    return found


# ------------------------------------------------------------------------------------------------ encoding

class Titles(data.Encoded):
    """Encoded sources, each read once; the gold of a read is its target's subwords (T,), -1 past their end.

    texts: the targets as they were written, on the host.
    """

    def __init__(self, tokenizer, columns):
        super().__init__(tokenizer.pad_token_id, columns)
        self.tokenizer, self.texts = tokenizer, []

    def to(self, device):
        super().to(device)
        self.labelled = (self.gold >= 0).sum(1).cpu().numpy()   # the loss is a mean over target subwords
        return self

    def batch(self, windows):
        """The Batch of window numbers (B,), with gold (B, 1, T) as wide as its longest target."""
        batch = super().batch(windows)
        return batch._replace(gold=batch.gold[..., :int(self.labelled[windows].max())])

    def decode(self, ids):
        """Texts of outputs (R, T), without special tokens."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def encode_titles(examples, tokenizer, split, label, language=None):
    """Titles of (source, target) examples; what is longer than the model takes is cut and counted.

    language: a language_token, which then marks the source and begins the target. Without it nothing names
    their language, not even where the tokenizer by itself adds a token that does (ours).
    """
    most = min(TARGET_SUBWORDS, tokenizer.model_max_length)
    first = [tokenizer.convert_tokens_to_ids(language)] if language else []
    room = most - len(first) - 1
    encoded, examples = Titles(tokenizer, most), iter(examples)
    with tqdm(desc=f"{label}: subwords", unit=" titles", disable=None, leave=False) as bar:
        while chunk := list(islice(examples, 1000)):
            sources, targets = map(list, zip(*chunk, strict=True))
            windows = inputs(sources, tokenizer, SOURCE_SUBWORDS, language)
            written = tokenizer(targets, add_special_tokens=False, return_attention_mask=False).input_ids
            for (ids, _, cut), target in zip(windows, written, strict=True):
                gold = [*first, *target[:room], tokenizer.eos_token_id]
                encoded.add(ids, [0], [gold + [-1] * (most - len(gold))])
                encoded.counts["truncated"] += cut + (len(target) > room)
            encoded.texts += targets
            bar.update(len(chunk))
    encoded.counts["sentences"] = len(encoded.texts)
    encoded.counts["words"] = sum(len(words(text)) for text in encoded.texts)
    return encoded


def encode_sentences(texts, tokenizer):
    """Encoded set of sentences for XLRS, each read at all its subwords but special tokens."""
    encoded = data.Encoded(tokenizer.pad_token_id, columns=1)
    for ids, read, cut in inputs(texts, tokenizer, data.MAX_SUBWORDS):
        read = read or [0]   # a sentence of which the tokenizer makes nothing
        encoded.add(ids, read, [(-1,)] * len(read))
        encoded.counts["truncated"] += cut
    return encoded


def inputs(texts, tokenizer, most, language=None):
    """Yield (ids, positions of the text's own subwords, whether it was cut) per text."""
    if language:
        tokenizer.src_lang = language
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    out = tokenizer(texts, truncation=True, max_length=min(most, tokenizer.model_max_length),
                    return_attention_mask=False, return_special_tokens_mask=True)
    for ids, marks, encoding in zip(out.input_ids, out.special_tokens_mask, out.encodings, strict=True):
        kept = [(i, mark) for i, mark in zip(ids, marks, strict=True) if language or not mark or i in ends]
        own = [place for place, (_, mark) in enumerate(kept) if not mark]
        yield [i for i, _ in kept], own, bool(encoding.overflowing)


def language_token(tokenizer, lang):
    """The token for a language in models that have such tokens: de_DE in mBART. Raises KitError."""
    for token in tokenizer.all_special_tokens:
        if re.fullmatch(f"{lang}_[A-Z]{{2}}", token):
            return token
    raise KitError(f"The encoder has no token for the language {lang!r}, as mBART has de_DE for de: leave "
                   "language tokens out.")


# --------------------------------------------------------------------------------------------------- model

@lru_cache(maxsize=1)
def load_generator(name):
    """A pretrained encoder-decoder from a local folder or the hub, as a heads.Encoder. Raises KitError."""
    loaded = heads.load(name, transformers.AutoModelForSeq2SeqLM)
    if loaded.tokenizer.eos_token_id is None or loaded.tokenizer.pad_token_id is None:
        raise KitError(f"The tokenizer of {name!r} has no token for the end of a text or for padding; "
                       "expected both, as in mT5, mBART and BART.")
    return loaded


class Generator(nn.Module):
    """An encoder-decoder: an ordinary module, trained by `loss`; called, it writes (greedy decoding).

    A parameter's name begins with its half, encoder or decoder. The embeddings that both halves share, and
    with them the output layer where it is tied to them, belong to neither: their name is `shared` (ours).
    """

    def __init__(self, pretrained, given=0):
        """pretrained: of load_generator; given: how many subwords of a target are given (its language)."""
        super().__init__()
        model, tokenizer = copy.deepcopy(pretrained.model), pretrained.tokenizer
        self.shared = model.get_input_embeddings().weight
        self.encoder, self.decoder, self.given = model.get_encoder(), model, given
        place = next(name for name, module in model.named_modules() if module is self.encoder)
        outer, _, name = place.rpartition(".")
        delattr(model.get_submodule(outer), name)   # what is left is the decoder, handed the encoder's states
        self.size = sum(parameter.numel() for parameter in self.parameters())
        start = getattr(model.config, "decoder_start_token_id", None)
        self.start, self.pad = tokenizer.eos_token_id if start is None else start, tokenizer.pad_token_id
        self.longest = min(TARGET_SUBWORDS, tokenizer.model_max_length)
        # Instead of the settings it was published with: beams, penalties, a forced first token.
        model.generation_config = transformers.GenerationConfig(
            max_new_tokens=self.longest - given, do_sample=False, num_beams=1, pad_token_id=self.pad,
            eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=self.start)

    def encode(self, batch):
        """(the encoder's output with its last hidden states (B, L, H), the mask (B, L) of the subwords)."""
        mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()
        return self.encoder(input_ids=batch.ids, attention_mask=mask), mask

    def read(self, batch):
        """The encoder's last hidden states (B, N, H) at the read positions of a batch, in fp32."""
        hidden = self.encode(batch)[0].last_hidden_state                              # (B, L, H)
        return hidden.gather(1, batch.read[..., None].expand(-1, -1, hidden.shape[-1])).float()

    def loss(self, batch):
        """Mean cross entropy over the `count` target subwords of a batch, each after those before it."""
        states, mask = self.encode(batch)
        gold = batch.gold[:, 0]                                                       # (B, T)
        before = F.pad(gold[:, :-1].clamp(min=0), (1, 0), value=self.start)           # padding: any subword
        logits = self.decoder(encoder_outputs=states, attention_mask=mask, decoder_input_ids=before,
                              use_cache=False).logits                                 # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), gold.flatten(), ignore_index=-1)

    def forward(self, batch):
        """Outputs (B, 1, T), padded to the longest that there may be."""
        states, mask = self.encode(batch)
        first = F.pad(batch.gold[:, 0, :self.given], (1, 0), value=self.start)        # (B, 1 + given)
        ids = self.decoder.generate(encoder_outputs=states, attention_mask=mask, decoder_input_ids=first)
        return F.pad(ids[:, None, 1:], (0, self.longest - ids.shape[1] + 1), value=self.pad)


# -------------------------------------------------------------------------------------------------- scores

UNSPACED = "\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"   # Japanese syllables, Chinese characters
WORD = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")


@lru_cache(maxsize=1 << 16)
def words(text):
    """The words of a text without case and punctuation; of Chinese (zh) and Japanese the characters."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return tuple(WORD.findall("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text)))


def rouge_l(first, second):
    """ROUGE-L (Lin 2004) of two texts as words: F1 of their longest common subsequence."""
    row = [0] * (len(second) + 1)   # its length, with the first j words of `second`
    for word in first:
        above, row = row, [0]
        for j, other in enumerate(second):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return 2 * row[-1] / (len(first) + len(second)) if row[-1] else 0.0


@lru_cache(maxsize=1 << 16)
def script(word):
    """The script of most of a word's letters as Unicode names it (LATIN, GREEK, CJK), or None."""
    found = Counter(unicodedata.name(letter, "?").split()[0] for letter in word if letter.isalpha())
    return max(found, key=found.get) if found else None


def trigrams(word):
    """[(the two letters before it, letter)] for each of the first 20 letters of a word and for its end."""
    marked = "  " + word[:20] + " "
    return [(marked[i - 2:i], marked[i]) for i in range(2, len(marked))]


class Language:
    """How likely a word is in a language (ours): its share of the training words.

    A word never seen there has its part of the share of all words seen once (Good and Turing), by trigrams of
    letters, if it is in the language's own script, else none.
    """

    def __init__(self, texts):
        self.counts = Counter(word for text in texts for word in words(text) if script(word))
        self.once = 1 + sum(n == 1 for n in self.counts.values())
        self.all = self.counts.total() + self.once
        scripts = Counter(map(script, self.counts.elements()))
        self.script = max(scripts, key=scripts.get, default=None)
        self.grams = Counter(gram for word in self.counts for gram in trigrams(word))
        self.before = Counter(before for word in self.counts for before, _ in trigrams(word))

    def chance(self, word):
        """P(word | language). Every letter counts a tenth more than seen, as if there were a hundred."""
        unseen = self.once if script(word) == self.script else 0.0
        for before, letter in trigrams(word):
            unseen *= (self.grams[before, letter] + .1) / (self.before[before] + 10)
        return (self.counts[word] + unseen) / self.all


class Languages:
    """Tells whether words and outputs are of another language than the one they should be of (ours).

    A word is of another if one in play makes it more than ten times likelier, or if none writes its script.
    So scripts decide where they differ, trigrams where they do not, and a word that two share is of both.
    An output is in another language if more of its words are of another than are of its own alone.

    tested: {language: {"outputs": (right, of), "words": (right, of)}} on every tenth example, which no
    Language has seen: as outputs the held-out targets of all languages, as words the language's own.
    """

    EXAMPLES, LIKELIER = 5000, 10   # of a language that are looked at; see above

    def __init__(self, examples):
        """examples: {language: its training examples, (source, target)}. Raises KitError if too few."""
        self.languages, self.known, held = {}, {}, {}
        for lang, pairs in examples.items():
            pairs = list(islice(pairs, self.EXAMPLES))
            held[lang] = [words(target) for _, target in pairs[::10]]
            self.languages[lang] = Language([text for n, pair in enumerate(pairs) if n % 10 for text in pair])
            if not self.languages[lang].counts:
                raise KitError(f"{len(pairs)} training examples of {lang} are too few to tell its words by.")
        self.tested = {lang: self.test(held, lang) for lang in held}

    def whose(self, word, lang):
        """-1 for a word of another language than `lang`, 1 for one of `lang` alone, 0 for one of both."""
        if (word, lang) not in self.known:
            chances = {other: language.chance(word) for other, language in self.languages.items()}
            own, other = chances.pop(lang), max(chances.values(), default=0)
            wrong, alone = own == 0 or other > self.LIKELIER * own, own > self.LIKELIER * other
            self.known[word, lang] = -1 if wrong else int(alone)
        return self.known[word, lang]

    def judge(self, output, lang):
        """(whether it is in another language than `lang`, its words that are, its words with a letter)."""
        found = [self.whose(word, lang) for word in output if script(word)]
        return found.count(-1) > found.count(1), found.count(-1), len(found)

    def test(self, held, lang):
        """What `tested` says of one language; held: {language: held-out targets as words}."""
        right = [self.judge(text, lang)[0] == (other != lang) for other in held for text in held[other]]
        _, wrong, of = map(sum, zip(*(self.judge(text, lang) for text in held[lang]), strict=True))
        return {"outputs": (sum(right), len(right)), "words": (of - wrong, of)}


def scores(pred, dev, lang, languages):
    """(3, 2) counts as in METRICS; pred (R, T): outputs in file order, dev: Titles of `lang`.

    Sum of F1 (no integer), outputs; outputs in another language, outputs; words of another, words.
    """
    outputs = [words(text) for text in dev.decode(pred)]
    f1 = math.fsum(rouge_l(output, words(gold)) for output, gold in zip(outputs, dev.texts, strict=True))
    elsewhere, wrong, of = map(sum, zip(*(languages.judge(output, lang) for output in outputs), strict=True))
    return torch.tensor([(f1, len(outputs)), (elsewhere, len(outputs)), (wrong, of)], dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------- XLRS

def xlrs(model, first, second, tokens=1280, waste=math.inf):
    """(of parallel, of random pairs): mean cosine of the encoder's states of sentences (ours).

    model: a Generator or heads.Model in eval mode; first, second: parallel sets of encode_sentences.
    The state of a sentence is the mean over its subwords at the last layer. In a narrow space all cosines are
    high, so each is also paired with the sentence half the file away, which is never its own translation.
    """
    a, b = (sentence_states(model, sentences, tokens, waste) for sentences in (first, second))   # (S, H) each
    return tuple(F.cosine_similarity(a, other).mean().item() for other in (b, b.roll(len(b) // 2, 0)))


@torch.no_grad()
def sentence_states(model, sentences, tokens, waste):
    """States (S, H) of sentences in file order, fp32: sums over what is read, which point where means do."""
    rows, sums = [], []
    for batch in sentences.batches(tokens, waste):
        sums.append(model.read(batch).masked_fill(~batch.real[..., None], 0).sum(1))  # (B, H)
        rows.append(batch.rows[:, 0])                                                 # of its first read
    return torch.cat(sums)[torch.cat(rows).argsort()]


# ----------------------------------------------------------------------------------------------- selection

def choose(records, rule, tolerance=1.0):
    """The one of a training's records, in order, that a rule picks; the first of equals. Raises KitError.

    dev: the highest source score, record["mean"]. last: the last. xlrs: the lowest record["xlrs"] of those
    whose source score is at most `tolerance` points below the highest (ours).
    """
    highest = max(record["mean"] for record in records)
    good = [record for record in records if record["mean"] >= highest - tolerance]
    if rule == "dev":
        return next(record for record in good if record["mean"] == highest)
    if rule == "last":
        return records[-1]
    if rule != "xlrs" or any("xlrs" not in record for record in records):
        raise KitError(f"--select {rule}: expected dev, last, or xlrs if it was logged at every dev scoring.")
    return min(good, key=lambda record: record["xlrs"])
