"""Cross-entropy of the targets, one token each. The arithmetic is in ``ops.losses``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from t5x_like.core.ranges import NonNegativeFloat, NonNegativeInt, Probability
from t5x_like.losses.base import Loss, Sums, with_layers

if TYPE_CHECKING:
    import jax

    from t5x_like.models.transformer import Batch, Transformer
    from t5x_like.ops.losses import Head


@dataclass(frozen=True)
class TokenLoss(Loss):
    """Cross-entropy of the batch's ``targets`` under its ``weights``. Every sum has the sum of the weights as weight.

    Attributes:
      z_loss: factor of log(Z)^2, which is added to the loss and keeps logits from drifting (PaLM, section 5).
      label_smoothing: share of each target that is spread evenly over the vocabulary.
      chunk: positions whose logits are in memory at a time; 0 is all.
      statistics: names of values reported beside ``loss``: ``nll`` (-log p of the target), ``z_loss``, ``accuracy``.
    """

    z_loss: NonNegativeFloat = 0.0
    label_smoothing: Probability = 0.0
    chunk: NonNegativeInt = 0
    statistics: tuple[str, ...] = ("nll", "z_loss", "accuracy")

    def __call__(self, model: Transformer, batch: Batch, key: jax.Array | None) -> Sums:
        """As ``Loss``."""
        x_BLD, out = model.run(batch, key)
        return with_layers(self.of(x_BLD, model.head(), batch["targets"], batch["weights"]), out)

    def of(self, x_BLD: jax.Array, head: Head, targets_BL: jax.Array, weights_BL: jax.Array) -> Sums:
        """The same of activations, a projection to the vocabulary, targets and weights; see ``cross_entropy``."""
        from t5x_like.ops.losses import LossConfig, cross_entropy

        config = LossConfig(self.z_loss, self.label_smoothing, self.chunk)
        sums = cross_entropy(x_BLD, head, targets_BL, weights_BL, config)
        found = {"nll": sums.nll, "z_loss": sums.z_loss, "accuracy": sums.correct}
        return {"loss": (sums.loss, sums.weight)} | {name: (found[name], sums.weight) for name in self.statistics}

    def measured(self) -> TokenLoss:
        """Without z-loss and smoothing, so that ``loss`` is -log p of the target."""
        return TokenLoss(chunk=self.chunk, statistics=("accuracy",))
