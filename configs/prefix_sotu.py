"""A decoder as a prefix LM on the State of the Union addresses: it reads the start of a passage in both directions.

    t5x-like train prefix_sotu

The same blocks as ``gpt_sotu``, with ALiBi instead of rotary positions; the loss is on what follows the prefix.
"""

from t5x_like.config import AdamW, Alibi, DataConfig, Every, PrefixLM, Run, Schedule, TrainConfig, llama, recipe


def run() -> Run:
    steps = 1000
    return Run(
        name="prefix_sotu",
        model=llama(
            vocab_size=4096,
            d_model=128,
            d_ff=384,
            heads=4,
            kv_heads=0,
            head_dim=32,
            decoder_layers=4,
            positions=Alibi(),
            scan_layers=False,
        ),
        objective=PrefixLM(),
        data=DataConfig(recipe("../data/sotu.py", vocab_size=4096), input_length=128),
        optimizer=AdamW(
            learning_rate=4e-3, weight_decay=0.05, clip_norm=1.0, schedule=Schedule("cosine", warmup=0.1, end=0.1)
        ),
        train=TrainConfig(steps=steps, batch_size=16, evaluate_every=Every(share=0.25), evaluate_batches=40),
    )
