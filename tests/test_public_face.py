"""Run files, corpus files and documents import the public face and nothing deeper; it loads without JAX."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import t5x_like.config

ROOT = Path(__file__).resolve().parents[1]


def sources():
    for folder in ("configs", "data"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield str(file.relative_to(ROOT)), file.read_text()
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```python\n(.*?)```", file.read_text(), re.S):
            yield file.name, block


def test_nothing_deeper_than_the_face_is_imported():
    found = 0
    for name, text in sources():
        for node in ast.walk(ast.parse(text)):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            ours = [module for module in modules if (module or "").split(".")[0] == "t5x_like"]
            assert set(ours) <= {"t5x_like.config"}, f"{name}: {ours}"
            found += len(ours)
    assert found >= 10


def test_all_names_of_the_face_exist_and_are_listed():
    listed = t5x_like.config.__all__
    assert len(listed) == len(set(listed))
    assert all(hasattr(t5x_like.config, name) for name in listed)
    imported = {name for name in vars(t5x_like.config) if not name.startswith("_")}
    modules = {name for name in imported if type(getattr(t5x_like.config, name)).__name__ == "module"}
    assert imported - modules == set(listed)


def test_it_loads_without_jax_and_numpy():
    code = "import sys, t5x_like.config; print([m for m in ('jax', 'flax', 'optax', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
