"""The base of sources of documents: each is one frozen dataclass with its reader, in a file beside this one.

Knows files and units; must not know formats or tokens. A source is cut into units that can be read by themselves, by
different processes; read one after the other they give whole documents as strings in the same order each time, so that
what is built on it can be a function of the index. Wherever files are named, a path is local, or an address that fsspec
knows (``gs://``, ``s3://``, ``memory://``), with the package for it (gcsfs, s3fs) installed. TensorFlow is never
imported, and numpy only where a format needs it, so that configs load fast.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError, require
from t5x_like.input_pipeline.sources.files import File, Unit, digest_files, list_files, missing_shards, unpacked
from t5x_like.input_pipeline.sources.messages import (
    Unreadable,
    cannot_be_read,
    empty_file,
    is_named,
    local_path,
)
from t5x_like.input_pipeline.sources.remote import is_remote


class Source(Config, abc.ABC, where="data.corpus.source"):
    """A source of documents: the base of frozen dataclasses. A user's own has a method ``read``, and ``digest`` where
    its documents change without a change of its fields, its code or its ``files``.

    Attributes:
      by_units: whether another process can make it from its fields and read a unit by itself; otherwise all of it is
        read in one process, units in order.
      places: names of the fields that say where its files lie, not what is read of them.
      emptiness: name of a file with some bytes but no documents, for errors.
    """

    by_units: ClassVar[bool] = False
    places: ClassVar[tuple[str, ...]] = ()
    emptiness: ClassVar[str] = "an empty file"

    def files(self) -> list[File]:
        """The files that are read, sorted by their paths; none for a function.

        Raises:
          UserError: a path that does not exist or matches nothing, or a package that is not installed.
        """
        return []

    def left_out(self) -> list[str]:
        """What lies where the files are, or should, and is not read: a line for each kind of it; empty if nothing."""
        return []

    def units(self) -> list[Unit]:
        """The stretches that can be read by themselves, in the order of the documents.

        Which they are depends on the files alone. Large files are cut into units of about 16 MB where the format allows
        it.

        Raises:
          UserError: nothing where the source should be, or an optional package that is not installed. A file with
            broken content is a unit like any other.
        """
        return [Unit(file.address, size=file.size) for file in self.files()] or [Unit("")]

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        """The documents of one unit, in order; a ``UserError`` in place of each that cannot be read, or of all that
        follow in a file that is broken (which may be raised, as ``Unreadable``). Others call ``read_unit``."""
        raise TypeError(f"{type(self).__name__} does not say how it is read")

    def digest(self) -> str:
        """A digest that changes when what is read does: 64 hexadecimal digits.

        Of files, name and content count, not their folder: the same files on another host have the same digest. Of a
        source without files, its fields and the Python file of its class.
        """
        if files := self.files():
            return digest_files(files)
        code = getattr(sys.modules[type(self).__module__], "__file__", None)
        return hashlib.sha256(repr(self).encode() + (Path(code).read_bytes() if code else b"")).hexdigest()

    def reading(self) -> str:
        """All its fields but ``places``: with ``digest`` they say which documents it has, wherever the files lie."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # its subclasses are
        names = [field.name for field in fields if field.name not in self.places]
        values = [(name, getattr(self, name)) for name in names]
        shown = [(name, value.reading() if isinstance(value, Source) else repr(value)) for name, value in values]
        return repr((type(self).__name__, shown))

    def describe(self) -> str:
        """Where the documents come from, in a few words."""
        return type(self).__name__

    def read_unit(self, unit: Unit) -> Iterator[str | UserError]:
        """The documents of one unit, in order; they may be empty.

        What cannot be read of a file's content comes as the ``UserError`` that describes it, in its place: one for each
        bad document, or one for all that follows in a file that is broken.

        Raises:
          UserError: what is no matter of content: a disk or network that fails, an optional package that is missing, a
            Python file that the user did not choose.
        """
        found = False
        try:
            for document in self.read(unit):
                found = True
                yield document
        except Unreadable as error:
            found = True
            yield error
        except OSError as error:
            raise cannot_be_read(unit.file, error) from error
        # A folder may have empty files; one that the user names is a mistake.
        if not found and unit.stop < 0 and is_named(unit.file, getattr(self, "paths", ())):
            yield empty_file(unit.file, self.emptiness if unit.size else "an empty file")

    def items(self, first: int = 0) -> Iterator[str | UserError]:
        """All documents from number ``first`` on, and errors in place of those that cannot be read; as ``read_unit``.
        Those before are read too; a source that can skip them has a method of its own."""
        everything = (item for unit in self.units() for item in self.read_unit(unit))
        return itertools.islice(everything, first, None)

    def texts(self, bad_documents: str = "error") -> Iterator[str]:
        """Yields the documents in a fixed order; empty ones (whitespace only) are passed over.

        Args:
          bad_documents: treatment of a document, or the rest of a file, that cannot be read: ``error`` or ``skip``.

        Raises:
          UserError: no such file, a package that is not installed, not one document in all of it; and, unless that is
            skipped, an empty file that the user named, text that is not UTF-8, a missing field, a broken file.
        """
        found = False
        for text in self.items():
            if isinstance(text, str):
                if text and not text.isspace():
                    found = True
                    yield text
            elif bad_documents == "error":
                raise text
        require(found, "data.corpus.source", f"no documents in {self.describe()}", "at least one that has text")


@dataclass(frozen=True)
class FolderSource(Source, abc.ABC):
    """The base of sources whose documents lie in a folder that a library wrote.

    Attributes:
      directory: the folder; a relative one starts at the current folder when the run starts.
      split: which part of it; empty: the only one.
      field: the column or feature that holds the text.
    """

    directory: str
    split: str = ""
    field: str = "text"

    by_units: ClassVar[bool] = True
    places: ClassVar[tuple[str, ...]] = ("directory",)

    @property
    def folder(self) -> str:
        """``directory`` as files are found below it."""
        return self.directory.rstrip("/") if is_remote(self.directory) else local_path(self.directory)

    def describe(self) -> str:
        return f"{self.directory}, split {self.split}" if self.split else self.directory


@dataclass(frozen=True)
class FileSource(Source, abc.ABC):
    """The base of sources whose documents lie in files of one format.

    Attributes:
      paths: files, folders or glob patterns; relative ones start at the current folder when the run starts.
      patterns: name patterns of files that are read from folders.
    """

    paths: tuple[str, ...]

    by_units: ClassVar[bool] = True
    places: ClassVar[tuple[str, ...]] = ("paths",)
    patterns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        require(bool(self.paths), "data.corpus.source.paths", "none", 'one or more paths, such as ("texts/",)')

    def files(self) -> list[File]:
        return self._list([])

    def left_out(self) -> list[str]:
        others: list[str] = []
        files = self._list(others)
        lines, read = missing_shards(files), {unpacked(file.address) for file in files}
        kinds = {"which are read from a file packed otherwise": [each for each in others if unpacked(each) in read],
                 f"of other names than {', '.join(self.patterns)}": [e for e in others if unpacked(e) not in read]}
        for kind, found in kinds.items():
            if found:
                shown = ", ".join(sorted(found)[:3]) + (", ..." if len(found) > 3 else "")
                lines.append(f"{len(found):,} files {kind}: {shown}")
        return lines

    def _list(self, left_out: list[str]) -> list[File]:
        return list_files(self.paths, self.patterns, (), left_out)

    def describe(self) -> str:
        return ", ".join(self.paths)
