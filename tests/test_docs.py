"""The examples in docs/ are Python that runs, and name what exists."""

import re
from pathlib import Path

import pytest

from t5x_like.input_pipeline.config import Corpus, Mixture
from t5x_like.input_pipeline.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = [
    (path.name, number, block)
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
]


@pytest.mark.parametrize(("name", "number", "block"), BLOCKS, ids=[f"{name}-{number}" for name, number, _ in BLOCKS])
def test_corpus_files_of_the_documentation_load(tmp_path, name, number, block):
    file = tmp_path / "corpus.py"
    file.write_text(block)
    assert isinstance(load_recipe(file), Corpus | Mixture)


def test_every_source_packing_and_objective_is_documented():
    import typing

    from t5x_like.core.config import choices
    from t5x_like.input_pipeline.config import Packing, Source, TokenizerConfig
    from t5x_like.objectives import Objective

    text = (ROOT / "docs" / "data.md").read_text()
    kinds = [kind for base in (Source, TokenizerConfig, Objective) for kind in choices(base)]
    names = [kind.__name__ for kind in kinds if kind.__module__.startswith("t5x_like.")]
    missing = [name for name in [*names, *typing.get_args(Packing)] if f"`{name}" not in text]
    assert not missing
