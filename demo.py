"""Two invented languages and a tiny encoder pretrained on them: the kit without network or GPU.

    python reproduce.py --demo

Language A is a small grammar over some 320 words. Language B says the same things in another script and another word
order, and shares about a third of its running words with A. Every sentence starts as a tree that belongs to neither
language; one function puts it into the words and the order of A or B, and so gives the gold of every task with it.
"""

import functools
import json
import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

LANGUAGES = ("A", "B")
TREEBANKS = {"A": "UD_A-Demo", "B": "UD_B-Demo"}
SETTINGS = {"pos": dict(epochs=1, batch_size=32, lr=2e-3), "ner": dict(epochs=1, batch_size=16, lr=2e-3),
            "parsing": dict(epochs=1, batch_size=16, lr=2e-3), "xnli": dict(epochs=2, batch_size=32, lr=1e-3)}
SIZES = {"train": 4000, "dev": 300}  # sentences of a language for pos, ner and parsing
PAIRS = {"train": 6000, "dev": 300}  # pairs of a language for xnli
LABELS = ("entailment", "neutral", "contradiction")

TEXTS = 15000  # pretraining texts of a language; one in five is a sentence pair
STEPS, BATCH, LR, MASKED = 2500, 64, 2e-3, .2  # with fewer than half of these steps the languages hardly align
PAIRED, NO_PAIR = 5, -1  # one text in five is a pair of sentences; every other of them belongs together
DROP = .15     # neutral and contradicting hypotheses lose a modifier this often, so that length is not the answer
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


# ---- words ----------------------------------------------------------------------------------------------------------

def spell(count, syllables, rng):
    """`count` distinct invented words of one to `syllables` syllables, the short ones first."""
    words = {}  # a dict, because the order of a set of strings differs from run to run
    while len(words) < count:
        word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, syllables)))
        words[word + rng.choice("lnrs") * rng.randint(0, 1)] = None
    return sorted(words, key=len)


def lexicon():
    """Part of speech or kind of name -> its words, frequent ones first. Words in two classes are ambiguous."""
    rng = random.Random("lexicon")
    function, content, names = spell(40, 1, rng), spell(214, 3, rng), spell(70, 3, rng)
    rng.shuffle(content)
    names = [name.capitalize() for name in names]
    rng.shuffle(names)
    return {"DET": function[:6], "PRON": function[3:10], "AUX": function[10:15], "PART": function[15:17],
            "CCONJ": function[17:19], "SCONJ": function[19:23], "place": function[22:26], "of": function[26:29],
            "with": function[29:33], "NOUN": content[:100], "VERB": content[92:162], "ADJ": content[158:190],
            "ADV": content[188:214], "PER": names[:28], "LOC": names[22:48], "ORG": names[42:65],
            "firm": names[65:], "NUM": ["2", "3", "4", "7", "10", "12", "50", "100"], "PUNCT": [".", "!", ","]}


WORDS = lexicon()
TO_GREEK = str.maketrans("bdfgklmnprstvzaeiouBDFGKLMNPRSTVZ", "βδφγκλμνπρστψζαειουΒΔΦΓΚΛΜΝΠΡΣΤΨΖ")


def anchors():
    """The words that B writes as A does: every second name, every fifth other word, numbers and punctuation."""
    every = {"PER": 2, "LOC": 2, "ORG": 2, "PART": 2, "NUM": 1, "PUNCT": 1}
    return {word for kind, words in WORDS.items() for word in words[every.get(kind, 5) - 1::every.get(kind, 5)]}


ANCHORS = anchors()

# Where a child stands: rank below 0 before its head, above 0 after it, and the higher the further to the right.
ORDER_A = {"mark": -9, "case": -9, "cc": -9, "advcl": -8, "nsubj": -7, "aux": -5, "det": -4, "nummod": -3, "amod": -2,
           "flat": 1, "obj": 2, "advmod": 3, "nmod": 4, "obl": 5, "conj": 8, "punct": 9}
FLIPPED = ("obj", "amod", "aux")  # the dial of difficulty: the more are flipped, the less transfers
ORDER = {"A": ORDER_A, "B": {name: -rank if name in FLIPPED else rank for name, rank in ORDER_A.items()}}


# ---- trees ----------------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Node:
    """A word of a tree that belongs to no language yet; its word is spelt as in A."""
    word: str
    upos: str
    relation: str
    entity: str = ""
    children: list = field(default_factory=list)


def pick(rng, kind):
    """A word of a kind; the first of n is drawn about sqrt(n) times as often as on average."""
    words = WORDS[kind]
    return words[int(len(words) * rng.random() ** 2)]


def leaf(rng, upos, relation, kind=None):
    return Node(pick(rng, kind or upos), upos, relation)


