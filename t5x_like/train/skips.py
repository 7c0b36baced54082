"""Updates that are not made: those that are not finite, and on request those of a spike in the loss or gradient norm.

Decided inside the compiled step, so that no process waits for another or for the host. Must not know parameters.

The rule for spikes is that of OLMo-core and MaxText: more than ``sigma`` standard deviations above the mean of the last
``window`` steps. Here a value enters the window cut to that bound: one spike then hardly widens the bound for the next,
and a level that has risen for good is still learned, within some tens of steps.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from t5x_like.arrays.trees import Tree


@dataclasses.dataclass(frozen=True)
class Skips:
    """When an update is left out, and when the run stops because of it.

    State: ``skipped`` [2] int32, updates left out in all and in a row; with ``sigma`` also ``spikes``: ``values``
    [2, window] float32, a ring of losses and gradient norms, and ``count`` int32, how many entered it.

    Attributes:
      in_a_row: number of updates left out one after the other at which the run stops.
      sigma: standard deviations above the mean from which on a loss or gradient norm is a spike; 0: none is.
      window: number of steps that mean and deviation are taken over; judged from half of it on.
    """

    in_a_row: int = 10
    sigma: float = 0.0
    window: int = 128

    def initial(self) -> Tree:
        """The state of a run that begins."""
        spikes = {"values": jnp.zeros((2, self.window), jnp.float32), "count": jnp.zeros((), jnp.int32)}
        return {"skipped": jnp.zeros((2,), jnp.int32)} | ({"spikes": spikes} if self.sigma else {})

    def judge(self, state: Tree, loss: jax.Array, norm: jax.Array, finite: jax.Array) -> tuple[jax.Array, Tree]:
        """(whether the update is made, the new state of ``initial``).

        Args:
          state: the state of the run before the step.
          loss, norm: float32 mean loss and gradient norm of the step.
          finite: whether loss, gradient and update are.
        """
        made, new = finite, {}
        if self.sigma:
            spike, new["spikes"] = self._spike(state["spikes"], jnp.stack([loss, norm]), finite)
            made = finite & ~spike
        in_all, in_a_row = state["skipped"]
        new["skipped"] = jnp.stack([in_all + (~made).astype(jnp.int32), jnp.where(made, 0, in_a_row + 1)])
        return made, new

    def _spike(self, state: Tree, found: jax.Array, finite: jax.Array) -> tuple[jax.Array, Tree]:
        values, count = state["values"], state["count"]
        known = jnp.arange(self.window) < count
        number = jnp.clip(count, 1, self.window).astype(jnp.float32)
        mean = jnp.sum(jnp.where(known, values, 0), axis=1) / number
        variance = jnp.sum(jnp.where(known, jnp.square(values - mean[:, None]), 0), axis=1) / number
        # Where nothing varies, rounding is no spike.
        highest = mean + self.sigma * jnp.maximum(jnp.sqrt(variance), 1e-6 * jnp.abs(mean))
        judged = count >= max(2, self.window // 2)
        entered = jnp.where(judged, jnp.minimum(found, highest), found)
        after = {"values": values.at[:, count % self.window].set(entered), "count": count + 1}
        return judged & jnp.any(found > highest), jax.tree.map(lambda a, b: jnp.where(finite, a, b), after, state)
