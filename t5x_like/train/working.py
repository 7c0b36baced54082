"""A run whose folder is an address works in a folder on this machine's disk, which is fetched and sent there.

    ~/.cache/t5x-like/runs/NAME/      config.json, metrics.jsonl, ledger/, ... as in any run's folder
    ~/.cache/t5x-like/runs/NAME/.address      JSON: where it belongs, and which process works in it

Checkpoints are not here: ``checkpoints_of`` says where. The first process sends whatever has changed, every other one
its own files in ``OWN`` alone. Knows no content of the files but the ledger's, whose lines are only ever added.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from t5x_like.core.errors import UserError
from t5x_like.core.lock import LOCK, lives, this_process
from t5x_like.core.paths import cache_folder, write_atomically
from t5x_like.core.storage import Place, is_address, place
from t5x_like.report.ledger import LEDGER

ADDRESS, CHECKPOINTS = ".address", "checkpoints"
OWN = (LEDGER, "profile")  # folders with files of each process
LARGE = ("tensorboard", "profile", "wandb")  # folders that nobody reads again here
UPLOADED = 10.0  # seconds between two uploads at least: what a kill loses of metrics and ledger at most
SHARE = 0.05  # of the time that uploads may take, where files are large or the way is slow
PATIENCE = (0.0, 5.0, 15.0, 40.0, 60.0)  # seconds before each try to upload at the end, beside those of a try itself
AT_ONCE = 16  # files under way


def checkpoints_of(where: str | Path) -> str | Path:
    """Where the checkpoints of the run in a folder are: in it, or at the address that it belongs to or is itself."""
    address = str(where).rstrip("/") if is_address(where) else _belongs_to(Path(where))
    return f"{address}/{CHECKPOINTS}" if address else Path(where) / CHECKPOINTS


def shown(directory: Path) -> str:
    """The run's folder as the user knows it: an address, or its path."""
    return _belongs_to(directory) or str(directory)


def opened(where: str | Path) -> Path:
    """The folder of a run that is only read: itself, or a copy of what is small at an address, until this process ends.

    Raises:
      UserError: the address cannot be read, or has no run.
    """
    if not is_address(where):
        return Path(where)
    return _copied(str(where).rstrip("/"))


