"""Two invented languages and a tiny encoder pretrained on them: the kit without network or GPU.

    python reproduce.py --demo

Language A is a small grammar over some 320 words. Language B says the same in another script and another word
order, and shares about a third of its running words with A. Every sentence starts as a tree of neither one;
`linearise` puts it into the words and the order of A or B, and so gives the gold of every task with it.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

import data
import results
from train import Settings, train

PARTS = {"languages": ("tiny-bert", "data", "tiny-bert-not-pretrained"),   # what `prepare` makes
         "ingredients": ("data", "text")}
LANGUAGES = {"languages": ("A", "B"), "ingredients": ("A", "A.syntax-B")}   # others are derived from these
PRETRAINING = ("layers=2,heads=2,hidden=64,dropout=0,init=.05,vocabulary=500,blocks=sentences,length=64,"
               "batch=64,steps=3000,lr=2e-3,warmup=150,selected=.2")   # of ingredients
SETTINGS = {"pos": dict(epochs=1, batch_size=32, lr=2e-3), "ner": dict(epochs=1, batch_size=16, lr=2e-3),
            "parsing": dict(epochs=1, batch_size=16, lr=2e-3), "xnli": dict(epochs=2, batch_size=32, lr=1e-3)}
SIZES, PAIRS = {"train": 4000, "dev": 300}, {"train": 6000, "dev": 300}   # of a language; pairs are for xnli
TEXTS, PAIRED, NO_PAIR = 15000, 5, -1   # pretraining texts of a language; one in five is a pair of sentences
STEPS, BATCH, LR, MASKED = 2500, 64, 2e-3, .2   # in fewer than half of these steps hardly any alignment
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def spell(count, syllables, rng):
    """`count` distinct invented words of one to `syllables` syllables, the short ones first."""
    words = {}   # a dict, because the order of a set of strings differs from run to run
    while len(words) < count:
        parts = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, syllables)))
        words["".join(parts) + rng.choice("lnrs") * rng.randint(0, 1)] = None
    return sorted(words, key=len)


lexicon = random.Random("lexicon")
function, content, names = spell(40, 1, lexicon), spell(214, 3, lexicon), spell(70, 3, lexicon)
lexicon.shuffle(content)
names = [word.capitalize() for word in names]
lexicon.shuffle(names)
# Part of speech or kind of name -> its words, frequent ones first. Words in two classes are ambiguous.
WORDS = {"DET": function[:6], "PRON": function[3:10], "AUX": function[10:15], "PART": function[15:17],
         "CCONJ": function[17:19], "SCONJ": function[19:23], "place": function[22:26], "of": function[26:29],
         "with": function[29:33], "NOUN": content[:100], "VERB": content[92:162], "ADJ": content[158:190],
         "ADV": content[188:214], "PER": names[:28], "LOC": names[22:48], "ORG": names[42:65],
         "firm": names[65:], "NUM": "2 3 4 7 10 12 50 100".split(), "PUNCT": [".", "!", ","]}
TO_GREEK = str.maketrans("bdfgklmnprstvzaeiouBDFGKLMNPRSTVZ", "βδφγκλμνπρστψζαειουΒΔΦΓΚΛΜΝΠΡΣΤΨΖ")
SHARED = dict.fromkeys(WORDS, 5) | {"PER": 2, "LOC": 2, "ORG": 2, "PART": 2, "NUM": 1, "PUNCT": 1}
ANCHORS = {word for kind, n in SHARED.items() for word in WORDS[kind][n - 1::n]}   # B writes them as A does
# Where a child stands: rank below 0 before its head, above 0 after it, the higher the further to the right.
ORDER_A = {"mark": -9, "case": -9, "cc": -9, "advcl": -8, "nsubj": -7, "aux": -5, "det": -4, "nummod": -3,
           "amod": -2, "flat": 1, "obj": 2, "advmod": 3, "nmod": 4, "obl": 5, "conj": 8, "punct": 9}
FLIPPED = ("obj", "amod", "aux")   # the dial of difficulty: the more are flipped, the less transfers
ORDER = {"A": ORDER_A, "B": {name: -rank if name in FLIPPED else rank for name, rank in ORDER_A.items()}}
ORDER["A.syntax-B"] = ORDER["B"]   # A's words in B's order
OPTIONAL = {"amod", "advmod", "nummod", "nmod", "obl", "advcl"}


@dataclass(slots=True, eq=False)
class Node:
    """A word of a tree that belongs to no language yet; its word is spelt as in A."""
    word: str
    upos: str
    relation: str
    entity: str = ""
    children: list = field(default_factory=list)

    def walk(self):
        yield self
        for child in self.children:
            yield from child.walk()


def leaf(rng, upos, relation, kind=None, entity=""):
    """A word of a kind, or of its UPOS; the first of n comes about sqrt(n) times as often as on average."""
    words = WORDS[kind or upos]
    return Node(words[int(len(words) * rng.random() ** 2)], upos, relation, entity)


def name(rng, relation, entity):
    """A name; the same may be a person's, a place's or a firm's, and often only its surroundings tell."""
    node = leaf(rng, "PROPN", relation, entity, entity)
    add = node.children.append
    if entity == "ORG":
        add(leaf(rng, "DET", "det") if rng.random() < .3 else leaf(rng, "PROPN", "flat", "firm"))
    elif rng.random() < .4:
        add(leaf(rng, "PROPN", "flat", entity))
    return node


