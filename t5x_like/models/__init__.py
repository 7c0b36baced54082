"""Encoder-decoder, decoder-only and encoder-only transformers from one family of blocks. Must not know objectives."""
