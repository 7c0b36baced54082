"""Batches as a pure function of (seed, step): order, mixture, rows, packing, features."""
