"""A step in PyTorch, eager, with its fused AdamW and ``clip_grad_norm_``: what ``worker.py`` drives."""

from __future__ import annotations

import abc
from typing import Any

import sizes
import torch
from torch import nn


class TorchStep(abc.ABC):
    """A model and its optimizer. ``loss`` and ``put`` are for those who derive from it.

    Args:
      model: the module.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.model.parameters(), lr=sizes.LEARNING_RATE, betas=(sizes.BETA_1, sizes.BETA_2), eps=sizes.EPSILON,
            weight_decay=sizes.WEIGHT_DECAY, fused=True,
        )  # fmt: skip

    @abc.abstractmethod
    def loss(self, rows: Any) -> torch.Tensor:
        """The mean loss of one batch."""

    @abc.abstractmethod
    def put(self, parameters: dict[str, Any]) -> None:
        """Gives the model parameters that another contender has saved."""

    def step(self, rows: Any) -> torch.Tensor:
        """One update; its loss."""
        value = self.loss(rows)
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), sizes.CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value.detach()

    def load(self, parameters: dict[str, Any]) -> None:
        """Starts again from parameters that another contender has saved."""
        self.put(parameters)
        self.optimizer = self._new_optimizer()

    def temporary_bytes(self) -> int | None:
        """Not known of an eager program."""
        return None