def noun_phrase(rng, relation, deep=True):
    kind = rng.random()
    if kind < .15:
        return leaf(rng, "PRON", relation)
    if kind < .45:
        return name(rng, relation, "PER" if kind < .31 else "ORG")
    return noun(rng, relation, deep)


def noun(rng, relation, deep):
    """A noun with what may hang on it; a deep one may carry a further phrase."""
    node = leaf(rng, "NOUN", relation)
    for upos, child, chance in (("DET", "det", .55), ("NUM", "nummod", .12), ("ADJ", "amod", .35)):
        if rng.random() < chance:
            node.children.append(leaf(rng, upos, child))
    if deep and rng.random() < .2:
        node.children.append(adposition_phrase(rng, "nmod"))
    if deep and rng.random() < .1:
        node.children.append(noun_phrase(rng, "conj", deep=False))
        node.children[-1].children.append(leaf(rng, "CCONJ", "cc"))
    return node


def adposition_phrase(rng, relation):
    """A place, on a verb (obl) or now and then a noun (nmod); other adpositions belong to one of the two."""
    if rng.random() < (.3 if relation == "nmod" else .7):
        phrase = name(rng, relation, "LOC") if rng.random() < .6 else noun(rng, relation, deep=False)
        kind = "place"
    else:
        phrase, kind = noun_phrase(rng, relation, deep=False), "of" if relation == "nmod" else "with"
    phrase.children.append(leaf(rng, "ADP", "case", kind))
    return phrase


def clause(rng, relation="root"):
    """A verb with its subject and perhaps more; the root of a sentence, or a clause before it (advcl)."""
    verb = leaf(rng, "VERB", relation)
    add, main = verb.children.append, relation == "root"
    if main and rng.random() < .12:
        add(clause(rng, "advcl"))
    if not main:
        add(leaf(rng, "SCONJ", "mark"))
    add(noun_phrase(rng, "nsubj", deep=main))
    if rng.random() < .25:
        add(leaf(rng, "AUX", "aux"))
    if rng.random() < .7:
        add(noun_phrase(rng, "obj", deep=main))
    if rng.random() < .08:
        add(leaf(rng, "PART", "advmod"))
    if rng.random() < .3:
        add(leaf(rng, "ADV", "advmod"))
    if main and rng.random() < .45:
        add(adposition_phrase(rng, "obl"))
    add(Node("," if not main else "!" if rng.random() < .1 else ".", "PUNCT", "punct"))
    return verb


def in_order(node, head, rank):
    """[(node, head)] of a tree from left to right."""
    left, right = [], []
    for child in sorted(node.children, key=lambda child: rank[child.relation]):
        side = left if rank[child.relation] < 0 else right
        side += in_order(child, node, rank)
    return [*left, (node, head), *right]


