"""Parameters under Hugging Face's names, both ways, by the table of a family (``models.families``).

Held to ``transformers`` itself by tests/parity.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from t5x_like.arrays.spec import ParamSpec
from t5x_like.arrays.trees import Tree, flatten, unflatten
from t5x_like.core.errors import UserError
from t5x_like.models.config import ModelConfig
from t5x_like.models.families.bert import FAMILY as BERT
from t5x_like.models.families.gpt2 import FAMILY as GPT2
from t5x_like.models.families.llama import FAMILY as LLAMA
from t5x_like.models.families.names import Entry, Family
from t5x_like.models.families.t5 import FAMILY as T5
from t5x_like.models.transformer import make_model

FAMILIES = (T5, GPT2, LLAMA, BERT)

# Copies and buffers in their files, without information of their own.
IGNORED = re.compile(
    r"(encoder|decoder)\.embed_tokens\.weight|.*\.attn\.(bias|masked_bias)|.*\.rotary_emb\.inv_freq"
    r"|bert\.embeddings\.position_ids|bert\.pooler\..*|cls\.seq_relationship\..*|cls\.predictions\.decoder\.(weight|bias)"
)


def family_of(config: ModelConfig) -> Family:
    """The shipped family of a model.

    Raises:
      UserError: it is of none of them.
    """
    for family in FAMILIES:
        if family.fits(config):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise UserError("model", f"no Hugging Face names for this model ({config.shape})", f"a model of {known}")


def _tensors(config: ModelConfig, family: Family | None) -> Iterator[tuple[str, Entry, tuple[int, ...]]]:
    """(name, entry, place in our parameters: (layer,) or ()) of each of their tensors."""
    for name, entry in (family or family_of(config)).names(config).items():
        for layer in range(entry.layers):
            yield name.format(layer), entry, (layer,) if "{}" in name else ()


def to_hugging_face(config: ModelConfig, params: Tree, family: Family | None = None) -> dict[str, np.ndarray]:
    """Our parameters under their names; every one of ours is used, each of theirs once.

    Args:
      config, params: config and parameters of the model.
      family: family with its names; None: the one that fits.

    Raises:
      UserError: the family is unknown, or does not name some parameter.
    """
    leaves = flatten(params)
    found: dict[str, np.ndarray] = {}
    for theirs, entry, layer in _tensors(config, family):
        value = np.concatenate([np.asarray(leaves[path][layer]) for path in entry.paths], axis=-1)
        found[theirs] = value.T if entry.turned else value
    return found


def from_hugging_face(config: ModelConfig, tensors: Mapping[str, np.ndarray], family: Family | None = None) -> Tree:
    """Their tensors as our parameters, a nested dict of numpy arrays with the declared shapes and dtypes.

    Raises:
      UserError: as above; or listing at once every tensor that is missing, of another shape, or not known.
    """
    specs: dict[str, ParamSpec] = flatten(make_model(config)[1])
    leaves = {path: np.empty(spec.shape, spec.dtype) for path, spec in specs.items()}
    problems, used = [], set()
    for theirs, entry, layer in _tensors(config, family):
        used.add(theirs)
        if theirs not in tensors:
            problems.append(f"{theirs}: missing")
            continue
        ends = np.cumsum([specs[path].shape[-1] for path in entry.paths])
        wanted = (*leaves[entry.paths[0]][layer].shape[:-1], int(ends[-1]))
        value = np.asarray(tensors[theirs])
        value = value.T if entry.turned else value
        if value.shape != wanted:
            shape = wanted[::-1] if entry.turned else wanted
            problems.append(f"{theirs}: shape {np.shape(tensors[theirs])}, not {shape}")
            continue
        for path, part in zip(entry.paths, np.split(value, ends[:-1], axis=-1), strict=True):
            leaves[path][layer] = part
    tied = {"lm_head.weight"} if config.tied_head else set()
    unknown = sorted(name for name in tensors.keys() - used - tied if not IGNORED.fullmatch(name))
    problems += [f"{name}: not known" for name in unknown]
    if problems:
        raise UserError("weights", "do not fit the model:\n    " + "\n    ".join(problems), "those of this config")
    return unflatten(leaves)
