"""A Llama-style decoder on the State of the Union addresses, predicting the next token.

    t5x-like train gpt_sotu
    t5x-like generate runs/gpt_sotu "My fellow citizens, " --temperature 0.8 --top-p 0.9

Documents are joined, cut into rows of 128 tokens, and attention stays inside each document's share of a row.
"""

from t5x_like.config import AdamW, Autoregressive, DataConfig, Every, Run, Schedule, TrainConfig, llama, recipe


def run() -> Run:
    steps = 1000
    return Run(
        name="gpt_sotu",
        model=llama(
            vocab_size=4096,
            d_model=128,
            d_ff=384,
            heads=4,
            kv_heads=2,
            head_dim=32,
            decoder_layers=4,
            scan_layers=False,
        ),
        objective=Autoregressive(),
        data=DataConfig(recipe("../data/sotu.py", vocab_size=4096), input_length=128),
        optimizer=AdamW(
            learning_rate=4e-3, weight_decay=0.05, clip_norm=1.0, schedule=Schedule("cosine", warmup=0.1, end=0.1)
        ),
        train=TrainConfig(steps=steps, batch_size=16, evaluate_every=Every(share=0.25), evaluate_batches=40),
    )
