"""The quickstart: a small T5 on the State of the Union addresses, by span corruption, on the CPU.

    make train                    or: t5x-like train t5_sotu

2.0 million parameters, 1,100 steps of 16 rows of 128 tokens (targets of 29): 3 minutes of training on 2 cores.
Held-out loss per target token at the end: 4.32 nats (5.01 after a fifth of the steps); guessing by how often each token
is a target, the unigram baseline, gives 5.90 on the same targets. Measured 2026-11-22 with jax 0.10.2.
"""

from t5x_like.config import (
    Adafactor,
    CheckpointConfig,
    DataConfig,
    Every,
    Run,
    Schedule,
    SpanCorruption,
    TrainConfig,
    recipe,
    t5_1_1,
)


def run() -> Run:
    steps = 1100
    return Run(
        name="t5_sotu",
        model=t5_1_1(
            vocab_size=4096,
            d_model=128,
            d_ff=384,
            heads=4,
            head_dim=32,
            encoder_layers=2,
            decoder_layers=2,
            scan_layers=False,  # two layers compile fast enough, and a CPU runs them faster apart
        ),
        objective=SpanCorruption(),
        data=DataConfig(recipe("../data/sotu.py", vocab_size=4096), input_length=128),
        optimizer=Adafactor(
            learning_rate=0.05,
            clip_norm=1.0,
            schedule=Schedule("cosine", warmup=30 / steps, end=0.1),  # a share: 20 steps have a warm-up too
        ),
        train=TrainConfig(steps=steps, batch_size=16, evaluate_every=Every(share=0.2), evaluate_batches=0),
        checkpoint=CheckpointConfig(every=Every(steps=200)),
    )
