"""Derived languages: what remains of transfer when one property of a language is changed.

    en.inversion   en.permutation   en.transliteration   en.syntax-hi   en.transliteration.inversion

After "When is BERT Multilingual? Isolating Crucial Ingredients for Cross-lingual Transfer" (Deshpande et al.
2022). A derived language has the files of its base. Syntax acts on their words, the others on subword ids.
"""

from collections import Counter
from itertools import permutations

import numpy as np

import data

from grids import (  # isort: skip
    CASE, PAIR, SRC, TGT, group, mean, mean_sd, normalise, shape, sound, table, verdict, verdicts)
from results import KitError

ORDERS = ("inversion", "permutation")
ON_IDS = (*ORDERS, "transliteration")
KNOWN = ", ".join((*ON_IDS, "syntax-LANG"))
GOVERNORS = {data.UPOS.index(tag) for tag in ("NOUN", "PROPN", "PRON", "VERB")}   # "nouns and verbs" (ours)
MOST_DEPENDENTS = 6   # of a word, in a sentence that syntax changes
SEEN = 10             # how often a treebank must show a relation before its side is believed (ours)

def parse(lang):
    """(base, derivations) of a name: "en.inversion.syntax-hi" is "en", ("inversion", "syntax-hi").
    The base is the longest dotted beginning in data.TREEBANKS. Raises KitError where the rest makes no sense.
    """
    parts, n = lang.split("."), lang.count(".") + 1
    while n and ".".join(parts[:n]) not in data.TREEBANKS:
        n -= 1
    if n == 0:
        raise KitError(f"{lang!r} is no language, nor derived from one of {', '.join(data.TREEBANKS)}.")
    base, derivations, before = ".".join(parts[:n]), tuple(parts[n:]), set()
    for derivation in derivations:
        kind, dash, other = derivation.partition("-")
        if derivation not in ON_IDS and kind + dash != "syntax-":
            raise KitError(f"{lang}: there is no transformation {derivation!r}; there are {KNOWN}.")
        if kind == "syntax" and other not in data.TREEBANKS.keys() - {base}:
            raise KitError(f"{lang}: {other!r} is no other language to take the order of; there are "
                           f"{', '.join(sorted(data.TREEBANKS.keys() - {base}))}.")
        if kind in before or (kind in ORDERS and not before.isdisjoint(ORDERS)):
            raise KitError(f"{lang}: expected each of {KNOWN} at most once, not both {' and '.join(ORDERS)}.")
        if kind == "syntax" and not before.isdisjoint(ORDERS):
            raise KitError(f"{lang}: syntax works on words, so it comes before {' or '.join(ORDERS)}.")
        before.add(kind)
    return base, derivations

# ---- subword ids ------------------------------------------------------------------------------------------

class Rule:
    """What derivations do to subword ids: segments between special tokens are reordered, ids shifted by V.
    V: size of the vocabulary; rows: of the encoder's embeddings. Raises KitError where these lack id + V."""

    def __init__(self, derivations, tokenizer, rows):
        V, special = len(tokenizer), tokenizer.all_special_ids
        words = {tokenizer.unk_token_id, tokenizer.mask_token_id}   # they stand for words and move like them
        self.derivations, self.shifted = derivations, np.arange(V)
        self.border = np.isin(self.shifted, [i for i in special if i not in words])
        if "transliteration" in derivations:
            if rows < 2 * V:
                raise KitError(f"Transliteration needs an encoder with {2 * V} subwords, twice those of its "
                               f"tokenizer, and this one has {rows}: pretrain one with --encoder scratch.")
            self.shifted[~np.isin(self.shifted, special)] += V

    def __call__(self, ids, place):
        """(derived ids (L,), old (L,)): old[p] is where the subword that is now at p stood in ids (L,).
        place: (sentence, window) in the file; a permutation is drawn from it, so that every run has the same.
        """
        old, first = np.arange(len(ids)), 0
        mixed = "permutation" in self.derivations
        bits = np.random.PCG64(place) if mixed else None   # the same with every numpy
        for end in [*np.flatnonzero(self.border[ids]), len(ids)]:
            if "inversion" in self.derivations:
                old[first:end] = old[first:end][::-1].copy()
            elif bits:
                old[first:end] = first + bits.random_raw(end - first).argsort()
            first = end + 1
        return self.shifted[ids][old], old

