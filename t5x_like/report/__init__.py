"""What a run tells: metrics, console, files, plots, where the time went. Must not know jax, models or the train loop.

Everything here takes plain numbers, so that it can be tested, and used on a login node, without an accelerator.
"""
