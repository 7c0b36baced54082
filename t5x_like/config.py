"""What run files and corpus files import: every choice that a run is made of, under one name.

Imports no JAX, so that ``--help`` and ``inspect config`` are instant. Files below may move; these names stay.
"""

from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.core.errors import UserError
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
    SentencePieceModel,
    Source,
    TextFiles,
    TfdsBuilder,
    TfRecord,
    TokenizerConfig,
)
from t5x_like.input_pipeline.recipes import recipe
from t5x_like.layers.config import Dropout
from t5x_like.models.config import ModelConfig
from t5x_like.models.families import bert, byt5, gpt2, llama, mt5, t5_1_0, t5_1_1, transformer_2017, umt5
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
from t5x_like.optim.config import Adafactor, AdamW, Lion, Schedule
from t5x_like.report.config import ReportConfig
from t5x_like.sharding.config import MeshConfig
from t5x_like.train.config import Run, TrainConfig

__all__ = [
    "UL2", "Adafactor", "AdamW", "ArrayRecord", "Autoregressive", "Bytes", "CheckpointConfig", "Corpus", "Csv",
    "DataConfig", "Dropout", "Example", "FillInTheMiddle", "Filters", "HuggingFaceDataset", "HuggingFaceTokenizer",
    "IidDenoising", "JsonLines", "Lion", "MaskedLM", "MeshConfig", "Mixture", "ModelConfig", "Objective",
    "PackageText", "Parquet", "Part", "PermutationLM", "PrefixLM", "Proportional", "PythonGenerator", "RateSchedule",
    "ReportConfig", "Run", "Schedule", "SentencePiece", "SentencePieceModel", "Source", "SpanCorruption", "TextFiles",
    "TfRecord", "TfdsBuilder", "TokenizerConfig", "TrainConfig", "UserError", "bert", "byt5", "gpt2", "llama", "mt5",
    "recipe", "t5_1_0", "t5_1_1", "transformer_2017", "umt5",
]  # fmt: skip
