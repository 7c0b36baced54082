"""Optimizers, learning-rate schedules, and the masks that say which parameter gets what.

Knows parameters by their declarations (`t5x_like.arrays.spec`); must not know models, meshes, or the train loop.
Import `config` for the choices a user makes (no jax) and `optimizer` for what runs (jax).
"""
