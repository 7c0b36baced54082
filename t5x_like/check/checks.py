"""All checks in order, each told in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from t5x_like.check import data, environment, model, storage
from t5x_like.check.case import Case, NotKnown
from t5x_like.check.said import Said
from t5x_like.core.errors import UserError

CHECKS: dict[str, Callable[[Case], Said]] = {
    "config": model.config, "environment": environment.environment, "extras": environment.extras,
    "mesh": model.mesh, "batch": model.batch, "memory": model.memory,
    "corpus": data.corpus, "tokenizer": data.tokenizer, "cache": data.cache,
    "storage": storage.storage, "room": storage.room, "checkpoint": storage.checkpoint, "versions": storage.packages,
    "program": model.program,
}  # fmt: skip


def run_checks(case: Case) -> Iterator[tuple[str, Said]]:
    """(name, what was found) of every check, one after the other: a mistake found by one does not end the others."""
    for name, check in CHECKS.items():
        try:
            yield name, check(case)
        except NotKnown as error:
            yield name, Said(f"cannot be known while {error} is wrong", "unknown")
        except UserError as error:
            yield name, failed(error)


def failed(error: UserError) -> Said:
    """A mistake in one line."""
    return Said("; ".join(" ".join(line.split()) for line in str(error).splitlines()), "FAILED")
