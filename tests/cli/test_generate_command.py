"""Prompts of ``generate`` as shells and files give them; what it prints; runs of other meshes than this machine's."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import run_file, tiny_run

from t5x_like.cli.arguments import parse
from t5x_like.cli.main import main
from t5x_like.sharding.config import MeshConfig
from t5x_like.train import opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quick_compiling) -> Path:
    """A finished run of rows of 32 tokens; no test changes it."""
    folder = tmp_path_factory.mktemp("generate") / "run"
    run = tiny_run("llama", "data.corpus.heldout=0.4", "train.steps=2", "train.evaluate_every=0")
    assert main(["train", run_file(run, "generate"), "--directory", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    "arguments, prompts",
    [
        (["R", "-5 degrees"], ["-5 degrees"]),
        (["R", "-5"], ["-5"]),
        (["R", "-help me", "-"], ["-help me", "-"]),
        (["R", "--", "-foo"], ["-foo"]),
        (["R", "--temperature", "0.5", "- item"], ["- item"]),
        (["R", "--temperature", "0.5", "--", "-foo"], ["-foo"]),
        (["R", "a", "--top-k", "2", "--", "-b", "--", "--seed"], ["a", "-b", "--", "--seed"]),
        (["R", "--seed", "3", "b"], ["b"]),
        (["--seed=3", "R", "b", "--jsonl", "c", "--traceback", "d"], ["b", "c", "d"]),
        (["--trace", "R", "b"], ["b"]),
        (["R"], []),
        (["--", "R", "b"], ["b"]),
    ],
)
def test_prompts_may_begin_with_a_dash(arguments, prompts):
    options = parse(["generate", *arguments])
    assert options.run == "R" and options.prompts == prompts


TEXTS = st.text(st.sampled_from("-h= ax7."), min_size=1, max_size=6).filter(lambda t: t[:2] != "--" and t != "-h")
OPTIONS = st.sampled_from([["--seed", "-3"], ["--seed=7"], ["--top-k", "2"], ["--jsonl"], ["--step", "4"], ["--traceb"],
                           ["--set", "mesh.data=1"]])  # fmt: skip


@given(st.lists(st.one_of(TEXTS, OPTIONS), max_size=8), st.lists(st.text(max_size=6), max_size=3))
@settings(max_examples=200, deadline=None)
def test_prompts_and_options_in_any_order(parts, literal):
    prompts = [part for part in parts if isinstance(part, str)]
    arguments = ["R", *(word for part in parts for word in ([part] if isinstance(part, str) else part))]
    options = parse(["generate", *arguments, *(["--", *literal] if literal else [])])
    assert (options.run, options.prompts, options.literal) == ("R", [*prompts, *literal], len(literal))
    seeds = [int(part[-1].split("=")[-1]) for part in parts if part[0].startswith("--seed")]
    assert options.seed == (seeds[-1] if seeds else 0) and options.jsonl == (["--jsonl"] in parts)


def test_options_keep_their_values():
    options = parse(["generate", "--set", "mesh.data=1", "R", "--seed", "-3", "-7", "--step", "4", "--code", "x.py"])
    assert (options.assignments, options.seed, options.step) == (["mesh.data=1"], -3, 4)
    assert options.code == ["x.py"] and options.prompts == ["-7"]


def test_an_unknown_option_takes_no_option_for_its_value(capsys):
    with pytest.raises(SystemExit):
        parse(["generate", "R", "--hello", "--max-new-tokens", "2"])
    assert "unrecognized arguments: --hello" in capsys.readouterr().err


@pytest.mark.parametrize("new, said", [(2**31 - 1, "at most 214748"), (10**9, "do not fit in memory")])
def test_more_new_tokens_than_there_is_room_for(folder, capsys, new, said):
    assert main(["generate", str(folder), "a", "--max-new-tokens", str(new)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: max_new_tokens: {new} ") and said in error and "Traceback" not in error


def test_an_unknown_option_is_no_prompt(capsys):
    with pytest.raises(SystemExit) as left:
        parse(["generate", "R", "--temprature", "2"])
    assert left.value.code == 2 and "stands behind --" in capsys.readouterr().err


class Standing:
    """A run that shows the prompts it is given."""

    def generate(self, prompts, sampling, seed):
        return [f"<{prompt}>" for prompt in prompts]


@pytest.fixture
def standing(monkeypatch):
    monkeypatch.setattr(opened, "open_run", lambda *arguments, **named: Standing())


def feed(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    "data, texts",
    [
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\n", ["a"]),
        (b"a\xe2\x80\xa8b\n \n\xc2\x85c", ["a\u2028b", "\x85c"]),  # no ends of lines
        ("é".encode(), ["é"]),
    ],
)
def test_lines_of_standard_input(standing, monkeypatch, capsys, data, texts):
    feed(monkeypatch, data)
    assert main(["generate", "R"]) == 0
    assert capsys.readouterr().out == "".join(f"<{text}>\n" for text in texts)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"a\ncaf\xe9\n", "standard input: line 2 is not UTF-8 (byte 0xe9"),
        ("a".encode("utf-16"), "iconv -f UTF-16"),
        (b"\n \n", "prompt: is empty"),
    ],
)
def test_bytes_that_are_no_prompts(standing, monkeypatch, capsys, data, message):
    feed(monkeypatch, data)
    assert main(["generate", "R"]) == 2
    assert message in capsys.readouterr().err


def test_an_argument_that_is_not_utf8(standing, capsys):
    assert main(["generate", "R", "a", "caf\udce9"]) == 2  # as Python hands on bytes of the shell
    assert "prompt: prompt 2 is not UTF-8" in capsys.readouterr().err


def test_a_field_is_no_prompt_unless_said(standing, capsys):
    assert main(["generate", "R", "a", "mesh.data=1"]) == 2
    err = capsys.readouterr().err
    assert "'mesh.data=1' looks like a field" in err and "try: --set mesh.data=1" in err
    assert main(["generate", "R", "--", "mesh.data=1"]) == 0
    assert main(["generate", "R", "x=1", "my.mesh=2", "see mesh.data=1"]) == 0
    assert capsys.readouterr().out.splitlines() == ["<mesh.data=1>", "<x=1>", "<my.mesh=2>", "<see mesh.data=1>"]


def test_json_lines_keep_texts_apart(standing, capsys):
    assert main(["generate", "R", "a\nb", "é", "--jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [{"prompt": p, "text": f"<{p}>"} for p in ("a\nb", "é")]
    assert "é" in lines[1]


@pytest.mark.parametrize("wrong", [["--temperature", "nan"], ["--temperature", "1e-40"], ["--seed", "4294967296"],
                                   ["--seed", "-1"], ["--top-k", "-1"], ["--top-p", "0"]])  # fmt: skip
def test_numbers_out_of_range_are_refused_before_a_run_is_opened(monkeypatch, capsys, wrong):
    monkeypatch.setitem(sys.modules, "t5x_like.train.opened", None)
    assert main(["generate", "R", "a", *wrong]) == 2
    name = wrong[0].removeprefix("--").replace("-", "_")
    assert f"error: {name}: got" in capsys.readouterr().err


def test_a_prompt_longer_than_the_rows_of_training_is_named(folder, capsys):
    assert main(["generate", str(folder), "a", "the fox " * 5, "--max-new-tokens", "2"]) == 0
    err = capsys.readouterr().err
    assert "prompt 2 has 40 tokens, but the model was trained on 32 at most" in err and "prompt 1" not in err


def test_a_run_of_more_devices_is_opened_on_those_that_are_here(folder, tmp_path, capsys):
    """Of 8 devices; the text is that of the run's own mesh."""
    assert main(["generate", str(folder), "a quick", "--max-new-tokens", "4"]) == 0
    wanted = capsys.readouterr()
    assert "mesh" not in wanted.err
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "checkpoints").symlink_to(folder / "checkpoints")
    config = json.loads((folder / "config.json").read_text())
    config["mesh"] |= {"data": 2, "fsdp": 12, "tensor": 2}
    (copy / "config.json").write_text(json.dumps(config))
    assert main(["generate", str(copy), "a quick", "--max-new-tokens", "4"]) == 0
    found = capsys.readouterr()
    assert found.out == wanted.out
    assert "(data 2, fsdp 12, tensor 2) does not fit 8 devices: opened on data 2, fsdp 2, tensor 2" in found.err
    assert main(["eval", str(copy)]) == 0 and "opened on data 2" in capsys.readouterr().err
    assert main(["generate", str(copy), "a", "--set", "mesh.data=5"]) == 2  # what is asked for is not changed
    assert "does not divide 8 devices" in capsys.readouterr().err


