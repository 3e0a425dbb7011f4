#!/usr/bin/env bash
# scipy 1.17.1: with three or five seeds a group, two tests of equal variances hardly or never say no.
#
# levene (by default about the median, so the Brown-Forsythe test) and fligner look at distances from the
# group's median. Of an odd number of values one is the median: its distance is 0 whatever the variance.
# Smallest p value over thousands of draws, variances up to a million times apart, two groups:
#
#     seeds a group       3        5        6              3 seeds   levene's p is never below .116
#     levene             .116     .004     < .001          5 seeds   fligner's p is never below .073
#     fligner            .307     .074     < .01           2 seeds   levene gives p = 0 always, equal or not
#
# It matters since three and five are the usual numbers of seeds, since "the variance over seeds is much
# lower on the source language than on the target" is a claim that one wants to test, and since these are the
# robust tests that are recommended for it. "No significant difference" is then a property of the test.
# levene(center="mean") and bartlett can reject with three seeds; so can levene with three against
# twenty-four.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q scipy==1.17.1 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'END'
import numpy as np
from scipy import stats

draw = np.random.default_rng(0)
source, target = [90.01, 90.02, 90.03], [41.0, 60.0, 83.0]
print("three seeds each,", source, "and", target)
print(f"    levene p = {stats.levene(source, target).pvalue:.4f}, fligner p = "
      f"{stats.fligner(source, target).pvalue:.4f}, bartlett p = {stats.bartlett(source, target).pvalue:.1e}")

def smallest(test, seeds, draws, **settings):
    """The smallest p value over draws of two groups whose spreads are 1 to 1,000 times apart."""
    groups = ((draw.normal(size=seeds), 10 ** draw.uniform(0, 3) * draw.normal(size=seeds))
              for _ in range(draws))
    return min(test(*pair, **settings).pvalue for pair in groups)

seen = {(test.__name__, seeds): smallest(test, seeds, 4000)
        for test in (stats.levene, stats.fligner) for seeds in (3, 5, 6)}
for (test, seeds), p in seen.items():
    print(f"{test}, {seeds} seeds a group: smallest p {p:.4f}")
mean = smallest(stats.levene, 3, 4000, center="mean")
print(f"levene about the mean, 3 seeds a group: smallest p {mean:.4f}")
two = [stats.levene(*draw.normal(size=(2, 2))).pvalue for _ in range(200)]
print(f"levene, 2 seeds a group of one variance: p from {min(two):.4f} to {max(two):.4f}")
as_said = (seen["levene", 3] > .116 and seen["fligner", 3] > .3 and seen["fligner", 5] > .05 and mean < .05
           and seen["levene", 5] < .05 and seen["levene", 6] < .01 and seen["fligner", 6] < .05
           and max(two) < 1e-6)
if not as_said:
    raise SystemExit("The behaviour has changed.")
END
