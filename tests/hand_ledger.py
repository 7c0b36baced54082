"""A ledger of three attempts made by hand: the first is killed, the second fails, the third ends the run."""

from __future__ import annotations

import json
from pathlib import Path

T = 1_790_000_000.0
CONFIG = {"name": "hand", "train": {"steps": 100}, "report": {"every": 10}}
# time, event, step, spent; seconds as a person would write them down
FIRST = [
    (20, "start", 0, {"setup": 20.0}),
    (60, "compile", 0, {"compile": 39.0, "data": 1.0}),
    (100, "steps", 20, {"step": 36.0, "data": 3.0, "other": 1.0}),
    (102, "save", 20, {"checkpoint": 2.0}),
    (112, "evaluation", 20, {"evaluate": 10.0}),
    (192, "steps", 60, {"step": 76.0, "data": 4.0}),  # killed; 21 to 60 are made again
]
SECOND = [
    (295, "restore", 20, {"setup": 10.0, "checkpoint": 5.0}),
    (296, "start", 20, {"setup": 1.0}),
    (330, "compile", 20, {"compile": 34.0}),
    (450, "steps", 80, {"step": 118.0, "data": 2.0}),
    (453, "save", 80, {"checkpoint": 3.0}),
    (493, "steps", 100, {"step": 39.5, "data": 0.5}),
    (494, "fault", 100, {"other": 1.0}),
]
THIRD = [
    (600, "restore", 90, {"setup": 6.0, "checkpoint": 4.0}),  # so that of the last 20 updates half are made again
    (600, "start", 90, {}),
    (630, "compile", 90, {"compile": 30.0}),
    (651, "steps", 100, {"step": 20.0, "data": 1.0}),
    (653, "end", 100, {"checkpoint": 2.0}),
]


def write(folder: Path, attempts=(FIRST, SECOND, THIRD)) -> None:
    (folder / "ledger").mkdir(parents=True)
    for number, lines in enumerate(attempts, 1):
        with (folder / "ledger" / f"{number}-0.jsonl").open("w") as file:
            for time, event, step, spent in lines:
                more = {"config": CONFIG} if event == "start" else {"complete": True} if event == "end" else {}
                file.write(json.dumps({"time": T + time, "event": event, "step": step, "spent": spent, **more}) + "\n")