def derive(encoded, derivations, tokenizer, rows, labels):
    """A data.Encoded set in a derived language, neither of the two on a device yet; `reader` does the syntax.
    What is read follows the first subword of its word, and gold follows it; reads of special tokens stay.
    rows: of the encoder's embeddings (config.vocab_size); labels: the task's. Raises KitError as Rule does.
    """
    rule, derived = Rule(derivations, tokenizer, rows), data.Encoded(encoded.pad)
    reordered = not set(derivations).isdisjoint(ORDERS)
    sentence, window, entity = -1, 0, 0
    for ids, read, gold, new, second in encoded.added:
        sentence, window, entity = (sentence + 1, 0, 0) if new else (sentence, window + 1, entity)
        ids, old = rule(ids, (sentence, window))
        now = np.argsort(old)[read]             # (N,) where what is read stands now
        order = np.argsort(now)
        gold = follow(gold, order.tolist())
        if reordered and labels == data.BIO:
            gold, entity = repair(gold, entity)
        derived.add(ids, now[order], gold, new, second)
    derived.counts, derived.lost = dict(encoded.counts), encoded.lost
    return derived

def follow(gold, order):
    """Gold rows (N, K) in a new order, row n being the old row order[n]; heads of a tree (K = 3) renumbered.
    A head is an index among the rows, of which the first is the ROOT; -1, a head that was cut off, stays."""
    gold, new = [gold[old] for old in order], {old: n for n, old in enumerate(order)} | {-1: -1}
    return [(new[row[0]], *row[1:]) for row in gold] if len(gold[0]) == 3 else gold

def repair(gold, entity):
    """(BIO rows, last type) after one pass from left to right: B- where a type begins, I- where it goes on.
    entity: the type to the left, 0 for O or none; the tags of a type are 2 * type - 1 (B-) and 2 * type (I-).
    """
    tags = []
    for tag, in gold:
        before, entity = entity, (tag + 1) // 2
        tags.append((2 * entity if entity in (0, before) else 2 * entity - 1,))
    return tags, entity

# ---- syntax -----------------------------------------------------------------------------------------------

def preference(path):
    """{relation: share to the right of its head} among the dependents of nouns and verbs in a treebank."""
    seen, right = Counter(), Counter()
    for _, rows in data.read_conllu(path):
        for i, (_, head, relation) in enumerate(rows, 1):
            if head and rows[head - 1][0] in GOVERNORS:
                seen[relation] += 1
                right[relation] += i > head
    return {relation: right[relation] / n for relation, n in seen.items() if n >= SEEN}

def linearise(rows, preference):
    """The places (N,) from which a sentence's words come in their new order; rows (upos, head, relation).
    A dependent of a noun or verb takes the side that its relation prefers, others stay on theirs. What was
    nearer to the head is nearer still; of two as near, the one that was on this side before (ours)."""
    dependents = {head: [] for head in range(-1, len(rows))}   # by the head's place, -1 for the ROOT
    for i, (_, head, _) in enumerate(rows):
        dependents[head - 1].append(i)

    def visit(head):
        right = {i: i > head for i in dependents[head]}
        if rows[head][0] in GOVERNORS:
            share = {i: preference.get(rows[i][2], .5) for i in right}
            right |= {i: share[i] > .5 for i in right if share[i] != .5}
        near = sorted(right, key=lambda i: (abs(i - head), right[i] != (i > head)))
        order = [*(i for i in reversed(near) if not right[i]), head, *(i for i in near if right[i])]
        return [word for i in order for word in ([i] if i == head else visit(i))]

    return visit(dependents[-1][0])

def movable(rows):
    """Whether syntax changes a sentence: it is projective, and no word has more than 6 dependents."""
    if max(Counter(head for _, head, _ in rows).values()) > MOST_DEPENDENTS:
        return False
    return linearise(rows, {}) == list(range(len(rows)))   # only a projective sentence stays the same

def unmoved(path):
    """(sentences that syntax leaves as they are, all sentences) of a treebank file."""
    found = [movable(rows) for _, rows in data.read_conllu(path)]
    return found.count(False), len(found)

def reader(read, preference):
    """A treebank reader, data.read_pos or data.read_trees, for sentences in the order of another language."""
    def read_reordered(path, lang):
        for (words, rows), (_, gold) in zip(data.read_conllu(path), read(path, lang), strict=True):
            if movable(rows):
                order, root = linearise(rows, preference), (-1,) * len(gold[0])
                words = [words[i] for i in order]
                gold = follow([root, *gold], [0, *(i + 1 for i in order)])[1:]   # heads count from 1
            yield words, gold
    return read_reordered

# ---- what transfers ---------------------------------------------------------------------------------------

PAPER_TASKS = ("XNLI", "NER", "POS")   # the paper's
PAPER = {   # P@1, and Delta in PAPER_TASKS, of English and parallel text (the authors' plotting scripts)
    "inversion": ("-", -3.4, -44.5, -.7), "permutation": ("-", -5., -28.5, -11.9),
    "syntax": ("-", -1.8, -7.8, -.9), "transliteration": (90, -2.1, -2.3, -.5),
    "inversion transliteration": (.16, -19.2, -51.5, -42.7),
    "permutation transliteration": (.01, -27.7, -46.3, -59.),
    "syntax transliteration": (57.3, -5.7, -14.2, -2.)}
