"""Writes mistakes.md, typical mistakes and what is printed of each: ``python docs/mistakes_page.py`` (a minute).

``--check N`` makes N of them again, drawn by a fixed seed, and compares with the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shlex
import signal
import sys
import tempfile
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "COLUMNS": "100"}

from t5x_like.cli.main import main  # noqa: E402, after the environment that JAX reads
from t5x_like.core.loading import PACKAGE  # noqa: E402

SECONDS = 120  # for one command: what is no mistake would train on
PAGE = Path(__file__).resolve().with_name("mistakes.md")
HEAD = """\
# Typical mistakes, and what is printed

Made by `docs/mistakes_page.py`, which makes each mistake and notes what is printed; a test makes some of them again.
All end with exit code 2 before anything is changed. `my_run.py` is a small run on the CPU, `done` the folder of two
steps of it.
"""

RUN = """\
from dataclasses import dataclass
from t5x_like.config import *


def run():
    corpus = Corpus("mine", TextFiles(("texts",)), Bytes(), "none", "made up", heldout=0.0)
    return Run(
        name="mine",
        model=llama(vocab_size=264, d_model=16, d_ff=32, heads=4, head_dim=8, kv_heads=4, decoder_layers=1),
        objective=Autoregressive(),
        data=DataConfig(corpus, input_length=32, cache="cache"),
        optimizer=AdamW(learning_rate=3e-3),
        train=TrainConfig(steps=2, batch_size=8),
        report=ReportConfig(tensorboard=False, plots=False),
    )
