"""A file that whole records are added to, whatever becomes of the disk. Knows nothing of their content."""

from __future__ import annotations

import os
import sys
from pathlib import Path

KEPT = 1 << 20  # bytes of records that wait for room


class Appended:
    """Adds records to the end of a file, which is made, with its folder, by the first.

    Args:
      path: the file.
      ends: last bytes of a record; put where a kill has torn the last one, so that it ends there. Empty: it is not
        looked for.
    """

    def __init__(self, path: Path, ends: bytes = b"\n"):
        self.path, self._ends = path, ends
        self._left, self._looked, self._said = b"", not ends, False

    def add(self, record: bytes) -> None:
        """Adds one record; it is with the operating system when this returns, so that a kill of the process loses none.

        Never raises where it cannot be written: a full disk does not end a run. That is said once, and the records are
        written with a later one.
        """
        self._left += record
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b", buffering=0) as file:
                before = file.seek(0, os.SEEK_END)
                if not self._looked and before:
                    file.seek(-len(self._ends), os.SEEK_END)
                    self._left = self._ends * (file.read() != self._ends) + self._left
                self._looked = True
                if file.write(self._left) != len(self._left):
                    file.truncate(before)
                    raise OSError("no room is left")
            self._left = b""
        except OSError as error:
            self._left = self._left if len(self._left) < KEPT else b""
            if not self._said:
                self._said = True
                reason = error.strerror or error
                print(f"WARNING: {self.path} cannot be written: {reason}; the run goes on, and what is missing there "
                      "is written once it can be", file=sys.stderr, flush=True)
