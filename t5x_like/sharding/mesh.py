"""The device mesh, and the one function by which layers say how an activation is to be split.

Layers name logical axes (``batch``, ``heads``); the rules in force say which mesh axes those are. Outside a
``use(...)`` block, and on one device, ``constrain`` does nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_like.arrays.spec import ParamSpec
from t5x_like.arrays.trees import Tree, map_named
from t5x_like.core.errors import UserError
from t5x_like.sharding.config import AXES, MeshConfig
from t5x_like.sharding.rules import RULES, Rules, axis_ways, partition, rules_of


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and the rules that map logical axes to its axes."""

    mesh: Mesh
    rules: Rules = RULES
    replicated_limit_mb: int = 256

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int], name: str = "") -> NamedSharding:
        """The sharding of an array with these logical axes.

        Raises:
          UserError: an unknown axis, two dimensions on one mesh axis, or a size that its mesh axes do not divide.
        """
        return NamedSharding(self.mesh, partition(axes, shape, dict(self.mesh.shape), self.rules, name))

    def of(self, specs: Tree) -> Tree:
        """Shardings of a tree of ``ParamSpec``. Raises as ``sharding``, and for large weights that nothing splits."""
        return map_named(self._of_parameter, specs)

    def _of_parameter(self, path: str, spec: ParamSpec) -> NamedSharding:
        sharding = self.sharding(spec.axes, spec.shape, path)
        check_replication(path, spec, sharding, self.replicated_limit_mb)
        return sharding

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Rows of a batch; the other dimensions are whole."""
        names = dict(self.rules)["batch"]
        return NamedSharding(self.mesh, PartitionSpec(names))

    @property
    def ways(self) -> dict[str, int]:
        """Logical axis to the number of parts that it is split into."""
        return axis_ways(self.rules, self.mesh.shape)

    @property
    def batch_ways(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self.ways["batch"]


def make_placement(
    config: MeshConfig,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Placement:
    """The mesh of a config over all devices of all processes, or over those given."""
    devices = list(devices if devices is not None else jax.devices())
    sizes = config.sizes(len(devices))
    shape = tuple(sizes[name] for name in AXES)
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    return Placement(mesh, rules_of(config), config.replicated_limit_mb)


def check_replication(path: str, spec: ParamSpec, sharding: NamedSharding, limit_mb: int) -> None:
    """Raises UserError for a weight over the limit that is replicated on a mesh meant to split weights."""
    splitting = {name: size for name, size in sharding.mesh.shape.items() if name != "data" and size > 1}
    megabytes = spec.size * np.dtype(spec.dtype).itemsize / 2**20
    if splitting and megabytes > limit_mb and sharding.is_fully_replicated:
        raise UserError(
            path,
            f"{megabytes:,.0f} MB would be copied to every device although the mesh has {splitting}",
            f"at most mesh.replicated_limit_mb = {limit_mb}",
            "a rule for one of its axes " + str(spec.axes),
        )


_current: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("placement", default=None)


@contextlib.contextmanager
def use(placement: Placement | None) -> Iterator[None]:
    """The placement that ``constrain`` reads while a function is traced inside this block."""
    token = _current.set(placement)
    try:
        yield
    finally:
        _current.reset(token)


def current_placement() -> Placement | None:
    """The placement in force, for what the partitioner cannot do by itself."""
    return _current.get()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the partitioner how an activation is split, by logical axes; one name (or None: whole) per dimension.

    A dimension that its mesh axes do not divide stays whole: a batch of one row while sampling, say.
    """
    placement = _current.get()
    if placement is None or placement.mesh.size == 1:
        return x
    rules = dict(placement.rules)
    whole = {a for a, n in zip(axes, x.shape, strict=True) if a and n % _ways(placement.mesh, rules[a])}
    return jax.lax.with_sharding_constraint(
        x, placement.sharding([None if a in whole else a for a in axes], x.shape, "activation")
    )


def _ways(mesh: Mesh, names: Sequence[str]) -> int:
    return int(np.prod([mesh.shape[name] for name in names]))
