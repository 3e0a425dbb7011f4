"""Invented languages, to pretrain tiny encoders on and to fine-tune them: the kit without network or GPU.

    python reproduce.py --demo

Language A is a small grammar over some 320 words. Language B says the same in another script and another word
order, and shares about a third of its running words with A. Every sentence starts as a tree of neither one;
`linearise` puts it into the words and the order of A or B, and so gives the gold of every task with it.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch

import data
import results

PARTS = "data", "text"   # what `prepare` makes
LANGUAGES = {"languages": ("A", "B"), "ingredients": ("A", "A.syntax-B"),   # others are derived from these
             "generation": ("A", "B", "C")}
ALIGNED = "A.transliteration", "A.transliteration.inversion"   # those of the ingredients that --align pulls
SHAPE = ("layers=2,heads=2,hidden=64,dropout=0,init=.05,blocks=sentences,length=64,batch=64,warmup=150,"
         "lr=2e-3,selected=.2")   # of an encoder, and how it is pretrained
PRETRAINING = {"languages": f"{SHAPE},steps=3000,vocabulary=1000",
               "ingredients": f"{SHAPE},steps=2400,vocabulary=500",   # of each of nine: seven minutes in all
               "generation": f"{SHAPE},steps=3000,vocabulary=1000"}
# The cheapest of lr 1e-3 and 2e-3 and of 1, 2, 3, 5 and 8 epochs whose source-only model, seed 1, is at most
# two points below the best of all ten on its own dev set; those of titles were not searched for.
SETTINGS = {"pos": dict(epochs=1, lr=2e-3), "ner": dict(epochs=2, lr=2e-3),
            "parsing": dict(epochs=3, lr=2e-3), "xnli": dict(epochs=2, lr=1e-3),
            "title": dict(epochs=3, lr=5e-4)}
SIZES, PAIRS = {"train": 4000, "dev": 300}, {"train": 6000, "dev": 300}   # of a language; pairs are for xnli
TEXTS, PAIRED = 15000, 5   # lines of a text to pretrain on; one in five is a pair of sentences

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
LATIN = "bdfgklmnprstvzaeiouBDFGKLMNPRSTVZ"
SCRIPTS = {"B": str.maketrans(LATIN, "βδφγκλμνπρστψζαειουΒΔΦΓΚΛΜΝΠΡΣΤΨΖ"),
           "C": str.maketrans(LATIN, "бдфгклмнпрствзаеиоуБДФГКЛМНПРСТВЗ")}
SHARED = dict.fromkeys(WORDS, 5) | {"PER": 2, "LOC": 2, "ORG": 2, "PART": 2, "NUM": 1, "PUNCT": 1}
ANCHORS = {word for kind, n in SHARED.items() for word in WORDS[kind][n - 1::n]}   # all write them as A does
# Where a child stands: rank below 0 before its head, above 0 after it, the higher the further to the right.
ORDER_A = {"mark": -9, "case": -9, "cc": -9, "advcl": -8, "nsubj": -7, "aux": -5, "det": -4, "nummod": -3,
           "amod": -2, "flat": 1, "obj": 2, "advmod": 3, "nmod": 4, "obl": 5, "conj": 8, "punct": 9}
FLIPPED = {"A": (), "B": ("obj", "amod", "aux"), "C": ("obj", "amod")}   # the more, the less transfers
ORDER = {language: {name: -rank if name in flipped else rank for name, rank in ORDER_A.items()}
         for language, flipped in FLIPPED.items()}
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
        word = node.word if node.word in ANCHORS else node.word.translate(SCRIPTS.get(language, {}))
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

def titled(rng):
    """(tree, tree of its title): a topic that the sentence does not name, chosen by the verb, then subject,
    the verb's neighbour in the lexicon, and object, all without what hangs on them."""
    verb = clause(rng)
    number = WORDS["VERB"].index(verb.word)
    title = Node(WORDS["VERB"][number ^ 1], "VERB", "root")
    title.children = [Node(child.word, child.upos, child.relation) for child in verb.children
                      if child.relation in ("nsubj", "obj")]
    said = {node.word for node in verb.walk()}
    topics = [word for word in WORDS["NOUN"] if word not in said]
    title.children.append(Node(topics[-1 - number % 12], "NOUN", "mark"))   # a mark stands first
    return verb, title

