"""One call for attention: checks what is asked, picks what computes it, and can say why.

Knows which features each backend has; must not know how one works. Absolute columns (``q_offset``) and the log-sum-exp
on request are there for what is built from several calls: decoding, rings of devices.

Letters: B batch, L queries, S keys, H query heads, K key heads, G = H / K queries a key head serves, N size of a query
or key head, V size of a value head.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.biases import Alibi, Bias, Dense, T5Relative
from pallas_kernels.blocks import BlockSizes, blocks_for
from pallas_kernels.dropout import Dropout
from pallas_kernels.masks import Causal, Mask

Backend = Literal["auto", "tpu", "gpu", "cudnn", "xla"]
BACKENDS = ("auto", "tpu", "gpu", "cudnn", "xla")
FEWEST_QUERIES = 16  # for which ``auto`` takes a kernel


class Choice(NamedTuple):
    """A backend, and the reason why it was picked."""

    backend: str
    reason: str


def attention(
    q_BLHN: jax.Array,
    k_BSKN: jax.Array,
    v_BSKV: jax.Array,
    *,
    mask: Mask,
    bias: Bias | None = None,
    scale: float | jax.Array | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    dropout: Dropout | None = None,
    q_offset: int | jax.Array = 0,
    backend: Backend = "auto",
    blocks: BlockSizes | None = None,
    return_lse: bool = False,
    interpret: bool = False,
    device: Any = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """dropout(softmax(soft_cap(scale * q k^T) + bias, over the keys that the mask allows, and the sink)) v.

    Has gradients with respect to q, k, v, the bias's arrays, sinks and an array of scales. Under ``jax.checkpoint`` a
    policy that saves the name ``attention`` keeps what the backward pass needs of the forward one.

    Args:
      q_BLHN, k_BSKN, v_BSKV: float32 or bfloat16 (xla and cudnn: float16 too), all of one dtype; K divides H, and head
        h reads key head h // (H // K).
      mask: allowed pairs of query and key.
      bias: added to the scores, or None.
      scale: of the scores; None: 1 / sqrt(N). An array [L] or [B, L] gives one for each query, as attention that is
        scaled by the logarithm of its length does; the queries are then multiplied by it and rounded to their dtype.
      soft_cap: scores become cap * tanh(scores / cap), before the bias; None or 0 is off.
      sinks: [H] float32, a further score of each head that takes its share of the softmax and has no value.
      dropout: of the attention probabilities, or None.
      q_offset: column of the first query; a Python number if known when compiling.
      backend: ``tpu`` and ``gpu`` are Pallas kernels, ``cudnn`` calls ``jax.nn.dot_product_attention``, ``xla`` is
        plain JAX for every device; ``auto`` asks ``choose``.
      blocks: sizes of blocks, instead of those of the table.
      return_lse: whether to return the log-sum-exp too.
      interpret: runs a Pallas backend in the interpreter, and what cuDNN would do in XLA, on any device.
      device: a device of those that the call is compiled for, which need not be here; None: JAX's default device.

    Returns:
      [B, L, H, V] in the dtype of q; with ``return_lse`` also [B, H, L] float32, the natural logarithm of each query's
      sum of exponentials, the sink's included. A query without any allowed key gives 0, no gradient, and without a sink
      an lse of -inf.

    Raises:
      ValueError: shapes or dtypes that do not fit, or a feature that the backend named does not have.
    """
    _check(q_BLHN, k_BSKN, v_BSKV, mask, bias, scale, soft_cap, sinks, dropout, q_offset)
    if backend not in BACKENDS:
        raise ValueError(f"attention: backend: got {backend!r}; allowed: {', '.join(BACKENDS)}")
    asked: dict[str, Any] = dict(
        mask=mask, bias=bias, soft_cap=soft_cap, sinks=sinks, dropout=dropout, q_offset=q_offset, blocks=blocks,
        return_lse=return_lse, device=device,
    )  # fmt: skip
    if backend == "auto":
        picked = choose(q_BLHN, k_BSKN, v_BSKV, **asked).backend
    elif refused := _refusal(backend, q_BLHN, k_BSKN, v_BSKV, **asked):
        raise ValueError(f"attention: {refused}")
    else:
        picked = backend
    if scale is None:
        scale = 1.0 / math.sqrt(q_BLHN.shape[-1])
    if isinstance(scale, jax.Array | np.ndarray):
        per_query = jnp.expand_dims(jnp.atleast_2d(jnp.asarray(scale, jnp.float32)), (2, 3))
        q_BLHN, scale = (q_BLHN.astype(jnp.float32) * per_query).astype(q_BLHN.dtype), 1.0
    if dropout is not None and dropout.rate == 0:
        dropout = None
    options: dict[str, Any] = dict(
        mask=mask, bias=bias, scale=float(scale), soft_cap=float(soft_cap or 0.0), sinks=sinks, dropout=dropout,
        q_offset=q_offset,
    )  # fmt: skip
    blocks = blocks_for(blocks, device)
    if picked == "xla":
        from pallas_kernels import xla

        out, lse = xla.attention(q_BLHN, k_BSKN, v_BSKV, **options)
    elif picked == "cudnn":
        from pallas_kernels import cudnn

        by = "xla" if interpret else "cudnn"
        return cudnn.attention(q_BLHN, k_BSKN, v_BSKV, mask=mask, scale=float(scale), implementation=by)
    elif picked == "tpu":
        from pallas_kernels import tpu

        out, lse = tpu.attention(q_BLHN, k_BSKN, v_BSKV, **options, blocks=blocks, interpret=interpret)
    else:
        from pallas_kernels import gpu

        out, lse = gpu.attention(q_BLHN, k_BSKN, v_BSKV, **options, blocks=blocks, interpret=interpret)
    return (out, lse) if return_lse else out


def choose(
    q_BLHN: jax.Array | jax.ShapeDtypeStruct,
    k_BSKN: jax.Array | jax.ShapeDtypeStruct,
    v_BSKV: jax.Array | jax.ShapeDtypeStruct,
    *,
    mask: Mask,
    bias: Bias | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    dropout: Dropout | None = None,
    q_offset: int | jax.Array = 0,
    blocks: BlockSizes | None = None,
    return_lse: bool = False,
    platform: str | None = None,
    device: Any = None,
) -> Choice:
    """What ``attention`` computes with under ``backend="auto"``, and why.

    On a GPU where the kernels do not lower, or do not have what is asked, cuDNN does what it can do, and XLA the rest.

    Args:
      q_BLHN, k_BSKN, v_BSKV and so on: as for ``attention``; shapes and dtypes are enough.
      platform: ``tpu``, ``gpu``, ``cuda``, ``cpu``...; None: of ``device``.
      device: as for ``attention``.
    """
    platform = platform or (_platform() if device is None else str(device.platform))
    wanted = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}.get(platform)
    if wanted is None:
        return Choice("xla", f"there are no kernels for {platform}")
    if q_BLHN.shape[1] < FEWEST_QUERIES:
        return Choice("xla", f"{q_BLHN.shape[1]} queries, as in decoding, would leave a block of the kernels empty")
    asked: dict[str, Any] = dict(
        mask=mask, bias=bias, soft_cap=soft_cap, sinks=sinks, dropout=dropout, q_offset=q_offset, blocks=blocks,
        return_lse=return_lse, device=device,
    )  # fmt: skip
    refused = _refusal(wanted, q_BLHN, k_BSKN, v_BSKV, **asked)
    if wanted == "gpu":
        refused = refused or _does_not_lower()
    asked["blocks"] = None  # they are the kernels'
    if refused and wanted == "gpu" and not _refusal("cudnn", q_BLHN, k_BSKN, v_BSKV, **asked):
        return Choice("cudnn", refused)
    if refused:
        return Choice("xla", refused)
    return Choice(wanted, f"the device is a {platform} and the kernels have all that is asked")


def _platform() -> str:
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return device.platform if hasattr(device, "platform") else device or jax.default_backend()


@functools.cache
def _does_not_lower() -> str:
    """Why this JAX does not compile the GPU kernels for the GPU that is here; empty if it does, or there is none."""
    if jax.default_backend() != "gpu":
        return ""
    q = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    attempt = jax.jit(lambda q: attention(q, q, q, mask=Causal(), backend="gpu"))
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as other:  # a thread without the mesh that is being traced under
            other.submit(lambda: attempt.lower(q).compile()).result()
    except Exception as error:  # of whatever kind: Pallas on Triton is deprecated, and goes away somehow
        told = (str(error).splitlines() or [""])[0][:100]
        return f"jax {jax.__version__} does not compile backend 'gpu' here: {type(error).__name__}: {told}"
    return ""


def _refusal(
    backend: str, q, k, v, *, mask: Mask, bias: Bias | None, blocks: BlockSizes | None, device: Any, **others: Any
) -> str:  # fmt: skip
    """Why a backend cannot do this: the argument and who can; empty if it can."""
    if backend == "xla":
        return ""
    if backend == "cudnn":
        from pallas_kernels import cudnn

        return cudnn.refusal(q, k, v, mask, bias=bias, blocks=blocks, **others)
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"q: backend {backend!r} has no {q.dtype}; allowed: float32, bfloat16, or backend='xla'"
    if backend == "gpu":
        try:
            from pallas_kernels import gpu
        except ImportError:
            instead = "or backend='cudnn' or 'xla'"
            return f"backend 'gpu' needs Pallas on Triton, which jax {jax.__version__} does not have; {instead}"
        return gpu.refusal(q, k, v)
    from pallas_kernels import tpu

    return tpu.refusal(q, k, v, bias, blocks_for(blocks, device))


def _check(q, k, v, mask, bias, scale, soft_cap, sinks, dropout, q_offset) -> None:
    for name, value, kinds, allowed in (
        ("mask", mask, Mask, "a mask such as Causal()"),
        ("bias", bias, (T5Relative, Alibi, Dense, type(None)), "T5Relative, Alibi, Dense(array) or None"),
        ("dropout", dropout, (Dropout, type(None)), "Dropout(rate, seed) or None"),
        ("q_offset", q_offset, (int, np.integer, jax.Array), "a whole number"),
    ):
        if not isinstance(value, kinds):
            raise ValueError(f"attention: {name}: got {type(value).__name__}; allowed: {allowed}")
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(
            f"attention: q, k, v: got shapes {q.shape}, {k.shape}, {v.shape}; allowed: four dimensions each"
        )
    B, L, H, N = q.shape
    S, K = k.shape[1:3]
    if not B * L * H * N * S * K:
        raise ValueError(f"attention: q, k: got shapes {q.shape}, {k.shape}; allowed: no dimension of 0")
    for array in jax.tree.leaves(mask):
        if array.ndim and array.shape[0] not in (1, B):
            raise ValueError(f"attention: mask: an array of shape {array.shape}; allowed: 1 or {B} rows")
    if k.shape != (B, S, K, N) or v.shape[:3] != (B, S, K):
        raise ValueError(
            f"attention: k, v: got shapes {k.shape}, {v.shape} for q {q.shape}; "
            f"allowed: [{B}, S, K, {N}], [{B}, S, K, V]"
        )
    if H % K:
        raise ValueError(f"attention: k: {K} key heads do not divide {H} query heads")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: q, k, v: got dtypes {q.dtype}, {k.dtype}, {v.dtype}; allowed: one for all")
    if isinstance(bias, Dense):
        got = bias.array.shape
        if got[2:] != (L, S) or got[0] not in (1, B) or got[1] not in (1, H):
            raise ValueError(f"attention: bias: got shape {got}; allowed: [1 or {B}, 1 or {H}, {L}, {S}]")
    elif bias is not None and bias.heads != H:
        raise ValueError(f"attention: bias: got {bias.heads} heads; allowed: {H}")
    if isinstance(scale, jax.Array | np.ndarray) and scale.ndim and scale.shape not in ((L,), (B, L), (1, L)):
        raise ValueError(f"attention: scale: got shape {scale.shape}; allowed: a number, [{L}] or [{B}, {L}]")
    elif isinstance(scale, int | float) and not math.isfinite(scale):
        raise ValueError(f"attention: scale: got {scale}; allowed: a finite number")
    if soft_cap is not None and not 0 <= soft_cap < math.inf:
        raise ValueError(f"attention: soft_cap: got {soft_cap}; allowed: None, or 0 or more, finite")
    if sinks is not None and sinks.shape != (H,):
        raise ValueError(f"attention: sinks: got shape {sinks.shape}; allowed: [{H}]")
