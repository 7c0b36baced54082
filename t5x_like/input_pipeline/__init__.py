"""Text to batches: every batch is a pure function of (seed, step), whatever the number of processes.

Knows texts, tokens, SentencePiece and TFDS; knows no JAX and no model. Importing this package imports nothing:
``config`` holds the dataclasses of a run file, ``recipes`` finds corpus files, ``prepare`` tokenizes once into a token
cache, ``pipeline`` turns that cache into batches.
"""
