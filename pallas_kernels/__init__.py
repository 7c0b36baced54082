"""Attention kernels for TPU and GPU behind one call; imports JAX only and is usable alone."""

from pallas_kernels.attention import Choice, attention, choose
from pallas_kernels.biases import Alibi, Bias, Dense, T5Relative, alibi_slopes, relative_buckets
from pallas_kernels.blocks import BlockSizes
from pallas_kernels.dropout import Dropout
from pallas_kernels.masks import (
    BigBird,
    Blocks,
    Causal,
    Chunked,
    Full,
    Mask,
    Ordered,
    Prefix,
    Segments,
    SlidingWindow,
)

__all__ = [
    "Alibi", "Bias", "BigBird", "BlockSizes", "Blocks", "Causal", "Choice", "Chunked", "Dense", "Dropout", "Full",
    "Mask", "Ordered", "Prefix", "Segments", "SlidingWindow", "T5Relative", "alibi_slopes", "attention", "choose",
    "relative_buckets",
]  # fmt: skip
