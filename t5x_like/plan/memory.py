"""Bytes per device of a run: between steps from declarations alone, within a step from what its backward pass keeps.

Needs no device, and allocates nothing: the loss is traced, not computed. Must not know files or the train loop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_like.arrays.trees import Tree, flatten, join, map_named, split
from t5x_like.core.errors import UserError
from t5x_like.core.text import short
from t5x_like.models.transformer import make_model
from t5x_like.sharding.rules import RULES, Rules, axis_ways, partition, parts, rules_of

if TYPE_CHECKING:
    from t5x_like.train.config import Run
    from t5x_like.train.setup import Setup

MARGIN = 1.25  # how far the compiler's figure may be from the estimate
TIGHT = 0.8  # the share of the memory from which a warning is given
_ROWS = 10_007  # a prime: in a trace with as many rows it divides the size of what belongs to rows, and of nothing else


def bytes_per_device(specs: Tree, mesh: Mapping[str, int], rules: Rules = RULES) -> int:
    """Bytes per device of arrays declared by ``specs``, on a mesh given by its sizes."""
    return sum(
        spec.size * np.dtype(spec.dtype).itemsize // parts(partition(spec.axes, spec.shape, mesh, rules, path), mesh)
        for path, spec in flatten(specs).items()
    )


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a train step on each device.

    Attributes:
      parameters, optimizer: state between steps.
      batch: rows of the whole batch, all micro-batches.
      gradients: gradients of the trained parameters, in float32.
      activations: all else at the worst moment: activations kept for the backward pass and logits, or what the update
        takes, whichever is more.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        shown = ", ".join(f"{in_bytes(size)} of {name}" for name, size in vars(self).items())
        return f"{in_bytes(self.total)} a device: {shown}"


def in_bytes(size: float) -> str:
    """Such as 18.2kB, 2.85GB."""
    return short(size).replace("B", "G") + "B"


def step_memory(setup: Setup, run: Run, mesh: Mapping[str, int], traced: bool = True) -> Memory:
    """An estimate of a train step's memory, within 25% of what XLA's ``memory_analysis`` says of the shipped configs.

    Args:
      setup: what the run is made of.
      run: its config.
      mesh: mesh axis name to size.
      traced: whether what the layers keep counts too, for which a step is traced. That takes memory itself, masks by
        the square of the length: a first look without it refuses what cannot fit anyway.
    """
    rules = rules_of(run.mesh)
    ways = axis_ways(rules, mesh)
    rows = -(-run.train.batch_size // (run.train.micro_batches * ways["batch"]))
    trained, _ = split(setup.specs, setup.optimizer.trained)
    gradients = bytes_per_device(map_named(lambda _, s: dataclasses.replace(s, dtype="float32"), trained), mesh, rules)
    kept, recomputed = _activations(setup, run, ways) if traced else (0.0, 0.0)
    per_row = kept + 2 * _logits(run, ways)  # exponentials and their gradient
    summed = run.mesh.reduce == "once" and mesh.get("data", 1) > 1  # a sum over devices is a second array
    update = int(gradients * (1.1 + summed))  # beside the gradients, what is added to the parameters
    loop = _in_micro_batches(setup, run, mesh, gradients) if run.train.micro_batches > 1 else 0
    return Memory(
        parameters=bytes_per_device(setup.specs, mesh, rules),
        optimizer=_optimizer_bytes(setup, mesh, rules),
        batch=run.train.micro_batches * rows * sum(_batch_row(run).values()),
        gradients=gradients,
        activations=loop + max(int(rows * per_row), int(rows * (kept + recomputed)), update),
    )


def _in_micro_batches(setup: Setup, run: Run, mesh: Mapping[str, int], gradients: int) -> int:
    """Bytes that a loop over micro-batches takes beside its activations: the sum of gradients, and the parameters put
    together from all devices, once for the loop, unless a loop over layers does that inside."""
    rules = rules_of(run.mesh)
    rows_alone = {name: 1 if name in dict(rules)["batch"] else size for name, size in mesh.items()}
    whole = bytes_per_device(setup.specs, rows_alone, rules)
    together = whole if whole > bytes_per_device(setup.specs, mesh, rules) and not run.model.scan_layers else 0
    return gradients + together


def check_memory(memory: Memory, available: int | None, run: Run, mesh: Mapping[str, int]) -> str:
    """A warning where a step may not fit into the memory of a device; empty where it fits, or that is not known.

    Raises:
      UserError: it cannot fit, even if the estimate is too high by a quarter; with what to change.
    """
    if available is None or memory.total <= TIGHT * available:
        return ""
    got, field, suggestion = _what_to_change(memory, available, run, mesh)
    if memory.total > MARGIN * available:
        raise UserError(field, f"{got} a step needs about {memory}", f"{in_bytes(available)}, which a device has here",
                        suggestion)
    return f"memory may be short: a step needs about {memory}; there are {in_bytes(available)}. Try {suggestion}"


def check_step(setup: Setup, run: Run, mesh: Mapping[str, int], ways: int, available: int | None) -> str:
    """``check_memory`` of a train step: first of one row a device, because a trace takes memory by the square of the
    length of a row.

    Args:
      setup, run, mesh: as of ``step_memory``.
      ways: number of parts that the rows of a batch are split into.
      available: bytes of memory of one device; None if unknown.
    """
    least = dataclasses.replace(run.train, batch_size=ways, micro_batches=1)
    row = dataclasses.replace(run, train=least)
    check_memory(step_memory(setup, row, mesh, traced=False), available, row, mesh)
    return check_memory(step_memory(setup, run, mesh), available, run, mesh)


def _what_to_change(memory: Memory, available: int, run: Run, mesh: Mapping[str, int]) -> tuple[str, str, str]:
    """(got, field, suggestion) for a step that is too large."""
    ways, train = axis_ways(rules_of(run.mesh), mesh)["batch"], run.train
    state = memory.parameters + memory.optimizer + memory.gradients
    room = TIGHT * available - state
    if room <= 0:
        return f"{dict(mesh)};", "mesh", "more devices with mesh.fsdp=-1, or a smaller model"
    most = train.batch_size // ways
    wanted = train.micro_batches * memory.activations / max(1.0, room - memory.batch)
    if memory.batch < room and (fits := [n for n in range(1, most + 1) if most % n == 0 and n >= wanted]):
        more = "" if run.model.remat != "none" else ", or model.remat=dots"
        return f"{train.batch_size:,} rows;", "train.batch_size", f"train.micro_batches={fits[0]}{more}"
    unit = ways * train.micro_batches  # which divides the batch
    units = int(train.batch_size / unit * room / (memory.batch + memory.activations))
    if not units:
        return f"{run.data.input_length:,} columns;", "data.input_length", "shorter rows, or a smaller model"
    if (rows := units * unit) >= train.batch_size:
        return f"{dict(mesh)};", "mesh", "more devices with mesh.fsdp=-1, or a smaller model"
    return f"{train.batch_size:,} rows;", "train.batch_size", f"train.batch_size={rows}"


def _optimizer_bytes(setup: Setup, mesh: Mapping[str, int], rules: Rules) -> int:
    params = map_named(lambda _, spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), setup.specs)
    axes = flatten(setup.optimizer.state_axes())
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize // parts(partition(axes[path], leaf.shape, mesh, rules, path), mesh)
        for path, leaf in flatten(jax.eval_shape(setup.optimizer.init, params)).items()
    )


def batch_arrays(run: Run, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch of ``rows`` rows."""
    encoder, decoder = run.lengths()
    found = {}
    for name, array in run.model.arrays().items():
        length = encoder if name.startswith("encoder") or not decoder else decoder
        sizes = {"batch": rows, "length": length, **dict(array.sizes)}
        found[name] = jax.ShapeDtypeStruct([sizes[axis] for axis in array.axes], array.dtype)
    for name in run.objective.extras(run.model.shape):
        found[name] = jax.ShapeDtypeStruct((rows, decoder or encoder), jnp.int32)
    return found


