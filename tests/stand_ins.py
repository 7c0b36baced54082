"""Programs of clusters (kubectl, gcloud, sky) that play a part: a folder for PATH in which each notes how it was called
and answers what the test has written down. Nothing else is on that PATH but the shell's own commands."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = '''#!{python}
import json, os, re, sys
folder, words = {folder!r}, [os.path.basename(sys.argv[0]), *sys.argv[1:]]
text = sys.stdin.read() if "--filename=-" in words else ""
with open(os.path.join(folder, "calls.jsonl"), "a") as file:
    file.write(json.dumps([words, text]) + "\\n")
with open(os.path.join(folder, "play.json")) as file:
    play = json.load(file)
for scene in play:
    if re.search(scene["when"], " ".join(words)):
        answer = scene["answers"].pop(0) if len(scene["answers"]) > 1 else scene["answers"][0]
        with open(os.path.join(folder, "play.json"), "w") as file:
            json.dump(play, file)
        sys.stdout.write(answer.get("out", ""))
        sys.stderr.write(answer.get("err", ""))
        sys.exit(answer.get("code", 0))
sys.exit("the test has no answer to " + " ".join(words))
'''


class StandIns:
    """Stand-ins of programs in a folder.

    Args:
      folder: an empty folder for them and their notes.
      names: the programs.
    """

    def __init__(self, folder: Path, *names: str):
        self.folder = folder
        folder.mkdir()
        self.play: list[dict[str, Any]] = []
        for name in names:
            (folder / name).write_text(PROGRAM.format(python=sys.executable, folder=str(folder)))
            (folder / name).chmod(stat.S_IRWXU)
        self.answer("^$", {})

    def answer(self, when: str, *answers: dict[str, Any] | str) -> None:
        """What is answered, one after the other and the last one for ever, to a command line that ``when`` (a regular
        expression) is found in: {out, err, code}, or ``out`` alone. The first that fits answers."""
        self.play.append({"when": when, "answers": [{"out": a} if isinstance(a, str) else a for a in answers]})
        (self.folder / "play.json").write_text(json.dumps(self.play))

    @property
    def calls(self) -> list[str]:
        """The command lines, in order, as a shell would take them."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [shlex.join(json.loads(line)[0]) for line in lines]

    @property
    def texts(self) -> list[str]:
        """What was given on standard input, where something was."""
        path = self.folder / "calls.jsonl"
        return [text for text in (json.loads(line)[1] for line in path.read_text().splitlines()) if text]

    def run(self, script: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess:
        """A launcher, run where these programs are found and no real program of a cluster is."""
        environment = {**os.environ, "PATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(script), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, env=environment)


def assert_golden(path: Path, calls: list[str]) -> None:
    """Compares command lines with those in a file; ``GOLDEN=write pytest ...`` writes the file anew, to be read before
    it is committed."""
    text = "".join(call + "\n" for call in calls)
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.name}: other command lines; GOLDEN=write pytest ... writes them anew"
