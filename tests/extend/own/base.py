"""A tiny run over the texts beside it, for the run files of this folder to change."""

import dataclasses

from t5x_like.config import (
    AdamW,
    Autoregressive,
    Bytes,
    CheckpointConfig,
    Corpus,
    DataConfig,
    Every,
    Group,
    ReportConfig,
    Run,
    TextFiles,
    TrainConfig,
    llama,
)


def tiny(**changes):
    corpus = Corpus("own", TextFiles(("texts",)), Bytes(), "none", "made up", heldout=0.3)
    run = Run(
        name="own",
        model=llama(vocab_size=264, d_model=16, d_ff=32, heads=4, head_dim=8, kv_heads=4, decoder_layers=1,
                    scan_layers=False),
        objective=Autoregressive(),
        data=DataConfig(corpus, input_length=32, cache="cache"),
        optimizer=AdamW(learning_rate=3e-3),
        train=TrainConfig(steps=4, batch_size=8, evaluate_every=Every()),
        checkpoint=CheckpointConfig(every=Every()),
        report=ReportConfig(every=1, tensorboard=False, plots=False),
    )  # fmt: skip
    return dataclasses.replace(run, **changes)


def with_layer(times: int = 2, side: dict | None = None, **changes):
    """``tiny`` with n changed layers, and its decoder with other fields."""
    run = tiny()
    layer = dataclasses.replace(run.model.decoder.groups[0].pattern[0], **changes)
    decoder = dataclasses.replace(run.model.decoder, groups=(Group(times, (layer,)),), **(side or {}))
    return dataclasses.replace(run, model=dataclasses.replace(run.model, decoder=decoder))
