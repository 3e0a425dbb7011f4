"""What tells one task from another, the corpora of a run, and the one way a model is scored on them.

A task is one entry in TASKS: how its files are found, read and encoded, its labels, its model, its scores.
What takes seconds to import is imported where it is used, so that --help, which lists the tasks, is quick.
"""

import math
from functools import lru_cache, partial
from importlib import import_module
from typing import NamedTuple

import data
import derive
import results
from results import KitError

class Task(NamedTuple):
    """Everything that tells one task from another; its entry in TASKS is all there is to add."""
    metrics: tuple   # the scores by name, the task's own first
    file: object     # (folder, lang, split) -> the file, as a data.CorpusFile
    reader: object   # (path, lang) -> examples
    encode: object   # (examples, tokenizer, split, name) -> data.Encoded
    labels: tuple    # () of a task that writes
    load: object     # (name, precision) -> the pretrained heads.Encoder
    build: object    # (heads.Encoder, labels, ids) -> the model, with these rows of its embedding; None: all
    count: object    # (predictions, dev set, lang, languages) -> counts (metrics, 2), right and of all;
                     # languages() gives the generate.Languages that tell in which language a text is
    parts: tuple = ("encoder", "head")   # how names of parameters begin

    @property
    def writes(self):
        """Whether its answers are texts, which an encoder-decoder writes."""
        return "decoder" in self.parts

def later(module, name):
    """A function or class of a module that takes seconds to import: it is imported when it is called."""
    return lambda *given: getattr(import_module(module), name)(*given)

def reads_with(head, count):
    """(load, build, count) of a task with a head; head, count: a class and a function of heads.py."""
    return (later("heads", "load_encoder"), lambda encoder, labels, ids: later("heads", "Model")(
                encoder, later("heads", head), len(labels), ids),
            lambda found, dev, lang, languages: later("heads", count)(found, dev))

def writes_with(count):
    """(load, build, count, parts) of a task that writes; count: name of a function in generate.py."""
    return (lambda name, precision: later("generate", "load_generator")(name),
            lambda encoder, labels, ids: later("generate", "Generator")(encoder),   # tied: all rows move
            lambda found, dev, lang, languages: later("generate", count)(found, dev, lang, languages()),
            ("encoder", "decoder"))

TASKS = {
    "xnli": Task(("accuracy",), data.xnli_file, data.read_xnli, data.encode_pairs, data.NLI,
                 *reads_with("Linear", "accuracy")),
    "ner": Task(("span F1",), data.ner_file, data.read_ner, data.encode_words, data.BIO,
                *reads_with("Linear", "span_f1")),
    "pos": Task(("accuracy",), data.ud_file, data.read_pos, data.encode_words, data.UPOS,
                *reads_with("Linear", "accuracy")),
    "parsing": Task(("LAS", "UAS"), data.ud_file, data.read_trees, data.encode_trees, data.RELATIONS,
                    *reads_with("Biaffine", "attachment")),
    "title": Task(("ROUGE-L", "wrong-language outputs", "wrong-language words"), data.title_file,
                  data.read_titles, data.encode_titles, (), *writes_with("scores")),
}

