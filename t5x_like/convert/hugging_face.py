"""Hugging Face ``transformers`` names of T5, umT5, GPT-2, Llama and BERT against ours: one table per family.

A table maps their name (``{}`` for the layer) to our paths, which are joined along the output where they keep several
in one, and to whether the two dimensions change places: our kernels are [in, out], tables and output head [rows, D].
Held to ``transformers`` itself by tests/parity.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from t5x_like.arrays.spec import ParamSpec
from t5x_like.arrays.trees import Tree, flatten, unflatten
from t5x_like.core.errors import UserError
from t5x_like.models.config import ModelConfig
from t5x_like.models.transformer import make_model


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one of their tensors lies here: ``paths`` joined along the last dimension, ``turned`` if transposed."""

    paths: tuple[str, ...]
    turned: bool = False


Table = dict[str, Entry]

# Copies and buffers in their files that say nothing new.
IGNORED = re.compile(
    r"(encoder|decoder)\.embed_tokens\.weight|.*\.attn\.(bias|masked_bias)|.*\.rotary_emb\.inv_freq"
    r"|bert\.embeddings\.position_ids|bert\.pooler\..*|cls\.seq_relationship\..*|cls\.predictions\.decoder\.(weight|bias)"
)


def t5_table(config: ModelConfig) -> Table:
    """T5 1.0 and 1.1, mT5, ByT5; umT5 with ``bias_per_layer``."""
    table: Table = {"shared.weight": Entry(("token_embedding/table",))}
    for side in ("encoder", "decoder"):
        attentions = {"SelfAttention": "attention"}
        if side == "decoder":
            attentions["EncDecAttention"] = "cross_attention"
        for place, (theirs, ours) in enumerate(attentions.items()):
            layer = f"{side}.block.{{}}.layer.{place}"
            for letter, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
                path = f"{side}/layers/{ours}/inner/{name}/kernel"
                table[f"{layer}.{theirs}.{letter}.weight"] = Entry((path,), turned=True)
            table[f"{layer}.layer_norm.weight"] = Entry((f"{side}/layers/{ours}/norm/scale",))
        layer = f"{side}.block.{{}}.layer.{len(attentions)}"
        names = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if config.gated else {"wi": "up", "wo": "down"}
        for theirs, ours in names.items():
            path = f"{side}/layers/feed_forward/inner/{ours}/kernel"
            table[f"{layer}.DenseReluDense.{theirs}.weight"] = Entry((path,), turned=True)
        table[f"{layer}.layer_norm.weight"] = Entry((f"{side}/layers/feed_forward/norm/scale",))
        bias = "layer.0.SelfAttention.relative_attention_bias.weight"
        if config.bias_per_layer:
            table[f"{side}.block.{{}}.{bias}"] = Entry((f"{side}/layers/position_bias",))
        else:
            table[f"{side}.block.0.{bias}"] = Entry((f"{side}/position_bias",))
        table[f"{side}.final_layer_norm.weight"] = Entry((f"{side}/final_norm/scale",))
    if not config.tied_head:
        table["lm_head.weight"] = Entry(("output_head/kernel",))
    return table


def gpt2_table(config: ModelConfig) -> Table:
    """GPT-2, whose own kernels are [in, out] as ours and hold query, key and value side by side."""
    kinds = (("weight", "kernel"), ("bias", "bias"))
    attention, mlp = "decoder/layers/attention", "decoder/layers/feed_forward"
    table: Table = {
        "transformer.wte.weight": Entry(("token_embedding/table",)),
        "transformer.wpe.weight": Entry(("decoder_positions/table",)),
    }
    for theirs, ours in kinds:
        layer = "transformer.h.{}"
        joined = tuple(f"{attention}/inner/{name}/{ours}" for name in ("query", "key", "value"))
        table[f"{layer}.attn.c_attn.{theirs}"] = Entry(joined)
        table[f"{layer}.attn.c_proj.{theirs}"] = Entry((f"{attention}/inner/out/{ours}",))
        table[f"{layer}.mlp.c_fc.{theirs}"] = Entry((f"{mlp}/inner/up/{ours}",))
        table[f"{layer}.mlp.c_proj.{theirs}"] = Entry((f"{mlp}/inner/down/{ours}",))
    for theirs, ours in (("weight", "scale"), ("bias", "bias")):
        table[f"transformer.h.{{}}.ln_1.{theirs}"] = Entry((f"{attention}/norm/{ours}",))
        table[f"transformer.h.{{}}.ln_2.{theirs}"] = Entry((f"{mlp}/norm/{ours}",))
        table[f"transformer.ln_f.{theirs}"] = Entry((f"decoder/final_norm/{ours}",))
    return table


def llama_table(config: ModelConfig) -> Table:
    """Llama and models with its names."""
    attention, mlp, layer = "decoder/layers/attention", "decoder/layers/feed_forward", "model.layers.{}"
    table: Table = {
        "model.embed_tokens.weight": Entry(("token_embedding/table",)),
        f"{layer}.input_layernorm.weight": Entry((f"{attention}/norm/scale",)),
        f"{layer}.post_attention_layernorm.weight": Entry((f"{mlp}/norm/scale",)),
        "model.norm.weight": Entry(("decoder/final_norm/scale",)),
    }
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
        table[f"{layer}.self_attn.{letter}_proj.weight"] = Entry((f"{attention}/inner/{name}/kernel",), turned=True)
    for name in ("gate", "up", "down"):
        table[f"{layer}.mlp.{name}_proj.weight"] = Entry((f"{mlp}/inner/{name}/kernel",), turned=True)
    if not config.tied_head:
        table["lm_head.weight"] = Entry(("output_head/kernel",))
    return table