@functools.cache
def _copied(address: str) -> Path:
    there, path = place(address), Path(tempfile.mkdtemp(prefix="t5x-like-run-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    try:
        names = fetch(there, there.files(without=(CHECKPOINTS, LOCK, *LARGE)), path)
    except OSError as error:
        raise UserError(address, f"cannot be read: {error}", "the folder of a run") from error
    if not names:
        raise UserError(address, "there is no run, or no such bucket", "the folder of a run that has begun")
    write_atomically(path / ADDRESS, json.dumps({"address": address, **this_process()}))
    return path


def fetch(there: Place, names: Iterable[str], path: Path) -> list[str]:
    """Copies files to a folder of the disk; returns the names of those that are there and may lie in it."""

    def one(name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            write_atomically(path / name, there.read(name))
            return True
        return False

    parts = {name: PurePosixPath(name).parts for name in names}
    plain = [name for name, its in parts.items() if its and name[0] not in "./" and ".." not in its and "" not in its]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [name for name, found in zip(plain, pool.map(one, plain), strict=True) if found]


class Working(contextlib.AbstractContextManager):
    """The folder in which one process works on a run at an address. Opened, it has what is there, and is sent every
    ``UPLOADED`` seconds; closed, all of it is there.

    Args:
      there: the run's folder.
      first: whether this is the first process of its job.
      check: function that raises where another training has taken over; then nothing more is sent.
      say: function of a message.

    Attributes:
      path: the folder.
    """

    def __init__(self, there: Place, first: bool, check: Callable[[], None], say: Callable[[str], None]):
        self._there, self._first, self._check, self._say = there, first, check, say
        self.path = _new_folder()
        self._sent: dict[str, tuple[int, ...]] = {}  # name to what the file looked like when it was fetched or sent
        self._busy, self._ended = threading.RLock(), threading.Event()
        self._said = False
        self._thread = threading.Thread(target=self._keep, name="t5x_like uploads", daemon=True)

    def __enter__(self) -> Working:
        self._clean_up()
        write_atomically(self.path / ADDRESS, json.dumps({"address": str(self._there), **this_process()}))
        try:
            names = self._there.files(without=(CHECKPOINTS, LOCK, LEDGER, *LARGE))
            fetched = fetch(self._there, names, self.path)
            if self._first:
                fetched += self._fetch_ledger()
        except OSError as error:
            shutil.rmtree(self.path, ignore_errors=True)
            got = f"{self._there} cannot be read: {error}"
            raise UserError("directory", got, "a folder that can be read") from error
        self._sent = {name: looks for name, looks in self._files() if name in fetched}
        self._thread.start()
        return self

    def upload(self) -> None:
        """Sends what has changed. Raises OSError where that fails, after all others were sent; Lost where another has
        taken over."""
        with self._busy:
            problems: list[OSError] = []
            there = dict(self._files())
            for name, looks in there.items():
                if self._sent.get(name) == looks:
                    continue
                self._check()
                try:
                    self._there.write(name, (self.path / name).read_bytes())
                    self._sent[name] = looks
                except FileNotFoundError:  # written anew, or gone, since it was listed
                    pass
                except OSError as error:
                    problems.append(error)
            for name in set(self._sent) - set(there):
                self._there.remove(name)
                del self._sent[name]
            if problems:
                raise problems[0]

    def before_commit(self) -> None:
        """Sends metrics and ledger before a checkpoint of a later step can be there. What cannot be sent now is later:
        the checkpoint matters more."""
        self._try()

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Sends the rest. Raises UserError where that fails, unless another error is on its way."""
        self._ended.set()
        problem: Exception | None = None
        for seconds in PATIENCE if kind is None else PATIENCE[:2]:
            time.sleep(seconds)
            try:
                self.upload()
                problem = None
                break
            except OSError as error:
                problem = error
            except UserError as error:  # lost to another training
                problem = error
                break
        if problem is None:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        if isinstance(problem, UserError):
            if kind is None:
                raise problem
            return
        got = f"the last metrics and events could not be sent to {self._there}: {problem}; they are in {self.path}"
        if kind is None:
            raise UserError("directory", got, "a bucket that can be written", "run again: it resumes from there")
        self._say(f"WARNING: {got}")

    # Within

    def _files(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names of the files that this process sends, and what each looks like."""
        tops = [self.path] if self._first else [self.path / name for name in OWN]
        for top in tops:
            for folder, folders, names in os.walk(top):
                if Path(folder) == self.path:
                    folders[:] = [name for name in folders if name not in (CHECKPOINTS, "wandb")]
                for path in (Path(folder, name) for name in names if not name.startswith(".")):
                    with contextlib.suppress(OSError):  # gone meanwhile
                        found = path.stat()
                        looks = found.st_mtime_ns, found.st_size, found.st_ino
                        yield path.relative_to(self.path).as_posix(), looks

    def _fetch_ledger(self) -> list[str]:
        """The ledger of the first process of each attempt; those of a thousand others are not even listed."""
        found: list[str] = []
        while more := fetch(self._there, [f"{LEDGER}/{len(found) + n + 1}-0.jsonl" for n in range(AT_ONCE)], self.path):
            found += more
            if len(more) < AT_ONCE:
                break
        return found

    def _keep(self) -> None:
        pause = UPLOADED
        while not self._ended.wait(pause):
            began = time.monotonic()
            self._try()
            pause = max(UPLOADED, (time.monotonic() - began) / SHARE)

    def _try(self) -> None:
        try:
            self.upload()
            self._said = False
        except UserError:  # lost to another training: the loop says so
            return
        except OSError as error:
            if not self._said:
                self._said = True
                self._say(f"WARNING: {error}; the run goes on, and what is missing in {self._there} is sent once it "
                          "can be")

    def _clean_up(self) -> None:
        """Removes folders of processes that were killed; the last lines of this run's ledgers are sent first."""
        for path in self.path.parent.glob(f"*/{ADDRESS}"):
            owner = _owner(path.parent)
            if not owner or lives(owner) is not False:
                continue
            if owner["address"] == str(self._there):
                with contextlib.suppress(OSError):
                    self._save_lines(path.parent)
            shutil.rmtree(path.parent, ignore_errors=True)

    def _save_lines(self, path: Path) -> None:
        for file in path.glob(f"{LEDGER}/*.jsonl"):
            name, here, there = f"{LEDGER}/{file.name}", file.read_bytes(), b""
            with contextlib.suppress(FileNotFoundError):
                there = self._there.read(name)
            if len(here) > len(there) and here.startswith(there):
                self._there.write(name, here)


def _new_folder() -> Path:
    """A folder of this process alone in the user's cache, or with temporary files where there is no room for it."""
    parent = cache_folder() / "runs"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="t5x-like-run-"))


def _owner(directory: Path) -> dict[str, Any]:
    """Address and process that a working folder belongs to; empty: it is no working folder."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((directory / ADDRESS).read_bytes())
        if isinstance(found, dict) and isinstance(found.get("address"), str):
            return found
    return {}


def _belongs_to(directory: Path) -> str:
    return _owner(directory).get("address", "")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