PAPER_R = {"XNLI": ".94, .70", "NER": ".93, .74", "POS": ".89, .58"}   # Spearman, Pearson; n = 7
LITTLE = {"transliteration": -2.3, "inversion": -3.4, "permutation": -11.9, "syntax": -1.8}   # by RULES
CLAIMS = (   # a claim, where the paper makes it, and what is measured
    ("Transliteration alone costs little", "scripts", "Delta - limit = {:.2f}"),
    ("Order alone costs little in XNLI and POS", "scripts", "Delta - limit = {:.2f}"),
    ("Both together cost more than the sum", "Abstract", "sum of Deltas - Delta of both = {:.2f}"),
    ("Delta goes with alignment", "Abstract", "Spearman - 0.7 = {:.2f}"),
    ("With --align, alignment and transfer rise", "Abstract", "rise of P@1 = {:.2f}, Delta = {:.2f}"))
HOW = """Means over seeds of scores on the derived language: BZ of the source-only model, BS of the
target-only one, MZ as BZ, pretrained on the original alone; Delta = BZ - BS ± standard deviation, negative: a
loss. P@1: % of input embeddings nearest to their partner's, mean of both directions; with --align, in its
loss/left out. The paper (Deshpande et al. 2022): English, by its authors' plotting scripts. Where an encoder
is named, it was not pretrained here on both languages, and no verdict counts it."""
RULES = f"""A case follows where what is measured is above 0, or at a limit (ours). *Little*: the largest loss
in the paper's own row, of order in XNLI and POS: {", ".join(f"{kind} {x}" for kind, x in LITTLE.items())}.
*Sum*: transliteration alone plus order alone. *Spearman*: .7, of four languages or more. *P@1*: of all rows.
Verdicts as above, in the paper's tasks; a case is a task and a derived language, for Spearman a task.
p is the share of all orders with as high a Spearman coefficient: to be sure of the sign (p < .05) takes
1 of 4, .9 of 5, .83 of 6, .71 of 7 languages; of 3, nothing is enough."""

class Transfer:
    """From a language to one derived from it, in one task: scores of the latter's dev set, one a seed."""

    def __init__(self, runs, controls):
        first, header = runs[0], runs[0].header
        self.task, self.src = first.task_name, first.src
        self.derivations = frozenset(first.tgt.removeprefix(first.src + ".").split("."))
        self.kinds = " ".join(sorted(derivation.partition("-")[0] for derivation in self.derivations))
        self.here, self.align = "align" in header, header.get("align")   # here: as pretrain.about() says
        self.p1 = [np.mean(there_and_back) for there_and_back in (header.get("alignment") or {}).values()]
        note = f", align {self.align:g}" if self.align else "" if self.here else f", {first.encoder_name}"
        self.name, self.alignment = first.tgt + note, mean(self.p1)
        aligned = [f"align {self.align:g}"] if self.align else []
        more = sorted(self.derivations - {"transliteration"}) + aligned
        self.short = f"+ {', '.join(more)}" if more else "transliteration"   # beside transliterated ones
        self.BZ, self.BS = ([run.points[at][1] for run in runs] for at in (SRC, TGT))
        self.MZ = [run.points[SRC][1] for run in controls if self.here]
        self.deltas = np.subtract(self.BZ, self.BS)
        self.delta = self.deltas.mean()
        near, far = mean(normalise(runs, [(.9, 0.), (1.1, 0.)])[0])[:, 1]
        self.slope = (near - far) / .2   # of the target at the zero-shot point, along Eq. 1
        self.lowest = shape(runs, 1).get("lowest score", [np.nan])[0]   # of the source on Eq. 1
        self.angle = mean([run.angle for run in runs if run.known])

def transfers(grids):
    """The Transfers in grids, by task and name; runs that collapsed or lack a model are left out."""
    grids = [grid for grid in sound(grids)
             if grid.tgt.startswith(grid.src + ".") and {SRC, TGT} <= grid.points.keys()]
    alone = "scratch-original"
    controls = group([grid for grid in grids if grid.header.get("pretraining") == alone], *PAIR)
    cases = group([grid for grid in grids if not grid.control], *CASE)
    found = [Transfer(runs, controls.get((task, *pair), ())) for (task, _, *pair), runs in cases.items()]
    return sorted(found, key=lambda each: (each.task, each.name))

