"""Checks of model, mesh, batch and memory. Need no data."""

from __future__ import annotations

import jax

from t5x_like.check.case import Case
from t5x_like.check.said import Said
from t5x_like.core.errors import UserError
from t5x_like.core.own_code import own_code
from t5x_like.core.text import short
from t5x_like.models.counts import parameter_count
from t5x_like.plan.compile import compile_ahead, missing_compiler
from t5x_like.plan.memory import check_step, in_bytes, step_memory
from t5x_like.sharding.rules import axis_ways
from t5x_like.train.feed import abstract_batch, check_batch_size, local_share
from t5x_like.train.step import compile_step

TIGHT = 0.95  # the compiler's figure under a lower limit is this near to that of the whole program


def config(case: Case) -> Said:
    """Model, optimizer, loss and the user's own files can be made of it."""
    run, specs = case.run, case.setup.specs
    own = ", ".join(own_code(run))
    shown = f"{short(parameter_count(specs))} parameters, {type(run.objective).__name__}, {run.train.steps:,} steps"
    return Said(f"{run.name}: {shown}" + (f"; own code in {own}" if own else ""))


def mesh(case: Case) -> Said:
    """It divides the devices, and they divide every parameter."""
    if not case.devices_are_known:
        return Said(f"the devices of {case.cluster} are not known here; name them: --topology v5e:4x4, or gpu:16",
                    "unknown")  # fmt: skip
    placement, _ = case.placement, case.state  # every parameter has a place, or it is said why not
    sizes = ", ".join(f"{name} {size}" for name, size in placement.mesh.shape.items())
    kind = placement.device.device_kind if placement.device is not None else "devices"
    return Said(f"{sizes} on {placement.mesh.size} x {kind}")


def batch(case: Case) -> Said:
    """Every device and every process gets its rows."""
    train = case.run.train
    if not case.devices_are_known:
        return Said("as the mesh", "unknown")
    placement, _ = case.placement, case.state
    check_batch_size(placement, train.batch_size, train.micro_batches)
    if placement.device is not None:
        local_share(placement, train.batch_size)
    rows = train.batch_size // (train.micro_batches * placement.batch_ways)
    return Said(f"{train.batch_size:,} rows: {rows:,} a device in each of {train.micro_batches:,} micro-batches")


def memory(case: Case) -> Said:
    """An estimate of a step's memory fits, as ``train`` asks for."""
    if not case.devices_are_known:
        return Said("as the mesh", "unknown")
    run, placement, setup, _ = case.run, case.placement, case.setup, case.state
    sizes = dict(placement.mesh.shape)
    if tight := check_step(setup, run, sizes, axis_ways(placement.rules, sizes)["batch"], case.available):
        return Said(tight, "warning")
    there = "" if case.available is None else f" of {in_bytes(case.available)}"
    return Said(f"about {in_bytes(step_memory(setup, run, sizes).total)}{there} a device")


def program(case: Case) -> Said:
    """The very step compiles for the devices, and fits by their compiler's account."""
    if not case.devices_are_known:
        return Said("as the mesh", "unknown")
    placement = case.placement
    device = placement.device
    if device is None:
        why = missing_compiler() if case.topology and "x" in case.topology else "no compiler for those devices is here"
        return Said(f"not compiled: {why}", "unknown")
    if device.platform == "cpu":
        return Said("not compiled: no topology is given, and a CPU's memory is the machine's", "unknown")
    arguments = case.state, abstract_batch(placement, case.run)
    try:
        found = compile_ahead(compile_step(case.setup, placement), arguments, device)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:  # what compilers and lowering raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError("program", f"does not compile for {device.device_kind}: {reason[:300]}") from error
    kinds = f"{in_bytes(found.arguments)} of state and batch, {in_bytes(found.temporaries)} beside it"
    there = f" of {in_bytes(found.available)}" if found.available else ""
    if found.available and found.total > found.available:
        raise UserError("program", f"needs {in_bytes(found.total)} a device by the compiler ({kinds})",
                        f"{in_bytes(found.available)}, which {device.device_kind} has",
                        "more train.micro_batches, model.remat=full, a larger mesh.fsdp, or more devices")  # fmt: skip
    tight = found.available and found.total > TIGHT * found.available
    return Said(f"compiles for {device.device_kind}: {in_bytes(found.total)}{there} a device: {kinds}",
                "warning" if tight else "ok")  # fmt: skip
