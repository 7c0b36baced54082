"""A family of one's own: a decoder with two kinds of layers in turn, and the names that its weights have elsewhere."""

from __future__ import annotations

import dataclasses

from t5x_like.config import Group, llama
from t5x_like.models.families.names import Entry, Family, linears, norms


def local_and_global(pairs: int = 2, window: int = 3, **fields):
    model = llama(decoder_layers=1, **fields)
    layer = model.decoder.groups[0].pattern[0]
    near = dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, window=window))
    decoder = dataclasses.replace(model.decoder, groups=(Group(pairs, (near, layer)),))
    return dataclasses.replace(model, decoder=decoder)


def names(config):
    table = {"embed.weight": Entry(("token_embedding/table",)), "head.weight": Entry(("output_head/kernel",))}
    table |= norms({"final": "decoder/final_norm"}, bias=False)
    for place, kind in (("0", "near"), ("1", "far")):
        ours = f"decoder/layers/{place}"
        maps = {f"{kind}.{{}}.{x}": f"{ours}/attention/inner/{x}" for x in ("query", "key", "value", "out")}
        maps |= {f"{kind}.{{}}.{x}": f"{ours}/feed_forward/inner/{x}" for x in ("gate", "up", "down")}
        table |= linears(maps, bias=False)
        table |= norms({f"{kind}.{{}}.n{i}": f"{ours}/{part}/norm" for i, part in
                        enumerate(("attention", "feed_forward"))}, bias=False)  # fmt: skip
    return table


FAMILY = Family("local and global", lambda config: True, names)
