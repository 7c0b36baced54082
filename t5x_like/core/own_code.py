"""The user's own code in a run's folder: which of it is kept there, and which of it may be run.

    RUN/code/NAME.py                       copies of the files that define the classes of RUN/config.json
    $XDG_STATE_HOME/t5x-like/code.jsonl    digests of what this user has trained with on this machine

A copy is run only if its digest is in the config and in the user's list, which is no part of the folder: opening a
stranger's run runs nothing of it. A file given by name is the user's choice, if it is the one that the config names or
the user accepts that it has changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t5x_like.core.config import to_plain
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.loading import Code, by_name, code_of, code_of_module, is_shipped, load_module, loaded
from t5x_like.core.paths import write_atomically
from t5x_like.core.structure import CODE_KEY, TYPE_KEY, Unknown, parts, unknown_in

FOLDER = "code"


def own_code(config: Any) -> dict[str, Code]:
    """The user's files that define classes of a dataclass tree, and those which they load, by name.

    Raises:
      UserError: two different files of one name.
    """
    return by_name(code for kind in _classes(config) if (code := code_of(kind)))


def check_loadable(config: Any) -> None:
    """Raises UserError for a class that a run's folder cannot keep: one of a module imported by name."""
    for kind in _classes(config):
        got = f"is defined in the module {kind.__module__!r}, imported by name, which the run's folder cannot keep"
        refuse(not is_shipped(kind) and code_of(kind) is None, kind.__name__, got,
               "a class of the run file, or of a file that it loads by path",
               f'mine = code("{kind.__module__.split(".")[-1]}.py"), of t5x_like.config')


def keep_code(config: Any, directory: Path) -> None:
    """Copies the user's own files of a config into a run's folder, and adds them to the list of what this user runs."""
    files = own_code(config)
    for name, code in files.items():
        write_atomically(directory / FOLDER / name, code.source)
    trust(files.values())


def run_code(plain: Any, directory: Path, given: Sequence[str] = (), accepted: Sequence[str] = ()) -> dict[str, str]:
    """Runs those files with the user's own classes of a config that may be run.

    Args:
      plain: the config's JSON; where a changed file is accepted, its digest is changed here too.
      directory: the run's folder.
      given: files that the user has named; others than those of the config are ignored.
      accepted: names of files that may have changed.

    Returns:
      Why a file was not run, by its name.

    Raises:
      UserError: a file name with a folder in it; a given file that has changed.
    """
    refused: dict[str, str] = {}
    files = {Path(path).name: Path(path) for path in given}
    for own in list(_own(plain)):
        name = own[CODE_KEY]["file"]
        if name in files:
            own[CODE_KEY] = _run_given(files[name], own[CODE_KEY], accepted)
        elif loaded(own[CODE_KEY]) is None and (reason := _run_copy(directory / FOLDER / name, own[CODE_KEY])):
            refused[name] = reason
    return refused


def require_code(config: Any, refused: dict[str, str]) -> None:
    """Raises UserError, naming field, file and digest, if a class of the config is in a file that has not been run."""
    for unknown in unknown_in(config):
        raise unknown.refusal(refused.get(unknown.plain[CODE_KEY]["file"], "has not been run"))


def accept(plain: Any, config: Any, accepted: Sequence[str]) -> None:
    """Gives an older config's JSON the digests of ``config`` for files that the user accepts as changed."""
    now = {own[CODE_KEY]["file"]: own[CODE_KEY] for own in _own(to_plain(config))}
    may_change = {Path(path).name for path in accepted}
    for own in _own(plain):
        before, after = own[CODE_KEY], now.get(own[CODE_KEY]["file"], own[CODE_KEY])
        if {name for name, _ in _files(before).items() ^ _files(after).items()} <= may_change:
            own[CODE_KEY] = after


def _run_given(path: Path, entry: dict, accepted: Sequence[str]) -> dict[str, Any]:
    """Runs a file that the user named, and returns its own entry; it and the files that it loads must be those of the
    config, or accepted."""
    wanted, may_change = _files(entry), {Path(name).name for name in accepted}

    def check(file: Path, digest: str) -> None:
        before = wanted.get(file.name, "nothing: the run had no file of that name")
        refuse(before != digest and file.name not in may_change, str(file),
               f"is not the file that the run was trained with: its sha256 is {digest}, that of the run's {before}",
               "the same file", f"--accept-changed {file.name}, once you have seen what changed")

    return code_of_module(load_module(path, check, again=False)).plain()


def _run_copy(path: Path, entry: dict) -> str:
    """Runs the copy in a run's folder and returns an empty text, or the reason why not."""
    wanted, known = _files(entry), trusted()

    def check(file: Path, digest: str) -> None:
        if wanted.get(file.name) != digest:
            raise _Refused(str(file), f"has been changed: the copy {file} has sha256 {digest}")
        got = f"is not run: this user has trained with no such file on this machine ({list_of_digests()})"
        if digest not in known:
            raise _Refused(str(file), got)

    if not path.is_file():
        return f"is not in {path.parent}"
    try:
        load_module(path, check, kept=True, again=False)
    except _Refused as refusal:
        return refusal.got
    return ""


class _Refused(UserError):
    """A copy that must not be run."""


# The user's list


def list_of_digests() -> Path:
    """The file that lists what this user has trained with."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "t5x-like" / "code.jsonl"


def trusted() -> set[str]:
    """Digests of the files that this user has trained with on this machine.

    Raises:
      UserError: the list is one that others can write.
    """
    path = list_of_digests()
    if not path.is_file():
        return set()
    status, found = path.stat(), set()
    refuse(status.st_uid != os.getuid() or bool(status.st_mode & 0o022), str(path), "can be written by others",
           "a file of yours alone", f"chmod 600 {path}")
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut by a full disk
            found.add(json.loads(line)["sha256"])
    return found


def trust(files: Any) -> None:
    """Adds files to the user's list; without a home that can be written they must be given by name next time."""
    path, at = list_of_digests(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    with contextlib.suppress(OSError):
        known = trusted()
        if lines := [json.dumps({"sha256": code.sha256, "file": str(code.path), "time": at}) + "\n"
                     for code in files if code.sha256 not in known]:  # fmt: skip
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
                file.writelines(lines)


# What a config's JSON says of files


def _own(plain: Any) -> Iterator[dict]:
    """The JSON of each class in a user's own file.

    Raises:
      UserError: what it says of the file is not a plain name and digests.
    """
    if isinstance(plain, dict) and TYPE_KEY in plain and CODE_KEY in plain:
        entry = plain[CODE_KEY]
        files = [f"{name} {digest}" for name, digest in _files(entry).items()]
        refuse(not all(re.fullmatch(r"\w[\w.-]*\.py [0-9a-f]{64}", file) for file in files),
               f"{plain[TYPE_KEY]}.code", f"got {entry!r}", "the names of Python files, with digests")
        yield plain
    for each in plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ():
        yield from _own(each)


def _files(entry: Any) -> dict[Any, Any]:
    """Name to digest of a user's file and those that it loads; of what is no entry, None to None."""
    loads = entry.get("loads", {}) if isinstance(entry, dict) else None
    return {entry.get("file"): entry.get("sha256")} | loads if isinstance(loads, dict) else {None: None}


def _classes(value: Any) -> list[type]:
    """The classes of a dataclass tree, in order."""
    return list(dict.fromkeys(type(part) for part in parts(value) if not isinstance(part, Unknown)))
