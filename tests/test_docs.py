"""The examples in docs/ are Python that runs, and name what exists."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tiny_models import tiny

import t5x_like.api
import t5x_like.config
from t5x_like import optim
from t5x_like.core.loading import load_module, load_run
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


DOCUMENTS = [ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "benchmarks/README.md")]
GENERATED = ("config.md", "mistakes.md")  # by scripts of docs/, from the code itself: tests/docs
DOCUMENTS += sorted(path for path in (ROOT / "docs").glob("*.md") if path.name not in GENERATED)
FOLDERS = ("t5x_like", "pallas_kernels", "configs", "data", "launch", "benchmarks", "tests")
# What documents name that this repository does not define: other projects' names, and examples of a user's own.
ELSEWHERE = {
    "contrib", "ademamix", "transformers", "ruff", "tokenizers", "save_to_disk", "my_objective", "my_run", "texts",
    "make", "utils.py",
}  # fmt: skip


def spans(document: Path) -> list[str]:
    """What stands between single backticks, code blocks apart."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", document.read_text(), flags=re.S))


def is_path(text: str) -> bool:
    return bool(re.fullmatch(r"[\w.\-]+(/[\w.\-]*)+|\w+\.(py|md)", text)) and not re.search(r"[A-Z]{3}|\bmy_", text)


@functools.cache
def identifiers() -> set[str]:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    return set(re.findall(r"[A-Za-z_]\w*", "\n".join(file.read_text() for file in files)))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_of_the_documents_exist(document):
    text = document.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("http") or (document.parent / link).exists(), link
    names = {file.name for folder in FOLDERS for file in (ROOT / folder).rglob("*")}
    beside = re.findall(rf"(?:^|[\s|])((?:docs|{'|'.join(FOLDERS)})/[\w./]*\w)", text)
    paths = {span for span in spans(document) if is_path(span)} | set(beside)
    for path in paths - ELSEWHERE:
        here = any((folder / path).exists() for folder in (ROOT, ROOT / "t5x_like", document.parent))
        assert here or ("/" not in path and path in names), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_the_documents_exist(document):
    """Every identifier in backticks is one of the code; ``Class.method`` of the public face is looked up there."""
    for span in spans(document):
        if is_path(span) or not re.fullmatch(r"@?[A-Za-z_][\w.]*(\(.*\))?", span):
            continue
        name = re.sub(r"\(.*", "", span).lstrip("@")
        missing = [part for part in name.split(".") if part and part not in identifiers() | ELSEWHERE]
        assert not missing, f"{span}: {missing}"
        owner, _, member = name.partition(".")
        if member and owner in t5x_like.config.__all__ and isinstance(getattr(t5x_like.config, owner), type):
            kind = getattr(t5x_like.config, owner)
            assert hasattr(kind, member) or member in kind.__annotations__, span


def test_the_table_of_kinds_names_bases_and_their_methods():
    """In AGENTS.md a row's first name is a base of the public face, those that follow it are members of it."""
    rows = re.findall(r"^\| [^|]+ \| (`[A-Z]\w+`: [^|]+) \|", (ROOT / "AGENTS.md").read_text(), re.M)
    assert len(rows) >= 9
    for row in rows:
        base, *members = re.findall(r"`(\w+)`", row)
        kind = getattr(t5x_like.config, base)
        known = {member for member in members if member != "Tokenizer"}
        assert all(hasattr(kind, member) or member in kind.__annotations__ for member in known), row


@pytest.mark.slow
def test_the_program_of_python_md_runs(tmp_path, monkeypatch, capsys):
    """All its blocks, in one program, on a folder of texts."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for index in range(40):
        (texts / f"{index}.txt").write_text(f"The state of the union in year {index} is as strong as before. " * 30)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    names: dict[str, object] = {}
    for block in blocks:
        with jax.numpy_dtype_promotion("standard"):  # as outside of the tests
            exec(compile(block, "docs/python.md", "exec"), names)
    assert names["outcome"].complete and int(names["state"]["step"]) == 3  # type: ignore[attr-defined,index]
    assert int(names["trained"]["step"]) == 2  # type: ignore[index]
    assert jnp.isfinite(names["value"])  # type: ignore[arg-type]
    imported = re.findall(r"from t5x_like\.api import ([\w, ]+)", "".join(blocks))
    used = {name.strip() for line in imported for name in line.split(",")}
    assert used <= set(t5x_like.api.__all__)
