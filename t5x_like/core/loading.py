"""Python files that a user chose: a run file, and the files that it names. Loaded by path, never through ``sys.path``.

A class that such a file defines is known by the file's name and digest: it is computed from the same bytes that were
run, and a ``.pyc`` beside them is never read. Must not know what the classes mean, nor which files may be run
(``core.own_code``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from t5x_like.core.errors import UserError, nearest, refuse
from t5x_like.core.mistakes import mistake, note_lines

T = TypeVar("T")
PACKAGE = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Code:
    """A file that was run.

    Attributes:
      path: the file.
      source: its content.
      check: function from path and digest to None that raises UserError for a file, loaded by ``code``, that must not
        be run; None: all may be.
      kept: whether it is a copy in a run's folder, where the files that it loads lie beside it.
      loads: the files that it loaded by ``code``.
    """

    path: Path
    source: bytes
    check: Callable[[Path, str], None] | None = None
    kept: bool = False
    loads: list[Code] = dataclasses.field(default_factory=list)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()

    def plain(self) -> dict[str, Any]:
        """As it stands in a config's JSON: name, digest, and those of the files that it loads."""
        loads = {name: code.sha256 for name, code in sorted(by_name([self]).items()) if name != self.path.name}
        return {"file": self.path.name, "sha256": self.sha256} | ({"loads": loads} if loads else {})


def by_name(files: Iterable[Code]) -> dict[str, Code]:
    """Files and all that they load, by name.

    Raises:
      UserError: two different ones of the same name, which could not lie in one folder.
    """
    found: dict[str, Code] = {}
    for code in (each for file in files for each in (file, *by_name(file.loads).values())):
        if found.setdefault(code.path.name, code).sha256 != code.sha256:
            raise UserError(str(code.path), f"has the name of {found[code.path.name].path}", "a name for each file")
    return found


_RUN: dict[str, Code] = {}  # by the name of its module
_LOADING: list[str] = []  # names of the modules whose files have begun to run and not ended


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs the bytes whose digest was taken."""

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(_RUN[fullname].source, self.path)


def load_module(
    path: Path, check: Callable[[Path, str], None] | None = None, kept: bool = False, again: bool = True
) -> types.ModuleType:
    """Runs one Python file that the user chose, without making it importable by name.

    Args:
      path: the file.
      check, kept: as for ``Code``; the file itself is checked too.
      again: whether a file that has been run is run once more.

    Raises:
      UserError: it cannot be read, or must not be run.
    """
    path = Path(path).resolve()
    try:
        code = Code(path, path.read_bytes(), check, kept)
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}", "a Python file") from None
    if check is not None:
        check(path, code.sha256)
    refuse(path.suffix != ".py", str(path), "is not a Python file", "a file ending in .py")
    name = f"t5x_like_file_{path.stem}_{hashlib.sha256(f'{path} {code.sha256}'.encode()).hexdigest()[:12]}"
    if name in sys.modules and not again:
        refuse(name in _LOADING, str(path), "is loaded by a file that it loads", "files that do not load each other",
               "what both need, in a third file")
        return sys.modules[name]
    loader = _Loader(name, str(path))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name], _RUN[name] = module, code  # dataclasses defined in the file look their module up
    _LOADING.append(name)
    try:
        with _user_code(path):
            loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        _LOADING.pop()
    return module


@contextlib.contextmanager
def _user_code(path: Path) -> Iterator[None]:
    """Around what a user's file does: whatever it raises is a mistake in that file."""
    try:
        yield
    except UserError as error:
        note_lines(error, error, user_files())
        raise
    except (Exception, SystemExit) as error:
        raise mistake(error, user_files()) or UserError(str(path), f"{type(error).__name__}: {error}") from error


def user_files() -> set[str]:
    """Paths of the user's files that were run in this process."""
    return {str(code.path) for code in _RUN.values()}


