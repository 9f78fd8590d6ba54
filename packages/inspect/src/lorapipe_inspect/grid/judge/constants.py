"""Every number that the choice of a network rests on, with its source.

*Calibrated*: it lies between what trainings of the demo at a tenth of its rates, at its rates and at five times these
have, three seeds each (docs/grid.md). *Untested*: advice that has not been measured so.
"""

from __future__ import annotations

# A difference of two colours that people just see: Mahy, van Eycken, Oosterlinck 1994, mean over CIE 1976 L*a*b*. A
# network that moves pictures without its trigger by less counts as moving them by that much: else one that does next to
# nothing would have a high selectivity.
JUST_SEEN = 2.3

# Gates.
LEAST_SPREAD = 0.5  # of the base's spread over seeds; right ones have 0.66 and more, no collapse was measured
# Median absolute deviations of the base over seeds. Calibrated: right ones have up to 0.7, the demo's epochs on a CPU
# up to 2.6, burnt ones 3 to 6 in chroma and over 20 in clipped and edges. Colours or contrast a quarter too strong are
# 4 to 5 in chroma.
MOST_MADS = 3.0
# Deviations below these count as these: a base whose pictures are alike would let nothing pass. Calibrated: right ones
# raise unasked tags by up to 0.15, burnt ones by 0.22 and more.
LEAST_MAD = {"chroma": 1.0, "clipped": 0.01, "edges": 0.5, "unasked": 0.06}
# What only a rise of is too much: the demo's good networks draw fewer black and white pixels than its base.
RISES = ("clipped",)

# The choice.
FEWEST_PICTURES = 8  # of the concept, for each network; seeds jump in composition
RESAMPLES = 2000  # of the bootstrap: Efron and Tibshirani 1993 ask for 1000 or more for intervals
INTERVAL = 0.90
SEED = 20_231  # of the bootstrap, so that the same cells give the same answer
LOW_WEIGHT = 0.7  # a best weight below it says that training went too far; untested
FEWEST_KNEE_WEIGHTS = 4  # points of a curve whose bend can be looked for
LEAST_BEND = 0.5  # change of the slope at a knee, of the mean slope; a straight line has no knee. Untested

# The way from the base's pictures to held-out ones, by an encoder. Calibrated, on the demo's encoder alone: short ones
# go 0.30 of it at most, right ones 0.50 and more.
LEAST_WAY = 0.4
LEAST_ROOM = (
    0.02  # of cosine: a base nearer than that to the held-out pictures leaves no way to measure. Untested
)

# Tags.
TOP_TAGS = 5  # of those that nobody asked for
COMMON_TAG = 0.1  # share of the captions that has a tag of the dataset; untested
FOUND = 0.35  # probability above which a tag is found: the tagger's own default threshold

# A word that the base knows: tags that it brings, against pictures of the other words. Untested.
BROUGHT = 0.35  # rise of a tag's mean probability
FEWEST_OF_A_WORD = 4  # pictures for a word

# Encoders. CCIP: one character below this difference (deepghs, by model). DINO and CLIP as in their papers' code.
CCIP_SAME = {"ccip-caformer-24-randaug-pruned": 0.178, "ccip-caformer_b36-24": 0.213}
FEWEST_VENDI = 8  # pictures, Friedman and Dieng 2023: its value is bounded by their number
