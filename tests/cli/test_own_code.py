"""A user's own classes, from files outside the package: trained, resumed, evaluated, compared and written from, through
real command lines. Whoever opens the folder of somebody else runs none of its code, unless they give the file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import py_compile
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from tiny_runs import CLI, ROOT, environment, text_folder

MARK = 'import os\nwith open(os.environ["RAN"], "a") as file:\n    print(__file__, file=file)\n'

SPLITS = MARK + "def middle(tokens):\n    return len(tokens) // 2\n"

OBJECTIVE = MARK + '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar, Literal
from t5x_like.config import Config, Example, Objective, UserError, code

splits = code("splits.py")


class Border(Config, where="objective.border"):
    """No dataclass: what can be chosen derives from it."""


@dataclass(frozen=True)
class Middle(Border):
    """Half of the text is read, half is written."""

    def of(self, tokens):
        return splits.middle(tokens)


@dataclass(frozen=True)
class After(Border):
    """A number of tokens is read."""

    tokens: int = 3
    kind: Literal["read", "hidden"] = "read"

    def of(self, tokens):
        return min(self.tokens, len(tokens))


@dataclass(frozen=True)
class Halves(Objective):
    """Text continued from a border on."""

    border: Border = Middle()
    rate: float = 1.0

    shapes: ClassVar[tuple[str, ...]] = ("decoder-only",)
    has_prefix: ClassVar[bool] = True

    def __post_init__(self):
        if self.rate < 0:
            raise UserError("objective.rate", str(self.rate), "0 or more")

    def check(self, tokenizer, data, shape):
        pass

    def example(self, tokens, rng, tokenizer):
        border = self.border.of(tokens)
        return Example(tokens[:border], tokens[border:])
'''.replace("from __future__ import annotations\n", "")  # fmt: skip

RUN = MARK + '''
from dataclasses import dataclass
from t5x_like.config import *
from t5x_like.config import code

mine = code("my_objective.py")


@dataclass(frozen=True)
class Loud(Autoregressive):
    """A shipped objective with a field more, in the run's own file."""

    volume: float = 1.0


def run():
    corpus = Corpus("own", TextFiles((TEXTS,)), Bytes(), "none", "made up", heldout=0.2)
    return Run(
        name="own",
        model=llama(vocab_size=264, d_model=16, d_ff=32, heads=4, head_dim=8, kv_heads=4, decoder_layers=1,
                    scan_layers=False),
        objective=OBJECTIVE,
        data=DataConfig(corpus, input_length=32, cache=CACHE),
        optimizer=AdamW(learning_rate=3e-3),
        train=TrainConfig(steps=3, batch_size=8, evaluate_every=Every()),
        checkpoint=CheckpointConfig(every=Every()),
        report=ReportConfig(every=1, tensorboard=False, plots=False),
    )
