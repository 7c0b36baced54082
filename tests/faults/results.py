"""What became of every fault and transition that was tried: one file each, written at once, and their table.

They lie in $FAULT_RESULTS, by default in the user's cache, in a folder for each last commit of the code. What has a
result there is not tried again, so a run that was interrupted goes on with what is missing; one that failed stays, and
fails again at once, until its file is deleted. $FAULTS asks for a share: a number, the next n of each group without a
result; or words, those whose name has them.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults.jobs import EVERY, ROOT

TABLE = ROOT / "docs" / "faults.md"
MARK = "<!-- table -->"
GOOD = "as it must"


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    """The last commit that changed the code; with a plus where it has changed since."""
    code = ("t5x_like", "launch")
    return git("log", "-1", "--format=%h", "--", *code) + "+" * bool(git("status", "--porcelain", "--", *code))


def folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("FAULT_RESULTS") or cache / "t5x-like" / "faults" / commit())


def read_all() -> dict[str, dict[str, Any]]:
    """Name to result."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder().glob("*.json"))}


def share(names: Sequence[str]) -> list[str]:
    """Those of one group that this run tries."""
    asked = os.environ.get("FAULTS", "")
    if asked.isdigit():
        done = read_all()
        return [name for name in names if name not in done][: int(asked)]
    return [name for name in names if asked in name]


def kept(name: str, act: Callable[[], dict[str, Any]]) -> None:
    """Does ``act`` and keeps the result; passes or fails as it did. If it is kept already, does so at once."""
    path = folder() / f"{name}.json"
    if not path.is_file():
        began, load = time.time(), os.getloadavg()[0]
        try:
            result = {"end": GOOD, **act()}
        except Exception as error:  # whatever it is, it is what became of it
            result = {"end": f"{type(error).__name__}: {error}"[:6000]}
        load = max(load, os.getloadavg()[0])
        result |= {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.time() - began), "load": round(load, 1),
                   "cores": os.cpu_count(), "commit": commit()}  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(result, indent=1))
        path.with_suffix(".part").rename(path)
        write_table()
    found = json.loads(path.read_text())
    assert found["end"] == GOOD, f"{path}\n{found['end']}"


def write_table() -> None:
    """Into docs/faults.md: of all that is kept, one row per kind, the failed ones among them."""
    found = read_all()
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for name, result in found.items():
        by_kind.setdefault(name.partition(" ")[2], []).append(result)
    heading = "| what | tried | as it must | all down after | first step after that | steps lost, most |"
    lines = [when(list(found.values())), "", heading, "|---" * 6 + "|"]
    for kind, of in by_kind.items():
        lost = max((each["lost"] for each in of if "lost" in each), default="")
        noticed, recovered = (middle_and_most([each.get(k) for each in of]) for k in ("noticed", "recovered"))
        lines.append(f"| {' | '.join(map(str, (kind, len(of), good(of), noticed, recovered, lost)))} |")
    failed = [f"- {name}: {cause(each['end'])}" for name, each in found.items() if each["end"] != GOOD]
    lines += ["", f"{good(list(found.values()))} of {len(found)} as they must. A checkpoint every {EVERY} steps."]
    lines += ["", "Not as they must:", "", *failed] if failed else []
    page = TABLE.read_text()
    TABLE.write_text("\n".join([page.partition(MARK)[0] + MARK, "", *lines, ""]))


def cause(end: str) -> str:
    """The first error that a job told, else what the test says."""
    lines = end.splitlines()
    return next((line for line in lines if line.startswith("error: ")), lines[0])


def when(results: list[dict[str, Any]]) -> str:
    """When and where, in words."""
    dates, commits = ({each[k] for each in results} for k in ("date", "commit"))
    busy = sum(each["load"] > 3 * each["cores"] for each in results)
    days, cores = " to ".join(sorted({min(dates), max(dates)})), sorted({each["cores"] for each in results})
    return (f"{days}, on {' or '.join(map(str, cores))} cores without an accelerator, code of "
            f"{', '.join(sorted(commits))}. {busy} of {len(results)} while others used the machine (more than three "
            "processes ready for each core), which lengthens their seconds.")  # fmt: skip


def middle_and_most(seconds: list[float | None]) -> str:
    known = sorted(each for each in seconds if each is not None)
    return f"{known[len(known) // 2]:.1f} s, at most {known[-1]:.1f}" if known else ""


def good(results: list[dict[str, Any]]) -> int:
    return sum(each["end"] == GOOD for each in results)
