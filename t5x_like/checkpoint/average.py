"""The mean of several checkpoints of one run, as a checkpoint. Must not know what arrays mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_like.arrays.trees import flatten, unflatten
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.errors import refuse, require


def average(checkpoints: Checkpoints, steps: Sequence[int], output: str | Path) -> dict[str, Any]:
    """Writes the mean of checkpoints to the folder ``output``, under the last of their steps.

    Arrays of floating-point numbers, parameters and optimizer's alike, are numpy's mean in float64, rounded to their
    dtype; others are those of the last step. One array of each checkpoint is in memory at a time, beside the result.

    Args:
      checkpoints: those of one run.
      steps: at least two steps.
      output: a folder without checkpoints, or its address.

    Returns:
      The metadata of the new checkpoint: that of the last step, with ``averaged``: the steps.

    Raises:
      UserError: fewer than two steps, one that is not there or damaged, of different models, or a folder in use.
    """
    steps = sorted(set(steps))
    require(len(steps) > 1, "--steps", ", ".join(map(str, steps)) or "none", "two steps or more")
    arrays = {step: checkpoints.arrays(step) for step in steps}
    last = steps[-1]
    for step in steps:
        refuse(arrays[step] != arrays[last], "--steps", f"steps {step} and {last} have different arrays",
               "checkpoints of one model and optimizer")
    mean: dict[str, jax.Array] = {}
    for path, one in arrays[last].items():
        of = steps if jnp.issubdtype(one.dtype, jnp.floating) else [last]
        read = [np.asarray(flatten(checkpoints.restore(unflatten({path: one}), s, partial=True)[0])[path]) for s in of]
        mean[path] = jnp.asarray(np.mean(read, axis=0, dtype=np.float64).astype(one.dtype) if len(of) > 1 else read[0])
    metadata = {**checkpoints.metadata(last), "averaged": steps}
    with Checkpoints(output) as made:
        refuse(bool(made.steps()), "--output", f"{output} has checkpoints", "a new folder")
        made.save(last, unflatten(mean), metadata)
    return metadata
