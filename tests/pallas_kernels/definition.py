"""What attention is, in float64 numpy with dense arrays: what every backend is held to. Not a test.

Must not know the code under test: masks, biases by distance and kept probabilities come as dense arrays.

Letters: B batch, L queries, S keys, H query heads, K key heads (K buckets in a table), N size of a query or key head, V
size of a value head.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
    """What ``pallas_kernels.attention`` is asked, densely.

    Attributes:
      q, k, v: [B, L, H, N], [B, S, K, N], [B, S, K, V].
      allowed: [1 or B, L, S] booleans.
      scale, soft_cap: of the scores; 0: no cap.
      bias: [1 or B, 1 or H, L, S].
      sinks: [H].
      kept: [B, H, L, S] booleans, the probabilities that dropout keeps.
      rate: of those dropped.
    """

    q: Any
    k: Any
    v: Any
    allowed: Any
    scale: float = 1.0
    soft_cap: float = 0.0
    bias: Any = None
    sinks: Any = None
    kept: Any = None
    rate: float = 0.0


class Gradients(NamedTuple):
    """Of a loss, with respect to each; ``scores`` [B, H, L, S] is that of the scores that a bias is added to."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    scores: np.ndarray
    sinks: np.ndarray


def attention(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """(out [B, L, H, V], lse [B, H, L])."""
    p, lse, _, _ = _probabilities(problem)
    _, _, v = _arrays(problem)
    return np.einsum("bhls,bshv->blhv", p * _let_through(problem), v), lse


def gradients(problem: Problem, dout: Any, dlse: Any = None) -> Gradients:
    """By the chain rule, for the gradients of the output [B, L, H, V] and of the lse [B, H, L] (None: 0)."""
    q, k, v = _arrays(problem)
    dout = np.asarray(dout, np.float64)
    p, lse, sink_share, slope = _probabilities(problem)
    through = _let_through(problem)
    dv = np.einsum("bhls,blhv->bshv", p * through, dout)
    dp = np.einsum("blhv,bshv->bhls", dout, v) * through
    total = (p * dp).sum(-1, keepdims=True)  # of the softmax: ds = p (dp - sum of p dp)
    dlse = np.zeros(lse.shape) if dlse is None else np.asarray(dlse, np.float64)
    ds = p * (dp - total + dlse[..., None])  # the lse's derivative is p
    dsinks = (sink_share * (dlse - total[..., 0])).sum((0, 2))
    raw = ds * slope * problem.scale
    groups = q.shape[2] // np.shape(problem.k)[2]

    def of_key_heads(x):
        return x.reshape(*x.shape[:2], -1, groups, x.shape[3]).sum(3)

    dq, dk = np.einsum("bhls,bshn->blhn", raw, k), np.einsum("bhls,blhn->bshn", raw, q)
    return Gradients(dq, of_key_heads(dk), of_key_heads(dv), ds, dsinks)


def _arrays(problem: Problem) -> list[np.ndarray]:
    """q, k, v in float64, keys and values once for every query head."""
    q, k, v = (np.asarray(x, np.float64) for x in (problem.q, problem.k, problem.v))
    groups = q.shape[2] // k.shape[2]
    return [q, np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)]


def _probabilities(problem: Problem):
    """(p [B, H, L, S], lse [B, H, L], the sinks' share [B, H, L], d biased scores / d scaled products)."""
    q, k, _ = _arrays(problem)
    s = problem.scale * np.einsum("blhn,bshn->bhls", q, k)
    slope = np.ones(s.shape)
    if problem.soft_cap:
        slope = 1.0 / np.cosh(s / problem.soft_cap) ** 2
        s = problem.soft_cap * np.tanh(s / problem.soft_cap)
    if problem.bias is not None:
        s = s + np.asarray(problem.bias, np.float64)
    s = np.where(np.asarray(problem.allowed)[:, None], s, -np.inf)
    sinks = np.full(s.shape[1], -np.inf) if problem.sinks is None else np.asarray(problem.sinks, np.float64)
    sink = np.broadcast_to(sinks[None, :, None], s.shape[:3])
    peak = np.maximum(s.max(-1), sink)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    e, e_sink = np.exp(s - peak[..., None]), np.exp(sink - peak)
    total = e.sum(-1) + e_sink
    safe = np.where(total > 0, total, 1.0)
    lse = np.where(total > 0, peak + np.log(safe), -np.inf)
    return e / safe[..., None], lse, e_sink / safe, slope


def _let_through(problem: Problem):
    return 1.0 if problem.kept is None else np.asarray(problem.kept) / (1.0 - problem.rate)


# Gradients of a bias's arrays from that of the scores [B, H, L, S]


def of_dense(scores: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Of an array [1 or B, 1 or H, L, S]."""
    return scores.sum(tuple(i for i in range(2) if shape[i] == 1), keepdims=True)


def of_table(scores: np.ndarray, buckets_LS: Any, count: int) -> np.ndarray:
    """Of a table [K, H] that is looked up at ``buckets_LS``."""
    table = np.zeros((count, scores.shape[1]))
    np.add.at(table, np.asarray(buckets_LS), scores.sum(0).transpose(1, 2, 0))
    return table


def of_slopes(scores: np.ndarray, distance_LS: Any) -> np.ndarray:
    """Of slopes [H], of which a bias is -slope |distance|."""
    return -(scores * np.abs(np.asarray(distance_LS, np.float64))).sum((0, 2, 3))


# Inputs


def draw(shape: tuple[int, ...], *seed: int) -> np.ndarray:
    """float32 of either sign."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(B: int, L: int, S: int, H: int, K: int, N: int, V: int, seed: int = 0) -> list[np.ndarray]:
    """q, k, v, the gradient of the output and that of the lse."""
    shapes = (B, L, H, N), (B, S, K, N), (B, S, K, V), (B, L, H, V), (B, H, L)
    return [draw(shape, seed, place) for place, shape in enumerate(shapes)]


def error(got: Any, wanted: Any) -> float:
    """The largest difference as a share of the largest wanted number, at least 1e-3."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return float(np.max(np.abs(got - wanted), initial=0.0) / max(np.max(np.abs(wanted), initial=0.0), 1e-3))
