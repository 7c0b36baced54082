"""The Apache Beam pipeline makes the same bits. Run in a process of its own: Beam and its runner keep threads."""

import importlib.util
import json
import subprocess
import sys

import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.beam import prepare_with_beam
from t5x_like.input_pipeline.config import Bytes, Corpus, TextFiles

HAS_BEAM = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(not HAS_BEAM, reason="could not import 'apache_beam': pip install 't5x-like[beam]'")

SCRIPT = """
import sys
from pathlib import Path
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.beam import prepare_with_beam
from t5x_like.input_pipeline.config import Bytes, Corpus, JsonLines
from t5x_like.input_pipeline.prepare import prepare

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