def test_a_run_whose_parameters_or_batches_the_devices_cannot_share_is_opened(folder, tmp_path, capsys):
    assert main(["eval", str(folder)]) == 0
    wanted = capsys.readouterr()
    assert "mesh" not in wanted.err and "batches" not in wanted.err
    (tmp_path / "checkpoints").symlink_to(folder / "checkpoints")
    config = json.loads((folder / "config.json").read_text())
    config["mesh"] |= {"data": 1, "fsdp": 1, "tensor": 16}  # the nearest has tensor 8, and there are 4 heads
    config["train"] |= {"batch_size": 12, "micro_batches": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["eval", str(tmp_path)]) == 0
    found = capsys.readouterr()
    before, after = ([line.split()[-1] for line in out.splitlines()[1:]] for out in (wanted.out, found.out))
    assert before[3] == after[3]  # the number of targets
    assert [*map(float, before[:3])] == pytest.approx([*map(float, after[:3])], rel=1e-5)
    assert "(data 1, fsdp 1, tensor 16) does not fit 8 devices: opened on data 8, fsdp 1, tensor 1" in found.err
    assert "12 rows cannot be shared evenly among 8 devices: evaluated in batches of 16" in found.err


@pytest.mark.parametrize(
    "asked, devices, sizes",
    [
        (MeshConfig(), 3, (3, 1, 1)),
        (MeshConfig(fsdp=8), 8, (1, 8, 1)),
        (MeshConfig(data=4, fsdp=2, tensor=4), 1, (1, 1, 1)),
        (MeshConfig(data=4, fsdp=2, tensor=4), 2, (1, 2, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), 3, (1, 3, 1)),
        (MeshConfig(data=2), 8, (8, 1, 1)),
        (MeshConfig(data=16, fsdp=16, tensor=1), 6, (6, 1, 1)),
    ],
)
def test_the_mesh_that_fits(asked, devices, sizes):
    found = asked.fitted(devices).sizes(devices)
    assert tuple(found.values()) == sizes
