"""An optimizer of optax by its name: nothing but the run file."""

from t5x_like.config import Optax, code

base = code("base.py")


def run():
    optimizer = Optax(name="adabelief", arguments=("b1=0.8",), learning_rate=3e-3, weight_decay=0.1)
    return base.tiny(optimizer=optimizer)
