"""An evaluation of one's own: how often the model writes on as the held-out texts do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from t5x_like.config import Evaluation, Sampling


@dataclass(frozen=True, kw_only=True)
class ExactMatch(Evaluation):
    """The share of held-out rows whose first half is continued by the very next letters, and of the letters.

    Args:
      texts: rows that are continued.
      letters: tokens that must be the same.
    """

    name: str = "exact_match"
    texts: int = 8
    letters: int = 4

    needs_held_out: ClassVar[bool] = True

    def run(self, opened):
        import numpy as np

        prompts, wanted = [], []
        for batch in opened.held_out():
            for row in np.asarray(batch["targets"]).tolist():
                half = len(row) // 2
                prompts.append(opened.tokenizer.decode(row[:half]))
                wanted.append(opened.tokenizer.decode(row[half : half + self.letters]))
            if opened.stop():
                return None
        prompts, wanted = prompts[: self.texts], wanted[: self.texts]
        written = opened.generate(prompts, Sampling(max_new_tokens=self.letters))
        same = [sum(a == b for a, b in zip(x, y, strict=False)) for x, y in zip(written, wanted, strict=True)]
        return {
            "exact": float(np.mean([a == b for a, b in zip(written, wanted, strict=True)])),
            "letters": sum(same) / max(1, sum(map(len, wanted))),
            "texts": float(len(wanted)),
        }
