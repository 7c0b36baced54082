"""With the same random weights, our models give the logits of Hugging Face's ``transformers``, and T5's gradients too.

The tables below say where every parameter goes; a test fails if a parameter on either side is left out. Lengths are odd
and differ, rows are padded on the right, and only positions that are not padding are compared.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny_models import built, compiled, logits_function, loss_function, random_batch, relative_error, segments_of, tiny

from t5x_like.arrays.trees import flatten, unflatten
from t5x_like.models.config import ModelConfig
from t5x_like.ops.biases import relative_buckets
from t5x_like.ops.losses import LossConfig

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install torch transformers")
transformers = pytest.importorskip("transformers", reason="the oracle needs transformers: pip install transformers")

# Hugging Face name, with {} for the layer -> (our paths, joined along the output; whether the last two axes swap)
Table = dict[str, tuple[tuple[str, ...], bool]]
KEEP, TURN = False, True


def one(path: str, turn: bool = KEEP) -> tuple[tuple[str, ...], bool]:
    return (path,), turn


def t5_table(config: ModelConfig) -> Table:
    table: Table = {"shared.weight": one("token_embedding/table")}
    for side, attentions, last in (("encoder", [("attention", "SelfAttention")], 1),
                                   ("decoder", [("attention", "SelfAttention"),
                                                ("cross_attention", "EncDecAttention")], 2)):  # fmt: skip
        for place, (ours, theirs) in enumerate(attentions):
            for letter, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
                table[f"{side}.block.{{}}.layer.{place}.{theirs}.{letter}.weight"] = one(
                    f"{side}/layers/{ours}/inner/{name}/kernel", TURN
                )
            table[f"{side}.block.{{}}.layer.{place}.layer_norm.weight"] = one(f"{side}/layers/{ours}/norm/scale")
        dense = f"{side}.block.{{}}.layer.{last}.DenseReluDense"
        for theirs, ours in (("wi_0", "gate"), ("wi_1", "up")) if config.gated else (("wi", "up"),):
            table[f"{dense}.{theirs}.weight"] = one(f"{side}/layers/feed_forward/inner/{ours}/kernel", TURN)
        table[f"{dense}.wo.weight"] = one(f"{side}/layers/feed_forward/inner/down/kernel", TURN)
        table[f"{side}.block.{{}}.layer.{last}.layer_norm.weight"] = one(f"{side}/layers/feed_forward/norm/scale")
        bias = "layer.0.SelfAttention.relative_attention_bias.weight"
        if config.bias_per_layer:
            table[f"{side}.block.{{}}.{bias}"] = one(f"{side}/layers/position_bias")
        else:
            table[f"{side}.block.0.{bias}"] = one(f"{side}/position_bias")
        table[f"{side}.final_layer_norm.weight"] = one(f"{side}/final_norm/scale")
    if not config.tied_head:
        table["lm_head.weight"] = one("output_head/kernel")
    return table


GPT2_TABLE: Table = {
    "transformer.wte.weight": one("token_embedding/table"),
    "transformer.wpe.weight": one("decoder_positions/table"),
    "transformer.h.{}.ln_1.weight": one("decoder/layers/attention/norm/scale"),
    "transformer.h.{}.ln_1.bias": one("decoder/layers/attention/norm/bias"),
    **{
        f"transformer.h.{{}}.attn.c_attn.{theirs}": (
            tuple(f"decoder/layers/attention/inner/{name}/{ours}" for name in ("query", "key", "value")),
            KEEP,  # GPT-2's Conv1D is [in, out], as ours
        )
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    },
    "transformer.h.{}.attn.c_proj.weight": one("decoder/layers/attention/inner/out/kernel"),
    "transformer.h.{}.attn.c_proj.bias": one("decoder/layers/attention/inner/out/bias"),
    "transformer.h.{}.ln_2.weight": one("decoder/layers/feed_forward/norm/scale"),
    "transformer.h.{}.ln_2.bias": one("decoder/layers/feed_forward/norm/bias"),
    "transformer.h.{}.mlp.c_fc.weight": one("decoder/layers/feed_forward/inner/up/kernel"),
    "transformer.h.{}.mlp.c_fc.bias": one("decoder/layers/feed_forward/inner/up/bias"),
    "transformer.h.{}.mlp.c_proj.weight": one("decoder/layers/feed_forward/inner/down/kernel"),
    "transformer.h.{}.mlp.c_proj.bias": one("decoder/layers/feed_forward/inner/down/bias"),
    "transformer.ln_f.weight": one("decoder/final_norm/scale"),
    "transformer.ln_f.bias": one("decoder/final_norm/bias"),
}

LLAMA_TABLE: Table = {
    "model.embed_tokens.weight": one("token_embedding/table"),
    "model.layers.{}.input_layernorm.weight": one("decoder/layers/attention/norm/scale"),
    "model.layers.{}.self_attn.q_proj.weight": one("decoder/layers/attention/inner/query/kernel", TURN),
    "model.layers.{}.self_attn.k_proj.weight": one("decoder/layers/attention/inner/key/kernel", TURN),
    "model.layers.{}.self_attn.v_proj.weight": one("decoder/layers/attention/inner/value/kernel", TURN),
    "model.layers.{}.self_attn.o_proj.weight": one("decoder/layers/attention/inner/out/kernel", TURN),
    "model.layers.{}.post_attention_layernorm.weight": one("decoder/layers/feed_forward/norm/scale"),
    "model.layers.{}.mlp.gate_proj.weight": one("decoder/layers/feed_forward/inner/gate/kernel", TURN),
    "model.layers.{}.mlp.up_proj.weight": one("decoder/layers/feed_forward/inner/up/kernel", TURN),
    "model.layers.{}.mlp.down_proj.weight": one("decoder/layers/feed_forward/inner/down/kernel", TURN),
    "model.norm.weight": one("decoder/final_norm/scale"),
    "lm_head.weight": one("output_head/kernel"),
}

_BERT_LAYER = "bert.encoder.layer.{}"
BERT_TABLE: Table = {
    "bert.embeddings.word_embeddings.weight": one("token_embedding/table"),
    "bert.embeddings.position_embeddings.weight": one("encoder_positions/table"),
    "bert.embeddings.token_type_embeddings.weight": one("type_embedding/table"),
    "bert.embeddings.LayerNorm.weight": one("embedding_norm/scale"),
    "bert.embeddings.LayerNorm.bias": one("embedding_norm/bias"),
    **{
        f"{_BERT_LAYER}.{theirs}.{kind}": one(f"encoder/layers/{ours}/{our_kind}", kind == "weight")
        for theirs, ours in (
            ("attention.self.query", "attention/inner/query"),
            ("attention.self.key", "attention/inner/key"),
            ("attention.self.value", "attention/inner/value"),
            ("attention.output.dense", "attention/inner/out"),
            ("intermediate.dense", "feed_forward/inner/up"),
            ("output.dense", "feed_forward/inner/down"),
        )
        for kind, our_kind in (("weight", "kernel"), ("bias", "bias"))
    },
    f"{_BERT_LAYER}.attention.output.LayerNorm.weight": one("encoder/layers/attention/norm/scale"),
    f"{_BERT_LAYER}.attention.output.LayerNorm.bias": one("encoder/layers/attention/norm/bias"),
    f"{_BERT_LAYER}.output.LayerNorm.weight": one("encoder/layers/feed_forward/norm/scale"),
    f"{_BERT_LAYER}.output.LayerNorm.bias": one("encoder/layers/feed_forward/norm/bias"),
    "cls.predictions.transform.dense.weight": one("output_transform/linear/kernel", TURN),
    "cls.predictions.transform.dense.bias": one("output_transform/linear/bias"),
    "cls.predictions.transform.LayerNorm.weight": one("output_transform/norm/scale"),
    "cls.predictions.transform.LayerNorm.bias": one("output_transform/norm/bias"),
    "cls.predictions.bias": one("output_head/bias"),
}


def copy_weights(model, table: Table, params, config: ModelConfig) -> None:
    """Writes our parameters into the oracle. Fails unless every parameter of both sides is used."""
    leaves = flatten(params)
    theirs = dict(model.named_parameters())  # tied parameters come once
    layers = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    written, used = set(), set()
    for name, (paths, turned) in table.items():
        count = layers[paths[0].split("/")[0]] if "{}" in name else 1
        for layer in range(count):
            parts = [np.asarray(leaves[path]) for path in paths]
            value = np.concatenate([p[layer] for p in parts] if "{}" in name else parts, axis=-1)
            value = value.T if turned else value
            target = theirs[name.format(layer)]
            assert tuple(target.shape) == value.shape, name
            with torch.no_grad():
                target.copy_(torch.tensor(value))
            written.add(name.format(layer))
        used.update(paths)
    assert written == set(theirs)
    assert used == set(leaves)


def as_torch(array):
    return torch.tensor(np.asarray(array), dtype=torch.long)


def compare_logits(config: ModelConfig, model, table: Table, batch, inputs: dict) -> None:
    """Our logits and the oracle's within 1e-4 wherever there is a token."""
    params = built(config)[2]
    copy_weights(model, table, params, config)
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
        d_kv=config.head_dim,
        d_ff=config.d_ff,
        num_layers=config.encoder_layers,
        num_decoder_layers=config.decoder_layers,
        num_heads=config.heads,
        relative_attention_num_buckets=config.buckets,
        relative_attention_max_distance=config.max_distance,
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
    assert config.heads * config.head_dim != config.d_model
    compare_logits(config, model, t5_table(config), batch, inputs)


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
            n_positions=config.max_length,
            n_embd=config.d_model,
            n_layer=config.decoder_layers,
            n_head=config.heads,
            n_inner=config.d_ff,
            layer_norm_epsilon=config.norm_eps,
        )
    )
    batch = random_batch(config, rows=3, decoder=21)
    inputs = dict(input_ids=as_torch(batch["decoder_tokens"]), attention_mask=as_torch(batch["decoder_segments"]))
    compare_logits(config, model, GPT2_TABLE, batch, inputs)


