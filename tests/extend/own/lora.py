"""LoRA (Hu et al. 2021, arXiv:2106.09685): a product of two narrow matrices is added to each of some kernels, and
nothing else is trained."""

from __future__ import annotations

import re
from dataclasses import dataclass

from t5x_like.config import Adapter, UserError


@dataclass(frozen=True)
class LoRA(Adapter):
    """kernel + alpha / rank * down @ up; ``up`` starts at 0, so that the model starts as it was.

    Args:
      rank: columns of ``down``.
      alpha: factor of the product.
      pattern: regular expression of the kernels' paths.
    """

    rank: int = 4
    alpha: float = 8.0
    pattern: str = r"attention/inner/(query|value)/kernel$"

    def __post_init__(self):
        if self.rank < 1:
            raise UserError("adapters.rank", f"got {self.rank}", "1 or more")

    @property
    def frozen(self):
        return ("^(?!lora/)",)

    def declare(self, specs):
        from t5x_like.arrays.spec import Initializer, ParamSpec
        from t5x_like.arrays.trees import flatten, unflatten

        found = {}
        for path, spec in flatten(specs).items():
            if re.search(self.pattern, path):
                *lead, rows, columns = spec.shape
                *lead_axes, row_axis, column_axis = spec.axes
                down, up = (*lead, rows, self.rank), (*lead, self.rank, columns)
                normal, zero = Initializer("normal", rows**-0.5), Initializer("constant", 0.0)
                found[f"lora/{path}/down"] = ParamSpec(down, (*lead_axes, row_axis, None), normal)
                found[f"lora/{path}/up"] = ParamSpec(up, (*lead_axes, None, column_axis), zero)
        if not found:
            raise UserError("adapters.pattern", f"{self.pattern!r} matches no parameter", "a part of a path")
        return unflatten(found)

    def convert(self, params, own):
        from t5x_like.arrays.trees import flatten, unflatten

        leaves, narrow = flatten(params), flatten(own)
        for path in [path for path in leaves if f"lora/{path}/down" in narrow]:
            product = narrow[f"lora/{path}/down"] @ narrow[f"lora/{path}/up"]  # of each layer, where they lie stacked
            leaves[path] = leaves[path] + (self.alpha / self.rank * product).astype(leaves[path].dtype)
        return unflatten(leaves)
