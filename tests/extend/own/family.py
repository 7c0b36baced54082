"""A family of one's own: a decoder with two kinds of layers in turn, and the names that its weights have elsewhere."""

from __future__ import annotations

import dataclasses

from t5x_like.config import Group, llama
from t5x_like.models.families.names import Family


def local_and_global(pairs: int = 2, window: int = 3, **fields):
    model = llama(decoder_layers=1, **fields)
    layer = model.decoder.groups[0].pattern[0]
    near = dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, window=window))
    decoder = dataclasses.replace(model.decoder, groups=(Group(pairs, (near, layer)),))
    return dataclasses.replace(model, decoder=decoder)


def modules(config):
    found = {"token_embedding": "embed", "output_head": "head", "decoder/final_norm": "final"}
    for place, kind in (("0", "near"), ("1", "far")):
        attention, feed_forward = f"decoder/layers/{place}/attention", f"decoder/layers/{place}/feed_forward"
        found |= {f"{attention}/inner/{x}": f"{kind}.{{}}.{x}" for x in ("query", "key", "value", "out")}
        found |= {f"{feed_forward}/inner/{x}": f"{kind}.{{}}.{x}" for x in ("gate", "up", "down")}
        found |= {f"{attention}/norm": f"{kind}.{{}}.n0", f"{feed_forward}/norm": f"{kind}.{{}}.n1"}
    return found


FAMILY = Family("local and global", lambda config: True, modules)
