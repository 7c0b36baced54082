"""Front ends: from the arrays of a batch to the inputs of a stack, [B, L, D]. A new one is a dataclass like these.

Letters: B batch, L places of a row, F features, D model width.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from t5x_like.core.batch import TOKENS, BatchArray
from t5x_like.core.config import Config
from t5x_like.core.ranges import NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.init import Init
    from t5x_like.layers.module import Module, Table

    Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Inputs(Config, abc.ABC, where="model.inputs"):
    """Base of the choices below.

    Attributes:
      uses_tokens: whether it looks tokens up in the model's token table.
    """

    uses_tokens: ClassVar[bool] = False

    def arrays(self, side: str) -> dict[str, BatchArray]:
        """The arrays of a batch that it reads on a side, ``encoder`` or ``decoder``; the first is never left out."""
        raise TypeError(f"{type(self).__name__} does not say which arrays it reads")

    def declare(self, width: int, init: Init, embedding_init_std: float) -> Module:
        """Its own parameters, for outputs of this width."""
        from t5x_like.layers.module import Module

        return Module(self)

    def apply(self, parts: Module, batch: Batch, side: str, table: Table | None, dtype: Any) -> jax.Array:
        """[B, L, D] before positions are added.

        Args:
          parts: parameters of the front end.
          batch: arrays by name.
          side: ``encoder`` or ``decoder``, whose arrays are read.
          table: token table of the model, for front ends that use tokens.
          dtype: dtype of the result.
        """
        raise TypeError(f"{type(self).__name__} does not say what goes into a stack")


@dataclasses.dataclass(frozen=True)
class Tokens(Inputs):
    """Token ids, looked up in the model's table.

    Attributes:
      scaled: whether embeddings are multiplied by sqrt(D) (Vaswani et al. 2017, section 3.4).
      types: number of token types, whose vectors are added (BERT); 0: no token types.
    """

    scaled: bool = False
    types: NonNegativeInt = 0

    uses_tokens: ClassVar[bool] = True

    def arrays(self, side: str) -> dict[str, BatchArray]:
        return {f"{side}_tokens": TOKENS} | ({f"{side}_types": TOKENS} if self.types else {})

    def declare(self, width: int, init: Init, embedding_init_std: float) -> Module:
        from t5x_like.layers.module import Module, Table

        return Module(self, types=Table(self.types, width, "positions", embedding_init_std) if self.types else None)

    def apply(self, parts: Module, batch: Batch, side: str, table: Table | None, dtype: Any) -> jax.Array:
        import jax.numpy as jnp

        tokens = batch[f"{side}_tokens"]
        x_BLD = table(tokens, dtype)  # pyright: ignore[reportOptionalCall]: a model with Tokens has a table
        if self.scaled:
            x_BLD = x_BLD * jnp.asarray(x_BLD.shape[-1] ** 0.5, dtype)
        if parts.types is not None:
            x_BLD = x_BLD + parts.types(batch.get(f"{side}_types", jnp.zeros_like(tokens)), dtype)
        return x_BLD


@dataclasses.dataclass(frozen=True)
class Features(Inputs):
    """Vectors instead of token ids, such as frames of sound or patches of a picture, by one linear map.

    Attributes:
      size: size of a vector, F.
      bias: whether the map has a bias.
    """

    size: PositiveInt
    bias: bool = True

    def arrays(self, side: str) -> dict[str, BatchArray]:
        axes = ("batch", "length", "features")
        return {f"{side}_features": BatchArray(axes, "float32", (("features", self.size),))}

    def declare(self, width: int, init: Init, embedding_init_std: float) -> Module:
        from t5x_like.layers.module import Linear, Module

        return Module(self, projection=Linear(self.size, width, ("features", "embed"), init.kernel(self.size),
                                              self.bias))  # fmt: skip

    def apply(self, parts: Module, batch: Batch, side: str, table: Table | None, dtype: Any) -> jax.Array:
        return parts.projection(batch[f"{side}_features"].astype(dtype))
