"""T5 1.1 base as published, on text of your own: 248 million parameters, for a mesh of accelerators.

    t5x-like train t5_1_1_base data.corpus.source.paths=/data/text mesh.fsdp=8

The recipe is that of T5 1.1: 1M steps of 2048 rows of 512 tokens (targets of 114), span corruption of 15% in spans of
3, Adafactor with an inverse square root from step 10,000, z-loss 1e-4, no dropout, bfloat16 activations. Its expected
time and score depend on chips and text; this configuration has been built, planned and trained shrunk, not run whole.
"""

from t5x_like.config import (
    Adafactor,
    CheckpointConfig,
    DataConfig,
    Every,
    MeshConfig,
    ReportConfig,
    Run,
    SpanCorruption,
    TrainConfig,
    recipe,
    t5_1_1,
)


def run() -> Run:
    return Run(
        name="t5_1_1_base",
        model=t5_1_1("base", dtype="bfloat16", remat="dots"),
        objective=SpanCorruption(),
        data=DataConfig(recipe("../data/own_text.py"), input_length=512),
        optimizer=Adafactor(),
        train=TrainConfig(steps=1_000_000, batch_size=2048, evaluate_every=Every(steps=10_000), evaluate_batches=50),
        mesh=MeshConfig(data=1, fsdp=-1),
        checkpoint=CheckpointConfig(every=Every(steps=5_000), keep_every=100_000),
        report=ReportConfig(every=100),
    )
