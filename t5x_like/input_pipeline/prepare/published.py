"""A cache at an address: made once by one process of all machines, and copied by each machine to its own disk.

    ADDRESS/corpora/NAME/train.tokens/000000 ...    a token cache's files in pieces
    ADDRESS/corpora/NAME/manifest.json              as on a disk; written last, so that what has one is whole
    ADDRESS/tokenizers/NAME.model                   a trained tokenizer
    ADDRESS/.../NAME.making/.lock/                  while it is made

The copy is read by memory map, like a cache that was made there. Knows files and digests; must not know tokens.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from t5x_like.core.errors import UserError, refuse
from t5x_like.core.lock import Lock
from t5x_like.core.paths import write_atomically
from t5x_like.core.storage import Place, make_writable, place
from t5x_like.input_pipeline.config import cache_address
from t5x_like.input_pipeline.disk import HashedFile, publish, room_in, temporary_name

MANIFEST = "manifest.json"
PIECE = 2**26  # bytes of a file that are in memory at a time; an object of that size is read and written at full speed
AT_ONCE = 4  # pieces
WAIT = 2.0  # seconds between two looks at what another machine makes


def make_once(cache: str, path: Path, make: Callable[[], None], waiting: Callable[[], None] = lambda: None) -> None:
    """Makes a file or folder of the cache; of a cache at an address it is copied from there, or made and sent there.

    Args:
      cache: the cache, as ``DataConfig.cache``.
      path: where it is to be on this disk; no other process of this machine does the same meanwhile.
      make: makes it there.
      waiting: called again and again while another machine makes it.

    Raises:
      UserError: the address cannot be read or written; or what is there is not as it was written.
    """
    if not (address := cache_address(cache)):
        make()
        return
    there = place(address, "data.cache").at(path.parent.name)
    try:
        if fetch(there, path):
            return
        make_writable(there, "data.cache")
        lock = Lock(there.at(f"{path.name}.making"), "preparation", say=lambda message: None)
        while lock.acquire():
            waiting()
            time.sleep(WAIT)
            if fetch(there, path):
                return
        try:
            if not fetch(there, path):
                make()
                lock.check()
                send(there, path)
        finally:
            lock.release()
    except OSError as error:
        raise UserError("data.cache", str(error), "an address that can be read and written") from error


def is_there(cache: str, path: Path) -> bool:
    """Whether a cache at an address has what belongs to a folder or file of this disk. Raises as ``make_once``."""
    if not (address := cache_address(cache)):
        return False
    there = place(address, "data.cache").at(path.parent.name)
    try:
        return there.exists(f"{path.name}/{MANIFEST}") or there.exists(path.name)
    except OSError as error:
        raise UserError("data.cache", str(error), "an address that can be read") from error


def send(there: Place, path: Path) -> None:
    """Sends a file, or a token cache whose manifest goes last."""
    if path.is_file():
        there.write(path.name, path.read_bytes())
        return
    whole = there.at(path.name)

    def piece(name: str, number: int) -> None:
        with (path / name).open("rb") as file:
            file.seek(number * PIECE)
            whole.write(f"{name}/{number:06}", file.read(PIECE))

    names = [(name, number) for name, file in _files(path / MANIFEST).items() for number in range(_pieces(file))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda each: piece(*each), names))
    whole.write(MANIFEST, (path / MANIFEST).read_bytes())


def fetch(there: Place, path: Path) -> bool:
    """Copies a file or token cache to this disk, where it appears whole; whether it is there.

    Raises:
      OSError: it cannot be read.
      UserError: it is not as it was written.
    """
    name = path.name
    if not there.exists(f"{name}/{MANIFEST}"):
        try:
            data = there.read(name)
        except FileNotFoundError:
            return False
        write_atomically(path, data)
        return True
    temporary = path.with_name(temporary_name("fetched"))
    with room_in(path.parent):
        temporary.mkdir(parents=True)
    try:
        _copy(there.at(name), temporary)
        publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _copy(whole: Place, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(whole.read(MANIFEST))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name, recorded in _files(folder / MANIFEST).items():
            pieces = [f"{name}/{number:06}" for number in range(_pieces(recorded))]
            file = HashedFile(folder / name)
            try:
                for first in range(0, len(pieces), AT_ONCE):
                    for data in list(pool.map(whole.read, pieces[first : first + AT_ONCE])):
                        with room_in(folder):
                            file.write(data)
                with room_in(folder):
                    found = file.close(durable=True)
            finally:
                file.abandon()
            wrong = found != {key: recorded[key] for key in found}
            got = f"{found['bytes']:,} bytes with SHA-256 {found['sha256'][:16]}..., not as it was written"
            refuse(wrong, f"{whole}/{name}", got, f"{recorded['bytes']:,} bytes with {recorded['sha256'][:16]}...",
                   f"remove {whole}; it will be made again")  # fmt: skip


def _files(manifest: Path) -> dict[str, dict]:
    """Name to size and digest of a token cache's files."""
    found = json.loads(manifest.read_bytes())
    return {Path(name).name: file for split in found["splits"].values() for name, file in split["files"].items()}


def _pieces(file: dict) -> int:
    return -(-file["bytes"] // PIECE)