class Corpora:
    """The corpora of a run: their files, and what is encoded of them, on the device."""

    def __init__(self, args, device):
        self.args, self.device = args, device

    def file(self, task, lang, split):
        """The data.CorpusFile of a language's file; a derived language has the files of its base."""
        return TASKS[task].file(self.args.data, derive.parse(lang)[0], split)

    def orders(self, lang):
        """The CorpusFiles of the treebanks from which a derived language has its order."""
        derivations = [name.split("-", 1) for name in derive.parse(lang)[1]]
        return [data.ud_file(self.args.data, other[0], "train")
                for kind, *other in derivations if kind == "syntax"]

    @lru_cache(maxsize=None)
    def digests(self, task, lang):
        """SHA-256 of a language's train and dev file, and of the treebank that its order is from."""
        files = [self.file(task, lang, split) for split in ("train", "dev")] + self.orders(lang)
        return [data.sha256(file.path.read_bytes()) for file in files]

    def encoder(self, task, name):
        """The pretrained heads.Encoder of a task, by its name."""
        return TASKS[task].load(name, self.args.precision)

    def reader(self, task, lang):
        """The task's reader, for sentences in the order of another language where the name says so."""
        read = TASKS[task].reader
        for file in self.orders(lang):
            if TASKS[task].file is not data.ud_file:
                raise KitError(f"--task {task}: its files have no trees, from which {lang} is derived; "
                               "syntax is there for tasks with a treebank.")
            read = derive.reader(read, derive.preference(file.path))
        return read

    @lru_cache(maxsize=64)
    def examples(self, task, encoder, lang, split):
        """A corpus file as an Encoded set on the device; encoder: its name."""
        (base, derivations), loaded = derive.parse(lang), self.encoder(task, encoder)
        read, path = self.reader(task, lang), self.file(task, lang, split).path
        limit = self.args.limit and self.args.limit[0 if split == "train" else -1]
        encoded = data.load(path, base, split, read, TASKS[task].encode, loaded.tokenizer, limit)
        if derivations:
            rows = loaded.model.config.vocab_size
            encoded = derive.derive(encoded, derivations, loaded.tokenizer, rows, TASKS[task].labels)
        return encoded.to(self.device)

    def describe(self, task, encoder, lang, split):
        """(a line that counts what a corpus file holds, a warning where it is not the paper's or None)"""
        examples, file = self.examples(task, encoder, lang, split), self.file(task, lang, split)
        base = derive.parse(lang)[0]
        said = data.describe(task, base, split, examples)
        if self.orders(lang):
            said += ", {} of {} sentences are left as they are".format(*derive.unmoved(file.path))
        return said, data.departure(file, task, base, split, examples.counts["in_file"])

    def about_dev(self, pair):
        """What a grid's header says of its dev sets: sizes, and the score of always giving the most frequent
        class. For accuracy that is the class's share; no span, tree or text is one, so it is 0 for others."""
        sizes, majority = {}, {}
        for side, langs in zip((pair.src, pair.tgt), pair.langs(), strict=True):
            shares = []
            for lang in langs:
                examples = self.examples(pair.task, pair.encoder, lang, "dev")
                gold = examples.gold[:, 0][examples.gold[:, 0] >= 0]
                most = gold.bincount().max().item() if TASKS[pair.task].metrics[0] == "accuracy" else 0
                shares.append(100 * most / len(gold))
                sizes[lang] = {"sentences": examples.counts["sentences"], "lost": examples.lost}
            majority[side] = round(sum(shares) / len(shares), 4)
        return {"dev": sizes, "majority": majority}

class Scorer:
    """The one way a model is scored, anywhere: on a language's whole dev set, in file order."""

    def __init__(self, corpora, ranks):
        self.corpora, self.ranks = corpora, ranks
        on_gpu = corpora.device.type == "cuda"
        self.subwords = 16384 if on_gpu else 2560   # of a batch; halved where memory runs out
        self.waste = math.inf if on_gpu else 64     # of padding: on a CPU more costs more than a batch

    def score(self, predict, unit, lang, langs=()):
        """{metric: score from 0 to 100} on a language's dev set.
        predict: a model in eval mode or a Plane, a function from a Batch to predictions (B, N, K); unit: a
        Finetuned or a Pair; langs: where texts are written, the languages that they may be in."""
        import torch
        task, dev = TASKS[unit.task], self.corpora.examples(unit.task, unit.encoder, lang, "dev")
        languages = partial(self.languages, unit.task, tuple(sorted(langs)))
        while True:
            try:
                counts = task.count(self.predictions(predict, dev), dev, lang, languages).tolist()
                return {name: round(100 * got / max(1, of), 4)
                        for name, (got, of) in zip(task.metrics, counts, strict=True)}
            except (RuntimeError, MemoryError) as e:
                if not results.out_of_memory(e) or self.subwords < 64:
                    raise
            self.subwords //= 2   # smaller batches, the same scores
            torch.cuda.empty_cache()

    def side(self, predict, pair, langs):
        """(mean score, {language: score}) of one side of a pair, as `score` gives them."""
        each = {lang: self.score(predict, pair, lang, sum(pair.langs(), ())) for lang in langs}
        mean = {metric: round(sum(score[metric] for score in each.values()) / len(each), 4)
                for metric in TASKS[pair.task].metrics}
        return mean, each

    def predictions(self, predict, dev):
        """Predictions (R, K) for all reads of a dev set in file order, on the device."""
        import torch
        with torch.no_grad():
            made = [(batch.order, predict(batch)) for batch in dev.batches(self.subwords, self.waste)]
        found = made[0][1].new_empty(len(dev.read) + 1, made[0][1].shape[-1])
        for rows, labels in made:
            found[rows.flatten()] = labels.flatten(0, 1)   # padding lands in the spare last row
        return found[:-1]

    @lru_cache(maxsize=None)
    def languages(self, task, langs):
        """What tells some languages apart, from their training examples (generate.Languages)."""
        import generate
        read, file = TASKS[task].reader, self.corpora.file
        found = generate.Languages({lang: read(file(task, lang, "train").path, lang) for lang in langs})
        if len(langs) > 1 and self.ranks.ask("add", f"told {task} {langs}", 1) == 1:   # by one process alone
            for said in found.describe():
                self.ranks.say(f"{task}: {said}")
        return found

