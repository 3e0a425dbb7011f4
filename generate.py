"""Sequence to sequence: an encoder-decoder that writes titles, the language it writes them in, and XLRS.

After "Why Does Zero-Shot Cross-Lingual Generation Fail? An Explanation and a Solution" (Li & Murray 2023): a
model fine-tuned on one language and asked in another answers in the first one, since fine-tuning makes its
encoder language-invariant. What is marked (ours) is our reading: neither text nor code of it was at hand.

    source, target -> subwords -> Generator -> subwords of an output -> words -> ROUGE-L, wrong-language words

A title is a window like any other: it is read once, and the gold of that read is the whole target, (B, 1, T).
"""

import copy
import math
import re
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import islice, product
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import data
import derive
import heads
import train
from data import TARGET_SUBWORDS

from grids import (  # isort: skip
    BOTH, SRC, cases, group, mean, normalise, slopes, sound, table, verdict, verdicts, wrong_words)
from results import KitError

# --------------------------------------------------------------------------------------------------- model

@lru_cache(maxsize=1)
def load_generator(name):
    """A pretrained encoder-decoder from a local folder or the hub, as a heads.Encoder. Raises KitError."""
    loaded = heads.load(name, transformers.AutoModelForSeq2SeqLM)
    if loaded.tokenizer.eos_token_id is None or loaded.tokenizer.pad_token_id is None:
        raise KitError(f"The tokenizer of {name!r} has no token for the end of a text or for padding; "
                       "expected both, as in mT5, mBART and BART.")
    if heads.differ(alone_and_at_once(loaded)):
        raise KitError(f"The encoder-decoder {name!r} ({type(loaded.model).__name__}) scores a subword "
                       "otherwise in a batch, from its cache or with more behind it than alone, as FSMT and "
                       "ProphetNet do: it would be trained on what it never writes. Expected one like mT5.")
    return loaded

@torch.no_grad()
def alone_and_at_once(loaded):
    """[(logits (V,) of a subword after those before it alone, the same where a Generator is trained, or where
    it writes)] of four subwords for each of two sources, one of them padded; the last two are written."""
    model, lengths = Generator(loaded).eval(), torch.tensor([[4], [9]])
    mask = (torch.arange(9) < lengths).long()                                                     # (2, 9)
    ids = 4 + torch.arange(18).view(2, 9) % (loaded.model.get_input_embeddings().num_embeddings - 4)
    ids = ids.masked_fill(ids == model.pad, model.pad + 1)
    first = torch.cat([torch.full((2, 1), model.start), ids[:, :2]], 1)                           # (2, 3)
    ids = ids.masked_fill(mask == 0, model.pad)
    given = dict(encoder_outputs=model.encoder(input_ids=ids, attention_mask=mask), attention_mask=mask)
    written = model.decoder.generate(**given, decoder_input_ids=first, min_new_tokens=2, max_new_tokens=2,
                                     output_logits=True, return_dict_in_generate=True)
    trained = model.decoder(**given, decoder_input_ids=written.sequences, use_cache=False).logits  # (2, 5, V)
    pairs = []
    for row, n in product((0, 1), range(4)):
        alone = loaded.model(input_ids=ids[row:row + 1, :lengths[row]], use_cache=False,
                             decoder_input_ids=written.sequences[row:row + 1, :n + 1]).logits[0, -1]
        pairs += [(alone, trained[row, n])] + ([(alone, written.logits[n - 2][row])] if n > 1 else [])
    return pairs