def summary(grids):
    """{task: rows {column: cell}} for grids.table, a row a derived language."""
    found = {}
    for each in transfers(grids):
        BZ, BS, MZ = (f"{np.mean(scores):.1f}" if scores else "-" for scores in (each.BZ, each.BS, each.MZ))
        paper = PAPER.get(each.kinds, "") if each.here and not each.align else ""
        paper = dict(zip(("P@1", *PAPER_TASKS), map(str, paper), strict=False))
        found.setdefault(each.task, []).append({
            "derived language": each.name, "P@1": "/".join(f"{p1:.1f}" for p1 in each.p1) or "-", "BZ": BZ,
            "BS": BS, "MZ": MZ, "Delta": mean_sd(each.deltas, 1), "seeds": str(len(each.BZ)),
            "paper: P@1": paper.get("P@1", "-"), "paper: Delta": paper.get(each.task, "-")})
    return found

def ranks(values):
    """Ranks (n,) from 1; equal values share the mean of theirs."""
    return np.array([np.less(values, each).sum() + (np.equal(values, each).sum() + 1) / 2 for each in values])

def correlate(x, y):
    """(Spearman, p, Pearson) of x and y (n,); NaN where one of them does not vary or n is below 3.
    p: the share of all orders of y with as high a Spearman coefficient; beyond n = 8, of 40,320 drawn ones.
    """
    if len(x) < 3 or min(np.ptp(x), np.ptp(y)) == 0:
        return (np.nan,) * 3
    a, b, n = ranks(x) - ranks(x).mean(), ranks(y), len(x)
    orders = [*permutations(range(n))] if n <= 8 else np.random.PCG64(0).random_raw((40320, n)).argsort(1)
    p = np.mean(b[np.array(orders)] @ a > b @ a - 1e-6)
    return np.corrcoef(a, b)[0, 1], p, np.corrcoef(x, y)[0, 1]

def correlations(grids):
    """{task: (n, *correlate())} of alignment and Delta, over transliterated languages without --align."""
    aligned = group([each for each in transfers(grids) if each.p1 and not each.align], "task")
    return {task: (len(of), *correlate([each.alignment for each in of], [each.delta for each in of]))
            for (task,), of in aligned.items()}

def claims(grids):
    """What the grids say to CLAIMS, rows as those of plot.claims, by RULES."""
    found, shift = transfers(grids), frozenset(["transliteration"])
    found = [each for each in found if each.here and each.task in PAPER_TASKS]
    plain = {(each.task, each.src, each.derivations): each for each in found if not each.align}
    alone, order, both, risen = [], [], [], []   # of each case what is measured, a limit met being above 0
    for (task, src, derivations), each in plain.items():
        parts = [plain.get((task, src, part)) for part in (shift, derivations - shift)]
        if shift < derivations and all(parts):
            both.append([sum(part.delta for part in parts) - each.delta])
        elif each.kinds in LITTLE and (derivations == shift or task != "NER"):
            (alone if derivations == shift else order).append([each.delta - LITTLE[each.kinds] + 1e-6])
    for each in found:
        if each.align and (without := plain.get((each.task, each.src, each.derivations))):
            risen.append([each.alignment - without.alignment, each.delta - without.delta])
    ranked = [[rank - .7 + 1e-6] for task, (n, rank, *_) in correlations(grids).items()
              if task in PAPER_TASKS and n > 3 and np.isfinite(rank)]
    found = zip(CLAIMS, (alone, order, both, ranked, risen), strict=True)
    return [{"claim": claim, "paper": paper} | verdict(cases, measured)
            for (claim, paper, measured), cases in found]

def section(grids):
    """(Markdown for report.md, text 79 columns wide) on derived languages."""
    found, said, related = summary(grids), claims(grids), []
    for task, (n, *numbers) in correlations(grids).items():
        cells = ["-" if np.isnan(number) else f"{number:.2f}" for number in numbers]
        names = "task", "n", "Spearman", "p", "Pearson", "paper, n = 7"
        related.append(dict(zip(names, (task, str(n), *cells, PAPER_R.get(task, "-")), strict=True)))
    parts = ["## Derived languages", HOW, *(f"{task}\n\n{table(rows)}" for task, rows in found.items()),
             related and "Alignment and Delta, transliterated, without --align", table(related),
             table(said), RULES]
    shown = "P@1", "BZ", "BS", "Delta"
    lines = ["Derived languages: BZ of source-only, BS of target-only models; Delta = BZ - BS"]
    for task, rows in found.items():
        short = [{task: row["derived language"][-38:]} | {key: row[key] for key in shown} for row in rows]
        lines += ["", table(short, "  ")]
    lines += ["", "Alignment and Delta", table(related, "  "), ""] if related else [""]
    return "\n\n".join(filter(None, parts)), "\n".join(lines + verdicts(said))