def _batch_row(run: Run) -> dict[str, int]:
    return {name: math.prod(a.shape) * a.dtype.itemsize for name, a in batch_arrays(run, 1).items()}


def _logits(run: Run, ways: Mapping[str, int]) -> float:
    """Bytes of a row's logits, as many as are made at a time."""
    length = run.lengths()[1] or run.lengths()[0]
    columns = min(run.train.logits_chunk or length, length)
    return 4 * run.model.vocab_size * columns / ways["vocab"]


def _activations(setup: Setup, run: Run, ways: Mapping[str, int]) -> tuple[float, float]:
    """Bytes of a row on one device: kept for the backward pass, and made again for one layer at a time."""
    kept = _kept(setup, run, ways)
    if run.model.remat == "none":
        return kept, 0.0
    structure, _ = make_model(dataclasses.replace(run.model, remat="none"))
    everything = _kept(dataclasses.replace(setup, structure=structure), run, ways)
    lengths: dict[str, int] = dict(zip(("encoder", "decoder"), run.lengths(), strict=True))
    columns = [(lengths[name], side.depth) for name, side in run.model.sides]
    largest = max(length for length, _ in columns) / sum(length * depth for length, depth in columns)
    return kept, (everything - kept) * largest


def _kept(setup: Setup, run: Run, ways: Mapping[str, int]) -> float:
    """Bytes of a row that the backward pass of one micro-batch keeps on one device, from a trace of it."""
    params = map_named(lambda _, spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), setup.specs)
    trained, frozen = split(params, setup.optimizer.trained)

    def backward(trained: Tree, frozen: Tree, batch: Any, seed: Any) -> Any:
        def loss(trained: Tree) -> jax.Array:
            return setup.loss(setup.bind(join(trained, frozen)), batch, jax.random.key(seed))["loss"][0]

        return jax.vjp(loss, trained)[1]  # a tree of what it keeps

    kept = jax.tree.leaves(
        jax.eval_shape(backward, trained, frozen, batch_arrays(run, _ROWS), jax.ShapeDtypeStruct((), jnp.uint32))
    )
    divided = _divided_sizes(setup.specs, ways)
    total = 0.0
    for array in kept:
        size = math.prod(array.shape)
        if size % _ROWS == 0:
            total += size / _ROWS * array.dtype.itemsize * _share(array.shape, run.model.d_model, divided)
    return total


def _share(shape: tuple[int, ...], width: int, divided: Mapping[int, int]) -> float:
    """The share of an array that a device has beside its share of rows, told by sizes: of heads apart or joined, of a
    hidden width. Where joined heads are as wide as the model, about a quarter of such arrays are heads."""
    ways = max(divided.get(math.prod(shape[-n:]), 1) for n in (1, 2))
    if shape[-1] == width:
        return (3 + 1 / ways) / 4
    return 1 / ways


def _divided_sizes(specs: Tree, ways: Mapping[str, int]) -> dict[int, int]:
    """Size of a dimension of activations to the number of parts that the mesh splits it into."""
    found = {}
    for spec in flatten(specs).values():
        for axis, size in zip(spec.axes, spec.shape, strict=True):
            if axis in ("heads", "kv_heads", "mlp", "vocab") and ways[axis] > 1:
                found[size] = ways[axis]
    return found
