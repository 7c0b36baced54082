"""Parameters and floating-point operations of a model, read from its parameters' declarations. Needs no device."""

from __future__ import annotations

from t5x_like.arrays.trees import Tree, flatten
from t5x_like.models.config import ModelConfig


def parameter_count(specs: Tree) -> int:
    """How many numbers a model learns."""
    return sum(spec.size for spec in flatten(specs).values())


def forward_flops(config: ModelConfig, specs: Tree, encoder_length: int, decoder_length: int) -> float:
    """Floating-point operations of one example's forward pass: 2 per multiply-add of every matrix product.

    Attention counts all query-key pairs of a bidirectional mask and half of them under a causal one, as the fraction
    that any implementation needs. Norms, softmax and lookups are left out.

    Args:
      config, specs: config of the model, and specs of its parameters.
      encoder_length, decoder_length: tokens on each side; 0 where the side is missing.
    """
    total = 0.0
    for path, spec in flatten(specs).items():
        on_encoder = path.startswith(("encoder/", "encoder_")) or "cross_attention/inner/key" in path
        on_encoder |= "cross_attention/inner/value" in path or not config.has_decoder
        total += 2.0 * spec.size * spec.fan * (encoder_length if on_encoder else decoder_length)
    length = decoder_length if config.has_decoder else encoder_length
    projections = int(config.tied_head) + config.future_heads
    total += 2.0 * projections * config.vocab_size * config.d_model * length
    for name, side in config.sides:
        queries, causal = (encoder_length, False) if name == "encoder" else (decoder_length, True)
        for times, layer in side.layers():
            total += times * layer.mixer.pair_flops(queries, queries, causal)
            if layer.cross is not None:
                total += times * layer.cross.pair_flops(queries, encoder_length, False)
    return total


def train_flops(config: ModelConfig, specs: Tree, encoder_length: int, decoder_length: int) -> float:
    """FLOPs of one example's forward and backward pass: 3 times the forward pass; recomputation is not counted."""
    return 3.0 * forward_flops(config, specs, encoder_length, decoder_length)
