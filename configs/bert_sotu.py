"""A small BERT on the State of the Union addresses: 15% of the tokens are to be guessed, 80/10/10.

    t5x-like train bert_sotu
"""

from t5x_like.config import (
    AdamW,
    DataConfig,
    Dropout,
    Every,
    Learned,
    MaskedLM,
    Run,
    Schedule,
    Tokens,
    TrainConfig,
    bert,
    recipe,
)


def run() -> Run:
    steps = 1000
    return Run(
        name="bert_sotu",
        model=bert(
            vocab_size=4096,
            d_model=128,
            d_ff=512,
            heads=4,
            head_dim=32,
            encoder_layers=4,
            positions=Learned(128),
            inputs=Tokens(),
            dropout=Dropout(),
            scan_layers=False,
        ),
        objective=MaskedLM(),
        data=DataConfig(recipe("../data/sotu.py", vocab_size=4096), input_length=128),
        optimizer=AdamW(
            learning_rate=1e-3, weight_decay=0.01, clip_norm=1.0, schedule=Schedule("linear", warmup=0.1)
        ),
        train=TrainConfig(
            steps=steps, batch_size=16, z_loss=0.0, evaluate_every=Every(share=0.25), evaluate_batches=40
        ),
    )
