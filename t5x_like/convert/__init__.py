"""Weights of other libraries to ours and back, as tables of names. Must not know files or training."""
