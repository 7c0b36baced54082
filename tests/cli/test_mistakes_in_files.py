"""A mistake in a run file or in a class of one's own names file, line and the nearest right name, with exit code 2 and
no traceback."""

from __future__ import annotations

import pytest
from tiny_runs import scratch, text_folder

from t5x_like.cli.main import main

FILE = """\
from dataclasses import dataclass
from t5x_like.config import *
{top}

@dataclass(frozen=True)
class Mine(Autoregressive):
    {method}


def run():
    corpus = Corpus("mine", TextFiles((TEXTS,)), Bytes(), "none", "made up", heldout=0.0)
    {first}
    return Run(
        name="mine",
        model=llama(vocab_size=264, d_model=16, d_ff=32, heads=4, head_dim=8, kv_heads=4, decoder_layers=1),
        objective={objective},
        data=DataConfig(corpus, input_length=32, cache=CACHE),
        optimizer={optimizer},
        train=TrainConfig(steps=1, batch_size=8),
        report=ReportConfig(tensorboard=False, plots=False),
    )
"""
GOOD = {"top": "", "method": "volume: float = 1.0", "first": "pass", "objective": "Mine()", "optimizer": "AdamW()"}

# Name to (what is written instead, words of the message; LINE stands for the line in the file).
MISTAKES = {
    "syntax": ({"first": "x = = 5"}, [", line 12: invalid syntax: x = = 5"]),
    "indentation": ({"first": "pass\n  x = 5"}, [", line 13: ", "x = 5"]),
    "open bracket": ({"top": "x = (1,"}, ["was never closed"]),
    "no such module": (
        {"top": "import numpyy"}, [", line 3: ModuleNotFoundError: No module named 'numpyy'", "pip install numpyy"]
    ),
    "no such module of a package": (
        {"top": "import t5x_like.optm"}, ["ModuleNotFoundError", "a module of t5x_like", "did you mean 'optim'?"]
    ),
    "a file beside": ({"top": "import corpus"}, [", line 3: ModuleNotFoundError: ", 'corpus = code("corpus.py")']),
    "no such name to import": (
        {"top": "from t5x_like.config import AdamWW"},
        [", line 3: ImportError: cannot import name 'AdamWW'", "did you mean 'AdamW'?"],
    ),
    "misspelled name": ({"optimizer": "AdanW()"}, [", line 18: NameError: name 'AdanW'", "did you mean 'AdamW'?"]),
    "misspelled field": (
        {"optimizer": "AdamW(lerning_rate=1.0)"},
        [", line 18: TypeError: ", "'lerning_rate'", "did you mean 'learning_rate'?", "allowed: AdamW(learning_rate, "],
    ),
    "misspelled argument": (
        {"first": "llama(heds=5)"}, ["heds: no such field of a model", "at: ", ", line 12: ", "did you mean 'heads'?"]
    ),
    "wrong type": ({"optimizer": "AdamW('fast')"}, ["optimizer.learning_rate: got 'fast'", "at: ", ", line 18: "]),
    "out of range": ({"optimizer": "AdamW(b1=2.0)"}, ["optimizer.b1: ", "2.0", ", line 18: "]),
    "wrong kind": ({"objective": "AdamW()"}, ["objective: got AdamW", "Autoregressive | ", ", line 13: "]),
    "not a dataclass": (
        {"top": "class Bare(AdamW):\n    x: int = 1", "optimizer": "Bare()"}, ["Bare: is no dataclass", ", line 19: "]
    ),
    "missing field": ({"first": "TrainConfig(steps=5)"}, [", line 12: ", "missing 1 required", "'batch_size'"]),
    "in run()": ({"first": "1 / 0"}, [", line 12: ZeroDivisionError: division by zero"]),
    "at the top": ({"top": "1 / 0"}, [", line 3: ZeroDivisionError"]),
    "leaving": ({"top": "raise SystemExit(3)"}, [", line 3: SystemExit: 3"]),
    "for ever": ({"top": "def f(): f()\nf()"}, [", line 3: RecursionError"]),
    "in a corpus file": (
        {"first": "recipe('corpus.py')"}, ["corpus.py, line 2: ValueError: no text", "mine.py, line 12: recipe("]
    ),
    "in a file beside": ({"top": "code('corpus.py').corpus()"}, ["corpus.py, line 2: ValueError: no text"]),
    "in a class of one's own": (
        {"method": "def example(self, tokens, rng, tokenizer):\n        return [].first"},
        [", line 8: AttributeError: 'list' object has no attribute 'first'"],
    ),
    "in compiled code": (
        {"top": "import jax.numpy as jnp\n\n@dataclass(frozen=True)\nclass Half(OptimizerConfig):\n"
                "    def transformation(self, *a, **k):\n        return jnp.zeros(3) + jnp.zeros(4)",
         "optimizer": "Half()"},
        [", line 8: TypeError: ", "(3,)"],
    ),
}  # fmt: skip


def write(folder, **changed: str) -> str:
    text = FILE.format(**GOOD | changed).replace("TEXTS", repr(str(text_folder())))
    (folder / "mine.py").write_text(text.replace("CACHE", repr(str(scratch() / "cache"))))
    (folder / "corpus.py").write_text("def corpus():\n    raise ValueError('no text')\n")
    return str(folder / "mine.py")


def test_the_file_without_a_mistake(tmp_path):
    assert main(["inspect", "config", write(tmp_path)]) == 0


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name, tmp_path, capsys):
    changed, said = MISTAKES[name]
    assert main(["train", write(tmp_path, **changed), "--directory", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    message = error[error.index("error: ") :]
    assert "Traceback" not in error and str(tmp_path) in message and len(message.splitlines()) < 12
    for words in said:
        assert words in message, message


@pytest.mark.slow
def test_a_mistake_in_a_worker_process(tmp_path, capsys):
    changed, said = MISTAKES["in a class of one's own"]
    folder = str(tmp_path / "run")
    assert main(["train", write(tmp_path, **changed), "--directory", folder, "data.worker_processes=1"]) == 2
    error = capsys.readouterr().err
    assert said[0] in error and "Traceback" not in error and error.count("  at: ") == 1


def test_all_of_it_for_those_who_ask(tmp_path, capsys):
    assert main(["inspect", "config", write(tmp_path, first="1 / 0"), "--traceback"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and "1 / 0" in error and "error: " in error


HARDLY = [b"\xff\xfe", b"x = 1\0", b"def run(a):\n    return a", b"def run(): yield 5", b"run = dict", b""]


@pytest.mark.parametrize("content", HARDLY)
def test_files_that_are_hardly_python(content, tmp_path, capsys):
    file = tmp_path / "bad.py"
    file.write_bytes(content)
    assert main(["inspect", "config", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}") and "Traceback" not in error


def test_a_fault_of_ours_stays_one(tmp_path, capsys, monkeypatch):
    def fail(options):
        raise ValueError("ours")

    monkeypatch.setattr("t5x_like.cli.commands.inspect", fail)
    assert main(["inspect", "config", write(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err
