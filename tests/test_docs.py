"""The examples in docs/ are Python that runs, and name what exists."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tiny_models import tiny

from t5x_like import optim
from t5x_like.core.config import load_module, load_run
from t5x_like.input_pipeline.config import Corpus, Mixture
from t5x_like.input_pipeline.recipes import load_recipe
from t5x_like.layers.param import initialize
from t5x_like.models.transformer import make_model
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.train.config import Run

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = [
    (path.name, number, block)
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
]


@pytest.mark.parametrize(("name", "number", "block"), BLOCKS, ids=[f"{name}-{number}" for name, number, _ in BLOCKS])
def test_code_of_the_documentation_runs(tmp_path, name, number, block):
    """A block that defines ``corpus`` is a corpus file, one with ``run`` a run file; one with ``optimizer`` makes an
    update of a small model; any other is executed."""
    file = tmp_path / "block.py"
    file.write_text(block)
    if re.search(r"^(def corpus\(|corpus *=)", block, re.M):
        assert isinstance(load_recipe(file), Corpus | Mixture)
        return
    module = load_module(file)
    if hasattr(module, "run"):
        assert isinstance(load_run(str(file), Run), Run)
    elif hasattr(module, "optimizer"):
        _, specs = make_model(tiny("t5_1_1", encoder_layers=1, decoder_layers=1))
        params = initialize(specs, jax.random.key(0))
        optimizer = make_optimizer(module.optimizer(), specs, total_steps=1000)
        _, _, info = optimizer.update(params, optimizer.init(params), params, jnp.int32(0))
        assert bool(info["finite"])


def test_every_optimizer_is_documented():
    text = (ROOT / "docs" / "optimizers.md").read_text()
    assert not [name for name in optim.__all__ if f"`{name}" not in text]


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
