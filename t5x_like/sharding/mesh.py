"""The device mesh, and the one function by which layers say how an activation is to be split.

Layers name logical axes (``batch``, ``heads``); the rules in force say which mesh axes those are. Outside a
``use(...)`` block, and on one device, ``constrain`` does nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_like.arrays.spec import ParamSpec
from t5x_like.arrays.trees import Tree, map_named
from t5x_like.core.errors import UserError
from t5x_like.sharding.config import AXES, MeshConfig
from t5x_like.sharding.device_grid import device_grid
from t5x_like.sharding.rules import RULES, Rules, axis_ways, partition, rules_of


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and the rules that map logical axes to its axes.

    Attributes:
      replicated_limit_mb, reduce: as ``MeshConfig``.
      manual: mesh axes that are not the partitioner's where this placement is in force: a function sees one part of
        them (``reduction``).
    """

    mesh: Mesh
    rules: Rules = RULES
    replicated_limit_mb: int = 256
    reduce: str = "once"
    manual: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Mesh axis name to size, of the axes that the partitioner sees to."""
        return {name: size for name, size in self.mesh.shape.items() if name not in self.manual}

    @property
    def device(self) -> Any:
        """One of its devices, which tells their kind; they need not be here. None where only the sizes are known."""
        return self.mesh.devices.flat[0] if isinstance(self.mesh, Mesh) else None

    @property
    def alone(self) -> bool:
        """Whether there is nothing to split."""
        return math.prod(self.sizes.values()) == 1

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int], name: str = "") -> NamedSharding:
        """The sharding of an array with these logical axes.

        Raises:
          UserError: an unknown axis, two dimensions on one mesh axis, or a size that its mesh axes do not divide.
        """
        mesh = jax.sharding.get_abstract_mesh() if self.manual else self.mesh
        return NamedSharding(mesh, partition(axes, shape, self.sizes, self.rules, name))

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
    def axis_ways(self) -> dict[str, int]:
        """Logical axis to the number of parts that it is split into."""
        return axis_ways(self.rules, self.mesh.shape)

    @property
    def batch_ways(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self.ways(dict(self.rules)["batch"])

    def splitting(self, axis: str, *sizes: int) -> tuple[str, ...]:
        """The mesh axes of a logical axis of activations, if together they divide all sizes; none otherwise."""
        names = tuple(name for name in dict(self.rules)[axis] if self.sizes.get(name, 1) > 1)
        return names if all(size % self.ways(names) == 0 for size in sizes) else ()

    def ways(self, names: Sequence[str]) -> int:
        """Into how many parts these mesh axes split."""
        return math.prod(self.sizes.get(name, 1) for name in names)


def make_placement(
    config: MeshConfig,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: jax.Device is a class
) -> Placement:
    """The mesh of a config over all devices of all processes, or over those given. Raises as ``device_grid``."""
    grid = device_grid(config, list(devices if devices is not None else jax.devices()))
    mesh = Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Placement(mesh, rules_of(config), config.replicated_limit_mb, config.reduce)


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
    if placement is None or placement.alone:
        return x
    rules = dict(placement.rules)
    whole = {a for a, n in zip(axes, x.shape, strict=True) if a and n % placement.ways(rules[a])}
    return jax.lax.with_sharding_constraint(
        x, placement.sharding([None if a in whole else a for a in axes], x.shape, "activation")
    )


def split(size: int, axis: str) -> tuple[str, ...]:
    """The mesh axes over which a dimension of activations with this logical axis is split; empty where it is whole."""
    placement = _current.get()
    return () if placement is None else placement.splitting(axis, size)


def by_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """``function`` of each device's parts, for what the partitioner cannot split or splits badly. The specs name mesh
    axes; needs a placement in force with more than one device."""
    placement = _current.get()
    assert placement is not None
    mesh = jax.sharding.get_abstract_mesh() if placement.manual else placement.mesh
    return jax.shard_map(
        function, mesh=mesh, axis_names=set(placement.sizes), in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def place_along(names: Sequence[str]) -> jax.Array:
    """This device's number along mesh axes, the first one slowest; inside ``by_device`` or where they are manual."""
    place = jnp.int32(0)
    for name in names:
        place = place * jax.lax.axis_size(name) + jax.lax.axis_index(name)
    return place


def first_row(rows: int) -> jax.Array | int:
    """The number in the whole batch of the first of the ``rows`` at hand; not 0 only where a function is given the rows
    of its place on the mesh: see ``reduction``."""
    placement = _current.get()
    manual = () if placement is None else [n for n in dict(placement.rules)["batch"] if n in placement.manual]
    return place_along(manual) * rows if manual else 0