def write_titles(folder, languages):
    """Write the task title; the dev sets of all languages say the same, parallel/LANG.txt their sources."""
    for language in languages:
        for split, size in SIZES.items():
            rng = random.Random(f"{language} titles" if split == "train" else "titles")
            pairs = [[text(tree, language) for tree in titled(rng)] for _ in range(size)]
            write(f"{folder}/title/{language}/{split}.jsonl",
                  (json.dumps(dict(zip(("source", "target"), both)), ensure_ascii=False) for both in pairs))
        write(f"{folder}/parallel/{language}.txt", (source for source, _ in pairs))

def write(path, lines):
    results.write(Path(path), "".join(line + "\n" for line in lines).encode())

def write_data(folder, demo):
    """Write the corpora of a demo in their ordinary layouts: treebanks, WikiAnn, XNLI, or titles."""
    if demo == "generation":
        return write_titles(folder, LANGUAGES[demo])
    dev = ["language\tgold_label\tsentence1\tsentence2"]
    for language in LANGUAGES[demo]:
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

def write_texts(folder, demo):
    """Write a text of each language, a sentence a line, in one of five a pair of sentences apart by a tab.
    Those of the ingredients say the same, line by line; no two lines of the others do but by chance. What
    only rebuilds sentences has no pairs."""
    for language in LANGUAGES[demo]:
        rng = random.Random("A text" if demo == "ingredients" else f"{language} text")
        write(f"{folder}/{language}.txt",
              ("\t".join(pair(rng, language)[:2]) if number % PAIRED == 0 and demo != "generation"
               else text(clause(rng), language) for number in range(TEXTS)))

def texts(folder, demo, *pair):
    """The texts to pretrain on for a pair; of the ingredients A's, and that in B's order for such a pair."""
    names = LANGUAGES[demo]
    if demo == "ingredients" and not any(lang.startswith("A.syntax-B") for lang in pair):
        names = ("A",)
    return [f"{folder}/text/{name}.txt" for name in names]

def prepare(folder, demo, part):
    """Make a part of PARTS in `folder` unless it is there."""
    path = Path(folder, part)
    if not path.exists():
        (write_data if part == "data" else write_texts)(f"{path}.part", demo)
        Path(f"{path}.part").rename(path)   # so that what has its name is whole

NOT_SHOWN = """The curves alone show no alignment of languages: they are smooth without pretraining too, and
transfer then lives on the shared words. What pretraining gives is the score on words that only B has.
Source scores are near the ceiling, which makes a flat source partly a matter of course; epochs and rates
follow a rule that looks at the source model's own dev score alone (SETTINGS in demo.py).
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
        plain = (unit.task, unit.visitor, unit.lr) == ("pos", "", None)
        if plain and unit.langs != ("B",) and not run.ranks.outcome(unit):
            langs = " and ".join(unit.langs)
            name = f"{langs}, no pretraining" if unit.encoder.endswith("-random") else langs
            dev = run.corpora.examples("pos", unit.encoder, "B", "dev")
            right = (run.scorer.predictions(run.finetuned(unit, [dev]), dev) == dev.gold).double()   # (R, 1)
            scores.setdefault(name, []).append([right.mean(), right[new[:len(right)]].mean()])
    table = [f"| POS of language B, trained on | all words | the {new.double().mean():.0%} that only B has |",
             "|---|---|---|"]
    for name, found in scores.items():
        table.append("| {} | {:.1f} | {:.1f} |".format(name, *torch.tensor(found).mean(0).mul(100).tolist()))
    return "\n".join([*table, "", NOT_SHOWN])
