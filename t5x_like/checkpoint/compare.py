"""Checks whether a checkpoint is of the model, with all differences in one error. Must not know files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from t5x_like.core.errors import nearest, refuse

SHOWN = 12  # names listed of each kind before the rest is only counted


def compare(
    where: str, saved: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Any], partial: bool, shown: int = SHOWN
) -> None:
    """Raises UserError unless every wanted array was saved with its shape and (not ``partial``) nothing else was.

    Args:
      where: name of the checkpoint, for the error.
      saved: path to ``{"shape": [...]}``.
      wanted: path to anything with a ``shape``.
      partial: whether the checkpoint may hold more arrays than wanted.
      shown: largest number of names listed of each kind of difference.
    """
    missing = [path for path in wanted if path not in saved]
    unused = [path for path in saved if path not in wanted]
    extra = [] if partial else unused
    shapes = [path for path in wanted if path in saved and tuple(saved[path]["shape"]) != tuple(wanted[path].shape)]
    other = [f"{path}: {tuple(saved[path]['shape'])} in the checkpoint, {tuple(wanted[path].shape)} wanted"
             for path in shapes]  # fmt: skip
    lines = _listed("not in the checkpoint", [f"{path}  {nearest(path, unused)}".rstrip() for path in missing], shown)
    lines += _listed("only in the checkpoint", extra, shown) + _listed("of another shape", other, shown)
    refuse(bool(lines), where, "\n".join(["is of another model or optimizer", *lines]),
           "a checkpoint of the same config", "the config.json beside the checkpoint, or a new run directory")


def without_optional(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], optional: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(saved, wanted) without the arrays below the top-level names ``optional`` that only one has, or in another shape:
    with one array all below its name are left out."""
    odd = [path for path in {**saved, **wanted} if path not in saved or path not in wanted
           or tuple(saved[path]["shape"]) != tuple(wanted[path].shape)]  # fmt: skip
    left_out = {path.split("/")[0] for path in odd} & {*optional}
    one, other = ({p: a for p, a in arrays.items() if p.split("/")[0] not in left_out} for arrays in (saved, wanted))
    return one, other


def _listed(title: str, lines: list[str], shown: int) -> list[str]:
    if not lines:
        return []
    more = [f"    ... and {len(lines) - shown} more"] if len(lines) > shown else []
    return [f"  {title} ({len(lines)}):", *(f"    {line}" for line in lines[:shown]), *more]
