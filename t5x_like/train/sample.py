"""Samples of a model on held-out text: spans filled in, a text continued, masked words guessed.

For the eye; nothing is measured.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_like.decode.sample import Sampling
from t5x_like.input_pipeline.prepare.token_cache import TokenSplit
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.models.transformer import Batch
from t5x_like.train.opened import OpenedRun

OPEN, CLOSE = "[", "]"  # around what the model wrote


def write_sample(opened: OpenedRun, tokens: int = 72) -> dict[str, str]:
    """Named lines of text: the input of the model, its output, the original.

    Args:
      opened: the run; its objective decides the task, and the passage is the first in its held-out documents with a
        sentence that fits.
      tokens: about how long the passage is, at most half of what the model was trained on.
    """
    run, tokenizer, split = opened.run, opened.tokenizer, opened.data.held_out_split
    passage = _passage(split, tokenizer, max(8, min(tokens, max(run.lengths()) // 2))) if split is not None else []
    if len(passage) < 2:
        return {}
    _, objective = run.objective.streams()[0]
    if run.model.shape == "decoder-only" and not run.objective.inputs_end_in_eos:
        mode = tokenizer.find(getattr(objective, "mode", ""))
        passage = passage if mode is None else [mode, *passage]
        given, truth = passage[: len(passage) // 2], passage[len(passage) // 2 :]
        sampling = Sampling(max_new_tokens=len(given), temperature=0.8, top_p=0.9)
        written = opened.write([given], sampling, stop=opened.stop)[0]
        return _decoded(tokenizer, given, written, truth)
    example = objective.example(np.asarray(passage), np.random.default_rng(0), tokenizer)
    if example.order is not None:  # places of prediction have no text to be shown in
        return {}
    given, truth = example.inputs.tolist(), example.targets.tolist()
    if run.model.shape == "encoder-only":
        best = np.asarray(opened.compute(_most_likely, {"encoder_tokens": jnp.asarray([given])}))[0].tolist()
        chosen = (example.weights if example.weights is not None else np.ones(len(given))) > 0
        places = list(zip(given, best, truth, chosen.tolist(), strict=True))
        model = _marked(tokenizer, [(guess if c else here, c) for here, guess, _, c in places])
        truth = _marked(tokenizer, [(there, c) for _, _, there, c in places])
        return {"given": tokenizer.decode(given), "model": model, "truth": truth}
    written = opened.write([given], Sampling(max_new_tokens=len(truth) + 16), stop=opened.stop)[0]
    if not set(given) & set(tokenizer.sentinel_ids):  # not spans: a prefix and its continuation
        return _decoded(tokenizer, given, written, truth)
    given, truth = ([t for t in tokens if t != tokenizer.eos_id] for tokens in (given, truth))
    model, truth = (_fill(given, answer, tokenizer) for answer in (written, truth))
    return {"given": tokenizer.decode(given), "model": model, "truth": truth}


def _most_likely(model: Any, batch: Batch) -> jax.Array:
    """[B, L] ids."""
    return model.logits(batch).argmax(-1)


def _decoded(tokenizer: Tokenizer, given: list[int], model: list[int], truth: list[int]) -> dict[str, str]:
    return {"given": tokenizer.decode(given), "model": tokenizer.decode(model), "truth": tokenizer.decode(truth)}


def _fill(given: Sequence[int], written: Sequence[int], tokenizer: Tokenizer) -> str:
    """``given`` as text, each sentinel replaced by what follows it in ``written``, in brackets."""
    sentinels, spans, current = set(tokenizer.sentinel_ids), dict[int, list[int]](), list[int]()
    for token in written:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    pairs: list[tuple[int, bool]] = []
    for token in given:
        pairs += [(t, True) for t in spans.get(token, [])] if token in sentinels else [(token, False)]
    return _marked(tokenizer, pairs)


def _marked(tokenizer: Tokenizer, pairs: Sequence[tuple[int, bool]]) -> str:
    """The text of all tokens, those marked in brackets."""
    text = ""
    for marked, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        piece = tokenizer.decode([token for token, _ in run])
        lead = piece[: len(piece) - len(piece.lstrip())]
        text += f"{lead}{OPEN}{piece.strip()}{CLOSE}" if marked else piece
    return text


def _passage(split: TokenSplit, tokenizer: Tokenizer, tokens: int) -> list[int]:
    """Whole sentences of one document, as many as fit in ``tokens``; any tokens where no sentence fits."""
    for index in range(len(split)):
        text = tokenizer.decode(split.document(index)[: 40 * tokens].tolist())
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", text) if s]
        for first in range(2, len(sentences)):  # past the address
            ends = range(first + 1, len(sentences) + 1)
            longer = (tokenizer.encode(" ".join(sentences[first:end])) for end in ends)
            chosen = list(itertools.takewhile(lambda ids: len(ids) <= tokens, longer))
            if chosen and len(chosen[-1]) >= tokens // 2:
                return chosen[-1]
    return split.tokens[:tokens].tolist()
