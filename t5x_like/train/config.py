"""A whole run as one frozen dataclass tree, checked as a whole. Imports no JAX, so that ``--help`` is instant."""

from __future__ import annotations

import dataclasses
import fnmatch

from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.core.config import Config
from t5x_like.core.errors import refuse, require
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
      evaluate_every: steps between two evaluations; 0 evaluates at the end only.
      evaluate_batches: largest number of batches in a held-out evaluation; 0 is the whole split.
    """

    steps: int
    batch_size: int
    micro_batches: int = 1
    seed: int = 0
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    logits_chunk: int = 0
    evaluate_every: int = 1000
    evaluate_batches: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "micro_batches"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "1 or more")
        for name in ("seed", "z_loss", "logits_chunk", "evaluate_every", "evaluate_batches"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        smoothing = self.label_smoothing
        require(0.0 <= smoothing < 1.0, "train.label_smoothing", smoothing, "a number from 0 up to but not 1")
        got = f"{self.micro_batches} does not divide train.batch_size = {self.batch_size}"
        refuse(self.batch_size % self.micro_batches > 0, "train.micro_batches", got, "a divisor of the batch size")


@dataclasses.dataclass(frozen=True)
class Run(Config, where=""):
    """All that decides what a run computes and reports.

    ``evaluations`` are made during training, each at its own times or every ``train.evaluate_every`` steps.
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
            require(name.isidentifier() and name not in ("train", "data", *names[:place]), f"evaluations.{place}.name",
                    repr(name), "a name of its own: letters, digits and _", "held_out")
        model.check_length(max(objective.capacity(self.data, model.shape)))

    def lengths(self) -> tuple[int, int]:
        """(encoder, decoder) columns of a batch; 0 for a side that the model does not have."""
        first, second = (*self.objective.capacity(self.data, self.model.shape), 0)[:2]
        return (0, first) if self.model.shape == "decoder-only" else (first, second)


# Fields that a resumed run may change: they change neither its parameters nor its batches.
# ``data.skip`` is checked against the checkpoint when the run goes on.
FREE_TO_CHANGE = (
    "name", "mesh", "checkpoint", "report", "optimizer", "evaluations",
    "train.steps", "train.micro_batches", "train.logits_chunk", "train.z_loss", "train.label_smoothing",
    "train.evaluate_every", "train.evaluate_batches",
    "model.attention_backend", "model.scan_layers", "model.remat", "model.dtype", "model.*dropout",
    "data.cache", "data.skip", "data.prepare_processes", "data.read_threads", "data.worker_processes",
    "data.prefetch_batches",
)  # fmt: skip


def free_to_change(field: str) -> bool:
    """Whether a resumed run may have another value of this dotted field."""
    if field.startswith("data.corpus.") and field.rsplit(".", 1)[1] in ("licence", "origin"):
        return True
    return any(field.startswith(f"{free}.") or fnmatch.fnmatchcase(field, free) for free in FREE_TO_CHANGE)
