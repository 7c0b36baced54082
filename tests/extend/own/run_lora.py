"""LoRA on queries and values."""

from t5x_like.config import code

base, mine = code("base.py"), code("lora.py")


def run():
    return base.tiny(adapters=(mine.LoRA(rank=2),))