class Generator(nn.Module):
    """An encoder-decoder: an ordinary module, trained by `loss`; called, it writes (greedy decoding).
    A parameter's name begins with its half, encoder or decoder. The embeddings that both halves share, and
    with them the output layer where it is tied to them, belong to neither: their name is `shared` (ours)."""

    def __init__(self, pretrained):
        """pretrained: of load_generator."""
        super().__init__()
        model, tokenizer = copy.deepcopy(pretrained.model), pretrained.tokenizer
        self.shared = model.get_input_embeddings().weight
        self.encoder, self.decoder = model.get_encoder(), model
        place = next(name for name, module in model.named_modules() if module is self.encoder)
        self.outer, _, self.name = place.rpartition(".")
        delattr(model.get_submodule(self.outer), self.name)   # what is left is the decoder
        self.packed_from = None   # its windows share no row
        start = getattr(model.config, "decoder_start_token_id", None)
        self.start, self.pad = tokenizer.eos_token_id if start is None else start, tokenizer.pad_token_id
        self.longest = min(TARGET_SUBWORDS, tokenizer.model_max_length)
        # Instead of the settings it was published with: beams, penalties, a forced first token.
        model.generation_config = transformers.GenerationConfig(
            max_new_tokens=self.longest, do_sample=False, num_beams=1, pad_token_id=self.pad,
            eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=self.start)

    def whole(self):
        """The encoder-decoder as the library has it, in one piece."""
        setattr(self.decoder.get_submodule(self.outer), self.name, self.encoder)
        return self.decoder

    def encode(self, batch):
        """(the encoder's output with its last hidden states (B, L, H), the mask (B, L) of the subwords)."""
        mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()
        return self.encoder(input_ids=batch.ids, attention_mask=mask), mask

    def hidden(self, batch):
        """The encoder's last hidden states (B, N, H) at the read positions of a batch, in fp32."""
        hidden = self.encode(batch)[0].last_hidden_state                              # (B, L, H)
        return hidden.flatten(0, 1)[batch.read].float()

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
        first = batch.ids.new_full((len(batch.ids), 1), self.start)
        ids = self.decoder.generate(encoder_outputs=states, attention_mask=mask, decoder_input_ids=first)
        return F.pad(ids[:, None, 1:], (0, self.longest - ids.shape[1] + 1), value=self.pad)

# -------------------------------------------------------------------------------------------------- scores

UNSPACED = "\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"   # Japanese syllables, Chinese characters
WORD = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")
SENTINEL = re.compile(r"<extra_id_\d+>")   # mT5 has them as ordinary subwords, and writes some
SCRIPTS = dict.fromkeys("az bs kk sh sr tk tt uz".split(), ("CYRILLIC", "LATIN")) | {   # more than one each
    "ja": ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK", "IDEOGRAPHIC"), "ko": ("HANGUL", "CJK"),
    "ku": ("ARABIC", "LATIN"), "mn": ("CYRILLIC", "MONGOLIAN"), "pa": ("GURMUKHI", "ARABIC"),
    "sd": ("ARABIC", "DEVANAGARI"), "zh": ("CJK", "BOPOMOFO", "IDEOGRAPHIC")}

