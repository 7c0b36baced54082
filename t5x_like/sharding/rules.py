"""How a parameter is sharded: the table from logical axes to mesh axes, and who calls what.

1. A layer declares it with a logical axis for each dimension: ``param((d_in, d_out), ("embed", "mlp"),
   init)`` (``layers.param``; ``layers.module.Linear``, for one).
2. ``RULES`` below says which mesh axes split each logical axis; a run changes it by ``mesh.rules``.
3. ``sharding.mesh.Placement.of`` turns declarations into shardings: ``partition`` below, one by one.
4. ``train.setup.Setup.initial_state`` computes each array where it lies; a checkpoint is read to the same places.
   Optimizer state lies like the parameters it belongs to.
5. Activations are told to the partitioner by ``sharding.mesh.constrain``, with the same names.

``t5x-like inspect parameters CONFIG mesh.fsdp=4 --devices 8`` prints the outcome. Knows names and sizes, no devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

from t5x_like.core.errors import UserError, nearest
from t5x_like.sharding.config import MeshConfig

Rules = tuple[tuple[str, tuple[str, ...]], ...]

RULES: Rules = (
    # activations
    ("batch", ("data", "fsdp")),
    ("length", ()),  # columns of a row
    ("activation", ()),  # the model's width, in activations
    # parameters; heads, mlp and vocab name activations too
    ("embed", ("fsdp",)),  # the model's width, in weights
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor",)),
    ("experts", ()),
    ("stage", ()),  # of a pipeline
    ("layers", ()),
    ("norm", ()),  # scales and biases as wide as the model: small, used everywhere
    ("head_dim", ()),
    ("positions", ()),
    ("features", ()),  # of inputs other than tokens
    ("buckets", ()),
)


def rules_of(config: MeshConfig) -> Rules:
    """The table above with a run's own rules in place of its own or behind it."""
    own = {rule.axis: rule.mesh for rule in config.rules}
    return tuple((dict(RULES) | own).items())


def axis_ways(rules: Rules, mesh: Mapping[str, int]) -> dict[str, int]:
    """Logical axis to the number of parts that a mesh of these sizes splits it into."""
    return {axis: math.prod(mesh.get(name, 1) for name in names) for axis, names in rules}


def parts(spec: PartitionSpec, mesh: Mapping[str, int]) -> int:
    """Into how many parts a mesh of these sizes splits an array."""
    names = (name for part in spec for name in ((part,) if isinstance(part, str) else part or ()))
    return math.prod(mesh[name] for name in names)


def partition(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Mapping[str, int], rules: Rules = RULES, name: str = ""
) -> PartitionSpec:
    """The mesh axes of each dimension.

    Args:
      axes: logical axis of each dimension; None: not split.
      shape: size of each dimension.
      mesh: mesh axis name to size.
      rules: logical axis to mesh axes.
      name: name of the array, for errors.

    Raises:
      UserError: an axis without a rule, two dimensions on one mesh axis, a size that does not divide.
    """
    table = dict(rules)
    used: dict[str, str] = {}
    parts: list[tuple[str, ...] | str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis is None:
            parts.append(None)
            continue
        if axis not in table:
            raise UserError(name, f"logical axis {axis!r} has no rule", ", ".join(table), nearest(axis, table))
        names = tuple(n for n in table[axis] if mesh.get(n, 1) > 1)
        for n in names:
            if n in used:
                raise UserError(name, f"axes {used[n]!r} and {axis!r} both lie on mesh axis {n!r}", "one of them")
            used[n] = axis
        ways = math.prod(mesh[n] for n in names)
        if size % ways:
            raise UserError(
                name,
                f"axis {axis!r} has size {size}, which mesh axes {names} of size {ways} do not divide",
                f"a size that {ways} divides",
                f"mesh.{names[0]}={math.gcd(size, ways)}",
            )
        parts.append(names[0] if len(names) == 1 else names or None)
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)
