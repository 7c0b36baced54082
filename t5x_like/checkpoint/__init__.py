"""Checkpoints: asynchronous, verified by digests, restored onto any mesh. Must not know steps' contents or models.

Import `config` for the choices a user makes (no jax) and `checkpoints` for what runs (jax, TensorStore).
"""
