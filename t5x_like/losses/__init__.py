"""One file per loss: a function on the device from a model and a batch to {name: (sum, weight)}.

An objective names its loss. A loss is a frozen dataclass; modules here import JAX only when a loss is called.
"""

from t5x_like.losses.base import STATE, Loss, Sums, stacked, with_layers
from t5x_like.losses.future_tokens import FutureTokens
from t5x_like.losses.token import TokenLoss

__all__ = ["STATE", "FutureTokens", "Loss", "Sums", "TokenLoss", "stacked", "with_layers"]