def code(path: str) -> types.ModuleType:
    """The module of a user's Python file: ``mine = code("my_objective.py")``, then ``mine.MyObjective``.

    The file is run once. What it defines can be part of a run, whose folder then keeps a copy of it.

    Args:
      path: relative to the file that calls this function.

    Raises:
      UserError: no such file; or it is loaded by a file of a run's folder and must not be run.
    """
    caller = sys._getframe(1).f_globals
    folder = Path(caller["__file__"]).resolve().parent if "__file__" in caller else Path.cwd()
    parent = _RUN.get(caller.get("__name__", ""))
    if parent is None:
        return load_module(folder / Path(path).expanduser(), again=False)
    file = folder / (Path(path).name if parent.kept else Path(path).expanduser())
    module = load_module(file, parent.check, parent.kept, again=False)
    parent.loads.append(_RUN[module.__name__])
    return module


def is_shipped(kind: type) -> bool:
    """Whether a class is one of this package."""
    return kind.__module__.split(".")[0] == PACKAGE.name


def code_of(kind: type) -> Code | None:
    """The user's file that defines a class; None for a class of this package, or of a module imported by name."""
    return _RUN.get(kind.__module__)


def shipped(folder: str) -> Path:
    """Where the files of ``configs``, ``data`` or ``launch`` lie: inside the installed package, or, in a checkout,
    beside it."""
    inside = PACKAGE / "_shipped" / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def code_of_module(module: types.ModuleType) -> Code:
    """The file that a module was made of by ``load_module``."""
    return _RUN[module.__name__]


def own_object(path: str, sha256: str, kept: bool, name: str) -> Any:
    """An empty object of a class in a user's file, in a process that another one started: it was allowed to run it."""

    def check(file: Path, digest: str) -> None:
        if file == Path(path) and digest != sha256:
            raise UserError(path, f"has changed while it was in use: its sha256 was {sha256}", "the file as it was")

    return object.__new__(getattr(load_module(Path(path), check, kept, again=False), name))


def loaded(entry: dict[str, Any]) -> Code | None:
    """The file, already run, that ``entry`` of a config's JSON names."""
    return next((code for code in _RUN.values() if code.plain() == entry), None)


def find_run_file(name: str) -> Path:
    """The file of a run given by path (``configs/t5_small.py``) or, if shipped, by bare name (``t5_small``)."""
    for candidate in (Path(name), shipped("configs") / f"{name}.py"):
        if candidate.is_file() and candidate.suffix == ".py":
            return candidate.resolve()
    known = sorted(p.stem for p in shipped("configs").glob("*.py") if not p.stem.startswith("_"))
    raise UserError("config", f"no run file {name!r}", f"a path to a Python file, or one of {', '.join(known)}",
                    nearest(name, known))


def load_run(name: str, run_type: type[T]) -> T:
    """What ``run()`` of a run file returns.

    Args:
      name: path of the file, or the bare name of a shipped one.
      run_type: the dataclass that ``run()`` must return.

    Raises:
      UserError: no such file, no function ``run`` in it, or it returned something else.
    """
    return made_by(find_run_file(name), "run", run_type)


_CHOSEN: set[Path] = set()  # files whose functions the user asked to be called


def mark(file: Path) -> None:
    """Notes that the user chose ``file``: its functions may be called in this process."""
    _CHOSEN.add(Path(file).resolve())


def was_chosen(file: Path) -> bool:
    """Whether the user chose ``file`` in this process, as ``mark`` notes it."""
    return Path(file).resolve() in _CHOSEN


def made_by(path: Path, name: str, /, *kinds: type[T], **arguments: object) -> T:
    """What the function ``name`` of a user's file returns, which must be of one of these classes.

    Raises:
      UserError: the file cannot be run or has no such function, or it returned something else.
    """
    mark(path)
    function, wanted = getattr(load_module(path), name, None), " or ".join(f"a {kind.__name__}" for kind in kinds)
    if not callable(function):
        raise UserError(str(path), f"has no function {name}()", f"a function {name}() that returns {wanted}")
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(str(path), f"{name}() failed: {error}", f"arguments that {name}() takes") from None
    except ValueError:
        pass  # of dict and the like, which have no signature: what they return is looked at
    with _user_code(path):
        made = function(**arguments)
    if isinstance(made, kinds):
        return made
    raise UserError(str(path), f"{name}() returned a {type(made).__name__}", wanted)