def linearise(tree, language):
    """Put a tree into a language: rows of word, UPOS, head (1-based, 0: the root), relation and BIO tag."""
    nodes, rows = in_order(tree, None, ORDER[language]), []
    number = {None: 0} | {node: n for n, (node, _) in enumerate(nodes, 1)}
    for node, head in nodes:
        greek = language == "B" and node.word not in ANCHORS
        word = node.word.translate(TO_GREEK) if greek else node.word
        tag = "B-" + node.entity if node.entity else "I-" + head.entity if node.relation == "flat" else "O"
        rows.append((word, node.upos, number[head], node.relation, tag))
    return rows


def text(tree, language):
    return " ".join(row[0] for row in linearise(tree, language))


def pair(rng, language):
    """Premise, hypothesis and label; a premise has no negation, which would turn entailment round."""
    label, nodes = rng.choice(("entailment", "neutral", "contradiction")), []
    while not OPTIONAL & {n.relation for n in nodes} or "PART" in {n.upos for n in nodes} or len(nodes) > 11:
        tree = clause(rng)
        nodes = list(tree.walk())
    premise = text(tree, language)
    edit(tree, label, rng)
    return premise, text(tree, language), label


def edit(tree, label, rng):
    """Make a premise a hypothesis: leave out a modifier (entailment), add one (neutral), or contradict."""
    gone = ""
    if label == "entailment" or rng.random() < .15:   # in the others too: length is not the answer
        arcs = [(parent, child) for parent in tree.walk() for child in parent.children]
        parent, child = rng.choice([arc for arc in arcs if arc[1].relation in OPTIONAL])
        parent.children.remove(child)
        gone = child.word
    adjectives = [node for node in tree.walk() if node.upos == "ADJ"]
    if label == "contradiction" and adjectives and rng.random() < .5:
        node = rng.choice(adjectives)
        node.word = WORDS["ADJ"][WORDS["ADJ"].index(node.word) ^ 1]   # neighbours in the lexicon are antonyms
    elif label == "contradiction":
        tree.children.append(leaf(rng, "PART", "advmod"))
    elif label == "neutral":
        parent = rng.choice([node for node in tree.walk() if node.upos in ("NOUN", "VERB")])
        kind = ("ADJ", "amod") if parent.upos == "NOUN" else ("ADV", "advmod")
        new, old = leaf(rng, *kind), {gone, *(child.word for child in parent.children)}
        while new.word in old:   # what was said before would be entailed
            new = leaf(rng, *kind)
        parent.children.append(new)


def write(path, lines):
    results.write(Path(path), "".join(line + "\n" for line in lines).encode())


def write_data(folder, languages):
    """Write the corpora of some languages in their ordinary layouts: treebanks, WikiAnn, XNLI."""
    dev = ["language\tgold_label\tsentence1\tsentence2"]
    for language in languages:
        treebank = data.INVENTED[language]
        for split, size in SIZES.items():
            rng, trees, tagged = random.Random(f"{language} {split}"), [], []   # no parallel data
            for number in range(1, size + 1):
                rows = linearise(clause(rng), language)
                trees += [f"# sent_id = {number}", "# text = " + " ".join(row[0] for row in rows)]
                trees += [f"{i}\t{word}\t{word}\t{upos}\t_\t_\t{head}\t{relation}\t_\t_"
                          for i, (word, upos, head, relation, _) in enumerate(rows, 1)] + [""]
            write(f"{folder}/ud/{treebank}/{language}_demo-ud-{split}.conllu", trees)
            for _ in range(size):
                rows = linearise(clause(rng), language)
                tagged += [f"{language}:{word}\t{tag}" for word, _, _, _, tag in rows] + [""]
            write(f"{folder}/panx/{language}/{split}", tagged)
        rng, pairs = random.Random(f"{language} pairs"), ["premise\thypo\tlabel"]
        for _ in range(PAIRS["train"]):
            pairs.append("\t".join(pair(rng, language)).replace("contradiction", "contradictory"))
        write(f"{folder}/xnli/XNLI-MT-1.0/multinli/multinli.train.{language}.tsv", pairs)
        for _ in range(PAIRS["dev"]):
            first, second, label = pair(rng, language)
            dev.append("\t".join((language, label, first, second)))
    write(f"{folder}/xnli/XNLI-1.0/xnli.dev.tsv", dev)