def bert_table(config: ModelConfig) -> Table:
    """BERT with its masked-LM head."""
    layer, kinds = "bert.encoder.layer.{}", (("weight", "kernel"), ("bias", "bias"))
    norms = (("weight", "scale"), ("bias", "bias"))
    table: Table = {
        "bert.embeddings.word_embeddings.weight": Entry(("token_embedding/table",)),
        "bert.embeddings.position_embeddings.weight": Entry(("encoder_positions/table",)),
        "bert.embeddings.token_type_embeddings.weight": Entry(("type_embedding/table",)),
        "cls.predictions.bias": Entry(("output_head/bias",)),
    }
    linears = {
        f"{layer}.attention.self.query": "encoder/layers/attention/inner/query",
        f"{layer}.attention.self.key": "encoder/layers/attention/inner/key",
        f"{layer}.attention.self.value": "encoder/layers/attention/inner/value",
        f"{layer}.attention.output.dense": "encoder/layers/attention/inner/out",
        f"{layer}.intermediate.dense": "encoder/layers/feed_forward/inner/up",
        f"{layer}.output.dense": "encoder/layers/feed_forward/inner/down",
        "cls.predictions.transform.dense": "output_transform/linear",
    }
    for theirs, ours in linears.items():
        for their_kind, our_kind in kinds:
            table[f"{theirs}.{their_kind}"] = Entry((f"{ours}/{our_kind}",), turned=our_kind == "kernel")
    for theirs, ours in (
        ("bert.embeddings.LayerNorm", "embedding_norm"),
        (f"{layer}.attention.output.LayerNorm", "encoder/layers/attention/norm"),
        (f"{layer}.output.LayerNorm", "encoder/layers/feed_forward/norm"),
        ("cls.predictions.transform.LayerNorm", "output_transform/norm"),
    ):
        for their_kind, our_kind in norms:
            table[f"{theirs}.{their_kind}"] = Entry((f"{ours}/{our_kind}",))
    return table


def name_table(config: ModelConfig) -> Table:
    """The table of the family a config belongs to.

    Raises:
      UserError: ``transformers`` has no model of this kind, as far as this module knows.
    """
    kind = (config.shape, config.positions, config.norm)
    tables = {
        ("encoder-decoder", "t5", "rms"): t5_table,
        ("decoder-only", "learned", "layer"): gpt2_table,
        ("decoder-only", "rope", "rms"): llama_table,
        ("encoder-only", "learned", "layer"): bert_table,
    }
    if kind not in tables:
        known = "; ".join(", ".join(k) for k in tables)
        raise UserError("model", f"no Hugging Face names for {', '.join(kind)}", f"shape, positions, norm: {known}")
    return tables[kind](config)


def to_hugging_face(config: ModelConfig, params: Tree) -> dict[str, np.ndarray]:
    """Our parameters under their names; every one of ours is used, each of theirs once.

    Raises:
      UserError: the family is unknown, or has parameters that the table does not name.
    """
    leaves, used = flatten(params), set()
    found: dict[str, np.ndarray] = {}
    for name, entry in name_table(config).items():
        for layer in range(_layers(config, entry) if "{}" in name else 1):
            parts = [np.asarray(leaves[path][layer] if "{}" in name else leaves[path]) for path in entry.paths]
            value = np.concatenate(parts, axis=-1)
            found[name.format(layer)] = value.T if entry.turned else value
        used.update(entry.paths)
    if left := sorted(leaves.keys() - used):
        raise UserError("model", f"parameters without a Hugging Face name: {', '.join(left)}", "a model of the family")
    return found


def from_hugging_face(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> Tree:
    """Their tensors as our parameters, a nested dict of numpy arrays with the declared shapes and dtypes.

    Raises:
      UserError: listing at once every tensor that is missing, of another shape, or not known.
    """
    specs: dict[str, ParamSpec] = flatten(make_model(config)[1])
    leaves = {path: np.empty(spec.shape, spec.dtype) for path, spec in specs.items()}
    problems, used = [], set()
    for name, entry in name_table(config).items():
        width = sum(specs[path].shape[-1] for path in entry.paths)
        for layer in range(_layers(config, entry) if "{}" in name else 1):
            theirs = name.format(layer)
            used.add(theirs)
            where = (layer,) if "{}" in name else ()
            wanted = (*leaves[entry.paths[0]][where].shape[:-1], width)
            if theirs not in tensors:
                problems.append(f"{theirs}: missing")
                continue
            value = np.asarray(tensors[theirs])
            value = value.T if entry.turned else value
            if value.shape != wanted:
                shape = wanted[::-1] if entry.turned else wanted
                problems.append(f"{theirs}: shape {np.shape(tensors[theirs])}, not {shape}")
                continue
            ends = np.cumsum([specs[path].shape[-1] for path in entry.paths])[:-1]
            for path, part in zip(entry.paths, np.split(value, ends, axis=-1), strict=True):
                leaves[path][where] = part
    tied = {"lm_head.weight"} if config.tied_head else set()
    unknown = sorted(name for name in tensors.keys() - used - tied if not IGNORED.fullmatch(name))
    problems += [f"{name}: not known" for name in unknown]
    if problems:
        raise UserError("weights", "do not fit the model:\n    " + "\n    ".join(problems), "those of this config")
    return unflatten(leaves)


def _layers(config: ModelConfig, entry: Entry) -> int:
    return config.encoder_layers if entry.paths[0].startswith("encoder/") else config.decoder_layers
