"""A trained model with its text, for evaluation and generation: in the loop, or from a checkpoint alone."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from t5x_like.arrays.trees import Tree
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.config import override
from t5x_like.core.errors import UserError, refuse
from t5x_like.decode.generate import generate
from t5x_like.decode.sample import Sampling
from t5x_like.evaluate.task import Values
from t5x_like.input_pipeline.prepare.vocabulary import load_tokenizer
from t5x_like.input_pipeline.tokenizers.tokenizer import Tokenizer
from t5x_like.job.join import join_processes
from t5x_like.models.transformer import Batch
from t5x_like.report.ledger import Ledger
from t5x_like.sharding.config import AXES, MeshConfig
from t5x_like.sharding.mesh import Placement, make_placement, use
from t5x_like.train.compiled import keep_compiled
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.directory import load_config
from t5x_like.train.feed import check_batch_size, local_share, to_devices
from t5x_like.train.setup import Setup, State, make_setup
from t5x_like.train.working import checkpoints_of, opened


def say(message: str) -> None:
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedRun:
    """A run with parameters on this machine's devices, as evaluations are given it.

    Attributes:
      run: the config.
      setup: its model and loss.
      placement: its mesh and rules.
      params: stored parameters, chosen by ``Setup.eval_params``.
      step: number of updates made.
      given_data: the run's text if it is open; None: it is opened when needed.
      stop: function that says whether to stop an evaluation before its end; every process must ask equally often.
      say: function of a warning; by default to standard error.
      ledger: that of the training; of a run opened from a checkpoint it writes nothing.
    """

    run: Run
    setup: Setup
    placement: Placement
    params: Tree
    step: int = 0
    given_data: Data | None = None
    stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = say
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    _compiled: dict[tuple, Callable] = dataclasses.field(default_factory=dict)  # shared with all ``at`` other steps

    @functools.cached_property
    def data(self) -> Data:
        return self.given_data or Data.open(self.run)

    @property
    def tokenizer(self) -> Tokenizer:
        given, data = self.given_data, self.run.data
        return given.tokenizer if given else load_tokenizer(data.corpus, data.cache)

    def at(self, step: int, state: State) -> OpenedRun:
        """The same run with the parameters of another state."""
        return dataclasses.replace(self, step=step, params=self.setup.eval_params(state))

    def compute(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """``function(model, *arrays)``, compiled on the run's mesh at the first call with this function."""
        setup, placement = self.setup, self.placement

        def call(params: Tree, *arrays: Any) -> Any:
            with use(placement):  # read while tracing, by ``constrain``
                return function(setup.bind(params), *arrays)

        compiled = self._compiled.setdefault((function, setup, placement), jax.jit(call))
        return compiled(self.params, *arrays)

    def sums(self, batch: Batch) -> dict[str, jax.Array]:
        """name: [2], (sum, weight) of what the loss measures on one batch."""
        return self.compute(self.setup.measure, batch)

    def held_out(self, limit: int = 0) -> Iterator[dict[str, jax.Array]]:
        """Batches of the held-out split on the devices, at most ``limit`` of them, or all for 0.

        Raises:
          UserError: nothing is held out, or the devices cannot share the rows of a batch.
        """
        check_batch_size(self.placement, self.run.train.batch_size, 1)
        if (batches := self.data.held_out) is None:
            raise UserError("data.corpus.heldout", "is 0: no text is held out", "a share above 0")
        share = local_share(self.placement, self.run.train.batch_size)
        return (to_devices(self.placement, b, share) for b in batches.heldout_batches(limit or None, *share))

    @property
    def held_out_batches(self) -> int:
        """Number of batches of the held-out split; 0 where nothing is held out."""
        batches = self.data.held_out
        return -(-batches.examples_per_epoch // self.run.train.batch_size) if batches else 0

    def evaluate(self) -> dict[str, Values | None]:
        """Values of each of the run's evaluations, by its label; over the whole held-out split unless the evaluation
        itself has a limit; in larger batches where the devices cannot share those of training."""
        rows, ways = self.run.train.batch_size, self.placement.batch_ways
        train = dataclasses.replace(self.run.train, evaluate_batches=0)
        if self.given_data is None and rows % ways:
            train = dataclasses.replace(train, batch_size=-(-rows // ways) * ways, micro_batches=1)
            self.say(f"{rows} rows cannot be shared evenly among {ways} devices: evaluated in batches of "
                     f"{train.batch_size}")
        whole = dataclasses.replace(self, run=dataclasses.replace(self.run, train=train))
        return {task.label(whole): task.run(whole) for task in whole.run.evaluations}

    def write(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int = 0,
        stop: Callable[[], bool] | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Continues token prompts, or answers them where there is an encoder. Raises and stops as ``decode.generate``.
        """
        count = jax.process_count()
        refuse(count > 1, "generate", f"runs in one process, got {count}", "one process")
        tokenizer, longest = self.tokenizer, self.run.objective.capacity(self.run.data, self.run.model.shape)[0]
        for number, prompt in enumerate(prompts, 1):
            if len(prompt) > longest:
                found = f"prompt {number} has {len(prompt):,} tokens, but the model was trained on {longest:,} at most"
                self.say(f"{found}: what it writes may make no sense")
        return generate(
            self.setup.bind, self.run.model, self.params, prompts, sampling, placement=self.placement,
            eos_id=tokenizer.eos_id, start_id=tokenizer.pad_id, bidirectional_prompt=self.run.objective.has_prefix,
            seed=seed, vocab_size=tokenizer.vocab_size, stop=stop,
        )  # fmt: skip

    def generate(self, prompts: Sequence[str], sampling: Sampling, seed: int = 0) -> list[str]:
        """``write`` of texts, each made into the prompt that the objective trains the model for."""
        tokenizer = self.tokenizer
        tokens = [self.run.objective.prompt(tokenizer.encode(text), tokenizer) for text in prompts]
        return [tokenizer.decode(row) for row in self.write(tokens, sampling, seed)]


def open_model(run: Run) -> tuple[Placement, Setup]:
    """(mesh of a run on this machine's devices, its model), checked against each other.

    Raises:
      UserError: a mesh or kernels that the devices or the model do not fit.
    """
    keep_compiled(run.train.compiled)
    join_processes(run.job)
    placement = make_placement(run.mesh)
    run.model.check_sizes(placement.axis_ways)
    run.model.check_attention(placement.device.platform)
    return placement, make_setup(run)


def open_run(
    directory: str | Path, step: int | None = None, assignments: Sequence[str] = (), code: Sequence[str] = (),
    accept_changed: Sequence[str] = (), say: Callable[[str], None] = say,
) -> OpenedRun:  # fmt: skip
    """Reads a run's config and the parameters of a checkpoint, onto the mesh that the config asks for, or, where this
    machine has other devices and no assignment names a mesh, one that fits; then that is said.

    Args:
      directory: the run's folder, or its address.
      step: step of the checkpoint; None: the latest good one.
      assignments: fields to set, such as ``mesh.data=2``.
      code, accept_changed: as for ``train.directory.load_config``.
      say: function of a warning; by default to standard error.

    Raises:
      UserError: not a run's folder, own code that may not be run, no good checkpoint, a mesh that does not fit.
    """
    directory = opened(directory)
    run = override(load_config(directory, code, accept_changed), assignments)
    join_processes(run.job)
    assigned = any(each.lstrip("-").startswith("mesh") for each in assignments)
    run, placement, setup = on_a_mesh_that_fits(run, () if assigned else other_meshes(run.mesh), say)
    with Checkpoints(checkpoints_of(directory), read_only=True) as checkpoints:
        state, metadata = checkpoints.restore(setup.eval_state(placement), step, partial=True)
    jax.block_until_ready(state)
    return OpenedRun(run, setup, placement, setup.eval_params(state), int(metadata["step"]), say=say)


def other_meshes(mesh: MeshConfig) -> tuple[MeshConfig, ...]:
    """The nearest that divides the devices, and one that splits no parameter."""
    count = jax.device_count()
    return mesh.fitted(count), dataclasses.replace(mesh, data=count, fsdp=1, tensor=1)


def on_a_mesh_that_fits(
    run: Run, others: Sequence[MeshConfig], say: Callable[[str], None]
) -> tuple[Run, Placement, Setup]:
    """The run on its own mesh, or on the first of the others that devices and parameters fit; then that is said."""
    problems = []
    for mesh in dict.fromkeys((run.mesh, *others)):
        found = dataclasses.replace(run, mesh=mesh)
        try:
            placement, setup = open_model(found)
            setup.abstract_state(placement)  # every parameter has a place, or says why not
        except UserError as problem:
            problems.append(problem)
            continue
        if problems:
            asked, chosen = (", ".join(f"{axis} {getattr(m, axis)}" for axis in AXES) for m in (run.mesh, mesh))
            say(f"the run's mesh ({asked}) does not fit {jax.device_count()} devices: opened on {chosen}")
        return found, placement, setup
    raise problems[-1]