@lru_cache(maxsize=1 << 16)
def words(text):
    """The words of a text without case and punctuation; of Chinese (zh) and Japanese the characters.
    Format characters (soft hyphen, joiners) are no part of a word and end none, but the space of no width."""
    text = "".join(c for c in SENTINEL.sub(" ", text) if unicodedata.category(c) != "Cf" or c == "\u200b")
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
    letters, if it is in a script of the language, one of every hundredth word or in SCRIPTS, else none."""

    def __init__(self, texts, scripts=()):
        self.counts = Counter(word for text in texts for word in words(text) if script(word))
        self.once = 1 + sum(n == 1 for n in self.counts.values())
        self.all = self.counts.total() + self.once
        used = Counter(map(script, self.counts.elements()))
        self.scripts = {*scripts, *(name for name, n in used.items() if 100 * n >= used.total())}
        self.grams = Counter(gram for word in self.counts for gram in trigrams(word))
        self.before = Counter(before for word in self.counts for before, _ in trigrams(word))

    def chance(self, word):
        """P(word | language). A tenth is added to the count of each letter, as of a hundred letters."""
        unseen = self.once if script(word) in self.scripts else 0.0
        for before, letter in trigrams(word):
            unseen *= (self.grams[before, letter] + .1) / (self.before[before] + 10)
        return (self.counts[word] + unseen) / self.all

class Languages:
    """Tells whether words and outputs are of another language than the one they should be of (ours).
    A word is of another if one in play makes it more than ten times likelier, or if none writes its script.
    So scripts decide where they differ, trigrams where they do not, and a word that two share is of both.
    An output is in another language if more of its words are of another than are of its own alone.
    tested: {language: {"outputs": (right, of), "words": (right, of)}} on every tenth example, which no
    Language has seen: as outputs the held-out targets of all languages, as words the language's own."""

    EXAMPLES, LIKELIER = 5000, 10   # of a language that are looked at; see above

    def __init__(self, examples):
        """examples: {language: its training examples, (source, target)}. Raises KitError if too few."""
        self.languages, self.known, held = {}, {}, {}
        for lang, pairs in examples.items():
            pairs = list(islice(pairs, self.EXAMPLES))
            held[lang] = [words(target) for _, target in pairs[::10]]
            texts = [text for n, pair in enumerate(pairs) if n % 10 for text in pair]
            self.languages[lang] = Language(texts, SCRIPTS.get(lang, ()))
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

    def describe(self):
        """A sentence for each language on how well it is told from the others."""
        for lang, tested in self.tested.items():
            right = (f"{100 * n / max(1, of):.1f} % of {of} {kind}" for kind, (n, of) in tested.items())
            yield f"{lang} of {'+'.join(self.languages)} is told right in {' and '.join(right)}, held out"

    def test(self, held, lang):
        """What `tested` says of one language; held: {language: held-out targets as words}."""
        right = [self.judge(text, lang)[0] == (other != lang) for other in held for text in held[other]]
        _, wrong, of = map(sum, zip(*(self.judge(text, lang) for text in held[lang]), strict=True))
        return {"outputs": (sum(right), len(right)), "words": (of - wrong, of)}

def scores(pred, dev, lang, languages):
    """(3, 2) counts; pred (R, T): outputs in file order, dev: Titles of `lang`, languages: a Languages.
    Sum of F1 (no integer), outputs; outputs in another language, outputs; words of another, words."""
    outputs = [words(text) for text in dev.decode(pred)]
    f1 = math.fsum(rouge_l(output, words(gold)) for output, gold in zip(outputs, dev.texts, strict=True))
    elsewhere, wrong, of = map(sum, zip(*(languages.judge(output, lang) for output in outputs), strict=True))
    return torch.tensor([(f1, len(outputs)), (elsewhere, len(outputs)), (wrong, of)], dtype=torch.float64)

def examples(model, dev, number=3):
    """[(gold, output)] of the first examples of a dev set."""
    outputs = dev.decode(model(dev.batch(np.arange(min(number, len(dev)))))[:, 0])
    return [*zip(dev.texts, outputs)]

# ---------------------------------------------------------------------------------------------------- XLRS

