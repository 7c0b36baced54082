"""UL2's mixture of denoisers over a mixture of two corpora, English and Python, on the CPU.

    t5x-like train ul2_mixture
    t5x-like inspect data ul2_mixture --rows 16           # which corpus and which denoiser each row is of
    t5x-like generate runs/ul2_mixture "[S2S]The Congress of the United"

Seven denoisers at equal rates, each told by a mode token at the start of its inputs: [NLU] short spans, [NLG] long or
many, [S2S] the rest of a text. 3.1 million parameters, 1,000 steps of 16 rows, 7 to 13 minutes on 2 cores.
Held-out loss per target token over all denoisers at the end: 4.55 nats (5.53 after a fifth of the steps).
Measured 2026-11-22 with jax 0.10.2.
"""

from t5x_like.config import (
    UL2,
    Adafactor,
    CheckpointConfig,
    DataConfig,
    Every,
    Run,
    Schedule,
    TrainConfig,
    recipe,
    t5_1_1,
)


def run() -> Run:
    steps = 1000
    return Run(
        name="ul2_mixture",
        model=t5_1_1(
            vocab_size=8192, d_model=128, d_ff=384, heads=4, head_dim=32, encoder_layers=2, decoder_layers=2,
            scan_layers=False,
        ),
        objective=UL2(),
        data=DataConfig(recipe("../data/sotu_and_python.py"), input_length=128),
        optimizer=Adafactor(learning_rate=0.05, clip_norm=1.0, schedule=Schedule("cosine", warmup=0.03, end=0.1)),
        train=TrainConfig(steps=steps, batch_size=16, evaluate_every=Every(share=0.2), evaluate_batches=40),
        checkpoint=CheckpointConfig(every=Every(share=0.2)),
    )  # fmt: skip
