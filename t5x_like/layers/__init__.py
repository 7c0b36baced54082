"""The parts of models: each declares its parameters and computes with them. Must not know objectives or optimizers.

Flax NNX modules are containers of named parameters here and nothing more: a constructor declares ``ParamSpec``s, and
``nnx.merge`` puts arrays in their place. jax.jit, grad, checkpoint and lax.scan do the rest.
"""
