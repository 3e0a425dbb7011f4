"""What a line of Fig. 2 says: flatness, straightness, and a band of three seeds.

A line is Eq. 1: its points have an alpha, 0 at the source-only model, 1 at the bilingual one; the paper looks
from -0.5 to 1.5, and more closely near 0 and 1, so the alphas are not evenly spaced. The arrays are numpy's.
"""

def flatness(alphas, scores):
    """The lowest point of the normalised source score from alpha 0 to 1 (both included), a number.

    alphas: (points,), rising, 0 and 1 among them. scores: (seeds, points), above 0.
    Normalised: each seed's scores over the score of the same seed's bilingual model (alpha 1), then the mean
    of that over seeds. 1 is level ground.
    """
    raise NotImplementedError("flatness is yours to write: the lowest normalised score from alpha 0 to 1")

def r_squared(alphas, curve):
    """How much of a curve from alpha 0 to 1 the straight line between its two ends explains, a number.

    alphas: (points,), rising, 0 and 1 among them. curve: (points,), not level.
    The curve is looked at in eleven places, alpha 0, .1, .2 to 1, so that points that lie close together do
    not count more; between points of `alphas` it goes straight from one to the next. With y_i the curve in
    these places, m their mean, and l_i the straight line from the first to the last (no regression),

        R squared = 1 - sum of (y_i - l_i)^2 / sum of (y_i - m)^2
    """
    raise NotImplementedError("r_squared is yours to write: how straight a curve is from alpha 0 to 1")

def band(scores):
    """Mean over three seeds, and half the width of its 95 % confidence interval, two arrays (points,).

    scores: (3, points). Three seeds are a sample out of all seeds, and few: the standard deviation is that of
    a sample, and the interval of the mean is Student's, t * sd / sqrt(3), where t is the 97.5 % point for two
    degrees of freedom, 4.303.
    """
    raise NotImplementedError("band is yours to write: the mean of three seeds and a 95 % interval around it")
