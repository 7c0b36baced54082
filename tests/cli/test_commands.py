"""Every command for real on a tiny run, its output held against values computed another way; and what a run's folder
holds."""

from __future__ import annotations

import io
import json
import math
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from flax import nnx
from tiny_runs import checkpoint, digests, losses, program, rows, run_file, saved_steps, text_folder, tiny_run

from t5x_like import __version__
from t5x_like.arrays.trees import flatten, unflatten
from t5x_like.cli.main import main
from t5x_like.core.config import flatten as flatten_config
from t5x_like.core.config import from_json, to_json
from t5x_like.core.spelling import spell
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer
from t5x_like.report.ledger import read_starts
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.setup import make_setup

HELD_OUT = ("data.corpus.heldout=0.4", "train.steps=6", "train.evaluate_every.steps=4", "checkpoint.every.steps=3")
WRITTEN = ("report.tensorboard=true", "report.plots=true", "report.every=2")


def config_of(kind: str, *more: str) -> Run:
    return tiny_run(kind, *HELD_OUT, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compiling) -> Path:
    """The folder of a finished run; no test changes it."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    command = ["train", run_file(config_of("llama", *WRITTEN), "finished"), "--directory", str(folder)]
    assert main(command) == 0
    return folder


def png_size(path: Path) -> tuple[int, int]:
    """(width, height) of a PNG; raises for anything else."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def params_of(folder: Path, step: int | None = None) -> dict:
    arrays = checkpoint(folder, step)
    return unflatten({path: jnp.asarray(a) for path, a in arrays.items() if path.startswith("params/")})["params"]


def logits_of(folder: Path, step: int | None = None):
    """batch -> logits of a checkpoint's model."""
    run = from_json(Run, (folder / "config.json").read_text())
    structure, params = make_setup(run).structure, params_of(folder, step)
    compiled = jax.jit(lambda params, batch: nnx.merge(structure, params).logits(batch))
    return lambda batch: np.asarray(compiled(params, {name: jnp.asarray(array) for name, array in batch.items()}))


# The folder of a run


