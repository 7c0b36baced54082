"""Published models, one file for each family: its sizes, and what Hugging Face calls its parameters."""

from t5x_like.models.families.bert import bert
from t5x_like.models.families.gpt2 import gpt2
from t5x_like.models.families.llama import llama
from t5x_like.models.families.t5 import byt5, mt5, t5_1_0, t5_1_1, umt5
from t5x_like.models.families.transformer_2017 import transformer_2017
from t5x_like.models.families.uniform import Dropout, uniform

__all__ = ["Dropout", "bert", "byt5", "gpt2", "llama", "mt5", "t5_1_0", "t5_1_1", "transformer_2017", "umt5", "uniform"]
