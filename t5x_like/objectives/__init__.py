"""One file per objective: what it asks of the data and how it makes a piece of text into an example.

The loss on the device is the same for all of them (token cross-entropy with explicit weights) and lies in ops.
"""

from t5x_like.objectives.autoregressive import Autoregressive
from t5x_like.objectives.masked_lm import MaskedLM
from t5x_like.objectives.prefix_lm import PrefixLM
from t5x_like.objectives.span_corruption import SpanCorruption

ObjectiveConfig = SpanCorruption | MaskedLM | Autoregressive | PrefixLM

__all__ = ["Autoregressive", "MaskedLM", "ObjectiveConfig", "PrefixLM", "SpanCorruption"]