def xlrs(model, first, second, tokens=1280):
    """(of parallel, of random pairs): mean cosine of the encoder's states of sentences (ours).
    model: a Generator or heads.Model in eval mode; first, second: parallel sets of encode_sentences.
    The state of a sentence is the mean over its subwords at the last layer. In a narrow space all cosines are
    high, so each is also paired with the sentence half the file away, which is never its own translation."""
    a, b = (sentence_states(model, sentences, tokens) for sentences in (first, second))   # (S, H) each
    return tuple(F.cosine_similarity(a, other).mean().item() for other in (b, b.roll(len(b) // 2, 0)))

@torch.no_grad()
def sentence_states(model, sentences, tokens):
    """States (S, H) of sentences in file order, fp32: sums over what is read; cosines are as of means."""
    rows, sums = [], []
    for batch in sentences.batches(tokens):
        sums.append(model.hidden(batch).masked_fill(~batch.real[..., None], 0).sum(1))  # (B, H)
        rows.append(batch.order[:, 0])                                                  # of its first read
    return torch.cat(sums)[torch.cat(rows).argsort()]

class Watch:
    """What a run logs of its source-only models with --parallel at every dev scoring: XLRS and the target's
    score. No training uses them."""

    SENTENCES = 500   # at most

    def __init__(self, files, pairs, corpora, scorer):
        """files: of --parallel; pairs: (source, target) names; corpora, scorer: of the run."""
        self.files, self.pairs, self.corpora, self.scorer = files, pairs, corpora, scorer

    def corpus_files(self):
        """XNLI's dev set as a data.CorpusFile where no files were named; one file holds all its languages."""
        return [data.xnli_file(self.corpora.args.data, "en", "dev")] if self.files == [] else []

    def read(self):
        """Read the parallel sentences of all languages, so that a mistake in them is told before training."""
        if self.files is None:
            return
        langs = sorted({lang for pair in self.pairs for side in pair for lang in side.split("+")})
        files = {Path(file).name.split(".")[0]: Path(file) for file in self.files}
        if self.files and (missing := [lang for lang in langs if lang not in files]):
            raise KitError(f"--parallel names no file for {', '.join(missing)}; expected one a language, "
                           f"named after it, as {missing[0]}.txt.")
        files = files or dict.fromkeys(langs, self.corpus_files()[0].path)
        self.texts = data.read_parallel({lang: files[lang] for lang in langs})

    @lru_cache(maxsize=64)
    def sentences(self, task, encoder, lang):
        """The parallel sentences of a language as an Encoded set."""
        tokenizer = self.corpora.encoder(task, encoder).tokenizer
        return data.encode_sentences(self.texts[lang][:self.SENTENCES], tokenizer).to(self.corpora.device)

    def xlrs(self, model, unit, langs, tgt):
        """XLRS of a model as [parallel, random]: means over the source languages."""
        *sources, target = (self.sentences(unit.task, unit.encoder, lang) for lang in (*langs, tgt))
        found = [xlrs(model, source, target, self.scorer.subwords) for source in sources]
        return [round(sum(values) / len(found), 6) for values in zip(*found, strict=True)]

    def targets(self, unit):
        """The languages that are watched while a Finetuned is trained: none unless it is source-only."""
        own = [tgt for src, tgt in self.pairs if tuple(sorted(src.split("+"))) == unit.langs]
        return own if self.files is not None and not unit.visitor else []

    def sets(self, unit):
        """The data.Encoded sets that are read for it."""
        for tgt in self.targets(unit):
            yield self.corpora.examples(unit.task, unit.encoder, tgt, "dev")
            yield from (self.sentences(unit.task, unit.encoder, lang) for lang in (*unit.langs, tgt))

    def __call__(self, model, unit):
        """{"watched": {target: score and XLRS}, "xlrs": their mean} of a source-only model; {} of others."""
        if not (targets := self.targets(unit)):
            return {}
        seen = {tgt: {"score": self.scorer.score(model, unit, tgt, (*unit.langs, tgt)),
                      "xlrs": self.xlrs(model, unit, unit.langs, tgt)} for tgt in targets}
        return {"watched": seen, "xlrs": round(sum(each["xlrs"][0] for each in seen.values()) / len(seen), 6)}

    def parallel(self, pair):
        """The parallel sentences of a pair's languages."""
        return [self.sentences(pair.task, pair.encoder, lang) for lang in sum(pair.langs(), ())]

    def about(self, pair, models, records):
        """{"xlrs": that of each of some models by name, "way": what the source model's records say}."""
        (langs, _), tgt = pair.langs(), pair.tgt
        way = [{"step": record["step"], "mean": record["mean"], **record["watched"][tgt]}
               for record in records if tgt in record.get("watched", ())]
        found = {name: self.xlrs(model, pair, langs, tgt) for name, model in models.items()}
        return {"xlrs": found, "way": way}

# ----------------------------------------------------------------------------------------------- selection

# ------------------------------------------------------------------------------------------------- report

HOW = """Means over seeds. *Target*: score of a model that was not trained on the target or, marked +, was.
*Wrong*: % of its outputs and of their words in another language. *XLRS*: mean cosine of encoder states of
parallel sentences / of sentences paired at random. *As many examples*: the model of more sources at the dev
scoring at which it had seen as many examples as that of fewer; its learning rate had not yet decayed."""
RULES = """A case follows where all that is measured is above 0 (ours). Spearman is over all dev scorings of
the source-only models of a task, an encoder and a target, and is to be at least .5. *Second source*: against
each run with fewer, at equal epochs. *Selects*: from the log of one training. *Undetermined*: the target's
variance over seeds and slope at the zero-shot model, normalised. Controls are in no verdict."""

def adds_to(more, fewer):
    """Whether two grids differ in nothing but that the first has another source language beside."""
    same = (more.task, more.encoder, more.tgt) == (fewer.task, fewer.encoder, fewer.tgt)
    return same and set(fewer.src.split("+")) < set(more.src.split("+"))

def scored(grids, at, key):
    """[(source's score, {metric: target's}, [XLRS, random])] of the grids that have a point."""
    return [(grid.points[at][0], {metric: points[at][1] for metric, points in grid.scores.items()},
             grid.header.get("xlrs", {}).get(key, [])) for grid in grids if at in grid.points]

def summary(grids):
    """Rows {column: cell} for grids.table, one for each model that was trained on other languages."""
    rows, every = [], cases(sound(grids))
    for case in every:
        first, name = case[0], case[0].src
        models = {name: scored(case, SRC, "source"),
                  f"{name}+{first.tgt} (+)": scored(case, BOTH, "both")}
        for part in ("encoder", "decoder"):   # the rest is the bilingual model's
            same = [grid for grid in sound(grids, part) if cases([grid, first]) == [[grid, first]]]
            models[f"{name}, its {part} alone"] = scored(same, SRC, part)
        for fewer in (other[0] for other in every if adds_to(first, other[0])):
            seen = max((record["step"] for record in fewer.log), default=0)
            models[f"{name}, as many examples as {fewer.src}"] = [
                (record["mean"], record["score"], record["xlrs"])
                for grid in case for record in grid.log if record["step"] == seen]
        for trained, found in models.items():
            if found:
                sources, targets, similar = zip(*found, strict=True)
                target, *wrong = (f"{np.mean([score[name] for score in targets]):.1f}"
                                  for name in (first.metrics if first.writes else first.metrics[:1]))
                both = " / ".join(f"{x:.3f}" for x in np.mean(similar, 0)) if all(similar) else "-"
                rows.append({"task": first.task_name, "encoder": first.encoder_name, "trained on": trained,
                             "on": first.tgt, "source": f"{np.mean(sources):.1f}", "target": target,
                             "wrong": " / ".join(wrong) or "-", "XLRS": both, "seeds": str(len(found))})
    return rows

def selected(case, rule):
    """What a rule of --select would have kept of the trainings of a case: mean step, source and target."""
    kept = [train.choose([record | {"xlrs": record["xlrs"][0]} for record in grid.log], rule)
            for grid in case if grid.log]
    return np.mean([(record["step"], record["mean"], record["score"][case[0].metrics[0]])
                    for record in kept], 0)

def selections(grids):
    """Rows {column: cell} for grids.table: what each rule of --select would have kept of one training."""
    rows = []
    for case in cases(sound(grids)):
        first = case[0]
        for rule in ("dev", "xlrs", "last") if any(grid.log for grid in case) else ():
            step, source, target = selected(case, rule)
            rows.append({"task": first.task_name, "encoder": first.encoder_name, "trained on": first.src,
                         "on": first.tgt, "select": rule, "step": f"{step:.0f}", "source": f"{source:.1f}",
                         "target": f"{target:.2f}"})
    return rows

def ranked(grids):
    """[(a grid, n, Spearman)] of XLRS and the target's score over all dev scorings, by encoder and target."""
    found = []
    for of in group(grids, "task", "encoder", "tgt").values():
        metric = of[0].metrics[0]
        logged = [(record["xlrs"][0], record["score"][metric]) for grid in of for record in grid.log]
        if len(logged) > 2:
            found.append((of[0], len(logged), derive.correlate(*zip(*logged, strict=True))[0]))
    return found

def failure(case):
    return [wrong_words(case, SRC) - wrong_words(case, BOTH)]

def rise(case):
    known = [grid.header["xlrs"] for grid in case if grid.header.get("xlrs")]
    return [mean([each["source"][0] - each["pretrained"][0] for each in known])]

def selection(case):
    logged = case[0].writes and any(grid.log for grid in case)
    return [selected(case, "xlrs")[2] - selected(case, "dev")[2] if logged else math.nan]

def help_of_more(more, fewer):
    score_more, score_fewer = (mean([grid.points[SRC][1] for grid in case]) for case in (more, fewer))
    return [wrong_words(fewer, SRC) - wrong_words(more, SRC), score_more - score_fewer]

def less_undetermined(more, fewer):
    def target(case):   # variance over seeds, and slope, at the zero-shot model
        return np.array([normalise(case, [SRC])[1][0][1], slopes(case)[0][1]])
    return target(fewer) - target(more)

def worse(grid, n, spearman):
    return [-spearman - .5 if grid.writes else math.nan]

def transfer(grid, n, spearman):
    return [math.nan if grid.writes else spearman - .5]

CLAIMS = (   # a claim, what gives its numbers, of what (see `claims`), and how they are told
    ("Zero-shot outputs are in the wrong language", failure, "case",
     "wrong words, zero-shot - bilingual = {:.1f}"),
    ("XLRS rises in fine-tuning", rise, "case", "after - before = {:.3f}"),
    ("XLRS goes with worse generation", worse, "ranked", "- Spearman - 0.5 = {:.2f}"),
    ("In classification XLRS goes with transfer", transfer, "ranked", "Spearman - 0.5 = {:.2f}"),
    ("A second source language helps", help_of_more, "two cases",
     "fall of wrong words = {:.1f}, rise of score = {:.1f}"),
    ("XLRS selects better than the source does", selection, "case",
     "target's score, by XLRS - by source = {:.2f}"),
    ("A second source leaves less undetermined", less_undetermined, "two cases",
     "fall of variance = {:.3f}, of slope = {:.3f}"))

def claims(grids):
    """What the grids say to CLAIMS, rows as those of plot.claims, by RULES; NaN: a case tells nothing."""
    grids = [grid for grid in sound(grids) if not grid.control]
    found = [case for case in cases(grids) if all(SRC in grid.points for grid in case)]
    units = {"case": [(case,) for case in found], "ranked": ranked(grids),
             "two cases": [(more, fewer) for more in found for fewer in found if adds_to(more[0], fewer[0])]}
    rows = []
    for claim, measure, kind, said in CLAIMS:
        measured = [measure(*unit) for unit in units[kind]]
        known = [numbers for numbers in measured if np.isfinite(numbers).all()]
        rows.append({"claim": claim, "paper": "Abstract"} | verdict(known, said))
    return rows

def section(grids):
    """(Markdown for report.md, text 79 columns wide) on what is written, XLRS and several sources."""
    rows, kept, said = summary(grids), selections(grids), claims(grids)
    related = [{"task": grid.task_name, "encoder": grid.encoder_name, "on": grid.tgt, "n": str(n),
                "Spearman": f"{spearman:.2f}"} for grid, n, spearman in ranked(sound(grids))]
    texts = []
    for grid, *_ in cases(sound(grids)):   # of the first seed
        for at, name in ((SRC, "zero-shot"), (BOTH, "bilingual")):
            texts += [{"model": f"{grid.src}, {name}", "gold": gold, "output": output}
                      for gold, output in grid.written.get(at, ()) if not grid.control]
    parts = ["## Generation and cross-lingual similarity", HOW, table(rows), table(said), RULES,
             related and "XLRS and the target's score", table(related),
             kept and "What each --select keeps", table(kept), texts and "Outputs", table(texts)]
    lines = ["Trained on; source and target score; % of outputs / words in a wrong language"]
    shown = "trained on", "source", "target", "wrong", "XLRS"
    for encoder in dict.fromkeys(row["encoder"] for row in rows):
        short = [{name: row[name][:30] for name in shown} for row in rows if row["encoder"] == encoder]
        lines += ["", encoder, table(short, "  ")]
    texts = (f"{text['model']}: {text['output']!r}, gold {text['gold']!r}" for text in texts)
    lines += ["", *(fill(text, 79, subsequent_indent="    ") for text in texts), ""]
    return "\n\n".join(filter(None, parts)), "\n".join(lines + verdicts(said))
