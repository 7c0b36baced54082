"""Mode tokens (Tay et al. 2023, UL2, section 3.1.3): a piece before the inputs that names the denoiser.

An objective's field ``mode`` names the piece; empty is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from t5x_like.objectives.requirements import piece_id

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer


def mode_ids(mode: str, tokenizer: Tokenizer) -> dict[str, int]:
    """Name to id of the mode, or nothing. Raises ``UserError`` if the vocabulary does not have it."""
    suggestion = "SentencePiece(symbols=('[NLU]', '[NLG]', '[S2S]')) as data.corpus.tokenizer, or mode='' for none"
    return {mode: piece_id(tokenizer, mode, "objective.mode", suggestion)} if mode else {}


def with_mode(mode: str, inputs: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """(inputs,) ids with the mode's before them, int32; ``inputs`` themselves where there is no mode."""
    if not mode:
        return inputs
    import numpy as np

    return np.concatenate([list(mode_ids(mode, tokenizer).values()), inputs], dtype=np.int32)
