"""What run files and corpus files import: every choice that a run is made of, under one name.

Imports no JAX, so that ``--help`` and ``inspect config`` are instant. Files below may move; these names stay.
"""

from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.core.batch import BatchArray
from t5x_like.core.config import Config
from t5x_like.core.errors import UserError
from t5x_like.core.every import Every
from t5x_like.core.loading import code
from t5x_like.core.ranges import (
    BelowOne,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Range,
)
from t5x_like.decode.sample import Sampling
from t5x_like.evaluate.heldout import HeldOut
from t5x_like.evaluate.task import Evaluation
from t5x_like.input_pipeline.config import (
    ArrayRecord,
    Bytes,
    Corpus,
    Csv,
    DataConfig,
    Filters,
    HuggingFaceDataset,
    HuggingFaceTokenizer,
    JsonLines,
    Mixture,
    PackageText,
    Parquet,
    Part,
    Proportional,
    PythonGenerator,
    RateSchedule,
    SentencePiece,
    Source,
    TextFiles,
    TfdsBuilder,
    TfRecord,
    TokenizerConfig,
)
from t5x_like.input_pipeline.recipes import recipe
from t5x_like.input_pipeline.tokenizers.config import SentencePieceModel
from t5x_like.job.config import JobConfig
from t5x_like.layers.attention import Attention
from t5x_like.layers.block import Layer
from t5x_like.layers.feed_forward import FeedForward
from t5x_like.layers.init import FanIn, Init, Normal
from t5x_like.layers.mixer import Mixer, PerToken
from t5x_like.layers.norms import LayerNorm, Norm, RMSNorm
from t5x_like.layers.positions import Alibi, Learned, NoPositions, Positions, Rope, Sinusoidal, T5Relative
from t5x_like.layers.stack import Group, Stack
from t5x_like.losses import FutureTokens, Loss, TokenLoss
from t5x_like.models.adapters import Adapter
from t5x_like.models.config import HeadTransform, ModelConfig, Side
from t5x_like.models.families import (
    Dropout,
    bert,
    byt5,
    gpt2,
    llama,
    mt5,
    t5_1_0,
    t5_1_1,
    transformer_2017,
    umt5,
    uniform,
)
from t5x_like.models.inputs import Features, Inputs, Tokens
from t5x_like.objectives import (
    UL2,
    Autoregressive,
    Example,
    FillInTheMiddle,
    IidDenoising,
    MaskedLM,
    Objective,
    PermutationLM,
    PrefixLM,
    SpanCorruption,
)
from t5x_like.optim import Adafactor, AdamW, Joined, Lion, Muon, Optax, OptimizerConfig, Schedule, ScheduleFree
from t5x_like.report.config import ReportConfig
from t5x_like.sharding.config import MeshConfig, Rule
from t5x_like.train.config import Run, StartConfig, TrainConfig

__all__ = [
    "UL2", "Adafactor", "AdamW", "Adapter", "Alibi", "ArrayRecord", "Attention", "Autoregressive", "BatchArray",
    "BelowOne", "Bytes", "CheckpointConfig", "Config", "Corpus", "Csv", "DataConfig", "Dropout", "Evaluation", "Every",
    "Example", "FanIn", "Features", "FeedForward", "FillInTheMiddle", "Filters", "FiniteFloat", "FutureTokens", "Group",
    "HeadTransform", "HeldOut", "HuggingFaceDataset", "HuggingFaceTokenizer", "IidDenoising", "Init", "Inputs",
    "JobConfig", "Joined", "JsonLines", "Layer", "LayerNorm", "Learned", "Lion", "Loss", "MaskedLM", "MeshConfig",
    "Mixer", "Mixture", "ModelConfig", "Muon", "NoPositions", "NonNegativeFloat", "NonNegativeInt", "Norm", "Normal",
    "Objective", "Optax", "OptimizerConfig", "PackageText", "Parquet", "Part", "PerToken", "PermutationLM", "Positions",
    "PositiveFloat", "PositiveInt", "PrefixLM", "Probability", "Proportional", "PythonGenerator", "RMSNorm", "Range",
    "RateSchedule", "ReportConfig", "Rope", "Rule", "Run", "Sampling", "Schedule", "ScheduleFree", "SentencePiece",
    "SentencePieceModel", "Side", "Sinusoidal", "Source", "SpanCorruption", "Stack", "StartConfig", "T5Relative",
    "TextFiles", "TfRecord", "TfdsBuilder", "TokenLoss", "TokenizerConfig", "Tokens", "TrainConfig", "UserError",
    "bert", "byt5", "code", "gpt2", "llama", "mt5", "recipe", "t5_1_0", "t5_1_1", "transformer_2017", "umt5", "uniform",
]  # fmt: skip