def name(rng, relation, entity):
    """A name; the same one may be a person's, a place's or a firm's, and often only its surroundings tell."""
    node = Node(pick(rng, entity), "PROPN", relation, entity)
    if entity == "ORG":
        node.children.append(leaf(rng, "DET", "det") if rng.random() < .3 else leaf(rng, "PROPN", "flat", "firm"))
    elif rng.random() < .4:
        node.children.append(leaf(rng, "PROPN", "flat", entity))
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
    """A place, on a verb (obl) or now and then on a noun (nmod); other adpositions belong to one of the two."""
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


def linearise(tree, language):
    """Put a tree into a language: rows of word, UPOS, head (1-based, 0 for the root), relation and BIO tag."""
    nodes, heads, rank = [], {}, ORDER[language]

    def visit(node):
        children = sorted(node.children, key=lambda child: rank[child.relation])
        for child in children:
            if rank[child.relation] < 0:
                visit(child)
        nodes.append(node)
        for child in children:
            heads[id(child)] = node
            if rank[child.relation] > 0:
                visit(child)

    visit(tree)
    place = {id(node): number for number, node in enumerate(nodes, 1)}
    rows = []
    for node in nodes:
        head = heads.get(id(node))
        tag = "B-" + node.entity if node.entity else "I-" + head.entity if node.relation == "flat" else "O"
        rows.append((surface(node.word, language), node.upos, place[id(head)] if head else 0, node.relation, tag))
    return rows


def surface(word, language):
    return word if language == "A" or word in ANCHORS else word.translate(TO_GREEK)


def text(tree, language):
    return " ".join(row[0] for row in linearise(tree, language))


# ---- inference pairs ------------------------------------------------------------------------------------------------

OPTIONAL = ("amod", "advmod", "nummod", "nmod", "obl", "advcl")


def walk(node):
    yield node
    for child in node.children:
        yield from walk(child)


def copy(node):
    return Node(node.word, node.upos, node.relation, node.entity, [copy(child) for child in node.children])


def premise(rng):
    """A tree without negation, which would turn entailment round, and with something that can be left out."""
    while True:
        tree = clause(rng)
        nodes = list(walk(tree))
        if len(nodes) < 12 and all(node.upos != "PART" for node in nodes) and any(node.relation in OPTIONAL for node in nodes):
            return tree


def edit(tree, label, rng):
    """A hypothesis: the tree with a modifier less (entailment), one more (neutral), or denied (contradiction)."""
    tree, gone = copy(tree), ""
    if label == "entailment" or rng.random() < DROP:  # now and then in the others too: length alone is not the answer
        parent, child = rng.choice([(p, c) for p in walk(tree) for c in p.children if c.relation in OPTIONAL])
        parent.children.remove(child)
        gone = child.word
    nodes = list(walk(tree))
    adjectives = [node for node in nodes if node.upos == "ADJ"]
    if label == "contradiction" and adjectives and rng.random() < .5:
        node = rng.choice(adjectives)
        node.word = WORDS["ADJ"][WORDS["ADJ"].index(node.word) ^ 1]  # neighbours in the lexicon are antonyms
    elif label == "contradiction":
        tree.children.append(leaf(rng, "PART", "advmod"))
    elif label == "neutral":
        parent = rng.choice([node for node in nodes if node.upos in ("NOUN", "VERB")])
        old = {gone, *(child.word for child in parent.children)}   # what was said before would be entailed
        while (new := leaf(rng, *(("ADJ", "amod") if parent.upos == "NOUN" else ("ADV", "advmod")))).word in old:
            pass
        parent.children.append(new)
    return tree


def pair(rng, language):
    """Premise, hypothesis and label."""
    label = rng.choice(LABELS)
    tree = premise(rng)
    return text(tree, language), text(edit(tree, label, rng), language), label


# ---- data files -----------------------------------------------------------------------------------------------------

def write(path, lines):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def conllu(sentences):
    """CoNLL-U lines of sentences as `linearise` gives them."""
    for number, rows in enumerate(sentences, 1):
        yield f"# sent_id = {number}"
        yield "# text = " + " ".join(row[0] for row in rows)
        for position, (word, upos, head, relation, _) in enumerate(rows, 1):
            yield "\t".join((str(position), word, word, upos, "_", "_", str(head), relation, "_", "_"))
        yield ""


def write_data(folder):
    """Write the corpora of both languages in their ordinary layouts: treebanks, WikiAnn, XNLI."""
    dev = ["language\tgold_label\tsentence1\tsentence2"]
    for language in LANGUAGES:
        for split, size in SIZES.items():
            rng = random.Random(f"{language} {split}")  # every split is a sample of its own: no parallel data
            trees = [linearise(clause(rng), language) for _ in range(size)]
            write(f"{folder}/ud/{TREEBANKS[language]}/{language}_demo-ud-{split}.conllu", conllu(trees))
            tagged = [linearise(clause(rng), language) for _ in range(size)]
            write(f"{folder}/panx/{language}/{split}",
                  (line for rows in tagged for line in [*(f"{language}:{row[0]}\t{row[4]}" for row in rows), ""]))
        rng = random.Random(f"{language} pairs")
        rows = [pair(rng, language) for _ in range(PAIRS["train"])]
        write(f"{folder}/xnli/XNLI-MT-1.0/multinli/multinli.train.{language}.tsv", ["premise\thypo\tlabel"] + [
            "\t".join((first, second, label.replace("contradiction", "contradictory"))) for first, second, label in rows])
        dev += ["\t".join((language, label, first, second))
                for first, second, label in (pair(rng, language) for _ in range(PAIRS["dev"]))]
    write(f"{folder}/xnli/XNLI-1.0/xnli.dev.tsv", dev)


