"""Positions of tokens: each choice is a dataclass with the hooks that it needs, in three places of a model.

    embedding   vectors added to the inputs of a stack
    rotation    rotation of queries and keys
    bias        bias added to attention scores, in T5 learned

A choice belongs to a stack, whose attention layers all use it, or to one attention layer.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError, require
from t5x_like.core.ranges import FLOAT32_MAX, PositiveInt, Range

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.init import Init
    from t5x_like.ops.attention import Bias


@dataclasses.dataclass(frozen=True)
class Positions(Config, abc.ABC, where="model.positions"):
    """Base of the choices below; a hook that a choice does not define does nothing.

    Attributes:
      reads_positions: whether positions are those of the batch; otherwise distances are counted in columns.
      per_layer: whether each layer has parameters of its own; otherwise all layers of a stack share them.
      length: length of the longest row with positions; 0 if not limited.
    """

    reads_positions: ClassVar[bool] = False
    per_layer: ClassVar[bool] = False
    length: ClassVar[int] = 0

    def check(self, width: int, head_dim: int) -> None:
        """Raises UserError unless the choice suits a layer of this width with attention heads of this size."""

    def declare_embedding(self, width: int, init_std: float) -> Any:
        """The module of ``embedding``'s parameters, or None."""
        return None

    def embedding(self, parts: Any, positions_BL: jax.Array, width: int, dtype: Any) -> jax.Array | None:
        """[B, L, width] to be added to a stack's inputs, or None."""
        return None

    def rotation(self, positions_BL: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array] | None:
        """(cosines, sines) for ``rotate``, each [B, L, 1, head_dim / 2] float32, or None."""
        return None

    def declare_bias(self, heads: int, width: int, init: Init) -> Any:
        """The parameter of ``bias``, or None."""
        return None

    def bias(self, table: Any, heads: int, bidirectional: bool, columns: tuple[jax.Array, jax.Array]) -> Bias | None:
        """Bias to be added to attention scores, or None.

        Args:
          table: the parameter that ``declare_bias`` declares.
          heads: of the queries.
          bidirectional: whether later keys are seen.
          columns: (of the queries [L], of the keys [S]) int32, for a bias that is given as an array.
        """
        return None


@dataclasses.dataclass(frozen=True)
class NoPositions(Positions):
    """No positions: order enters by causal masks only (Kazemnejad et al. 2023)."""


@dataclasses.dataclass(frozen=True)
class Rope(Positions):
    """Rotary positions (Su et al. 2021), pairing dimension i with i + head_dim / 2 as Llama does.

    Attributes:
      theta: base of the wavelengths.
    """

    theta: Annotated[float, Range(1, FLOAT32_MAX, "1 or more, at most 3.4e38")] = 10_000.0

    reads_positions: ClassVar[bool] = True

    def check(self, width: int, head_dim: int) -> None:
        require(head_dim % 2 == 0, "model.head_dim", f"{head_dim} with rotary positions", "an even number")

    def rotation(self, positions_BL: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array] | None:
        import jax.numpy as jnp

        frequencies = self.theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
        angles = positions_BL[..., None, None].astype(jnp.float32) * frequencies
        return jnp.cos(angles), jnp.sin(angles)


@dataclasses.dataclass(frozen=True)
class T5Relative(Positions):
    """T5's relative bias (Raffel et al. 2020, section 2.1): one learned number per head and bucket of distances.

    Attributes:
      buckets: number of buckets; half for each side where attention sees both.
      max_distance: distance from which on all share a bucket.
      own_tables: whether each layer has a table (umT5); otherwise one per stack.
    """

    buckets: PositiveInt = 32
    max_distance: PositiveInt = 128
    own_tables: bool = False

    def __post_init__(self):
        if self.buckets % 4 or self.max_distance <= self.buckets // 2:
            got = f"got {self.buckets} with max_distance = {self.max_distance}"
            allowed = "a multiple of 4, less than twice max_distance"
            raise UserError("model.positions.buckets", got, allowed, "T5Relative(32, 128)")

    @property
    def per_layer(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]: a choice here
        return self.own_tables

    def declare_bias(self, heads: int, width: int, init: Init) -> Any:
        from t5x_like.layers.param import param

        return param((self.buckets, heads), ("buckets", "heads"), init.kernel(width))

    def bias(self, table: Any, heads: int, bidirectional: bool, columns: tuple[jax.Array, jax.Array]) -> Bias | None:
        from t5x_like.ops.attention import biases

        return biases.T5Relative(table[...], bidirectional, self.max_distance)


@dataclasses.dataclass(frozen=True)
class Alibi(Positions):
    """Scores fall linearly with distance, by a slope for each head (Press et al. 2022)."""

    def bias(self, table: Any, heads: int, bidirectional: bool, columns: tuple[jax.Array, jax.Array]) -> Bias | None:
        import jax.numpy as jnp

        from t5x_like.ops.attention import biases

        return biases.Alibi(jnp.asarray(biases.alibi_slopes(heads), jnp.float32))


@dataclasses.dataclass(frozen=True)
class Learned(Positions):
    """A learned vector for each position, added to the embeddings (GPT-2, BERT).

    Attributes:
      length: number of positions.
    """

    length: PositiveInt  # pyright: ignore[reportIncompatibleVariableOverride]: a choice here

    reads_positions: ClassVar[bool] = True

    def declare_embedding(self, width: int, init_std: float) -> Any:
        from t5x_like.layers.module import Table

        return Table(self.length, width, "positions", init_std)

    def embedding(self, parts: Any, positions_BL: jax.Array, width: int, dtype: Any) -> jax.Array | None:
        return parts(positions_BL, dtype)


@dataclasses.dataclass(frozen=True)
class Sinusoidal(Positions):
    """Sines in the first half of the width and cosines in the second (Vaswani et al. 2017, section 3.5, which has them
    in turn; the widths are learned against, so their order is free)."""

    reads_positions: ClassVar[bool] = True

    def check(self, width: int, head_dim: int) -> None:
        require(width % 2 == 0, "model.d_model", f"{width} with sinusoidal positions", "an even number")

    def embedding(self, parts: Any, positions_BL: jax.Array, width: int, dtype: Any) -> jax.Array | None:
        import jax.numpy as jnp

        half = width // 2
        frequencies = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angles = positions_BL[..., None].astype(jnp.float32) * frequencies
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(dtype)


def rotate(x_BLHN: jax.Array, rotation: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Queries or keys rotated by ``Positions.rotation``; unchanged without a rotation."""
    if rotation is None:
        return x_BLHN
    import jax.numpy as jnp

    cosines, sines = rotation
    one, other = jnp.split(x_BLHN.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([one * cosines - other * sines, other * cosines + one * sines], axis=-1)
    return turned.astype(x_BLHN.dtype)
