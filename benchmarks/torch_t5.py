"""The model of ``step.py --family t5`` by ``transformers`` in PyTorch, eager, as it comes.

Its own choice of attention (``scaled_dot_product_attention`` with T5's bias as a mask), its own loss, PyTorch's fused
AdamW and ``clip_grad_norm_``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sizes import T5
from torch_step import TorchStep
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


class Contender(TorchStep):
    """What ``worker.py`` drives."""

    def __init__(self, sizes: T5, form: str):
        del form  # there is one: eager
        torch.manual_seed(0)
        super().__init__(make_t5(
            vocab_size=sizes.vocabulary, d_model=sizes.width, d_kv=sizes.head_size, d_ff=sizes.hidden,
            num_layers=sizes.layers, num_decoder_layers=sizes.layers, num_heads=sizes.heads,
        ))  # fmt: skip

    def loss(self, rows: dict[str, np.ndarray]) -> torch.Tensor:
        inputs, decoder, targets = (
            torch.from_numpy(rows[name]).long() for name in ("encoder_tokens", "decoder_tokens", "targets")
        )
        return self.model(input_ids=inputs, decoder_input_ids=decoder, labels=targets).loss

    def put(self, parameters: dict[str, Any]) -> None:
        named = dict(self.model.named_parameters())
        tensors = {name: array for name, array in parameters.items() if name != "layers"}
        if named.keys() != tensors.keys():
            raise ValueError(f"parameters without a partner: {sorted(named.keys() ^ tensors.keys())}")
        with torch.no_grad():
            for name, array in tensors.items():
                named[name].copy_(torch.tensor(array))
