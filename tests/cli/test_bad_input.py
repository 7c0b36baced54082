"""A user's mistake ends at once with one message that names field or file, what was found and what would be right, with
exit code 2 and without a traceback; and a run that is there already stays as it is."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_runs import CLI, ROOT, digests, environment, run_file, text_folder, tiny_run

from t5x_like.cli.main import main
from t5x_like.core.config import to_json
from t5x_like.core.loading import load_run
from t5x_like.train.config import Run


@pytest.fixture(scope="module")
def config() -> str:
    return run_file(tiny_run("llama", "train.steps=2"), "good")


@pytest.fixture(scope="module")
def existing(tmp_path_factory, config, quick_compiling) -> Path:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("bad") / "run"
    assert main(["train", config, "--directory", str(folder)]) == 0
    return folder


def message(capsys, *arguments: str) -> str:
    """What the command line says to ``arguments``, which must be one plain message with exit code 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err + captured.out and len(captured.err.splitlines()) < 40
    return captured.err


def mistakes(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Name to (assignments after a good config, what the message must say). ``folder`` has a few bad files."""
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes(b"caf\xe9 au lait " * 20)
    (folder / "not.model").write_text("no model")
    path = "data.corpus.source.paths"
    return {
        "missing corpus": ([f"{path}=/no/such/folder"], [f"{path}: nothing at '/no/such/folder'", "allowed: a file"]),
        "empty file": ([f"{path}={folder}/empty.txt"], [f"{folder}/empty.txt: an empty file", "one document or more"]),
        "not UTF-8": ([f"{path}={folder}/latin.txt"], [f"{folder}/latin.txt: not UTF-8 at byte 3", "iconv"]),
        "vocabulary": (["model.vocab_size=100"], ["model.vocab_size: 100, but the tokenizer", "259 or more", "=384"]),
        "no tokenizer": (
            ["model.vocab_size=8192", "data.corpus.tokenizer=SentencePiece", "data.corpus.tokenizer.path=/no.model"],
            ["data.corpus.tokenizer.path: no file /no.model"],
        ),
        "not a tokenizer": (
            ["model.vocab_size=8192", "data.corpus.tokenizer=SentencePiece",
             f"data.corpus.tokenizer.path={folder}/not.model"],
            [f"{folder}/not.model is not a SentencePiece model"],
        ),
        "mesh": (["mesh.data=3"], ["mesh: data 3, fsdp 1, tensor 1 does not divide 8 devices", "1, 2, 4, 8"]),
        "mesh rest": (["mesh.fsdp=3"], ["mesh: data -1, fsdp 3, tensor 1 does not divide 8 devices"]),
        "mesh twice": (["mesh.fsdp=-1"], ["mesh: got -1 more than once"]),
        "kv_heads": (["model.*.kv_heads=3"], ["model.kv_heads: 3 does not divide model.heads = 4", "one of 1, 2, 4"]),
        "tensor": (["mesh.tensor=8"], ["model.heads: 4, which the 8 parts of axis 'heads'", "a multiple of 8"]),
        "tensor and kv_heads": (["model.*.kv_heads=2", "mesh.tensor=4"], ["model.kv_heads: 2, which the 4 parts"]),
        "kernels": (
            ["model.attention_backend=tpu"], ["model.attention_backend: got tpu on cpu", "allowed: auto, xla"],
        ),
        "batch": (["train.batch_size=12"], ["train.batch_size: 12 rows", "among 8 devices", "train.batch_size=16"]),
        "micro-batches": (["train.micro_batches=3"], ["train.micro_batches: 3 does not divide", "a divisor"]),
        "unknown field": (
            ["optimizer.lerning_rate=1"],
            ["optimizer.lerning_rate: no such field", "did you mean 'optimizer.learning_rate'?"],
        ),
        "unknown field, elsewhere": (["learning_rate=1"], ["did you mean 'optimizer.learning_rate'?"]),
        "not a number": (["train.steps=many"], ["train.steps: got 'many'", "allowed: a whole number"]),
        "half a step": (["train.steps=1.5"], ["train.steps: got '1.5'", "a whole number"]),
        "no steps": (["train.steps=0"], ["train.steps: got '0'", "1 or more"]),
        "times": (["checkpoint.every=often"], ["checkpoint.every: got 'often'", "fields of Every: steps, share, end"]),
        "wrong word": (
            ["model.decoder.positions=Ropee"],
            ["model.decoder.positions: got 'Ropee'", "Rope | T5Relative | Alibi", "did you mean 'Rope'?"],
        ),
        "wrong class": (["optimizer=AdamWW"], ["optimizer: got 'AdamWW'", "Adafactor | AdamW", "'AdamW'"]),
        "objective": (["objective=MaskedLM"], ["objective: MaskedLM cannot train a model of shape decoder-only"]),
        "warm-up": (
            ["optimizer.schedule.kind=cosine", "optimizer.schedule.warmup=9"], ["optimizer.schedule.warmup: 9 steps"],
        ),
        "pattern": (["optimizer.frozen=no_such_weight"], ["optimizer.frozen", "no_such_weight"]),
        "wandb": (["report.wandb=project", "train.steps=3"], ["report.wandb", "pip install wandb"]),
    }  # fmt: skip


NAMES = sorted(mistakes(text_folder().parent))


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_named_and_nothing_is_lost(name, config, existing, tmp_path, capsys):
    if name == "wandb" and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    assignments, said = mistakes(tmp_path)[name]
    before = digests(existing)
    for folder in (tmp_path / "new", existing):
        error = message(capsys, "train", config, *assignments, "--directory", str(folder))
        if folder != existing or "cannot continue" not in error:
            for words in said:
                assert words in error, error
    assert digests(existing) == before
    assert not (tmp_path / "new" / "metrics.jsonl").exists()


def test_a_tokenizer_larger_than_the_model_is_found_when_its_file_is_read(tmp_path, capsys):
    """Where the config leaves the size of the vocabulary to the file (0)."""
    model = tmp_path / "my.model"
    command = ["tokenizer", "train", str(text_folder()), "--output", str(model), "--vocab-size", "420"]
    assert main([*command, "--model", "bpe"]) == 0
    tokenizer = "data.corpus.tokenizer"
    assignments = ["model.vocab_size=8192", f"{tokenizer}=SentencePiece", f"{tokenizer}.path={model}",
                   f"{tokenizer}.vocab_size=0", "model.vocab_size=400"]  # fmt: skip
    error = message(
        capsys, "train", run_file(tiny_run("llama")), "--directory", str(tmp_path / "run"), *assignments
    )
    assert "model.vocab_size: 400, but the tokenizer has 420 ids" in error and "try: 512" in error


def test_a_checkpoint_of_another_model(existing, tmp_path, capsys):
    other = run_file(tiny_run("llama", "train.steps=3", "model.*.width=64", "model.*.qk_norm=RMSNorm"))
    folder = Path(shutil.copytree(existing, tmp_path / "run"))
    (folder / "config.json").write_text(to_json(load_run(other, Run)))
    before = digests(folder)
    for command in (["train", other, "--directory"], ["eval"], ["generate"]):
        prompt = ["a"] if command == ["generate"] else []
        error = message(capsys, *command, str(folder), *prompt)
        assert "checkpoint of step 2" in error and "is of another model" in error
        assert "down/kernel: (1, 32, 16) in the checkpoint, (1, 64, 16) wanted" in error
        assert "not in the checkpoint" in error and "query_norm/scale" in error
    assert digests(folder) == before


def test_a_directory_that_cannot_be_written(config, tmp_path, capsys):
    """Below a regular file, since tests may run as root, who can write everywhere else."""
    (tmp_path / "file").write_text("precious")
    for below in ("file", "file/run"):
        error = message(capsys, "train", config, "--directory", str(tmp_path / below))
        assert str(tmp_path / below) in error and "cannot be written" in error
    assert (tmp_path / "file").read_text() == "precious"


def test_a_config_json_with_an_unknown_field(existing, tmp_path, config, capsys):
    folder = Path(shutil.copytree(existing, tmp_path / "run"))
    plain = json.loads((folder / "config.json").read_text())
    plain["optimizer"]["momentum"] = 0.5
    plain["evaluations"][0]["often"] = True
    (folder / "config.json").write_text(json.dumps(plain))
    before = digests(folder)
    error = message(capsys, "train", config, "train.steps=3", "--directory", str(folder))
    assert "optimizer.momentum: is 0.5 in " in error and "no field of this version" in error
    assert main(["train", str(folder)]) == 2
    assert "\nerror: optimizer.momentum: is 0.5 in " in capsys.readouterr().err
    for command in (["generate", str(folder), "a"], ["diff", str(folder), config], ["inspect", "config", str(folder)],
                    ["inspect", "checkpoint", str(folder)]):  # fmt: skip
        capsys.readouterr()
        assert main(command) == 0
        shown = capsys.readouterr()
        assert shown.err.count("note: optimizer.momentum is 0.5 in ") == 1 and "momentum" not in shown.out
        assert "note: evaluations.0.often is True in " in shown.err
    assert digests(folder) == before
    plain["optimizer"].pop("momentum"), plain["evaluations"][0].pop("often")
    plain["report"]["sound"] = "bell"  # changes nothing that is computed
    (folder / "config.json").write_text(json.dumps(plain))
    assert main(["train", config, "train.steps=3", "--directory", str(folder)]) == 0
    assert "sound" not in (folder / "config.json").read_text()
    (folder / "config.json").write_text("{ not json")  # torn: the checkpoint has it too
    capsys.readouterr()
    assert main(["eval", str(folder)]) == 2
    note, error = capsys.readouterr().err.split("\n", 1)
    assert "is not JSON: " in note and note.endswith("; using the config in checkpoint 3")
    assert error.startswith("error: ") and "is 0: no text is held out" in error
    shutil.rmtree(folder / "checkpoints")
    assert f"{folder / 'config.json'}: is not JSON" in message(capsys, "eval", str(folder))


def test_what_is_not_there(existing, tmp_path, capsys, monkeypatch):
    error = message(capsys, "train", "t5_sotuu")
    assert "no run file 't5_sotuu'" in error and "did you mean 't5_sotu'?" in error
    assert "no run file" in message(capsys, "inspect", "config", str(tmp_path / "none.py"))
    for command in (["eval"], ["generate"], ["inspect", "checkpoint"]):
        arguments = [*command, str(tmp_path), *(["a prompt"] if command == ["generate"] else [])]
        assert f"{tmp_path}: is not the folder of a run" in message(capsys, *arguments)
    error = message(capsys, "eval", str(existing), "--step", "7")
    assert "there is none of step 7" in error and "step 2" in error
    assert "is 0: no text is held out" in message(capsys, "eval", str(existing))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    assert "prompt: is empty" in message(capsys, "generate", str(existing))
    assert "--plot: needs two folders" in message(
        capsys, "diff", str(existing), run_file(tiny_run("bert")), "--plot", str(tmp_path / "x.png")
    )
    assert "temperature: got -1.0" in message(capsys, "generate", str(existing), "a", "--temperature", "-1")


def test_run_files_that_are_none(tmp_path, capsys):
    (tmp_path / "nothing.py").write_text("x = 1\n")
    (tmp_path / "number.py").write_text("def run():\n    return 5\n")
    (tmp_path / "text.py").write_text("def run():\n    return open\n")
    assert "has no function run()" in message(capsys, "train", str(tmp_path / "nothing.py"))
    assert "run() returned a int" in message(capsys, "train", str(tmp_path / "number.py"))


def test_numbers_and_texts_of_inspection(config, capsys):
    for devices in ("0", "-2"):
        said = message(capsys, "inspect", "parameters", config, "--devices", devices)
        assert f"--devices: got {devices}" in said and "1 or more" in said
    assert "--step: got 9223372036854775808" in message(capsys, "inspect", "data", config, "--step", str(2**63))
    assert "text: is not UTF-8: 'a\\udc80'" in message(capsys, "tokenizer", "show", "bytes", "a\udc80")


def test_a_directory_of_too_long_a_name(config, capsys):
    assert "File name too long" in message(capsys, "train", config, "--directory", "x" * 300)


def test_rows_longer_than_any_memory(config, capsys):
    said = message(capsys, "train", config, "data.input_length=1_000_000_000")
    assert said.startswith("error: data.input_length: 1,000,000,000 columns; a step needs about ")


def test_a_range_of_batches_beyond_any_number(config, capsys):
    assert message(capsys, "inspect", "config", config, "data.skip=1:" + "9" * 5000).startswith("error: data.skip: ")


def test_words_that_are_no_arguments(config, capsys):
    for wrong in (["train"], ["trian", config], ["train", config, "--stepps", "3"], ["generate", "run", "--top", "x"]):
        with pytest.raises(SystemExit) as exit:
            main(wrong)
        assert exit.value.code == 2
        assert "usage: t5x-like" in capsys.readouterr().err
    assert "is not an assignment" in message(capsys, "train", config, "train.steps")


def test_a_traceback_only_for_those_who_ask(config, tmp_path, capsys):
    arguments = ["train", config, "--directory", str(tmp_path / "run"), "mesh.data=3"]
    message(capsys, *arguments)
    assert main([*arguments, "--traceback"]) == 2
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error and "sharding/config.py" in error
    assert error.rstrip().splitlines()[-3].startswith("error: mesh: data 3")


@pytest.mark.slow
def test_as_a_real_process(existing, config, tmp_path):
    before = digests(existing)
    for assignments, said in (
        (["data.corpus.source.paths=/no/such/folder"], "nothing at '/no/such/folder'"),
        (["model.*.heads=5"], "model.kv_heads: 4 does not divide model.heads = 5"),
    ):
        command = [*CLI, "train", config, *assignments, "--directory", str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(1), cwd=ROOT, timeout=60)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
        assert done.stderr.startswith("error: ") and not done.stdout.strip()
    assert digests(existing) == before
