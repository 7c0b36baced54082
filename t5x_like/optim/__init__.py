"""Optimizers on optax, learning-rate schedules, and patterns of parameters.

Each shipped optimizer is one file with its dataclass and its arithmetic; `config` has the fields that all share. None
of them imports jax or optax before a run is set up. `optimizer` is what runs. Knows parameters by their declarations
(`t5x_like.arrays.spec`); must not know models, meshes, or the train loop.
"""

from t5x_like.optim.adafactor import Adafactor
from t5x_like.optim.adamw import AdamW
from t5x_like.optim.config import Joined, OptimizerConfig, Schedule
from t5x_like.optim.from_optax import Optax
from t5x_like.optim.lion import Lion
from t5x_like.optim.muon import Muon
from t5x_like.optim.schedule_free import ScheduleFree

__all__ = ["Adafactor", "AdamW", "Joined", "Lion", "Muon", "Optax", "OptimizerConfig", "Schedule", "ScheduleFree"]
