"""The claim of Fig. 5 on published runs of mBERT, XLM-R base and distilled mBERT, seed by seed.

    python scripts/published.py

Reads figures/published/scores.csv: fine-tuned on en, scored on en and eight targets, five seeds. A row of the
table is a task and an encoder: the variance over seeds (divisor n - 1) on en, its mean over the targets, the
ratio of the two, whether that follows the kit's rule for the claim, and of how many targets alone it would.
*Over all*: the ratio of the two columns' means. The variances are of plain scores: the kit divides its own by
the bilingual model's score, as the paper does, and in these runs there is no such model.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from grids import judge, table
from plot import CLAIMS
from results import KitError

FILE, SOURCE = ROOT / "figures" / "published" / "scores.csv", "en"

def read(path):
    """{(task, encoder): {language: scores of the seeds (n,)}} in the order of the file. Raises KitError."""
    with open(path, encoding="utf-8", newline="") as f:
        header, *rows = list(csv.reader(f)) or [[]]
    found = {}
    for number, row in enumerate(rows, 2):
        try:
            task, encoder, language, *scores = row
            scores = np.array(scores, float)
            case = found.setdefault((task, encoder), {})
            whole = len(row) == len(header) and len(scores) > 1 and language not in case
            if not whole or not ((0 <= scores) & (scores <= 100)).all():
                raise ValueError
            case[language] = scores
        except ValueError:
            raise KitError(f"{path} line {number}: {','.join(row)!r}; expected a task, an encoder, a "
                           "language (each once), and a score from 0 to 100 for each of two or more seeds, "
                           "as line 1 names them. Restore the file.") from None
    for (task, encoder), case in found.items():
        if SOURCE not in case or len(case) < 2:
            raise KitError(f"{path}: {task}, {encoder} has {', '.join(case)}; expected {SOURCE} and at least "
                           "one target. Restore the file.")
    if not found:
        raise KitError(f"{path} has no scores. Restore the file.")
    return found

def rule():
    """(claim, limit) of the kit: the variance on the source over that on the targets is below the limit."""
    for claim, _, *rules in CLAIMS:
        for name, sign, limit in (each.rsplit(" ", 2) for each in rules):
            if (name, sign) == ("zero-shot: variance, source / target", "<"):
                return claim, float(limit)
    raise KitError("The kit's claims have no rule on the variance of zero-shot seeds any more.")

def variances(case):
    """Variance over seeds on the source, and those on the targets (targets,)."""
    return case[SOURCE].var(ddof=1), np.array([case[lang].var(ddof=1) for lang in case if lang != SOURCE])

def compare(cases, limit):
    """(rows of the table, the kit's judgement {verdict, cases, measured}) of read()'s cases."""
    rows, pairs = [], []
    for (task, encoder), case in cases.items():
        source, targets = variances(case)
        pairs.append((source, targets.mean()))
        alone = (source < limit * targets).sum()
        rows.append({"task": task, "encoder": encoder, "on en": f"{source:.3f}",
                     "on targets": f"{targets.mean():.3f}", "ratio": f"{source / targets.mean():.3f}",
                     f"below {limit:g}": "yes" if source < limit * targets.mean() else "no",
                     "targets alone": f"{alone} of {len(targets)}"})
    source, target = np.mean(pairs, 0)
    return rows, judge(source < limit * target, [s < limit * t for s, t in pairs],
                       f"variance, source / target = {source / target:.3f}")

def main():
    parser = argparse.ArgumentParser(description="Checks the claim of Fig. 5 on published runs.")
    parser.add_argument("file", nargs="?", type=Path, default=FILE, help="of scores (default: %(default)s)")
    args = parser.parse_args()
    try:
        claim, limit = rule()
        rows, found = compare(read(args.file), limit)
    except (KitError, OSError) as error:
        parser.exit(2, f"published.py: {error}\n")
    print(table(rows), f"\n{claim} (the kit's rule: below {limit:g})",
          f"{found['verdict']}: {found['measured']} over all; {found['cases']} cases", sep="\n")

if __name__ == "__main__":
    main()
