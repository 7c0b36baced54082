"""Nested dicts with names for their leaves: ``encoder/layers/query/kernel``. Must not know what the leaves are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

Tree = Any  # a nested dict whose leaves are arrays, specs or shardings


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by path, in the tree's order."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            leaves |= flatten(value, path)
        else:
            leaves[path] = value
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose ``flatten`` is ``leaves``."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, last = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return tree


def map_named(function: Callable[..., Any], tree: Mapping[str, Any], *rest: Mapping[str, Any]) -> dict[str, Any]:
    """``function(path, leaf, *leaves of rest)`` for every leaf; the other trees have the structure of the first."""
    others = [flatten(r) for r in rest]
    return unflatten({path: function(path, leaf, *(o[path] for o in others)) for path, leaf in flatten(tree).items()})


def split(tree: Mapping[str, Any], paths: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the leaves at ``paths``, the other leaves), each as a nested dict; ``join`` undoes it."""
    leaves = flatten(tree)
    chosen = {path: leaf for path, leaf in leaves.items() if path in paths}
    return unflatten(chosen), unflatten({path: leaf for path, leaf in leaves.items() if path not in chosen})


def join(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict with the leaves of both."""
    return unflatten(flatten(one) | flatten(other))
