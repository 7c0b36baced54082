"""With the same random weights, our models give the logits of Hugging Face's ``transformers``, and T5's gradients too.

The tables of ``convert.hugging_face`` say where every parameter goes; a test fails if one on either side is left out.
Lengths are odd and differ, rows are padded on the right, and only positions that are not padding are compared.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny_models import (
    built,
    compiled,
    first,
    logits_function,
    loss_function,
    random_batch,
    relative_error,
    segments_of,
    tiny,
)

from pallas_kernels import relative_buckets
from t5x_like.arrays.trees import flatten, unflatten
from t5x_like.convert.hugging_face import family_of, from_hugging_face, to_hugging_face
from t5x_like.core.errors import UserError
from t5x_like.models.config import ModelConfig
from t5x_like.ops.losses import LossConfig

NEEDS = "compares with transformers in PyTorch, which `make test PARITY=1` installs"
torch = pytest.importorskip("torch", reason=NEEDS)
transformers = pytest.importorskip("transformers", reason=NEEDS)
pytestmark = pytest.mark.parity


def copy_weights(model, params, config: ModelConfig) -> None:
    """Writes our parameters into the oracle. Fails unless every parameter of both sides is used."""
    theirs = dict(model.named_parameters())  # tied parameters come once
    ours = to_hugging_face(config, params)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert tuple(theirs[name].shape) == value.shape, name
        with torch.no_grad():
            theirs[name].copy_(torch.tensor(value))


def as_torch(array):
    return torch.tensor(np.asarray(array), dtype=torch.long)


def compare_logits(config: ModelConfig, model, batch, inputs: dict) -> None:
    """Our logits and the oracle's within 1e-4 wherever there is a token."""
    params = built(config)[2]
    copy_weights(model, params, config)
    with torch.no_grad():
        theirs = model.eval()(**inputs).logits.numpy()
    ours = np.asarray(logits_function(config)(params, batch))
    real = segments_of(config, batch) != 0
    assert 0 < real.sum() < real.size  # some padding, some tokens
    assert np.std(theirs[real]) > 0.1  # the comparison is of something
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4, rtol=1e-4)


T5_SETTINGS = {
    "t5_1_0": dict(feed_forward_proj="relu", tie_word_embeddings=True),
    "t5_1_1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "umt5": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def make_t5(family: str):
    """(our config, the oracle, a batch, the oracle's inputs); three layers in the encoder, two in the decoder."""
    config = tiny(family, encoder_layers=3)
    names = ("UMT5Config", "UMT5ForConditionalGeneration") if family == "umt5" else (
        "T5Config", "T5ForConditionalGeneration")  # fmt: skip
    settings = getattr(transformers, names[0])(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_kv=first(config).mixer.head_dim,
        d_ff=first(config).feed_forward.width,
        num_layers=config.encoder.depth,
        num_decoder_layers=config.decoder.depth,
        num_heads=first(config).mixer.heads,
        relative_attention_num_buckets=config.encoder.positions.buckets,
        relative_attention_max_distance=config.encoder.positions.max_distance,
        dropout_rate=0.0,
        **T5_SETTINGS[family],
    )
    settings.tie_word_embeddings = config.tied_head  # some configs overwrite the argument
    model = getattr(transformers, names[1])(settings)
    model.set_input_embeddings(model.shared)  # T5's stacks share one table, also where the head is untied
    batch = random_batch(config, rows=3, encoder=27, decoder=19)
    inputs = dict(
        input_ids=as_torch(batch["encoder_tokens"]),
        attention_mask=as_torch(batch["encoder_segments"]),
        decoder_input_ids=as_torch(batch["decoder_tokens"]),
        decoder_attention_mask=as_torch(batch["decoder_segments"]),
    )
    return config, model, batch, inputs


@pytest.mark.parametrize("family", T5_SETTINGS)
def test_t5_logits(family):
    config, model, batch, inputs = make_t5(family)
    assert first(config).mixer.heads * first(config).mixer.head_dim != config.d_model
    compare_logits(config, model, batch, inputs)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, farthest", [(32, 128), (8, 12)])
def test_relative_buckets_of_all_distances(bidirectional, buckets, farthest):
    distances = np.arange(-600, 601, dtype=np.int32)
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        torch.tensor(distances, dtype=torch.long), bidirectional, buckets, farthest
    )
    ours = relative_buckets(jax.numpy.asarray(distances), bidirectional, buckets, farthest)
    np.testing.assert_array_equal(np.asarray(ours), theirs.numpy())


