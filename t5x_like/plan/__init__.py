"""Costs of a run from its config alone: bytes, FLOPs, peak arithmetic of a chip. Must not know the train loop."""
