"""``t5x-like checkpoint list | verify | prune | average RUN``: what lies in a run's folder, and what may go."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from t5x_like.core.errors import refuse
from t5x_like.core.storage import place
from t5x_like.core.text import table

if TYPE_CHECKING:
    from t5x_like.checkpoint.folder import Folder


def add_arguments(command: argparse.ArgumentParser, parents: Sequence[argparse.ArgumentParser]) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[*parents])
        action.add_argument("run", metavar="RUN", help="a run's folder")
        return action

    add("list", "show each checkpoint's step, size, age, values, and which rules keep it")
    add("verify", "read every array and compare its digest").add_argument(
        "--step", type=int, action="append", help="only this step; repeatable")
    prune = add("prune", "show what the rules do not keep, and leftovers; with --go delete them")
    prune.add_argument("--keep", type=_steps, metavar="STEPS", help="keep these alone, as 200,400, whatever the rules")
    prune.add_argument("--go", action="store_true", help="delete")
    prune.add_argument("assignments", nargs="*", metavar="field=value", help="a rule, as checkpoint.keep_last=1")
    average = add("average", "write the mean of several checkpoints as a new run's folder")
    average.add_argument("--steps", type=_steps, metavar="STEPS", help="which, as 200,400")
    average.add_argument("--last", type=int, metavar="N", help="the last N instead")
    average.add_argument("--output", required=True, metavar="DIR", help="the new folder")


def checkpoint(options: argparse.Namespace) -> int:
    from t5x_like.checkpoint.folder import Folder
    from t5x_like.train.working import checkpoints_of

    found = Folder(checkpoints_of(options.run))
    refuse(not found.exists(), "checkpoint", f"there is no folder {found}", "the folder of a trained run")
    actions = {"list": _list, "verify": _verify, "prune": _prune, "average": _average}
    return actions[options.action](options, found)


def _steps(text: str) -> list[int]:
    return [int(part.replace("_", "")) for part in text.split(",")]


def _rules(options: argparse.Namespace):
    from t5x_like.core.config import override
    from t5x_like.train.directory import read_config
    from t5x_like.train.working import opened

    return override(read_config(opened(options.run)), getattr(options, "assignments", [])).checkpoint


def _list(options: argparse.Namespace, folder: Folder) -> int:
    from t5x_like.checkpoint.keep import reasons

    saved, now = folder.saved(), time.time()
    kept = reasons(saved, _rules(options), now)
    rows = [("step", "MB", "hours ago", "measured", "kept by")]
    for one in saved:
        values = ", ".join(f"{name} {value:.4g}" for name, value in one.values.items() if not name.endswith("targets"))
        size = f"{folder.bytes_in(str(one.step)) / 1e6:,.1f}"
        rows.append((f"{one.step:,}", size, f"{(now - one.time) / 3600:,.1f}", values, ", ".join(kept[one.step])))
    print("\n".join(table(rows, left=0)))
    for name, text in _superfluous(folder):
        print(f"{name}: {text}, {folder.bytes_in(name) / 1e6:,.1f} MB")
    return 0


def _verify(options: argparse.Namespace, folder: Folder) -> int:
    from t5x_like.checkpoint.checkpoints import Checkpoints
    from t5x_like.job.join import check_devices

    check_devices()
    wrong = 0
    with Checkpoints(str(folder), read_only=True) as checkpoints:
        there = checkpoints.steps()
        steps = options.step or there
        missing = ", ".join(str(step) for step in steps if step not in there)
        refuse(not steps or bool(missing), "checkpoint", f"there is none {f'of step {missing} ' * bool(missing)}in "
               f"{folder}", ", ".join(map(str, there)))
        for step in steps:
            began = time.perf_counter()
            problem = checkpoints.verify(step)
            wrong += bool(problem)
            good = "" if problem else f"{len(checkpoints.arrays(step))} arrays, {time.perf_counter() - began:.1f} s"
            print(f"step {step:,}: {'DAMAGED: ' + problem if problem else 'good, ' + good}", flush=True)
    refuse(wrong > 0, "checkpoint", f"{wrong} of {len(steps)} damaged", suggestion="another step, or a copy")
    return 0


def _prune(options: argparse.Namespace, folder: Folder) -> int:
    from t5x_like.checkpoint.keep import reasons
    from t5x_like.train.directory import locked

    def found() -> list[tuple[str, str]]:
        saved = folder.saved()
        if options.keep is not None:
            steps = [one.step for one in saved]
            missing = ", ".join(map(str, sorted(set(options.keep) - set(steps))))
            refuse(bool(missing), "--keep", f"there is no checkpoint of step {missing}", ", ".join(map(str, steps)))
            gone = [step for step in steps if step not in options.keep]
        else:
            gone = [step for step, why in reasons(saved, _rules(options), time.time()).items() if not why]
        return [*((str(step), "no rule keeps it") for step in gone), *_superfluous(folder)]

    if not options.go:
        return _show(folder, found(), "would be deleted; --go deletes")
    with locked(options.run):  # no training is writing meanwhile
        rows = found()
        code = _show(folder, rows, "deleted")
        for name, _ in rows:
            folder.remove(name)
    return code


def _show(folder: Folder, rows: list[tuple[str, str]], what: str) -> int:
    size = 0
    for name, why in rows:
        size += (its := folder.bytes_in(name))
        print(f"{name}: {why}, {its / 1e6:,.1f} MB")
    print(f"{len(rows)} {what}, {size / 1e6:,.1f} MB" if rows else "nothing to delete")
    return 0


def _superfluous(folder: Folder) -> list[tuple[str, str]]:
    aside, torn = "set aside: of a past that the run has left", "left by a save or deletion that was not finished"
    return [*((name, aside) for name in folder.aside()), *((name, torn) for name in folder.leftovers())]


def _average(options: argparse.Namespace, folder: Folder) -> int:
    from t5x_like.checkpoint.average import average
    from t5x_like.checkpoint.checkpoints import Checkpoints
    from t5x_like.core.own_code import FOLDER
    from t5x_like.job.join import check_devices
    from t5x_like.train.directory import CONFIG
    from t5x_like.train.working import checkpoints_of

    refuse((options.steps is None) == (options.last is None), "average", "takes either --steps or --last")
    output, run = place(options.output, "--output"), place(options.run)
    refuse(output.exists(CONFIG), "--output", f"{output} is the folder of a run", "a new folder")
    check_devices()
    with Checkpoints(str(folder), read_only=True) as checkpoints:
        steps = options.steps or checkpoints.steps()[-options.last :]
        metadata = average(checkpoints, steps, checkpoints_of(options.output))
    for name in [CONFIG, *(f"{FOLDER}/{file}" for file in run.files(FOLDER))]:
        output.write(name, run.read(name))
    print(f"{output}: the mean of steps {', '.join(f'{step:,}' for step in metadata['averaged'])}, "
          f"as step {metadata['step']:,}")
    return 0