def pretraining_texts():
    """Texts of both languages, no two of them parallel: (sentences, follows), one sentence or a pair.
    follows: 1 where the second is an edit of the first, 0 where it is one of another sentence, or NO_PAIR."""
    texts = []
    for language in LANGUAGES["languages"]:
        rng = random.Random(f"{language} text")
        pairs = [pair(rng, language)[:2] for _ in range(TEXTS // PAIRED)]
        for i, (first, second) in enumerate(pairs):
            texts.append(((first, second if i % 2 else pairs[i - 2][1]), i % 2))
        texts += [((text(clause(rng), language),), NO_PAIR) for _ in range(TEXTS - len(pairs))]
    return texts


class Pretraining(torch.nn.Module):
    """A masked language model that also tells whether two sentences belong together, as train() wants it.
    A batch: B texts of one length, ids, types and masked (B, L), follows (B,), and count, of the masked."""

    def __init__(self, config):
        super().__init__()
        self.masked, self.paired = BertForMaskedLM(config), torch.nn.Linear(config.hidden_size, 2)

    def loss(self, batch):
        shown = batch.ids.masked_fill(batch.masked, SPECIALS.index("[MASK]"))
        hidden = self.masked.bert(shown, token_type_ids=batch.types).last_hidden_state         # (B, L, H)
        loss = cross_entropy(self.masked.cls(hidden[batch.masked]), batch.ids[batch.masked])
        pairs = batch.follows != NO_PAIR
        if pairs.any():
            loss = loss + cross_entropy(self.paired(hidden[pairs, 0]), batch.follows[pairs])
        return loss


def pretrain(model, texts, tokenizer, steps, folder, ranks):
    """Train a Pretraining model on texts; its state and journal stand in the folder."""
    encoded = tokenizer([parts if len(parts) == 2 else parts[0] for parts, _ in texts])
    lengths = {}   # so that no batch needs padding
    for (_, follows), ids, types in zip(texts, encoded["input_ids"], encoded["token_type_ids"]):
        lengths.setdefault(len(ids), []).append((ids, types, [follows] * len(ids)))
    groups = [torch.tensor(rows).transpose(0, 1).contiguous() for rows in lengths.values()]   # (3, N, L) each
    sizes = torch.tensor([float(group.shape[1]) for group in groups])

    def batches(step, parts):
        rng = torch.Generator().manual_seed(step)   # of this step alone: a resumed run draws the same
        group = groups[torch.multinomial(sizes, 1, generator=rng)]
        ids, types, follows = group[:, torch.randint(group.shape[1], (BATCH,), generator=rng)]   # (BATCH, L)
        masked = (torch.rand(ids.shape, generator=rng) < MASKED) & (ids >= len(SPECIALS))
        count = int(masked.sum())
        return [SimpleNamespace(ids=ids, types=types, masked=masked, follows=follows[:, 0], count=count)]

    chosen = Settings(steps, LR, [steps * k // 5 for k in range(1, 6)], warmup=.05, betas=(.9, .999), clip=1.)
    config = {"steps": steps, "lr": LR, "batch": BATCH, "masked": MASKED, "texts": TEXTS}
    with results.locked(Path(folder, "train.jsonl")) as journal:   # the last parameters stay in the model
        train(model, batches, lambda records: ({}, False), chosen, config, journal, folder, ranks)


def write_encoder(folder, steps, ranks):
    """Write a tokenizer and a tiny BERT, ReLU and two heads for speed; with 0 steps its initial weights."""
    texts = pretraining_texts()
    counts = Counter(word for parts, _ in texts for part in parts for word in part.split())
    characters = sorted({character for word in counts for character in word})
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    # A trainer of vocabularies would give other ids on every run.
    write(f"{folder}/vocab.txt", [*SPECIALS, *characters, *("##" + letter for letter in characters), *words])
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 128}
    write(f"{folder}/tokenizer_config.json", [json.dumps(settings)])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=256, max_position_embeddings=128, hidden_dropout_prob=0.,
                        attention_probs_dropout_prob=0., hidden_act="relu", initializer_range=.05)
    torch.manual_seed(0)
    model = Pretraining(config)
    if steps:
        pretrain(model, texts, tokenizer, steps, folder, ranks)
    model.masked.save_pretrained(folder)
    Path(folder, "model.safetensors").chmod(Path(folder, "vocab.txt").stat().st_mode)   # the library: 0600
    results.clear(Path(folder))


def control(folder):
    """The encoder of the control: as it was before pretraining."""
    return f"{folder}/tiny-bert-not-pretrained"


def texts(folder, *pair):
    """The texts to pretrain on for a pair: A's, and the parallel one in B's order where the pair has it."""
    names = LANGUAGES["ingredients"] if any(lang.startswith("A.syntax-B") for lang in pair) else ("A",)
    return [f"{folder}/text/{name}.txt" for name in names]


def write_texts(folder):
    """Write the same sentences in the words of A, in the orders of A and of B."""
    rng = random.Random("A text")
    trees = [clause(rng) for _ in range(TEXTS)]
    for language in LANGUAGES["ingredients"]:
        write(f"{folder}/{language}.txt", [text(tree, language) for tree in trees])


def prepare(folder, demo, part, ranks):
    """Make a part of PARTS in `folder` unless it is there; a pretraining that was stopped goes on."""
    path = Path(folder, part)
    if path.exists():
        return
    ranks.say(f"demo: writing {path}")
    if part == "data":
        write_data(f"{path}.part", LANGUAGES[demo])
    elif part == "text":
        write_texts(f"{path}.part")
    else:
        write_encoder(f"{path}.part", STEPS if part == "tiny-bert" else 0, ranks)
    Path(f"{path}.part").rename(path)   # so that what has its name is whole


NOT_SHOWN = """The curves alone show no alignment of languages: they are smooth without pretraining too, and
transfer then lives on the shared words. What pretraining gives is the score on words that only B has.
Source scores are near the ceiling, and sizes and learning rates were chosen, on an earlier pretraining, so
that the source stays flat in all four tasks: where a run agrees on flatness, that is no evidence for it.
Three independent steps of equal length from one start make angles of 60 degrees; the demo has its own."""


def notes(run, models):
    """Markdown: POS on words that only B has, with and without pretraining, and what a demo does not show."""
    if "pos" not in run.args.task:
        return ""
    in_a, in_b = ([word for words, _ in data.read_pos(data.ud_file(run.args.data, lang, split).path, lang)
                   for word in words] for lang, split in (("A", "train"), ("B", "dev")))
    known = set(in_a)
    new, scores = torch.tensor([[word not in known] for word in in_b], device=run.device), {}
    for unit in models:
        if unit.task == "pos" and unit.langs != ("B",) and not run.ranks.outcome(unit):
            langs = " and ".join(unit.langs)
            name = f"{langs}, no pretraining" if unit.encoder == control(run.args.out) else langs
            model = run.model(unit).eval().requires_grad_(False)
            model.load_state_dict(run.trained(unit), strict=False)   # buffers are the module's own
            dev = run.examples("pos", unit.encoder, "B", "dev")
            right = (run.predictions(model, dev) == dev.gold).double()   # (R, 1): words are read in order
            scores.setdefault(name, []).append([right.mean(), right[new[:len(right)]].mean()])
    table = [f"| POS of language B, trained on | all words | the {new.double().mean():.0%} that only B has |",
             "|---|---|---|"]
    for name, found in scores.items():
        table.append("| {} | {:.1f} | {:.1f} |".format(name, *torch.tensor(found).mean(0).mul(100).tolist()))
    return "\n".join([*table, "", NOT_SHOWN])
