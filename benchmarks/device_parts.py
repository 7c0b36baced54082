"""The parts of ``on_device.py``, each in a process of its own: ``device_parts.py kernels 2048 64``.

Not run by hand. Every row is printed as a line of JSON as soon as it is found. PyTorch's parts import no jax, and
jax's no PyTorch, so that each has the device's memory for itself.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # this checkout, whether it is installed or not

LEARNING_RATE, CLIP_NORM = 1e-4, 1.0


class Sizes(NamedTuple):
    """What a whole step is measured at; smaller on a CPU."""

    rows: tuple[int, ...]  # of a device's batch; the next where one does not fit into its memory
    width: int = 768
    layers: int = 12
    vocabulary: int = 32128
    lengths: tuple[int, ...] = (512, 114)  # of the encoder, if there is one, and of the decoder


LARGE = {"t5": Sizes((64, 16, 4)), "gpt": Sizes((16, 4), vocabulary=50257, lengths=(1024,))}
SMALL = {"t5": Sizes((2,), 32, 2, 512, (32, 16)), "gpt": Sizes((2,), 32, 2, 512, (32,))}


def say(row: str, **facts: Any) -> None:
    """One row, at once: another one may fail."""
    print(json.dumps({"row": row} | facts), flush=True)


def installed(name: str) -> bool:
    """Whether a package is there; not whether it starts."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def short(error: Exception) -> str:
    """The first line of an error, which may be pages of compiler output."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def device() -> None:
    """What there is."""
    import flax
    import jax

    first = jax.devices()[0]
    stats = first.memory_stats() if first.platform != "cpu" else None
    memory = f"{stats['bytes_limit'] / 2**30:.1f} GiB for jax" if stats else "not told"
    torch = "installed" if installed("torch") else "not installed"
    say(
        "device", kind=first.device_kind, platform=first.platform, devices=jax.device_count(), memory=memory,
        python=sys.version.split()[0], jax=jax.__version__, flax=flax.__version__, torch=torch,
    )  # fmt: skip


def seconds(call: Callable[[], Any], wait: Callable[[Any], Any], least: float = 0.3, most: int = 50) -> float:
    """The median time of a call, of some that together take about ``least`` seconds; two before are not counted."""
    for _ in range(2):
        wait(call())
    times: list[float] = []
    while len(times) < 3 or (sum(times) < least and len(times) < most):
        begin = time.perf_counter()
        wait(call())
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


# Kernels. Letters: T queries and keys, H heads, N size of a head.


def kernels(length: int, head_size: int) -> None:
    """Attention of one row, forward and backward, by everything that there is."""
    import jax
    import jax.numpy as jnp

    on_cpu = jax.default_backend() == "cpu"
    T, N, H = (128, 16, 2) if on_cpu else (length, head_size, 16 if length <= 2048 else 8)
    draw = np.random.default_rng(0)
    q, k, v, dout = (jnp.asarray(draw.normal(size=(1, T, H, N)), jnp.bfloat16) for _ in range(4))
    table = jnp.asarray(draw.normal(size=(32, H)), jnp.float32)
    ends = [T // 8, T // 2, T - T // 4]
    segments = jnp.asarray(1 + np.searchsorted(ends, np.arange(T), side="right")[None], jnp.int32)
    for case in ("causal", "causal, segments", "T5 bias"):
        exact = _exact(case, q, k, v, dout, table, segments)
        for name, attend in _contenders(case, q, segments, on_cpu).items():
            facts: dict[str, Any] = {"kind": "kernels", "by": name}
            row = f"{case}, T {T}, heads {H} x {N}"
            try:
                facts |= _measured(attend, case, (q, k, v, table), dout, exact)
            except Exception as error:  # whatever it is, the next one has its turn
                facts["note"] = f"{name}: {short(error)}"
            say(row, **facts)


def _contenders(case: str, q, segments, on_cpu: bool) -> dict[str, Callable]:
    """Functions of q, k, v and the table of T5's bias."""
    import jax

    from pallas_kernels import Causal, Full, Mask, Segments, T5Relative, attention, choose

    T, H, N = q.shape[1:]
    mask: Mask = Full() if case == "T5 bias" else Causal()
    if "segments" in case:
        mask = mask & Segments(segments, segments)

    def bias(table):
        return T5Relative(table, bidirectional=True) if case == "T5 bias" else None

    def ours(q, k, v, table):
        return attention(q, k, v, mask=mask, bias=bias(table))

    def theirs(implementation):
        def attend(q, k, v, table):
            dense = bias(table)
            dense = dense and dense.expand(0, T, T).astype(q.dtype)
            allowed = (segments[:, None, :, None] == segments[:, None, None, :]) if "segments" in case else None
            return jax.nn.dot_product_attention(
                q, k, v, bias=dense, mask=allowed, is_causal=case != "T5 bias", implementation=implementation
            )

        return attend

    table = jax.ShapeDtypeStruct((32, H), "float32")
    chosen = choose(q, q, q, mask=mask, bias=bias(table))
    found = {f"ours ({chosen.backend})": ours, "jax.nn, XLA": theirs("xla")}
    return found if on_cpu or jax.default_backend() == "tpu" else found | {"jax.nn, cuDNN": theirs("cudnn")}


