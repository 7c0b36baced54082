"""What all tests share: eight virtual CPU devices, and JAX's guards.

Array types never widen by accident (strict dtype promotion): an activation that silently became float32 in a
bfloat16 model fails here. Implicit rank promotion stays allowed: ``rows + bias`` is clearer than a reshape at every
bias and norm.
"""

from __future__ import annotations

import os

# JAX reads these once, when it is imported; a subprocess of a test inherits them unless the test says otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the oracle of tests/parity is built from configs, never fetched

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
