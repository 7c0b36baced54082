"""Files at the addresses of fsspec: listed, opened, and told apart by what their file system says of them.

Must not know what is inside a file. Each file system has exceptions of its own: all of them end here, as ``UserError``.
"""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Callable
from typing import Any

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources.messages import cannot_be_read, missing_package

# What a remote file system may say of a file that changes with its content, best first.
_STAMPS = (
    "ETag", "etag", "md5Hash", "checksum", "crc32c", "CRC", "sha", "blob_id", "content_hash",
    "mtime", "LastModified", "Last-Modified", "last_modified", "modified", "modify", "modifiedTime", "modificationTime",
    "last_write_time", "updated", "created",
)  # fmt: skip

_PLAIN = re.compile(r"([^*?[]|\[[*?[]\])*")  # of a glob, what stands for itself, as glob.escape writes it


def is_remote(address: str) -> bool:
    """Whether ``address`` is one of fsspec's and no local path."""
    return "://" in address


def above_wildcards(path: str) -> str:
    """The folder above the first name of a glob that has a wildcard."""
    return _PLAIN.match(path).group().rpartition("/")[0]  # type: ignore[union-attr]  # it matches nothing too


def own_part(address: str) -> str:
    """Of a chained address (``zip://a.txt::gs://bucket/a.zip``, ``simplecache::gs://a.txt``) what names the file."""
    return next((part for part in address.split("::") if is_remote(part)), address)


def list_remote(
    address: str, wanted: re.Pattern[str], excluded: set[str], left_out: list[str]
) -> list[tuple[str, int, str]]:
    """Address, size in bytes and stamp of the files at an address, chained ones (``zip://*.txt::gs://a.zip``) included.

    Args:
      address: address of a file, a folder or a glob.
      wanted: name patterns of files that are read from a folder.
      excluded: names of folders and files that are skipped below a folder or glob.
      left_out: list to which the addresses of files in a folder under other names are added.

    Raises:
      UserError: it cannot be listed, or the file system does not tell when a file has changed.
    """
    first, chained, rest = address.partition("::")
    if chained and not is_remote(first):  # a cache in front of a file system: the names are that file system's
        found = list_remote(rest, wanted, excluded, left_out)
        return [(f"{first}::{name}", size, stamp) for name, size, stamp in found]
    try:
        archive = _archive_stamp(rest) if chained else ""
        system, path = _open_system(address, fresh=True)
        found = []
        listed, chosen = _listed(system, path)
        for name, each in listed.items():
            if each["type"] == "file" and not _is_passed_over(name, path, excluded):
                own = system.unstrip_protocol(name) + chained + rest
                if not chosen and not wanted.fullmatch(name.rpartition("/")[2]):
                    left_out.append(own)
                    continue
                found.append((own, int(each.get("size") or 0), _stamp(system, name, each, archive)))
        return found
    except FileNotFoundError:
        return []
    except UserError:
        raise
    except Exception as error:  # no access, no such bucket, no network
        got = f"cannot be listed: {type(error).__name__}: {error}"
        raise UserError(address, got, "an address that can be read from here") from error


def remote_path(address: str) -> str:
    """What the file system itself calls the file or folder at ``address``."""
    return _open_system(address)[1]


def _listed(system: Any, path: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """What is at a path; and whether each is named there, itself or by a glob, and not by its folder."""
    if glob.has_magic(path):
        return system.glob(path, detail=True), True
    information = system.info(path)
    if information["type"] != "directory":
        return {path: information}, True
    return system.find(path, detail=True), False


def _is_passed_over(name: str, path: str, excluded: set[str]) -> bool:
    """Whether the file is hidden or excluded, below the folder or glob ``path`` where it was found."""
    above = above_wildcards(path) if glob.has_magic(path) else path.rstrip("/")
    base = len(above.split("/")) if above else 0
    below = name.split("/")[base:]
    hidden_too = any(part.startswith(".") for part in path.split("/")[base:])
    hidden = not hidden_too and any(part.startswith(".") for part in below)
    return hidden or not excluded.isdisjoint(below)


def _stamp(system: Any, name: str, listed: dict[str, Any], archive: str) -> str:
    """A stamp that changes with the content of a remote file, which is not read for it; never empty.

    Args:
      system: file system of the file.
      name: path in it.
      listed: entry of the file in its listing.
      archive: stamp of the archive that holds the file; empty: no archive.

    Raises:
      UserError: the file system has no such mark.
    """
    own = _told_stamp(listed)
    if archive:  # whose own key is made anew each time it is opened
        return f"{own} in {archive}"
    if own := own or _told_stamp(system.info(name)) or str(system.ukey(name) or ""):
        return own
    got = f"its file system ({type(system).__name__}) does not tell when it has changed"
    raise UserError(system.unstrip_protocol(name), got, "another file system", "copy it to a disk")


def _told_stamp(information: dict[str, Any]) -> str:
    told = (information.get(key) for key in _STAMPS)
    return next((str(value) for value in told if value not in (None, "")), "")


def _archive_stamp(address: str) -> str:
    """The stamp of the file that an archive is; empty if it is a folder, whose files have stamps of their own."""
    first, chained, rest = address.partition("::")
    if chained and not is_remote(first):  # a cache
        return _archive_stamp(rest)
    system, path = _open_system(address, fresh=True)
    information = system.info(path)
    if information["type"] != "file":
        return ""
    return _stamp(system, path, information, _archive_stamp(rest) if chained else "")


def _open_system(address: str, fresh: bool = False) -> tuple[Any, str]:
    """The file system of fsspec for ``address`` and the path in it; ``fresh``: it forgets what it has listed before."""
    try:
        import fsspec
    except ImportError as error:
        raise missing_package(address, error, "remote") from None
    first, chained, _ = address.partition("::")
    try:
        if fresh and chained:  # an archive is kept open, as it was
            fsspec.get_filesystem_class(first.partition("://")[0]).clear_instance_cache()
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise UserError(address, f"a package is missing: {error}", "", _how_to_install(address)) from None
    except ValueError as error:
        raise UserError(address, str(error), "a local path, gs://, s3:// or another protocol of fsspec") from None
    if fresh:
        system.invalidate_cache()  # all of it: given a path, some forget that folder alone, and none below it
    return system, path


def _how_to_install(address: str) -> str:
    packages = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "az": "adlfs", "abfs": "adlfs"}
    protocol = address.rpartition("::")[2].partition("://")[0]
    return f"pip install {packages.get(protocol, f'fsspec[{protocol}]')}"


class RemoteFile(io.RawIOBase):
    """A file of fsspec, whose every failure is a ``UserError``: each file system has exceptions of its own."""

    def __init__(self, address: str):
        self._address = address
        # Kept as long as the file: an archive is closed with its file system.
        self._system, path = self._told(_open_system, address)
        self._file = self._told(self._system.open, path, "rb")

    def _told(self, function: Callable, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError:
            raise
        except Exception as error:  # each file system raises its own
            raise cannot_be_read(self._address, error) from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._told(self._file.readinto, buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._told(self._file.seek, offset, whence)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()