"""

# What is wrong: what follows "t5x-like train my_run.py".
FIELDS = {
    "a field misspelled": "optimizer.lerning_rate=1e-3",
    "a field without its place": "learning_rate=1e-3",
    "a field under another class": "optimizer.momentum=0.9",
    "a pattern that matches nothing": "model.*.hedas=2",
    "a field of a field that has none": "train.steps.more=1",
    "no equals sign": "train.steps",
    "a word for a number": "train.steps=many",
    "a fraction for a whole number": "train.steps=1.5",
    "no steps": "train.steps=0",
    "a negative number": "train.batch_size=-8",
    "more than a counter holds": "train.steps=1e12",
    "a seed below 0": "train.seed=-1",
    "not a number": "optimizer.learning_rate=nan",
    "infinity": "optimizer.learning_rate=inf",
    "a word for a rate": "optimizer.learning_rate=fast",
    "a share above 1": "train.label_smoothing=1.5",
    "yes or no": "report.plots=maybe",
    "a class misspelled": "optimizer=AdamWW",
    "a class of another kind": "optimizer=SpanCorruption",
    "an optimizer that optax does not have": "optimizer=Optax optimizer.name=adamm",
    "a class without its fields": "data.corpus.source=JsonLines",
    "a word misspelled": "optimizer.schedule.kind=cosinus",
    "a warm-up longer than the run": "optimizer.schedule.kind=cosine optimizer.schedule.warmup=900",
    "a pattern of weights that matches none": "optimizer.frozen=no_such_weight",
    "an objective that the model cannot have": "objective=MaskedLM",
    "an objective misspelled": "objective=SpanCorruptoin",
    "fewer ids than the tokenizer has": "model.vocab_size=100",
    "a dtype that is not offered": "model.dtype=float16",
    "positions misspelled": "model.decoder.positions=Ropee",
    "key heads that do not divide": "model.*.kv_heads=3",
    "a kernel for another device": "model.attention_backend=tpu",
    "a mesh larger than the machine": "mesh.data=3",
    "two sizes left open": "mesh.fsdp=-1",
    "micro-batches that do not divide": "train.micro_batches=3",
    "a length of 0": "data.input_length=0",
    "packing misspelled": "data.packing=best",
    "text that is not there": "data.corpus.source.paths=/no/such/folder",
    "an empty file": "data.corpus.source.paths=empty.txt",
    "text that is not UTF-8": "data.corpus.source.paths=latin1.txt",
    "documents misspelled": "data.corpus.source.documents=sentence",
    "a corpus file that is not there": "data.corpus=no_corpus.py",
    "a tokenizer that is not there": "data.corpus.tokenizer=SentencePiece data.corpus.tokenizer.path=no.model",
    "a field that bytes do not have": "data.corpus.tokenizer.sentinels=5",
    "a share of held-out text": "data.corpus.heldout=1.5",
    "nothing between two commas": "optimizer.no_decay=scale,,bias",
    "an evaluation that is not there": "evaluations.3.name=mine",
    "an evaluation misspelled": "evaluations=Heldout",
    "local saves to a relative folder": "checkpoint.local.directory=saves",
}
# What is wrong: (text of the run file, what stands there instead).
FILES = {
    "a syntax error": ("        optimizer=AdamW", "        optimizer=(AdamW"),
    "a module that is not installed": ("\n\n\ndef run", "\nimport numpyy\n\n\ndef run"),
    "a name misspelled in an import": ("import *", "import *\nfrom t5x_like.config import AdamWW"),
    "a name misspelled": ("AdamW(", "AdanW("),
    "a field misspelled in the run file": ("learning_rate=", "lerning_rate="),
    "a value of another type": ("learning_rate=3e-3", "learning_rate='fast'"),
    "a part of another class": ("optimizer=AdamW(learning_rate=3e-3)", "optimizer=Autoregressive()"),
    "a field that must be given": ("steps=2, ", ""),
    "an exception in run()": ("    return Run(", "    size = 1 / 0\n    return Run("),
    "run() that returns nothing": ("    return Run(", "    Run("),
    "no run()": ("def run()", "def make()"),
    "a class of one's own that is no dataclass": (
        "\n\n\ndef run", "\n\n\nclass Mine(AdamW):\n    more: float = 1.0\n\n\noptimizer = Mine()\n\n\ndef run"
    ),
}  # fmt: skip
# What is wrong: the command.
COMMANDS = {
    "a run file that is not there": "train t5_sotuu",
    "a folder that is none of a run": "eval texts",
    "a checkpoint that is not there": "eval done --step 7",
    "a checkpoint to keep that is not there": "checkpoint prune done --keep 7",
    "an average of nothing": "checkpoint average done --last 1 --output mean",
    "nothing held out": "eval done",
    "another run in the folder": "train my_run.py --directory done train.seed=1",
    "no checkpoint as old as one goes back": "train done --rewind 9",
    "a run to begin from that is not there": "train my_run.py --directory new start.from=dome",
    "a run to begin from with other parameters": "train my_run.py --directory new start.from=done model.d_model=8",
    "a step that the run has not made": "explain done --step 99",
    "a folder below a file": "train my_run.py --directory empty.txt/run",
    "a config.json that is cut off": "inspect config torn",
    "a temperature below 0": "generate done hello --temperature -1",
    "a batch of no rows": "inspect data my_run.py --rows -1",
    "a report of a folder that is none of a run": "report texts",
    "curves of one run": "diff done my_run.py --plot curves.png",
    "a vocabulary too small": "tokenizer train texts --output my.model --vocab-size 100",
    "a tokenizer to show that is not there": "tokenizer show no.model",
}


def commands() -> dict[str, str]:
    """The mistakes by name: their commands, as one types them."""
    lines = {name: f"train my_run.py {shlex.join(shlex.split(more))}" for name, more in FIELDS.items()}
    return lines | {name: f"train {_file(name)}" for name in FILES} | COMMANDS


def _file(name: str) -> str:
    return re.sub(r"\W+", "_", name) + ".py"


def prepare(folder: Path) -> None:
    """The files that the commands name; the current folder is ``folder`` from now on."""
    os.chdir(folder)
    for number in range(10):
        Path("texts").mkdir(exist_ok=True)
        Path(f"texts/{number}.txt").write_text(f"a quick brown fox jumps over {number} lazy dogs and goes home. " * 4)
    Path("empty.txt").touch()
    Path("latin1.txt").write_bytes(b"caf\xe9 au lait " * 20)
    Path("my_run.py").write_text(RUN)
    for name, (old, new) in FILES.items():
        Path(_file(name)).write_text(RUN.replace(old, new))
    code, said = _quiet("train my_run.py --directory done")
    if code:
        raise SystemExit(said)
    Path("torn").mkdir()
    Path("torn/config.json").write_text(Path("done/config.json").read_text()[:100])


def _quiet(line: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(line))
    return code, err.getvalue()


def printed(line: str) -> str:
    """What a mistake prints, from ``error:`` on, with paths as seen from the current folder."""
    signal.alarm(SECONDS)
    code, said = _quiet(line)
    signal.alarm(0)
    if code != 2 or "error: " not in said:
        raise SystemExit(f"t5x-like {line}: exit code {code}, no mistake\n{said}")
    said = said[said.index("error: ") :].strip().replace(f"{PACKAGE.parent}/", "").replace(f"{Path.cwd()}/", "")
    return said.replace(str(Path.cwd()), "the current folder")


def row(name: str, line: str) -> str:
    lines = [each.replace("|", "\\|") for each in printed(line).splitlines()]
    said = "<br>".join(f"``{each.strip()}``" if "`" in each else f"`{each.strip()}`" for each in lines)
    return f"| {name} | `{line}` | {said} |"


def page() -> str:
    rows = [row(name, line) for name, line in commands().items()]
    table = ["| mistake | `t5x-like ...` | printed |", "|---|---|---|", *rows]
    return "\n".join([HEAD, f"{len(rows)} of them:", "", *table, ""])


def check(number: int) -> None:
    """Raises SystemExit unless ``number`` drawn mistakes stand in the page as they are printed now."""
    there, drawn = PAGE.read_text(encoding="utf-8").splitlines(), random.Random(0).sample(sorted(commands()), number)
    for name in drawn:
        if (now := row(name, commands()[name])) not in there:
            raise SystemExit(f"{PAGE} is out of date (python {__file__}): now\n{now}")


if __name__ == "__main__":
    place = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary).resolve())
        if sys.argv[1:2] == ["--check"]:
            check(int(sys.argv[2]))
        else:
            PAGE.write_text(page(), encoding="utf-8")
            print(PAGE)
        os.chdir(place)