'''


class Place:
    """A temporary folder with run files, and a user of this machine."""

    def __init__(self, folder: Path):
        self.folder, self.user, self.ran = folder, folder / "state", folder / "ran"
        (folder / "splits.py").write_text(SPLITS)
        (folder / "my_objective.py").write_text(OBJECTIVE)
        for name, objective in (("own", "mine.Halves(mine.After(2))"), ("loud", "Loud(volume=2)")):
            text = RUN.replace("TEXTS", repr(str(text_folder()))).replace("CACHE", repr(str(folder / "cache")))
            (folder / f"{name}.py").write_text(text.replace("OBJECTIVE", objective))

    def call(self, *command: str, user: str = "") -> tuple[int, str, list[str]]:
        """(exit code, output, names of the files that marked that they were run)."""
        self.ran.unlink(missing_ok=True)
        state = str(self.folder / user) if user else str(self.user)
        done = subprocess.run(
            [*CLI, *command], capture_output=True, text=True, timeout=240, cwd=self.folder,
            env=environment(1, XDG_STATE_HOME=state, RAN=str(self.ran), PYTHONPATH=str(ROOT)),
        )  # fmt: skip
        ran = self.ran.read_text().splitlines() if self.ran.is_file() else []
        return done.returncode, done.stdout + done.stderr, [str(Path(file).relative_to(self.folder)) for file in ran]

    def good(self, *command: str, user: str = "") -> tuple[str, list[str]]:
        code, said, ran = self.call(*command, user=user)
        assert code == 0, said
        return said, ran

    def bad(self, *command: str, user: str = "") -> tuple[str, list[str]]:
        code, said, ran = self.call(*command, user=user)
        assert code == 2 and "Traceback" not in said, said
        return said, ran


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    place = Place(tmp_path_factory.mktemp("own_code"))
    said, ran = place.good("train", "own.py", "--directory", "first")
    assert sorted(ran) == ["my_objective.py", "own.py", "splits.py"]
    return place


@pytest.fixture
def copy(place) -> Path:
    """A copy of the folder of the run, to be changed."""
    shutil.rmtree(place.folder / "copy", ignore_errors=True)
    return Path(shutil.copytree(place.folder / "first", place.folder / "copy"))


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_what_the_folder_keeps(place):
    config = json.loads((place.folder / "first" / "config.json").read_text())["objective"]
    assert config["type"] == "Halves" and config["code"]["file"] == "my_objective.py"
    assert config["border"]["type"] == "After" and config["border"]["code"] == config["code"]
    kept = sorted(path.name for path in (place.folder / "first" / "code").iterdir())
    assert kept == ["my_objective.py", "splits.py"] == sorted([config["code"]["file"], *config["code"]["loads"]])
    for name in kept:
        assert (place.folder / "first" / "code" / name).read_text() == (place.folder / name).read_text()
    listed = place.user / "t5x-like" / "code.jsonl"
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600
    digests = {json.loads(line)["sha256"] for line in listed.read_text().splitlines()}
    assert digests == {config["code"]["sha256"], config["code"]["loads"]["splits.py"]}


@pytest.mark.slow
def test_the_same_user_goes_on_without_the_file(place, copy):
    """From the copies in the folder, also in a worker process, with fields of the user's own set."""
    kept = ["copy/code/my_objective.py", "copy/code/splits.py"]
    hidden = place.folder / "hidden"
    hidden.mkdir()
    for name in ("own.py", "my_objective.py", "splits.py"):
        shutil.move(place.folder / name, hidden / name)
    try:
        said, ran = place.good("train", "copy", "train.steps=6", "data.worker_processes=1")
        assert "resuming from step 3" in said and set(ran) == set(kept)
        said, ran = place.good("eval", "copy")
        assert "at step 6" in said and sorted(ran) == kept
        assert place.good("generate", "copy", "a quick", "--max-new-tokens", "3")[1]
        assert "objective.border.tokens = 2" in place.good("inspect", "config", "copy")[0]
        assert place.good("inspect", "data", "copy")[1]
        assert "parameters" in place.good("inspect", "parameters", "copy")[0]
        assert "step 6" in place.good("inspect", "checkpoint", "copy")[0]
        assert "train.steps 3 -> 6" in " ".join(place.good("diff", "first", "copy")[0].split())
        said, _ = place.bad("train", "copy", "objective.rate=-1")
        assert "objective.rate: -1.0" in said
        said, _ = place.bad("inspect", "config", "copy", "objective.border.kind=red")
        assert "objective.border.kind: got 'red'" in said and "read | hidden" in said
        said, _ = place.good("inspect", "config", "copy", "objective.border=Middle")
        assert "objective.border = Middle" in said
    finally:
        for path in hidden.iterdir():
            shutil.move(path, place.folder / path.name)


@pytest.mark.slow
def test_the_run_file_again(place, copy):
    said, ran = place.good("train", "own.py", "--directory", "copy", "train.steps=4")
    assert "resuming from step 3" in said and "copy/code/my_objective.py" not in ran
    before = (place.folder / "splits.py").read_text()
    try:
        (place.folder / "splits.py").write_text(before + "# a remark\n")
        said, _ = place.bad("train", "own.py", "--directory", "copy", "train.steps=5")
        assert "objective.code" in said and "--accept-changed" in said
        said, _ = place.bad(
            "train", "own.py", "--directory", "copy", "train.steps=5", "--accept-changed", "my_objective.py"
        )
        assert "objective.code" in said
        place.good("train", "own.py", "--directory", "copy", "train.steps=5", "--accept-changed", "splits.py")
        assert (copy / "code" / "splits.py").read_text().endswith("# a remark\n")
    finally:
        (place.folder / "splits.py").write_text(before)


@pytest.mark.slow
def test_a_class_of_the_run_file_itself(place):
    _, ran = place.good("train", "loud.py", "--directory", "loud", "objective.volume=3")
    assert (place.folder / "loud" / "code" / "loud.py").is_file()
    said, ran = place.good("eval", "loud")
    assert sorted(ran) == ["loud/code/loud.py", "loud/code/my_objective.py", "loud/code/splits.py"]
    said, ran = place.bad("eval", "loud", user="stranger")
    assert not ran and "Loud is defined in loud.py" in said
    said, _ = place.good("diff", "loud", "first", user="stranger")
    assert "Loud -> Halves" in said


def test_a_strangers_run_runs_nothing(place, copy):
    digest = json.loads((copy / "config.json").read_text())["objective"]["code"]["sha256"]
    for command in (("train", "copy"), ("eval", "copy"), ("generate", "copy", "a"), ("inspect", "data", "copy"),
                    ("prepare", "copy")):  # fmt: skip
        said, ran = place.bad(*command, user="stranger")
        assert not ran and "objective: Halves is defined in my_objective.py" in said and digest in said
        assert "--code my_objective.py" in said
    said, ran = place.good("inspect", "config", "copy", user="stranger")
    assert not ran and "objective.border.tokens = 2" in said and f"my_objective.py {digest}" in said
    assert "step 3" in place.good("inspect", "checkpoint", "copy", user="stranger")[0]
    said, ran = place.good("diff", "copy", "first", user="stranger")
    assert not ran and "the configs are the same" in said
    assert not (place.folder / "stranger").exists()


@pytest.mark.slow
def test_the_file_given_again(place, copy):
    """By a stranger who has read it; a changed one only with a yes by its name."""
    said, ran = place.good("eval", "copy", "--code", "my_objective.py", user="stranger")
    assert sorted(ran) == ["my_objective.py", "splits.py"]
    other = place.folder / "other"
    shutil.rmtree(other, ignore_errors=True)
    other.mkdir()
    for name in ("my_objective.py", "splits.py"):
        shutil.copy(place.folder / name, other / name)
    edit(other / "my_objective.py", "tokens: int = 3", "tokens: int = 4")
    command = ("eval", "copy", "--code", "other/my_objective.py")
    said, ran = place.bad(*command, user="stranger")
    assert not ran and "is not the file that the run was trained with" in said
    said, ran = place.good(*command, "--accept-changed", "my_objective.py", user="stranger")
    assert sorted(ran) == ["other/my_objective.py", "other/splits.py"]
    edit(other / "splits.py", "// 2", "// 3")  # what it loads is checked too, before it is run
    said, ran = place.bad(*command, "--accept-changed", "my_objective.py", user="stranger")
    assert ran == ["other/my_objective.py"] and "splits.py: is not the file" in said


@pytest.mark.parametrize("name", ["my_objective.py", "splits.py"])
def test_a_changed_copy_is_not_run(place, copy, name):
    edit(copy / "code" / name, "import os", "import os  # evil")
    said, ran = place.bad("eval", "copy")
    assert f"copy/code/{name}" not in ran and "has been changed" in said
    config = json.loads((copy / "config.json").read_text())  # nor where the config is changed with it
    digest = hashlib.sha256((copy / "code" / name).read_bytes()).hexdigest()
    text = json.dumps(config)
    entry = config["objective"]["code"]
    (copy / "config.json").write_text(text.replace({entry["file"]: entry["sha256"]}.get(name, entry["loads"].get(name)),
                                                   digest))  # fmt: skip
    said, ran = place.bad("eval", "copy")
    assert f"copy/code/{name}" not in ran and "trained with no such file" in said


def test_compiled_python_beside_a_copy_is_not_read(place, copy):
    evil = place.folder / "evil.py"
    evil.write_text("raise SystemExit(3)\n")
    target = copy / "code" / "my_objective.py"
    cached = Path(importlib.util.cache_from_source(str(target)))
    py_compile.compile(str(evil), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert place.good("inspect", "config", "copy")[1] == ["copy/code/my_objective.py", "copy/code/splits.py"]


@pytest.mark.parametrize("name", ["../my_objective.py", "/tmp/x.py", "x", ".x.py", "a/b.py", "x.py\n", 5, None])
def test_file_names_with_folders_are_refused(place, copy, name):
    from t5x_like.core.errors import UserError
    from t5x_like.core.own_code import run_code

    config = json.loads((copy / "config.json").read_text())
    for entry in ({"file": name, "sha256": "0" * 64}, {"file": "x.py", "sha256": "0" * 64, "loads": {name: "0" * 64}},
                  {"file": "x.py", "sha256": name}, name):  # fmt: skip
        config["objective"]["code"] = entry
        with pytest.raises(UserError, match="the names of Python files, with digests"):
            run_code(config, copy)


def test_a_list_that_others_can_write_is_not_believed(place, copy):
    listed = place.user / "t5x-like" / "code.jsonl"
    os.chmod(listed, 0o666)
    try:
        said, ran = place.bad("eval", "copy")
        assert not ran and "can be written by others" in said
    finally:
        os.chmod(listed, 0o600)


def test_a_module_imported_by_name_cannot_be_kept(place):
    (place.folder / "plain_name.py").write_text(OBJECTIVE)
    text = (place.folder / "own.py").read_text().replace('mine = code("my_objective.py")', "import plain_name as mine")
    (place.folder / "imports.py").write_text(text)
    said, _ = place.bad("train", "imports.py", "--directory", "never")
    assert "imported by name" in said and 'code("plain_name.py")' in said
    assert not (place.folder / "never").exists()


def test_the_example_of_the_documentation_is_checked_and_makes_examples(place, tmp_path):
    blocks = re.findall(r"```py\n# (\w+\.py)\n(.*?)```", (ROOT / "docs" / "own_code.md").read_text(), re.S)
    assert [name for name, _ in blocks] == ["my_objective.py", "my_run.py"]
    shutil.copytree(text_folder(), tmp_path / "texts")
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    other = Place.__new__(Place)
    other.folder, other.user, other.ran = tmp_path, place.user, place.ran
    cache = f"data.cache={place.folder / 'cache'}"
    assert "objective.read = 4" in other.good("inspect", "config", "my_run.py", "objective.read=4")[0]
    assert other.good("inspect", "data", "my_run.py", cache)[0]
    assert "objective.read: -1" in other.bad("inspect", "config", "my_run.py", "objective.read=-1")[0]


def test_two_files_of_one_name_are_refused(place):
    nested = place.folder / "nested"
    nested.mkdir()
    (nested / "splits.py").write_text(SPLITS + "# another\n")
    text = (place.folder / "my_objective.py").read_text()
    (place.folder / "twice.py").write_text(text + 'others = code("nested/splits.py")\n')
    edited = (place.folder / "own.py").read_text().replace("my_objective.py", "twice.py")
    (place.folder / "two.py").write_text(edited)
    said, _ = place.bad("train", "two.py", "--directory", "never")
    assert "has the name of" in said and not (place.folder / "never").exists()
