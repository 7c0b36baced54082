"""A small ByT5 on the source text of Python's standard library, which every machine has: nothing to install or train.

    t5x-like train byt5_python
    t5x-like generate runs/byt5_python "def main(argv"

Bytes instead of pieces; three encoder layers for each decoder layer, and long masked spans, as in ByT5.
"""

from t5x_like.config import (
    Adafactor,
    Bytes,
    DataConfig,
    Every,
    Run,
    Schedule,
    SpanCorruption,
    TrainConfig,
    byt5,
    recipe,
)


def run() -> Run:
    steps = 1000
    return Run(
        name="byt5_python",
        model=byt5(
            d_model=128, d_ff=384, heads=4, head_dim=32, encoder_layers=3, decoder_layers=1, scan_layers=False
        ),
        objective=SpanCorruption(mean_span_length=20.0),
        data=DataConfig(recipe("../data/python_source.py", tokenizer=Bytes()), input_length=256),
        optimizer=Adafactor(learning_rate=0.02, schedule=Schedule("rsqrt", warmup=0.1, hold=400)),
        train=TrainConfig(steps=steps, batch_size=16, evaluate_every=Every(share=0.25), evaluate_batches=40),
    )
