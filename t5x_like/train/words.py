"""What the console says of a run at its start and at its end: model, devices, attention, steps, data. Words only."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from t5x_like.core.text import short
from t5x_like.layers.attention import Attention
from t5x_like.layers.context import Context
from t5x_like.layers.module import Module
from t5x_like.layers.param import declare
from t5x_like.models.config import ModelConfig, Side
from t5x_like.models.counts import parameter_count
from t5x_like.ops.attention import Choice, choose
from t5x_like.plan.memory import bytes_per_device
from t5x_like.report.metrics import METRICS
from t5x_like.sharding.mesh import Placement
from t5x_like.sharding.reduction import copying_axes
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.setup import Setup
from t5x_like.train.working import shown


def opening(run: Run, setup: Setup, placement: Placement, first: int, directory: Path) -> dict[str, str]:
    """What the console says of a run at its start."""
    layers = "+".join(str(side.depth) for _, side in run.model.sides)
    objective, parameters = type(run.objective).__name__, parameter_count(setup.specs)
    steps, tokens = run.train.steps, run.train.batch_size * sum(run.lengths())
    every = f"means over {run.report.every:,} steps" if run.report.every > 1 else "of every step"
    return {
        "model": f"{run.model.shape}, {layers} layers of width {run.model.d_model}, {objective}, "
                 f"{short(parameters)} parameters ({parameters:,})",
        "devices": devices(),
        "attention": _attention(run),
        "steps": f"{steps:,} of {short(tokens)} tokens, {short(steps * tokens)} tokens in all"
                 + (f"; resuming from step {first:,}" if first else ""),
        "gradients": _gradients(setup, placement),
        "metrics": f"{every}, in {METRICS}; the loss shown here is smoothed",
        "directory": shown(directory),
    }  # fmt: skip


def _gradients(setup: Setup, placement: Placement) -> str:
    """How they are summed over devices with copies of the parameters, and what the sum takes; empty without copies."""
    if not (axes := copying_axes(placement)):
        return ""
    if placement.reduce != "once":
        return f"summed over {', '.join(axes)} in every layer and micro-batch"
    megabytes = bytes_per_device(setup.specs, dict(placement.mesh.shape), placement.rules) / 2**20
    return f"summed over {', '.join(axes)} once a step; until then {megabytes:,.1f} MB on each device"


def data_seen(data: Data, done: int) -> str:
    """Tokens and epochs of each corpus, in words."""
    seen = data.train.seen(done).items()
    words = ", ".join(f"{short(s.tokens)} tokens of {name} ({s.epochs:.2f} epochs)" for name, s in seen)
    left_out = data.train.tokens_left_out
    return words + (f", {left_out:,} too short for an example" if left_out else "")


def _attention(run: Run) -> str:
    """Backend that computes attention, and why."""
    model = run.model
    if model.attention_backend != "auto":
        return f"{model.attention_backend}, as model.attention_backend says"
    found: dict[str, None] = {}
    for name, side in model.sides:
        for mixer in (layer.mixer for _, layer in side.layers() if isinstance(layer.mixer, Attention)):
            choice = _choice(mixer, side, name == "decoder", run.train.batch_size, max(run.lengths()), model)
            found[f"{choice.backend}: {choice.reason}"] = None
    return "; ".join(found) or "there is none"


def _choice(mixer: Attention, side: Side, causal: bool, rows: int, length: int, model: ModelConfig) -> Choice:
    """What computes self-attention of one kind of layer on packed rows."""
    positions = mixer.positions or side.positions
    table = positions.declare_bias(mixer.heads, model.d_model, model.init)
    shape = None if table is None else declare(Module(None, table=table))[1]["table"].shape
    q, k = (jax.ShapeDtypeStruct((rows, length, heads, mixer.head_dim), model.dtype)
            for heads in (mixer.heads, mixer.key_heads))  # fmt: skip
    segments = jnp.ones((rows, length), jnp.int32)
    mask = Context(causal, segments, (segments, segments)).mask(mixer.window)
    table, columns = None if shape is None else jnp.zeros(shape), jnp.arange(length)
    bias = positions.bias(table, mixer.heads, not causal, (columns, columns))
    return choose(q, k, k, mask=mask, bias=bias, soft_cap=mixer.soft_cap or None)


def devices() -> str:
    device, count = jax.devices()[0], jax.device_count()
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{count} x {device.device_kind}{processes}"
