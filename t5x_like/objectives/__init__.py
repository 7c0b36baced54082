"""One file per objective: its demands on the data, and the example that it makes of a piece of text.

An objective names its loss on the device, by default token cross-entropy with explicit weights (``losses``).
"""

from t5x_like.objectives.autoregressive import Autoregressive
from t5x_like.objectives.base import Example, Objective
from t5x_like.objectives.fill_in_the_middle import FillInTheMiddle
from t5x_like.objectives.iid_denoising import IidDenoising
from t5x_like.objectives.masked_lm import MaskedLM
from t5x_like.objectives.permutation_lm import PermutationLM
from t5x_like.objectives.prefix_lm import PrefixLM
from t5x_like.objectives.span_corruption import SpanCorruption
from t5x_like.objectives.ul2 import UL2

__all__ = [
    "Autoregressive", "Example", "FillInTheMiddle", "IidDenoising", "MaskedLM", "Objective", "PermutationLM",
    "PrefixLM", "SpanCorruption", "UL2",
]  # fmt: skip
