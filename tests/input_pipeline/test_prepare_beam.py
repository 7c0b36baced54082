"""The Apache Beam pipeline makes the same bits. Run in a process of its own: Beam and its runner keep threads."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Bytes, Corpus, JsonLines, TextFiles
from t5x_like.input_pipeline.prepare import beam, parts
from t5x_like.input_pipeline.prepare.beam import prepare_with_beam

HAS_BEAM = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(not HAS_BEAM, reason="could not import 'apache_beam': pip install 't5x-like[beam]'")

SCRIPT = """
import sys
from pathlib import Path
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.prepare.beam import prepare_with_beam
from t5x_like.input_pipeline.config import Bytes, Corpus, JsonLines
from t5x_like.input_pipeline.prepare.prepare import prepare

def main(folder, cache, *options):
    seen = []
    corpus = Corpus("c", JsonLines((folder,)), Bytes(), "none", "made up", 0.2, deduplicate=True)
    here = prepare(corpus, Bytes(), cache + "/here")
    there = prepare_with_beam(corpus, Bytes(), cache + "/there", options, seen.append)
    assert there.manifest == here.manifest and there.path.name == here.path.name
    assert seen[-1].done == seen[-1].total and seen[-1].documents == 4004
    for bad in ("1", "3"):
        (Path(folder) / f"{bad}.jsonl").write_text('{"txt": 1}\\n')
    try:
        prepare_with_beam(corpus, Bytes(), cache + "/there", options)
    except UserError as error:
        assert "1.jsonl" in str(error) and "'txt'" not in error.got, error
    else:
        raise SystemExit("a bad document was passed over")
    left = [path.name for path in Path(cache, "there", "corpora").iterdir() if path.suffix != ".lock"]
    assert left == [there.path.name], left
    print("the same")

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture
def without_runner(monkeypatch):
    """Runs the parts here, one after the other, and then what it is given with the work folder."""

    def put(after) -> None:
        def run(parts, work):
            for part in parts:
                beam._tokenize(part, work)
            after(Path(json.loads(work)["folder"]))

        monkeypatch.setattr(beam, "_pipeline", lambda options: run)

    return put


def lines_corpus(folder, contents) -> Corpus:
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number}.jsonl").write_text(content)
    return Corpus("c", JsonLines((str(folder),)), Bytes(), "none", "made up", 0.0)


def test_an_error_of_a_part_that_another_try_has_finished_is_none(tmp_path, without_runner, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def note(folder):
        seen.append(folder)
        beam._error_path(folder, 0).write_text(json.dumps(["error", ["data.cache", "no room", "", ""]]))

    without_runner(note)
    corpus = lines_corpus(tmp_path / "lines", ['{"text": "good"}\n'])
    assert len(prepare_with_beam(corpus, Bytes(), "cache").split("train")) == 1
    assert seen[0].is_absolute(), "workers have another current folder"


def test_the_first_error_of_the_corpus_is_told(tmp_path, without_runner, monkeypatch):
    monkeypatch.setattr(parts, "_SMALLEST_PART", 1)
    corpus = lines_corpus(tmp_path / "lines", ['{"text": "good"}\n', '{"txt": 1}\n', '{"txt": 1}\n'])
    without_runner(lambda folder: None)
    with pytest.raises(UserError, match=r"1\.jsonl"):
        prepare_with_beam(corpus, Bytes(), str(tmp_path))
    (tmp_path / "lines" / "1.jsonl").write_text('{"text": "good"}\n')
    without_runner(lambda folder: [path.unlink() for path in folder.glob("*.error")])
    with pytest.raises(UserError, match=r"part 2 is not in"):
        prepare_with_beam(corpus, Bytes(), str(tmp_path))


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--runner=DirectRunner"],
        ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"],
    ],
)
def test_beam_makes_the_same_bits(tmp_path, options):
    (tmp_path / "lines").mkdir()
    for number in range(4):
        lines = [json.dumps({"text": f"{number} {line} " + "x" * 600}) for line in range(1000)]
        (tmp_path / "lines" / f"{number}.jsonl").write_text("".join(f"{line}\n" for line in [*lines, lines[5]]))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "lines"), str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("the same"), done.stderr[-3000:]


@pytest.mark.skipif(HAS_BEAM, reason="Beam is installed")
def test_without_beam_it_says_what_to_install(tmp_path, text_folder):
    corpus = Corpus("c", TextFiles((str(text_folder),)), Bytes(), "none", "made up")
    with pytest.raises(UserError, match=r"t5x-like\[beam\]"):
        prepare_with_beam(corpus, Bytes(), str(tmp_path))