def test_llama_logits_with_grouped_heads():
    config = tiny("llama", decoder_layers=3)
    assert 1 < config.kv_heads < config.heads
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.decoder_layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=False,
        )
    )
    batch = random_batch(config, rows=3, decoder=21)
    inputs = dict(input_ids=as_torch(batch["decoder_tokens"]), attention_mask=as_torch(batch["decoder_segments"]))
    compare_logits(config, model, LLAMA_TABLE, batch, inputs)


def test_bert_logits():
    config = tiny("bert", encoder_layers=3, head_dim=4)
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.encoder_layers,
            num_attention_heads=config.heads,
            intermediate_size=config.d_ff,
            max_position_embeddings=config.max_length,
            type_vocab_size=config.token_types,
            layer_norm_eps=config.norm_eps,
            hidden_act="gelu",
        )
    )
    batch = random_batch(config, rows=3, encoder=21)
    inputs = dict(
        input_ids=as_torch(batch["encoder_tokens"]),
        attention_mask=as_torch(batch["encoder_segments"]),
        token_type_ids=as_torch(batch["encoder_types"]),
    )
    compare_logits(config, model, BERT_TABLE, batch, inputs)


def test_t5_gradients_of_every_parameter():
    """The gradient of the mean cross-entropy, our fused one against PyTorch's autograd, within 1e-4 of its largest."""
    config, model, batch, inputs = make_t5("t5_1_1")
    params, table = built(config)[2], t5_table(config)
    copy_weights(model, table, params, config)
    real = np.asarray(batch["decoder_segments"]) != 0
    batch = batch | {"weights": real.astype(np.float32)}
    targets = torch.where(torch.tensor(real), as_torch(batch["targets"]), -100)
    their_loss = torch.nn.functional.cross_entropy(model.eval()(**inputs).logits.flatten(0, 1), targets.flatten())
    their_loss.backward()
    loss, gradients = compiled(jax.value_and_grad(loss_function(config, LossConfig())))(params, batch)
    assert float(loss) == pytest.approx(their_loss.item(), abs=1e-5)
    ours = flatten(gradients)
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    for name, ((path,), turned) in table.items():
        stacked = "{}" in name
        layers = config.encoder_layers if path.startswith("encoder") else config.decoder_layers
        for layer in range(layers if stacked else 1):
            wanted = theirs[name.format(layer)]
            got = np.asarray(ours[path][layer] if stacked else ours[path])
            assert np.abs(wanted).max() > 0, name
            assert relative_error(got, wanted.T if turned else wanted) < 1e-4, name.format(layer)
    assert unflatten(ours).keys() == params.keys()
