"""What is checked, opened once for all checks; and what a check says."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh

from t5x_like.check.said import Said, shared
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.folder import Folder
from t5x_like.core.errors import UserError
from t5x_like.core.storage import is_address
from t5x_like.input_pipeline.config import Corpus, corpora
from t5x_like.input_pipeline.prepare.prepare import cache_path
from t5x_like.input_pipeline.prepare.vocabulary import tokenizer_place
from t5x_like.input_pipeline.sources.files import File
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer
from t5x_like.job.cluster import resolve
from t5x_like.job.join import check_devices
from t5x_like.plan.chips import memory_bytes
from t5x_like.plan.compile import missing_compiler, topology_devices, topology_size
from t5x_like.report.writers import check_outputs
from t5x_like.sharding.config import AXES
from t5x_like.sharding.mesh import Placement, make_placement
from t5x_like.sharding.rules import rules_of
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.directory import locked
from t5x_like.train.setup import Setup, State, make_setup
from t5x_like.train.working import checkpoints_of

T = TypeVar("T")
CLUSTERS = ("", "slurm", "jobset", "tpu-vm")
_COUNTED = re.compile(r"([a-z]\w*):(\d+)")  # devices that are only counted, such as gpu:16


class NotKnown(Exception):
    """What a check is about has been refused by another one, which said so."""


# Properties of ``Case`` to the check that tells what is wrong with them.
TOLD_BY = {
    "setup": "config", "processes": "environment", "devices": "mesh", "placement": "mesh", "state": "mesh",
    "sources": "corpus", "tokenizer": "tokenizer", "caches": "tokenizer", "data": "cache", "folder": "storage",
    "latest": "checkpoint",
}  # fmt: skip


def once(function: Callable[[Case], T]) -> functools.cached_property[T]:
    """A property of ``Case`` that is made once; of a mistake in it only the first to ask is told."""

    @functools.wraps(function)
    def get(case: Case) -> T:
        if function.__name__ in case.refused:
            raise NotKnown(TOLD_BY[function.__name__])
        try:
            return function(case)
        except (UserError, NotKnown):
            case.refused.add(function.__name__)
            raise

    return functools.cached_property(get)


@dataclasses.dataclass(eq=False)
class Case:
    """A run to be checked.

    Attributes:
      run: the resolved config.
      directory: the run's folder, or its address.
      cluster: one of ``CLUSTERS``; empty: this machine.
      topology: devices that the run is for: a TPU topology (``v5e:4x4``), or a kind and a number (``gpu:16``); empty:
        those of this machine.
      accept_changed: as of ``train``.
      environment: environment variables.
      refused: names of properties that are known to be wrong.
    """

    run: Run
    directory: str | Path
    cluster: str = ""
    topology: str = ""
    accept_changed: Sequence[str] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=lambda: os.environ)
    refused: set[str] = dataclasses.field(default_factory=set)

    @once
    def setup(self) -> Setup:
        return make_setup(self.run)

    @once
    def processes(self) -> int:
        """How many processes the environment says that the job has; 1 where it says nothing."""
        world = resolve(self.environment, self.run.job.coordinator)
        return world.count if world else 1

    @once
    def devices(self) -> Sequence[Any] | int:
        """The devices of the run, or their number where there are none of that kind to be asked."""
        if found := _COUNTED.fullmatch(self.topology):
            return int(found[2])
        if self.topology and missing_compiler():
            return topology_size(self.topology)
        if self.topology:
            return topology_devices(self.topology)
        check_devices()
        return jax.devices() if self.processes <= jax.process_count() else jax.local_device_count() * self.processes

    @property
    def devices_are_known(self) -> bool:
        """Whether this machine is, or has been told, what the run is for."""
        return bool(self.topology or not self.cluster or self.processes > 1)

    @once
    def placement(self) -> Placement:
        devices, mesh = self.devices, self.run.mesh
        if isinstance(devices, int):
            sizes = mesh.sizes(devices)
            abstract: Any = AbstractMesh(tuple(sizes.values()), AXES)
            return Placement(abstract, rules_of(mesh), mesh.replicated_limit_mb, mesh.reduce)
        return make_placement(mesh, devices)

    @once
    def state(self) -> State:
        """The state of training as it lies on the mesh, which model and kernels fit; on no mesh where the devices are
        not known."""
        if not self.devices_are_known:
            alone: Any = AbstractMesh((1,) * len(AXES), AXES)
            return self.setup.abstract_state(Placement(alone, rules_of(self.run.mesh)))
        model, placement = self.run.model, self.placement
        model.check_sizes(placement.axis_ways)
        if placement.device is not None:
            model.check_attention(placement.device.platform)
        return self.setup.abstract_state(placement)

    @once
    def folder(self) -> Said:
        """What is known of the run's folder, which can be written and in which no other training runs."""
        report = dataclasses.replace(self.run.report, wandb="")  # its package is among the extras
        with locked(self.directory) as held:
            check_outputs(held.path, report)
            return shared(held.path, self.cluster) if held.working is None else Said(f"{self.directory} can be written")

    @once
    def latest(self) -> tuple[Mapping[str, Any], dict[str, Any]] | None:
        """(metadata, arrays) of the latest checkpoint; None where there is none."""
        if is_address(self.directory):
            _ = self.folder  # not known where that is refused
        there = checkpoints_of(self.directory)
        if not Folder(there).steps():
            return None
        with Checkpoints(there, read_only=True) as checkpoints:
            metadata = checkpoints.metadata()
            return metadata, checkpoints.arrays(metadata["step"])

    @property
    def available(self) -> int | None:
        """Bytes of memory of one device, if that is known."""
        device = self.placement.device
        return None if device is None else memory_bytes(device)

    @once
    def sources(self) -> dict[str, list[File]]:
        """The files of each corpus, by its name."""
        return {each.name: each.source.files() for each in corpora(self.run.data.corpus)}

    @once
    def tokenizer(self) -> Tokenizer | None:
        """None: it will be trained when the corpus is prepared."""
        data, _ = self.run.data, self.sources
        config = tokenizer_place(data.corpus, data.cache)
        trained = config != data.corpus.tokenizer
        return None if trained and not Path(config.path).is_file() else open_tokenizer(config)

    @once
    def caches(self) -> dict[str, tuple[Corpus, Path | None]]:
        """Corpus, and the folder of its token cache (None while there is no tokenizer), by its name."""
        found, tokenizer, _ = {}, self.tokenizer, self.sources
        for each in corpora(self.run.data.corpus):
            first = each.window_of(0) if each.window else each
            found[each.name] = first, tokenizer and cache_path(first, tokenizer, self.run.data.cache)
        return found

    @once
    def data(self) -> Data | None:
        """The run's text, opened as ``train`` does; None where something is to be prepared first."""
        endless = any(each.window for each in corpora(self.run.data.corpus))
        ready = all(path and (path / "manifest.json").is_file() for _, path in self.caches.values())
        return Data.open(self.run) if ready and not endless else None