def _measured(attend, case: str, arguments, dout, exact) -> dict[str, float]:
    """Milliseconds and errors of one contender."""
    import jax

    count = 4 if case == "T5 bias" else 3

    def both(*arguments):
        out, pull = jax.vjp(attend, *arguments)
        return out, pull(dout)[:count]

    forward, both = (jax.jit(f).lower(*arguments).compile() for f in (attend, both))
    out, gradients = both(*arguments)
    of_head = [np.asarray(x[0, :, 0] if x.ndim == 4 else x[:, 0], np.float64) for x in (out, *gradients)]
    errors = [float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(of_head, exact, strict=True)]
    wait = jax.block_until_ready
    return {
        "error": errors[0], "error_of_gradients": max(errors[1:]),
        "forward_ms": 1e3 * seconds(lambda: forward(*arguments), wait),
        "with_backward_ms": 1e3 * seconds(lambda: both(*arguments), wait),
    }  # fmt: skip


def _exact(case: str, q, k, v, dout, table, segments, chunk: int = 512) -> list[np.ndarray]:
    """out, dq, dk, dv and, where there is one, the gradient of the table, of head 0, in float64."""
    import jax.numpy as jnp

    from pallas_kernels import relative_buckets

    q, k, v, dout = (np.asarray(x, np.float64)[0, :, 0] for x in (q, k, v, dout))
    (T, N), biased = q.shape, case == "T5 bias"
    scale, segments = N**-0.5, np.asarray(segments)[0]
    of_distance = np.asarray(relative_buckets(jnp.arange(1 - T, T, dtype=jnp.int32), bidirectional=True))
    weights = np.asarray(table, np.float64)[:, 0]
    out, dq, dk, dv = np.empty_like(v), np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
    dtable = np.zeros(len(weights))
    key = np.arange(T)
    for first in range(0, T, chunk):
        rows = np.arange(first, min(first + chunk, T))
        s = scale * q[rows] @ k.T
        buckets = of_distance[key[None] - rows[:, None] + T - 1]
        if biased:
            s += weights[buckets]
        else:
            allowed = key[None] <= rows[:, None]
            if "segments" in case:
                allowed &= segments[rows][:, None] == segments[None]
            s[~allowed] = -np.inf
        p = np.exp(s - s.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        out[rows] = p @ v
        ds = p * (dout[rows] @ v.T - np.sum(dout[rows] * out[rows], axis=1, keepdims=True))
        dq[rows], dk, dv = scale * ds @ k, dk + scale * ds.T @ q[rows], dv + p.T @ dout[rows]
        dtable += np.bincount(buckets.ravel(), ds.ravel(), len(weights))
    return [out, dq, dk, dv, *([dtable] if biased else [])]


# Whole steps


def ours(family: str, backend: str) -> None:
    """The step of t5x_like, with attention by a backend of pallas_kernels."""
    import jax

    from t5x_like.plan.chips import peak_flops

    first = jax.devices()[0]
    sizes = (SMALL if first.platform == "cpu" else LARGE)[family]
    peak = (peak_flops(first) or 0.0) * jax.device_count()
    for rows in (count * jax.device_count() for count in sizes.rows):
        facts: dict[str, Any] = {"by": f"t5x_like, {backend}"}
        try:
            facts |= _our_step(family, sizes, rows, backend, peak)
        except Exception as error:  # the rest of the table is worth having
            facts["note"] = f"t5x_like, {backend}, {rows} rows: {short(error)}"
        say(name_of(family, sizes), kind="steps", **facts)
        if "RESOURCE_EXHAUSTED" not in facts.get("note", ""):
            break


def name_of(family: str, sizes: Sizes) -> str:
    """The row's name."""
    return f"{family}, width {sizes.width}, {sizes.layers} layers, {'/'.join(map(str, sizes.lengths))}"


def _our_step(family: str, sizes: Sizes, rows: int, backend: str, peak: float) -> dict[str, Any]:
    import jax
    from our_step import OurStep

    from t5x_like.models.counts import train_flops

    ours = OurStep(_our_run(family, sizes, rows, backend))
    batch = ours.batch(random_rows(family, sizes, rows))

    def step():
        ours.state, metrics = ours.compiled(ours.state, batch)
        return metrics["loss"]

    took = seconds(step, jax.block_until_ready, least=5.0)
    lengths = sizes.lengths if family == "t5" else (0, *sizes.lengths)
    flops = rows * train_flops(ours.run.model, ours.setup.specs, *lengths)
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return {
        "batch": rows, "tokens_s": rows * sum(sizes.lengths) / took, "MFU": 100 * flops / took / peak if peak else None,
        "memory_GB": stats["peak_bytes_in_use"] / 2**30 if stats else None,
    }  # fmt: skip


def _our_run(family: str, sizes: Sizes, rows: int, backend: str) -> Any:
    from our_step import no_text

    from t5x_like.config import (
        AdamW,
        Autoregressive,
        Dropout,
        Learned,
        Run,
        SpanCorruption,
        TrainConfig,
        gpt2,
        t5_1_1,
    )

    shared: dict[str, Any] = dict(
        vocab_size=sizes.vocabulary, d_model=sizes.width, heads=sizes.width // min(64, sizes.width // 2),
        head_dim=min(64, sizes.width // 2), decoder_layers=sizes.layers, dtype="bfloat16", attention_backend=backend,
    )  # fmt: skip
    if family == "t5":
        model = t5_1_1("base", **shared, d_ff=hidden(family, sizes), encoder_layers=sizes.layers)
    else:
        model = gpt2(**shared, d_ff=hidden(family, sizes), positions=Learned(sizes.lengths[0]), dropout=Dropout())
    return Run(
        name="on_device",
        model=model,
        objective=SpanCorruption() if family == "t5" else Autoregressive(),
        data=no_text(sizes.lengths[0]),
        optimizer=AdamW(learning_rate=LEARNING_RATE, clip_norm=CLIP_NORM, no_decay=()),
        train=TrainConfig(steps=1_000_000, batch_size=rows, z_loss=0.0, logits_chunk=256 if family == "gpt" else 0),
    )


def hidden(family: str, sizes: Sizes) -> int:
    """Width of the feed-forward layers."""
    return sizes.width * 4 if family == "gpt" else sizes.width * 8 // 3 // 128 * 128 or sizes.width * 2


def random_rows(family: str, sizes: Sizes, rows: int) -> dict[str, np.ndarray]:
    """A batch of full rows: no padding, one text each."""
    draw = np.random.default_rng(0)
    *inputs, targets = (draw.integers(2, sizes.vocabulary, (rows, n), dtype=np.int32) for n in sizes.lengths)
    batch = {"encoder_tokens": inputs[0]} if family == "t5" else {}
    decoder = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    return batch | {"decoder_tokens": decoder, "targets": targets, "weights": np.ones(targets.shape, np.float32)}


def torch(family: str) -> None:
    """The same model by transformers in PyTorch, eager and compiled."""
    missing = [name for name in ("torch", "transformers") if not installed(name)]
    if missing:
        note = f"PyTorch is left out: {' and '.join(missing)} not installed"
        return say(family, kind="steps", by="PyTorch", note=note)
    import torch_device

    return torch_device.measure(family, LARGE[family], SMALL[family])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["device"]:
            device()
        case ["kernels", length, head_size]:
            kernels(int(length), int(head_size))
        case [family, "ours", backend]:
            ours(family, backend)
        case [family, "torch"]:
            torch(family)
