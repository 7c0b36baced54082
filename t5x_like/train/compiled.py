"""Compiled programs kept between runs, by JAX's persistent cache, in the user's cache folder.

Any number of processes may use one folder: an entry that another one is writing cannot be read, and is then compiled.
JAX reads an entry without any check, and one with a wrong bit would end every start or compute something else. So a CRC
is kept beside each (``NAME.crc``), and what is not what was written is removed before JAX looks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import threading
import time
import zlib
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

OFF = "off"
LEAST_SECONDS = 0.1  # of compiling what is kept: below that reading saves nothing
LARGEST = 4e9  # bytes of a folder, beyond which the programs used longest ago are removed, down to half of it
CHECKED = 5e8  # bytes of entries that a start reads
CPU = Path("/proc/cpuinfo")
ENTRY, CRC = "-cache", ".crc"  # last letters of an entry's name, as JAX has it, and of that of its CRC
SETTLED = 1.0  # seconds since an entry was last written to, after which it is whole
PAUSES = (5.0, 60.0)  # seconds between two looks for new entries: at first, and at most


def keep_compiled(folder: str = "") -> Path | None:
    """Has JAX keep what it compiles from now on, and returns where; None where it is not to be kept.

    What JAX has been told by itself ($JAX_COMPILATION_CACHE_DIR, $JAX_ENABLE_COMPILATION_CACHE) stays. A folder that
    cannot be written is none.

    Args:
      folder: ``off``, or the folder; empty: ``compiled`` in ``$XDG_CACHE_HOME/t5x-like`` or ``~/.cache/t5x-like``.
    """
    told = jax.config.values["jax_compilation_cache_dir"]
    if told or folder == OFF or not jax.config.values["jax_enable_compilation_cache"]:
        return Path(told) if told else None
    above = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "t5x-like" / "compiled"
    path = (Path(folder).expanduser() if folder else above).absolute() / _host()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(path, os.W_OK):
        return None
    _make_room(path)
    remove_damaged(path)
    threading.Thread(target=_watch, args=(path,), name="t5x_like compiled", daemon=True).start()
    jax.config.update("jax_compilation_cache_dir", str(path))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    compilation_cache.reset_cache()  # it had looked already, if something has been compiled in this process
    return path


def remove_damaged(folder: Path) -> None:
    """Removes entries whose bits are not those that ``note_new`` found; looks at the newest, ``CHECKED`` bytes of them,
    which takes half a second."""
    found = []
    for note in folder.glob(f"*{CRC}"):
        try:
            status = note.with_suffix("").stat()
            found.append((status.st_mtime, status.st_size, note))
        except OSError:  # the entry was removed
            note.unlink(missing_ok=True)
    left = CHECKED
    for _, size, note in sorted(found, reverse=True):
        if (left := left - size) < 0:
            return
        with contextlib.suppress(OSError):  # other processes do the same
            if note.read_text() != _crc(note.with_suffix("")):
                note.with_suffix("").unlink(missing_ok=True)
                note.unlink(missing_ok=True)


def note_new(folder: Path) -> None:
    """Keeps the CRC of every entry that has none yet."""
    for entry in folder.glob(f"*{ENTRY}"):
        note = entry.with_name(entry.name + CRC)
        with contextlib.suppress(OSError):  # removed meanwhile, or the disk is full
            if not note.exists() and time.time() - entry.stat().st_mtime > SETTLED:
                part = note.with_name(f"{note.name}.{os.getpid()}")
                part.write_text(_crc(entry))
                part.replace(note)


def _watch(folder: Path) -> None:
    pause = PAUSES[0]
    while True:
        time.sleep(pause)
        note_new(folder)
        pause = min(2 * pause, PAUSES[1])


def _crc(entry: Path) -> str:
    return f"{zlib.crc32(entry.read_bytes()):08x}"


def _host() -> str:
    """A name for this kind of processor: what is compiled for one may not run on another that shares the folder."""
    lines = CPU.read_text(errors="replace").splitlines() if CPU.is_file() else ()
    told = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return f"{platform.machine()}-{hashlib.sha256(repr(told).encode()).hexdigest()[:8]}"


def _make_room(folder: Path) -> None:
    with contextlib.suppress(OSError):  # other processes do the same
        found = [(max(status.st_atime, status.st_mtime), status.st_size, path)
                 for path in folder.iterdir() if path.is_file() and (status := path.stat())]  # fmt: skip
        size = sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, path in sorted(found) if size > LARGEST else ():
            if size <= LARGEST / 2:
                break
            path.unlink(missing_ok=True)
            size -= bytes_
