"""Arithmetic without parameters: attention, losses, sampling. Must not know layers or what a token means."""
