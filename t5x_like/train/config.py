"""A whole run as one frozen dataclass tree, checked as a whole. Imports no JAX, so that ``--help`` is instant."""

from __future__ import annotations

import dataclasses
import fnmatch

from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.core.config import Config
from t5x_like.core.errors import refuse, require
from t5x_like.core.every import Every
from t5x_like.core.ranges import BelowOne, NonNegativeFloat, NonNegativeInt, PositiveInt, Seed
from t5x_like.evaluate.heldout import HeldOut
from t5x_like.evaluate.task import Evaluation
from t5x_like.input_pipeline.config import DataConfig
from t5x_like.models.adapters import Adapter
from t5x_like.models.config import ModelConfig
from t5x_like.objectives import Objective
from t5x_like.optim.config import OptimizerConfig
from t5x_like.report.config import ReportConfig
from t5x_like.sharding.config import MeshConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig(Config, where="train"):
    """Length of the run, batches, and terms of the loss.

    Attributes:
      steps: number of updates.
      batch_size: rows per update, over all devices and micro-batches.
      micro_batches: number of micro-batches that a batch is computed in, one after the other, to save memory.
      seed: seed of initial values, order of examples, corruption and dropout.
      z_loss: factor of log(Z)^2, which is added to the loss and keeps logits from drifting.
      label_smoothing: share of each target spread evenly over the vocabulary.
      logits_chunk: columns whose logits are in memory at a time; 0 is all.
      evaluate_every: times of the evaluations that have none of their own.
      evaluate_batches: largest number of batches in a held-out evaluation; 0 is the whole split.
      compiled: folder where compiled programs are kept between runs; empty: in ``$XDG_CACHE_HOME/t5x-like``, or
        ``~/.cache/t5x-like``; ``off``: nowhere. ``$JAX_COMPILATION_CACHE_DIR`` goes before it.
    """

    steps: PositiveInt
    batch_size: PositiveInt
    micro_batches: PositiveInt = 1
    seed: Seed = 0
    z_loss: NonNegativeFloat = 1e-4
    label_smoothing: BelowOne = 0.0
    logits_chunk: NonNegativeInt = 0
    evaluate_every: Every = Every(steps=1000)
    evaluate_batches: NonNegativeInt = 0
    compiled: str = ""

    def __post_init__(self):
        got = f"{self.micro_batches} does not divide train.batch_size = {self.batch_size}"
        refuse(self.batch_size % self.micro_batches > 0, "train.micro_batches", got, "a divisor of the batch size")


