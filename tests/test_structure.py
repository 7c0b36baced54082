"""What holds of the code as a whole: files do not import one another in a circle, functions stay short, every field of
a config is read, and every number of one has a range."""

from __future__ import annotations

import ast
import functools
import importlib
import typing
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from t5x_like.core.ranges import Range
from t5x_like.core.structure import Config, type_hints
from t5x_like.input_pipeline.sources.filters import Filters

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 70  # lines of a function


@functools.cache
def files() -> dict[str, tuple[Path, ast.Module]]:
    """Module name to path and text of every file of t5x_like."""
    found = {}
    for path in sorted((ROOT / "t5x_like").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = (path, ast.parse(path.read_text()))
    return found


def imported(node: ast.AST, known: dict) -> Iterator[str]:
    """Modules of the package that a file imports, at its top or in a function; not for checkers of types alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield from [full] if full in known else [node.module] if node.module in known else []
    for child in ast.iter_child_nodes(node):
        yield from imported(child, known)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Names along one circle of a graph, the first one again at its end; empty where there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := walk(name, []))), [])


def test_no_files_import_one_another_in_a_circle():
    graph = {name: {*imported(tree, files())} - {name} for name, (_, tree) in files().items()}
    assert sum(map(len, graph.values())) > 300
    assert not cycle(graph), " -> ".join(cycle(graph))


def test_a_circle_would_be_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    tree = ast.parse("if TYPE_CHECKING:\n    import a\n\ndef f():\n    from b import c\n")
    assert [*imported(tree, {"a": 0, "b": 0})] == ["b"]


def test_functions_are_short():
    folders = ("t5x_like", "benchmarks", "launch", "configs", "data")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in paths for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= LONGEST
    ]  # fmt: skip
    assert not long, "\n".join(long)


# Fields that no code names: "Class.field": how they are read.
BY_OTHER_NAMES = {
    "MeshConfig.fsdp": "by getattr over sharding.config.AXES",
    **dict.fromkeys(("Corpus.licence", "Corpus.origin"), "by getattr over the manifest's fields in prepare"),
    **{f"Filters.{field.name}": "by getattr over the checks in Filters.drops" for field in fields(Filters)},
}


def own_configs(kind: type = Config) -> Iterator[type]:
    """The dataclasses of the package that derive from ``Config``."""
    for each in kind.__subclasses__():
        if each.__module__.split(".")[0] == "t5x_like" and "__dataclass_fields__" in vars(each):
            yield each
        yield from own_configs(each)


def test_every_field_of_a_config_is_read():
    """A field that no code reads would be accepted and do nothing. Its name must be read as an attribute somewhere;
    that it is read of this class is not seen, so that a field of a common name can escape."""
    for name in files():
        if not name.endswith("__main__"):
            importlib.import_module(name)
    nodes = (node for _, tree in files().values() for node in ast.walk(tree))
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    kinds = {*own_configs()}
    declared = {f"{kind.__name__}.{field.name}" for kind in kinds for field in fields(kind)}
    assert len(kinds) > 60 and len(declared) > 300
    unread = {name for name in declared if name.split(".")[1] not in read}
    assert unread == BY_OTHER_NAMES.keys(), unread ^ BY_OTHER_NAMES.keys()


def test_every_number_of_a_config_has_a_range():
    """In its type hint (``core.ranges``), so that it is checked wherever it comes from and shown by inspect config."""
    for name in files():
        if not name.endswith("__main__"):
            importlib.import_module(name)

    def bare(hint: object) -> bool:
        if typing.get_origin(hint) is typing.Annotated:
            kind, *metadata = typing.get_args(hint)
            return bare(kind) and not any(isinstance(each, Range) for each in metadata)
        return hint in (int, float) or any(map(bare, typing.get_args(hint)))

    hints = {(kind, field.name): type_hints(kind)[field.name] for kind in own_configs() for field in fields(kind)}
    without = [f"{kind.__name__}.{name}" for (kind, name), hint in hints.items() if bare(hint)]
    assert not without, without
