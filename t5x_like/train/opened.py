"""A trained run, opened to be measured or to write text: its config, its parameters, nothing of its optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from t5x_like.arrays.trees import Tree
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.config import override
from t5x_like.core.errors import UserError
from t5x_like.decode.generate import Sampling, generate
from t5x_like.input_pipeline.tokenizers import load_tokenizer
from t5x_like.models.transformer import Batch
from t5x_like.sharding.mesh import Placement, make_placement, use
from t5x_like.sharding.processes import join_processes
from t5x_like.train.compiled import compile_steps
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.directory import CHECKPOINTS, load_config
from t5x_like.train.feed import check_batch_size, local_share, to_devices
from t5x_like.train.state import Setup, make_setup


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedRun:
    """A run with the parameters of one checkpoint on this machine's devices."""

    run: Run
    setup: Setup
    placement: Placement
    params: Tree
    step: int

    def held_out(self) -> tuple[Callable, Tree, Iterator[Batch]]:
        """Arguments of ``evaluate.heldout.evaluate`` for the whole held-out split."""
        check_batch_size(self.placement, self.run.train.batch_size, 1)
        batches = Data.open(self.run).held_out
        if batches is None:
            raise UserError("data.corpus.heldout", "is 0: nothing was kept back to measure on", "a share above 0")
        share = local_share(self.placement, self.run.train.batch_size)
        limit = self.run.train.evaluate_batches if self.run.data.streaming else None  # a stream may never end
        host = batches.heldout_batches(limit, *share)
        return (
            compile_steps(self.setup, self.placement)[1],
            self.params,
            (to_devices(self.placement, b, share) for b in host),
        )

    def generate(self, prompts: Sequence[str], sampling: Sampling, seed: int = 0) -> list[str]:
        """Continues texts, or answers them where there is an encoder. Raises UserError as ``decode.generate`` does."""
        if jax.process_count() > 1:
            raise UserError("generate", f"runs in one process, got {jax.process_count()}", "one process")
        tokenizer = load_tokenizer(self.run.data.corpus, self.run.data.cache)
        tokens = [self.run.objective.prompt(tokenizer.encode(text), tokenizer) for text in prompts]
        with use(self.placement):
            written = generate(
                self.setup.structure,
                self.run.model,
                self.params,
                tokens,
                sampling,
                eos_id=tokenizer.eos_id,
                start_id=tokenizer.pad_id,
                bidirectional_prompt=self.run.objective.has_prefix,
                seed=seed,
            )
        return [tokenizer.decode(row) for row in written]


def open_run(
    directory: Path,
    step: int | None = None,
    assignments: Sequence[str] = (),
    code: Sequence[str] = (),
    accept_changed: Sequence[str] = (),
) -> OpenedRun:
    """Reads a run's config and the parameters of a checkpoint, onto whatever mesh the config asks for.

    Args:
      directory: the run's folder.
      step: which checkpoint; the latest good one if None.
      assignments: fields to set, such as ``mesh.data=2``.
      code, accept_changed: as of ``train.directory.load_config``.

    Raises:
      UserError: not a run's folder, own code that may not be run, no good checkpoint, a mesh that does not fit.
    """
    run = override(load_config(directory, code, accept_changed), assignments)
    join_processes()
    placement = make_placement(run.mesh)
    run.model.check_tensor(placement.mesh.shape["tensor"])
    run.model.check_attention(jax.default_backend())
    setup = make_setup(run)
    with Checkpoints(directory / CHECKPOINTS, read_only=True) as checkpoints:
        template = {"params": setup.abstract_params(placement)}
        state, metadata = checkpoints.restore(template, step, partial=True)
    jax.block_until_ready(state)
    return OpenedRun(run, setup, placement, state["params"], int(metadata["step"]))