@dataclasses.dataclass(frozen=True)
class Run(Config, where=""):
    """All that decides what a run computes and reports.

    ``evaluations`` are made during training, each at its own times or those of ``train.evaluate_every``.
    ``adapters`` have parameters of their own beside the model's, which change those that it computes with.

    Attributes:
      name: name of the run, and of its folder below ``runs/`` unless another is given.
      model: sizes and layers of the model.
      objective: what is learned from a text, and with which loss.
      data: the text, and how it becomes batches.
      optimizer: the rule that updates parameters, with its learning rate and schedule.
      train: number of steps, batches, terms of the loss.
      mesh: how arrays are split over devices.
      checkpoint: when the state is saved, and which checkpoints are kept.
      report: metrics, plots and samples of text.
      evaluations: measurements during training, in order.
      adapters: further parameters that change the model's, in order.
    """

    name: str
    model: ModelConfig
    objective: Objective
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    report: ReportConfig = ReportConfig()
    evaluations: tuple[Evaluation, ...] = (HeldOut(),)
    adapters: tuple[Adapter, ...] = ()

    def __post_init__(self):
        parts = self.name.split("/")
        require(self.name.isprintable() and parts[-1] != "" and not {".", ".."} & set(parts), "name", repr(self.name),
                "the name of a folder below runs/: printable, not empty, no '.' or '..'")
        model, objective, its_name = self.model, self.objective, type(self.objective).__name__
        got = f"{its_name} cannot train a model of shape {model.shape}"
        refuse(model.shape not in objective.shapes, "objective", got, f"a model that is {' | '.join(objective.shapes)}")
        vocabulary = self.data.corpus.tokenizer.vocab_size  # 0: known once the file is open
        refuse(vocabulary > model.vocab_size, "model.vocab_size",
               f"{model.vocab_size}, but the tokenizer of corpus {self.data.corpus.name!r} has {vocabulary} ids",
               f"{vocabulary} or more", f"model.vocab_size={-(-vocabulary // 128) * 128}")
        refuse(objective.future_tokens != model.future_heads, "objective.future_tokens",
               f"{objective.future_tokens}, but model.future_heads is {model.future_heads}",
               "as many of each", f"model.future_heads={objective.future_tokens}")
        refuse(objective.needs_position_ids and model.orders_by_column, "model.positions",
               f"{its_name} gives each token a position of its own, but some layer goes by columns",
               "Learned, Sinusoidal or Rope positions, and no window")
        names = [task.name for task in self.evaluations]
        for place, name in enumerate(names):
            taken = ("train", "data", "memory", *names[:place])  # in metrics.jsonl
            require(name.isidentifier() and name not in taken, f"evaluations.{place}.name", repr(name),
                    "a name of its own: letters, digits and _",
                    f"evaluations.{place}.name={'held_out' if 'held_out' not in names else f'held_out_{place}'}")
        model.check_length(max(objective.capacity(self.data, model.shape)))

    def times(self, task: Evaluation) -> Every:
        """When an evaluation is made."""
        return task.when or self.train.evaluate_every

    def lengths(self) -> tuple[int, int]:
        """(encoder, decoder) columns of a batch; 0 for a side that the model does not have."""
        first, second = (*self.objective.capacity(self.data, self.model.shape), 0)[:2]
        return (0, first) if self.model.shape == "decoder-only" else (first, second)


# Fields that a resumed run may change, and why: none of them changes which parameters or batches the run has.
_WRITTEN, _MEASURED = "what is written, not what is computed", "what is measured, not what is trained"
_SAME, _HENCE = "the same sums, in another order or form", "from here on; what was trained before stays"
_READ, _LIES = "how text is read, not which", "where the text lies; which it is, is compared by its tokens"
FREE_TO_CHANGE = {
    "name": "a label", "mesh": _SAME, "checkpoint": _WRITTEN, "report": _WRITTEN, "optimizer": _HENCE,
    "evaluations": _MEASURED, "train.evaluate_every": _MEASURED, "train.evaluate_batches": _MEASURED,
    "train.steps": "the end; schedules that depend on it change from here on", "train.micro_batches": _SAME,
    "train.compiled": "where programs lie", "train.logits_chunk": _SAME, "train.z_loss": _HENCE,
    "train.label_smoothing": _HENCE, "model.attention_backend": _SAME, "model.scan_layers": _SAME,
    "model.remat": _SAME, "model.dtype": _HENCE,
    "model.*dropout": _HENCE, "data.cache": _READ, "data.skip": "batches to come; those behind are compared",
    "data.prepare_processes": _READ, "data.read_threads": _READ, "data.worker_processes": _READ,
    "data.prefetch_batches": _READ, "data.corpus.*licence": "a label", "data.corpus.*origin": "a label",
    "data.corpus.*source.paths": _LIES, "data.corpus.*source.directory": _LIES, "data.corpus.*source.file": _LIES,
    "data.corpus.*tokenizer.path": _LIES,
}  # fmt: skip


def why_free(field: str) -> str:
    """Why a resumed run may have another value of this dotted field; empty: it may not."""
    fits = (why for free, why in FREE_TO_CHANGE.items() if field.startswith(f"{free}.") or fnmatch.fnmatch(field, free))
    return next(fits, "")