# ---- encoder --------------------------------------------------------------------------------------------------------

def pretraining_texts():
    """Texts of both languages, no two of them parallel: ((sentence,), NO_PAIR) or ((sentence, edit), follows).

    follows: 1 where the edit is that of the sentence, 0 where it is another one's.
    """
    texts = []
    for language in LANGUAGES:
        rng = random.Random(f"{language} text")
        pairs = [pair(rng, language)[:2] for _ in range(TEXTS // PAIRED)]
        texts += [((first, second), 1) if i % 2 else ((first, pairs[i - 2][1]), 0) for i, (first, second) in enumerate(pairs)]
        texts += [((text(clause(rng), language),), NO_PAIR) for _ in range(TEXTS - len(pairs))]
    return texts


def vocabulary(texts):
    """Special tokens, characters, then the words, frequent ones first; a trainer would order them anew on every run."""
    counts = Counter(word for parts, _ in texts for part in parts for word in part.split())
    characters = sorted({character for word in counts for character in word})
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    return SPECIALS + characters + ["##" + character for character in characters] + words


def write_tokenizer(folder, texts):
    write(f"{folder}/vocab.txt", vocabulary(texts))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 128}
    write(f"{folder}/tokenizer_config.json", [json.dumps(settings)])
    return AutoTokenizer.from_pretrained(folder)


def buckets(texts, tokenizer):
    """Subword ids, token types and follows of texts of one length: a list of (3, N, L), so that no batch needs padding."""
    encoded = tokenizer([parts if len(parts) == 2 else parts[0] for parts, _ in texts])
    lengths = {}
    for (_, follows), ids, types in zip(texts, encoded["input_ids"], encoded["token_type_ids"]):
        lengths.setdefault(len(ids), []).append((ids, types, [follows] * len(ids)))
    return [torch.tensor(rows).transpose(0, 1).contiguous() for rows in lengths.values()]


def pretrain(model, paired, groups, steps, progress):
    """Predict masked words of either language, and whether two sentences belong together; returns the loss of every step."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([float(group.shape[1]) for group in groups])
    optimizer = torch.optim.Adam([*model.parameters(), *paired.parameters()], lr=LR, fused=True)
    warm = max(1, .05 * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm)))
    losses = []
    for step in range(steps):
        group = groups[torch.multinomial(sizes, 1, generator=generator)]
        ids, types, follows = group[:, torch.randint(group.shape[1], (BATCH,), generator=generator)]  # (BATCH, L)
        masked = (torch.rand(ids.shape, generator=generator) < MASKED) & (ids >= len(SPECIALS))
        hidden = model.bert(ids.masked_fill(masked, SPECIALS.index("[MASK]")), token_type_ids=types)[0]
        loss = cross_entropy(model.cls(hidden[masked]), ids[masked])  # logits only where needed
        pairs = follows[:, 0] != NO_PAIR
        if pairs.any():
            loss = loss + cross_entropy(paired(hidden[pairs, 0]), follows[pairs, 0])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 500 == 0:
            progress(f"demo encoder: step {step + 1} of {steps}, loss {sum(losses[-100:]) / 100:.2f}")
    return losses


def write_encoder(folder, steps=STEPS, progress=print):
    """Write a tiny BERT and its tokenizer; with 0 steps the control, the same with its random initial weights."""
    texts = pretraining_texts()
    tokenizer = write_tokenizer(folder, texts)
    # ReLU and two heads: GELU and four take longer on a CPU
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=256, max_position_embeddings=128, hidden_dropout_prob=0.,
                        attention_probs_dropout_prob=0., hidden_act="relu", initializer_range=.05)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, paired = BertForMaskedLM(config), torch.nn.Linear(config.hidden_size, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would give other weights
    pretrain(model, paired, buckets(texts, tokenizer), steps, progress)
    torch.set_num_threads(threads)
    model.save_pretrained(folder)


PARTS = {"encoder": write_encoder, "data": write_data, "encoder-not-pretrained": functools.partial(write_encoder, steps=0)}


def prepare(folder, part, progress=print):
    """Make a part of PARTS in `folder` unless it is there."""
    path = f"{folder}/{part}"
    if not os.path.exists(path):
        progress(f"demo: writing {path}")
        shutil.rmtree(path + ".part", ignore_errors=True)  # left by a run that was stopped
        PARTS[part](path + ".part")
        os.replace(path + ".part", path)  # so that what has its name is whole
