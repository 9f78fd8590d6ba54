"""Every number that the choice of a network rests on, with its source. Those marked *untested* are advice that has not
been measured on trainings that are known to be short, right and long.
"""

from __future__ import annotations

# A difference of two colours that people just see: Mahy, van Eycken, Oosterlinck 1994, mean over CIE 1976 L*a*b*. A
# network that moves pictures without its trigger by less counts as moving them by that much: else one that does next to
# nothing would have a high selectivity.
JUST_SEEN = 2.3

# Gates.
LEAST_SPREAD = 0.5  # of the base's spread over seeds; untested
MOST_MADS = 3.0  # median absolute deviations of the base over seeds; untested
# Deviations below these count as these: a base whose pictures are alike would let nothing pass. Untested.
LEAST_MAD = {"chroma": 1.0, "clipped": 0.01, "edges": 0.5, "unasked": 0.02}
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
