"""An optimizer of one's own, of pieces of optax, in the run file itself."""

from dataclasses import dataclass

from t5x_like.config import BelowOne, OptimizerConfig, code

base = code("base.py")


@dataclass(frozen=True)
class SignOfTrace(OptimizerConfig):
    """The sign of a trace of gradients."""

    decay: BelowOne = 0.9

    def transformation(self, context):
        import optax

        return context.descend(optax.chain(optax.trace(self.decay), optax.scale_by_sign()))


def run():
    return base.tiny(optimizer=SignOfTrace(learning_rate=1e-3, rates=(("token_embedding", 0.5),)))
