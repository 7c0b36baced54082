"""Objectives of one's own: one with the token loss, one with a loss of its own."""

from dataclasses import dataclass
from typing import ClassVar

from t5x_like.config import Autoregressive, Example, Loss, Objective, TokenLoss


@dataclass(frozen=True)
class Continue(Objective):
    """The first tokens are read in both directions, the others are written."""

    read: int = 8

    shapes: ClassVar[tuple[str, ...]] = ("decoder-only",)
    has_prefix: ClassVar[bool] = True

    def check(self, tokenizer, data, shape):
        pass

    def example(self, tokens, rng, tokenizer):
        read = min(self.read, len(tokens) - 1)
        return Example(tokens[:read], tokens[read:])


@dataclass(frozen=True)
class FocalLoss(Loss):
    """(1 - p)^gamma times the cross-entropy (Lin et al. 2017, arXiv:1708.02002), and the largest probability."""

    gamma: float

    def __call__(self, model, batch, key):
        import jax
        import jax.numpy as jnp

        log_p_BLV = jax.nn.log_softmax(model.head().logits(model(batch, key)))
        log_p_BL = jnp.take_along_axis(log_p_BLV, batch["targets"][..., None], axis=-1)[..., 0]
        weight = jnp.sum(batch["weights"])
        loss = jnp.sum(-((1 - jnp.exp(log_p_BL)) ** self.gamma) * log_p_BL * batch["weights"])
        sure = jnp.sum(jnp.exp(jnp.max(log_p_BLV, axis=-1)) * batch["weights"])
        return {"loss": (loss, weight), "sureness": (sure, weight)}

    def measured(self):
        return TokenLoss(statistics=("accuracy",))


@dataclass(frozen=True)
class Focal(Autoregressive):
    gamma: float = 2.0

    def loss(self, token):
        return FocalLoss(self.gamma)