def test_gpt2_logits():
    config = tiny("gpt2", decoder_layers=3, head_dim=4)  # the oracle's heads fill the width
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.sides[0][1].positions.length,
            n_embd=config.d_model,
            n_layer=config.decoder.depth,
            n_head=first(config).mixer.heads,
            n_inner=first(config).feed_forward.width,
            layer_norm_epsilon=first(config).norm.eps,
        )
    )
    batch = random_batch(config, rows=3, decoder=21)
    inputs = dict(input_ids=as_torch(batch["decoder_tokens"]), attention_mask=as_torch(batch["decoder_segments"]))
    compare_logits(config, model, batch, inputs)


def test_llama_logits_with_grouped_heads():
    config = tiny("llama", decoder_layers=3)
    assert 1 < first(config).mixer.kv_heads < first(config).mixer.heads
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=first(config).feed_forward.width,
            num_hidden_layers=config.decoder.depth,
            num_attention_heads=first(config).mixer.heads,
            num_key_value_heads=first(config).mixer.kv_heads,
            head_dim=first(config).mixer.head_dim,
            rms_norm_eps=first(config).norm.eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.decoder.positions.theta},
            tie_word_embeddings=False,
        )
    )
    batch = random_batch(config, rows=3, decoder=21)
    inputs = dict(input_ids=as_torch(batch["decoder_tokens"]), attention_mask=as_torch(batch["decoder_segments"]))
    compare_logits(config, model, batch, inputs)


def test_bert_logits():
    config = tiny("bert", encoder_layers=3, head_dim=4)
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.encoder.depth,
            num_attention_heads=first(config).mixer.heads,
            intermediate_size=first(config).feed_forward.width,
            max_position_embeddings=config.sides[0][1].positions.length,
            type_vocab_size=config.encoder.inputs.types,
            layer_norm_eps=first(config).norm.eps,
            hidden_act="gelu",
        )
    )
    batch = random_batch(config, rows=3, encoder=21)
    inputs = dict(
        input_ids=as_torch(batch["encoder_tokens"]),
        attention_mask=as_torch(batch["encoder_segments"]),
        token_type_ids=as_torch(batch["encoder_types"]),
    )
    compare_logits(config, model, batch, inputs)


def test_t5_gradients_of_every_parameter():
    """The gradient of the mean cross-entropy, our fused one against PyTorch's autograd, within 1e-4 of its largest."""
    config, model, batch, inputs = make_t5("t5_1_1")
    params, table = built(config)[2], family_of(config).names(config)
    copy_weights(model, params, config)
    real = np.asarray(batch["decoder_segments"]) != 0
    batch = batch | {"weights": real.astype(np.float32)}
    targets = torch.where(torch.tensor(real), as_torch(batch["targets"]), -100)
    their_loss = torch.nn.functional.cross_entropy(model.eval()(**inputs).logits.flatten(0, 1), targets.flatten())
    their_loss.backward()
    loss, gradients = compiled(jax.value_and_grad(loss_function(config, LossConfig())))(params, batch)
    assert float(loss) == pytest.approx(their_loss.item(), abs=1e-5)
    ours = flatten(gradients)
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    for name, entry in table.items():
        (path,) = entry.paths
        stacked = "{}" in name
        layers = (config.encoder if path.startswith("encoder") else config.decoder).depth
        for layer in range(layers if stacked else 1):
            wanted = theirs[name.format(layer)]
            got = np.asarray(ours[path][layer] if stacked else ours[path])
            assert np.abs(wanted).max() > 0, name
            assert relative_error(got, wanted.T if entry.turned else wanted) < 1e-4, name.format(layer)
    assert unflatten(ours).keys() == params.keys()


@pytest.mark.parametrize("family", ["t5_1_0", "umt5", "gpt2", "llama", "bert"])
def test_weights_come_back_as_they_went(family):
    config = tiny(family)
    params = flatten(built(config)[2])
    back = flatten(from_hugging_face(config, to_hugging_face(config, unflatten(params))))
    assert back.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(back[path], array)


def test_all_that_is_wrong_with_weights_is_said_at_once():
    config = tiny("bert")
    tensors = to_hugging_face(config, built(config)[2])
    del tensors["cls.predictions.bias"]
    tensors["surplus"] = np.ones(3)
    tensors["bert.embeddings.LayerNorm.weight"] = np.ones(3)
    with pytest.raises(UserError) as caught:
        from_hugging_face(config, tensors)
    for part in ("cls.predictions.bias: missing", "surplus: not known", "bert.embeddings.LayerNorm.weight: shape (3,)"):
        assert part in str(caught.value)
