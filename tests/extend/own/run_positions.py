"""Positions of one's own."""

from t5x_like.config import code

base, mine = code("base.py"), code("positions.py")


def run():
    return base.with_layer(side={"positions": mine.RootDistance()})
