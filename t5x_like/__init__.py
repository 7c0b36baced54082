"""Pretrain, resume, evaluate and sample from sharded transformers in JAX.

Importing this package imports nothing else: every room (``t5x_like.train``, ``t5x_like.models``, ...) is imported by
the module that needs it, so that ``t5x-like --help`` answers at once.
"""

__version__ = "0.1.0"