def test_what_a_run_leaves(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.json", "ledger", "metrics.jsonl", "tensorboard", "checkpoints", "curves.png"
    }  # fmt: skip
    wanted = config_of("llama", *WRITTEN)
    assert from_json(Run, (finished / "config.json").read_text()) == wanted
    (start,) = read_starts(finished)
    assert start["step"] == 0 and start["devices"].endswith("cpu") and start["command"]
    assert start["versions"]["t5x_like"] == __version__
    assert set(start["versions"]) >= {"jax", "tensorstore", "python"}
    assert sorted(losses(finished)) == [2, 4, 6] and sorted(rows(finished, "held_out")) == [4, 6]
    assert saved_steps(finished) == [3, 6]
    width, height = png_size(finished / "curves.png")
    assert width > 300 and height > 200
    (events,) = (finished / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"brain.Event" in content and b"train/loss" in content and b"held_out/loss" in content


def test_a_run_says_what_it_is_and_what_to_do_next(tmp_path, capsys):
    assert main(["train", run_file(config_of("llama")), "--directory", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    count = sum(spec.size for spec in flatten(make_setup(config_of("llama")).specs).values())
    assert f"({count:,})" in out and "decoder-only, 1 layers of width 16" in out
    assert "held-out loss" in out and "tiny_llama: complete" in out and "where the time went" in out
    assert f"next\n  {program()} eval {tmp_path / 'run'}\n" in out
    sample = out[out.index("a held-out text") : out.index("\nnext")].splitlines()
    assert [line.split()[0] for line in sample[1:] if line.strip()] == ["given", "model", "truth"]
    held_out = Data.open(config_of("llama")).held_out_split
    text = " ".join(ByteTokenizer().decode(held_out.tokens.tolist()).split())
    assert " ".join(sample[1].split()[1:]) in text


def test_next_commands_are_such_that_work(tmp_path, capsys):
    for kind, more, wanted in (("llama", (), {"generate", "inspect"}), ("bert", (), {"inspect"}),
                               ("bert", HELD_OUT, {"eval", "inspect"})):  # fmt: skip
        folder = tmp_path / f"{kind}{len(more)}"
        command = ["train", run_file(tiny_run(kind, *more, "train.steps=1")), "--directory", str(folder)]
        for _ in range(2):  # also of a run that is complete already
            assert main(command) == 0
            lines = [line.split(" ") for line in capsys.readouterr().out.split("\nnext\n")[1].splitlines()]
            commands = [line[2 + len(program().split(" ")) :] for line in lines]
            assert {words[0] for words in commands} == wanted
    assert main([word.strip("'") for word in commands[0]]) == 0


# Commands


def test_eval_prints_the_mean_over_the_held_out_split(finished, capsys):
    data = Data.open(config_of("llama"))
    for step in (6, 3):
        model, nll, correct, targets = logits_of(finished, step), 0.0, 0, 0
        for batch in data.held_out.heldout_batches():
            logits = model(batch).astype(np.float64)
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            of_target = np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
            nll -= (of_target * batch["weights"]).sum()
            correct += ((log_p.argmax(-1) == batch["targets"]) * batch["weights"]).sum()
            targets += int(batch["weights"].sum())
        before = digests(finished)
        assert main(["eval", str(finished), "--step", str(step), "mesh.fsdp=2"]) == 0
        assert digests(finished) == before
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == [str(finished), "at", "step", str(step)]
        found = {words[1]: float(words[2].replace(",", "")) for words in lines[1:]}
        assert found["loss"] == pytest.approx(nll / targets, abs=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(nll / targets), rel=1e-3)
        assert found["accuracy"] == pytest.approx(correct / targets, abs=1e-4)
        assert found["targets"] == targets
        if step == 6:  # what the loop has measured itself
            assert found["loss"] == pytest.approx(rows(finished, "held_out")[6]["held_out/loss"], abs=1e-4)


def greedy(folder: Path, text: str, new: int) -> str:
    model, tokenizer = logits_of(folder), ByteTokenizer()
    prompt, written = tokenizer.encode(text), []
    for _ in range(new):
        row = np.zeros((1, 32), np.int32)
        row[0, : 1 + len(prompt) + len(written)] = [0, *prompt, *written]
        token = int(np.argmax(model({"decoder_tokens": row})[0, len(prompt) + len(written)]))
        if token == tokenizer.eos_id:
            break
        written.append(token)
    return tokenizer.decode(written)


def test_generate_writes_the_most_likely_text(finished, capsys, monkeypatch):
    prompts = ["a quick", "wizards on"]
    wanted = [greedy(finished, prompt, 5) for prompt in prompts]
    assert main(["generate", str(finished), *prompts, "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in wanted)
    assert main(["generate", str(finished), "--max-new-tokens", "5", *prompts]) == 0  # options first
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in wanted)
    monkeypatch.setattr("sys.stdin", io.StringIO("a quick\n\nwizards on\n"))
    assert main(["generate", str(finished), "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in wanted)


@pytest.mark.slow
def test_generate_by_chance_repeats_with_its_seed(finished, capsys):
    command = ["generate", str(finished), "a quick", "--temperature", "2", "--top-k", "50", "--max-new-tokens", "12"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*command, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_inspect_config_shows_every_field(finished, capsys):
    wanted = flatten_config(config_of("llama", *WRITTEN, "train.steps=1000"))
    for more in ([], ["--values"]):
        assert main(["inspect", "config", str(finished), "train.steps=1_000", *more]) == 0
        out = capsys.readouterr().out
        shown = dict(line.split(" = ", 1) for line in out.splitlines() if not line.startswith("    "))
        assert shown == {name: spell(value) for name, value in wanted.items()}
        meant = ("    number of updates.\n    allowed: a whole number" in out, "default: true" in out)
        assert meant == ((False, False) if more else (True, True))


def test_inspect_parameters_adds_up(finished, capsys):
    assert main(["inspect", "parameters", str(finished), "mesh.fsdp=2", "mesh.tensor=4", "--devices", "8"]) == 0
    out = capsys.readouterr().out
    params = {p.removeprefix("params/"): a for p, a in checkpoint(finished).items() if p.startswith("params/")}
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    for path, array in params.items():
        assert lines[path][1] == "x".join(map(str, array.shape)) and lines[path][-2] == f"{array.nbytes:,}"
    total = sum(array.nbytes for array in params.values())
    assert lines["total"][1] == f"{total:,}" and int(lines["total"][2].replace(",", "")) < total / 4
    assert f"{total // 4:,} parameters, " in out
    moments = sum(a.nbytes for path, a in checkpoint(finished).items() if path.startswith("optimizer/"))
    assert f"optimizer state {moments / 1e3:.3g}kB over all devices" in out
    memory = out[out.index("an estimate of a step's memory on each device of 8") :].splitlines()[1:]
    shown = {line.split()[0]: line.split()[-1] for line in memory}
    assert list(shown) == ["parameters", "optimizer", "batch", "gradients", "activations", "in"]
    local = int(lines["total"][2].replace(",", ""))
    assert shown["parameters"] == f"{local / 1e3:.3g}kB" and float(shown["in"].removesuffix("kB")) > local / 1e3


def test_inspect_checkpoint_lists_every_array(finished, capsys):
    assert main(["inspect", "checkpoint", str(finished), "--step", "3"]) == 0
    out = capsys.readouterr().out
    assert "tiny_llama: checkpoints of steps 3, 6\nstep 3, epoch " in out and f"t5x_like {__version__}" in out
    arrays = checkpoint(finished, 3)
    shown = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  ")}
    assert shown == {
        path: ["x".join(map(str, array.shape)) or "scalar", str(array.dtype)] for path, array in arrays.items()
    }
    assert f"{len(arrays)} arrays, {sum(a.nbytes for a in arrays.values()) / 1e6:,.1f} MB" in out


def test_diff_of_runs_and_configs(finished, tmp_path, capsys):
    other = Path(shutil.copytree(finished, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints")))
    assert main(["diff", str(finished), str(other)]) == 0
    assert capsys.readouterr().out.startswith("the configs are the same\n")
    changed = config_of("llama", *WRITTEN, "optimizer.learning_rate=0.5", "train.seed=7")
    (other / "config.json").write_text(to_json(changed))
    text = (other / "metrics.jsonl").read_text()
    loss = rows(finished, "held_out")[6]["held_out/loss"]
    (other / "metrics.jsonl").write_text(text.replace(json.dumps(loss), json.dumps(loss + 0.5)))
    picture = tmp_path / "both.png"
    assert main(["diff", str(finished), str(other), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()[:2]] == [
        ["optimizer.learning_rate", "0.003", "->", "0.5"], ["train.seed", "0", "->", "7"]
    ]  # fmt: skip
    (row,) = [line.split() for line in out.splitlines() if line.startswith("held_out/loss")]
    assert row == ["held_out/loss", "6", f"{loss:.6g}", f"{loss + 0.5:.6g}", "+0.5"]
    assert min(png_size(picture)) > 200
    assert main(["diff", str(finished), run_file(changed)]) == 0
    assert "train.seed" in capsys.readouterr().out


def test_tokenizer_train_writes_a_model_that_a_run_can_use(tmp_path, capsys):
    output = tmp_path / "new" / "my.model"
    arguments = ["tokenizer", "train", str(text_folder()), "--output", str(output), "--vocab-size", "400"]
    assert main([*arguments, "--model", "bpe", "--sentinels", "20"]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: 400 ids, 20 sentinels, fingerprint ")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(output))
    assert pieces.get_piece_size() == 400 and pieces.piece_to_id("<extra_id_19>") != pieces.unk_id()
    text = (text_folder() / "3.txt").read_text()
    assert pieces.decode(pieces.encode(text)) == text and len(pieces.encode(text)) < len(text) / 2
    lines = tmp_path / "texts.jsonl"
    lines.write_text("".join(json.dumps({"body": p.read_text()}) + "\n" for p in sorted(text_folder().iterdir())))
    again = tmp_path / "again.model"
    same = ["tokenizer", "train", str(lines), "--field", "body", "--output", str(again), "--vocab-size", "400"]
    assert main([*same, "--model", "bpe", "--sentinels", "20"]) == 0
    assert again.read_bytes() == output.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_the_other_shapes_through_all_commands(kind, tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["train", run_file(config_of(kind)), "--directory", folder]) == 0
    assert "\n  given " in (out := capsys.readouterr().out) and "\n  truth " in out
    assert main(["eval", folder]) == 0
    assert "held-out loss" in capsys.readouterr().out
    assert main(["inspect", "data", folder]) == 0
    assert "row 0" in capsys.readouterr().out
    if kind == "t5":
        assert main(["generate", folder, "a quick <extra_id_0> fox", "--max-new-tokens", "4"]) == 0
    else:
        assert "inspect checkpoint" in out
        assert main(["generate", folder, "a quick"]) == 2
        assert "encoder-only writes no text" in capsys.readouterr().err
