"""The plain-JAX program that ``step.py`` measures ours against: about what one writes from the papers, without tricks.

Einsum attention, ``jax.nn.softmax``, cross-entropy by ``log_softmax`` and ``take_along_axis``, AdamW and clipping by
``jax.tree.map``; the whole step jitted with its state donated. Layers are stacked; scanned or unrolled.

Letters: B batch, T positions, D width, H heads, N size of a head, F hidden, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sizes as numbers
from sizes import Decoder as Sizes

Tree = dict[str, Any]


def initialize(sizes: Sizes, key: jax.Array) -> Tree:
    L, D, H, N, F, V = (
        sizes.layers, sizes.width, sizes.heads, sizes.head_size, sizes.hidden, sizes.vocabulary
    )  # fmt: skip
    shapes = {
        "embedding": (V, D), "head": (D, V), "query": (L, D, H, N), "key": (L, D, H, N), "value": (L, D, H, N),
        "out": (L, H, N, D), "gate": (L, D, F), "up": (L, D, F), "down": (L, F, D),
    }  # fmt: skip
    keys = jax.random.split(key, len(shapes))
    weights = {
        name: jax.random.normal(k, shape) * Sizes.INIT_STD
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    outer = {name: weights.pop(name) for name in ("embedding", "head")}
    norms = {"attention_norm": jnp.ones((L, D)), "mlp_norm": jnp.ones((L, D))}
    return outer | {"final_norm": jnp.ones(D), "layers": weights | norms}


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + Sizes.NORM_EPSILON) * scale


def rotate(x_BTHN: jax.Array) -> jax.Array:
    T, N = x_BTHN.shape[1], x_BTHN.shape[3]
    frequencies = Sizes.ROPE_THETA ** (-jnp.arange(0, N, 2) / N)
    angles = (jnp.arange(T)[:, None] * frequencies)[None, :, None, :]
    cosines, sines = jnp.cos(angles), jnp.sin(angles)
    one, other = jnp.split(x_BTHN, 2, axis=-1)
    return jnp.concatenate([one * cosines - other * sines, other * cosines + one * sines], axis=-1)


def block(x_BTD: jax.Array, layer: Tree) -> jax.Array:
    h = rms_norm(x_BTD, layer["attention_norm"])
    q, k, v = (jnp.einsum("btd,dhn->bthn", h, layer[name]) for name in ("query", "key", "value"))
    q, k = rotate(q), rotate(k)
    scores = jnp.einsum("bthn,bshn->bhts", q, k) / q.shape[-1] ** 0.5
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    probabilities = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
    attended = jnp.einsum("bhts,bshn->bthn", probabilities, v)
    x_BTD = x_BTD + jnp.einsum("bthn,hnd->btd", attended, layer["out"])
    h = rms_norm(x_BTD, layer["mlp_norm"])
    return x_BTD + (jax.nn.silu(h @ layer["gate"]) * (h @ layer["up"])) @ layer["down"]


def loss(parameters: Tree, tokens: jax.Array, scan: bool) -> jax.Array:
    x_BTD, layers = parameters["embedding"][tokens[:, :-1]], parameters["layers"]
    if scan:
        x_BTD, _ = jax.lax.scan(lambda x, layer: (block(x, layer), None), x_BTD, layers)
    else:
        for i in range(layers["query"].shape[0]):
            x_BTD = block(x_BTD, jax.tree.map(lambda a, i=i: a[i], layers))
    logits = rms_norm(x_BTD, parameters["final_norm"]) @ parameters["head"]
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=-1))


def train_step(state: Tree, tokens: jax.Array, scan: bool) -> tuple[Tree, jax.Array]:
    value, gradient = jax.value_and_grad(loss)(state["parameters"], tokens, scan)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(lambda g: g * jnp.minimum(1.0, numbers.CLIP_NORM / norm), gradient)
    b1, b2, step = numbers.BETA_1, numbers.BETA_2, state["step"] + 1
    mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["mean"], gradient)
    square = jax.tree.map(lambda s, g: b2 * s + (1 - b2) * g * g, state["square"], gradient)

    def update(p, m, s):
        direction = (m / (1 - b1**step)) / (jnp.sqrt(s / (1 - b2**step)) + numbers.EPSILON)
        return p - numbers.LEARNING_RATE * (direction + numbers.WEIGHT_DECAY * p)

    parameters = jax.tree.map(update, state["parameters"], mean, square)
    return {"parameters": parameters, "mean": mean, "square": square, "step": step}, value


def start(parameters: Tree) -> Tree:
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    return {"parameters": parameters, "mean": zeros(parameters), "square": zeros(parameters), "step": jnp.zeros(())}


class Contender:
    """What ``worker.py`` drives."""

    def __init__(self, sizes: Sizes, form: str):
        self.sizes = sizes
        self.compiled = jax.jit(functools.partial(train_step, scan=form == "scanned"), donate_argnums=0)
        self.state = jax.jit(lambda key: start(initialize(sizes, key)))(jax.random.key(0))

    def step(self, tokens: np.ndarray) -> jax.Array:
        """One update, dispatched; its loss, which ``float`` waits for."""
        self.state, value = self.compiled(self.state, tokens)
        return value

    def load(self, parameters: Tree) -> None:
        """Starts again from these parameters, named as ``initialize`` names them."""
        self.state = jax.tree.map(jnp.asarray, start(parameters))

    def parameters(self) -> Tree:
        """Initial parameters, as NumPy arrays."""
        return jax.tree.map(np.asarray, jax.jit(lambda key: initialize(self.sizes, key))(jax.random.key(1)))

    def temporary_bytes(self) -> int | None:
        """What the compiled step needs beside its arguments and results."""
        analysis = self.compiled.lower(self.state, self.sizes.rows(0)).compile().memory_analysis()
        return None if analysis is None else analysis.temp_size_in_bytes
