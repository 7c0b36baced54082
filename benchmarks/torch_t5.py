"""The model of ``step.py --family t5`` by ``transformers`` in PyTorch, eager, as it comes.

Its own choice of attention (``scaled_dot_product_attention`` with T5's bias as a mask), its own loss, PyTorch's fused
AdamW and ``clip_grad_norm_``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import t5_sizes
import torch
from t5_sizes import Sizes
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration


def make_t5(**sizes: Any) -> T5ForConditionalGeneration:
    """T5 1.1 without dropout."""
    config = T5Config(
        dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=False, use_cache=False,
        attn_implementation="sdpa", **sizes,
    )  # fmt: skip
    config.tie_word_embeddings = False  # the config sets it again
    model = T5ForConditionalGeneration(config)
    model.set_input_embeddings(model.shared)  # T5's stacks share one table, also where the head is untied
    return model.train()


class Contender:
    """What ``worker.py`` drives."""

    def __init__(self, sizes: Sizes, form: str):
        del form  # there is one: eager
        torch.manual_seed(0)
        self.model = make_t5(
            vocab_size=sizes.vocabulary, d_model=sizes.width, d_kv=sizes.head_size, d_ff=sizes.hidden,
            num_layers=sizes.layers, num_decoder_layers=sizes.layers, num_heads=sizes.heads,
        )  # fmt: skip
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.model.parameters(), lr=t5_sizes.LEARNING_RATE, betas=(t5_sizes.BETA_1, t5_sizes.BETA_2),
            eps=t5_sizes.EPSILON, weight_decay=t5_sizes.WEIGHT_DECAY, fused=True,
        )  # fmt: skip

    def step(self, tokens: dict[str, np.ndarray]) -> torch.Tensor:
        """One update; its loss."""
        inputs, decoder, targets = (
            torch.from_numpy(tokens[name]).long() for name in ("encoder_tokens", "decoder_tokens", "targets")
        )
        value = self.model(input_ids=inputs, decoder_input_ids=decoder, labels=targets).loss
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), t5_sizes.CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value.detach()

    def load(self, parameters: dict[str, Any]) -> None:
        """Starts again from parameters that another contender has saved."""
        named = dict(self.model.named_parameters())
        tensors = {name: array for name, array in parameters.items() if name != "layers"}
        if named.keys() != tensors.keys():
            raise ValueError(f"parameters without a partner: {sorted(named.keys() ^ tensors.keys())}")
        with torch.no_grad():
            for name, array in tensors.items():
                named[name].copy_(torch.tensor(array))
        self.optimizer = self._new_optimizer()

    def temporary_bytes(self) -> int | None:
        """Not known of an eager program."""
        return None
