"""Multi-token prediction: heads for tokens further ahead add to the loss of the next token (Gloeckle et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t5x_like.core.ranges import NonNegativeFloat
from t5x_like.losses.base import Loss, Sums, with_layers
from t5x_like.losses.token import TokenLoss

if TYPE_CHECKING:
    import jax

    from t5x_like.models.transformer import Batch, Transformer


@dataclass(frozen=True)
class FutureTokens(Loss):
    """The loss of the next token plus ``weight`` times the mean loss of the model's future heads, ``future_loss``.

    Attributes:
      token: the loss of the next token and of each head.
      weight: factor of the mean loss of the heads.
    """

    token: TokenLoss
    weight: NonNegativeFloat

    def __call__(self, model: Transformer, batch: Batch, key: jax.Array | None) -> Sums:
        """As ``Loss``. Future heads change ``loss`` alone: all other sums are of the next token."""
        (x_BLD, out), head = model.run(batch, key), model.head()
        found = self.token.of(x_BLD, head, batch["targets"], batch["weights"])
        further = [
            self.token.of(y_BLD, head, *further_ahead(batch, tokens))["loss"]
            for tokens, y_BLD in enumerate(model.future(x_BLD), 1)
        ]
        losses, weights = zip(*further, strict=True)
        loss, weight = found["loss"]
        future = sum(losses) / len(losses)
        further_sums: dict[str, Any] = {"loss": (loss + self.weight * future, weight)}
        further_sums["future_loss"] = (future, sum(weights) / len(weights))
        return with_layers(found | further_sums, out)

    def measured(self) -> Loss:
        """The loss of the next token alone."""
        return self.token.measured()


def further_ahead(batch: Batch, tokens: int) -> tuple[jax.Array, jax.Array]:
    """Targets and weights of the token that comes ``tokens`` after the target; weight 0 where the segment has ended."""
    import jax.numpy as jnp

    def shifted(a_BL: jax.Array) -> jax.Array:
        return jnp.pad(a_BL, ((0, 0), (0, tokens)))[:, tokens:]

    segments_BL = batch.get("decoder_segments", jnp.ones_like(batch["targets"]))
    same_BL = shifted(segments_BL) == segments_BL
    return shifted(batch["targets"]), jnp.where(same_BL, shifted(batch["weights"]), 0.0)
