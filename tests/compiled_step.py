"""The train step of a small decoder compiled for a mesh, of devices that are here or of a TPU topology that is not.

    python compiled_step.py v5e:2x4 '{"data": 4, "fsdp": 2}' ...

prints for each mesh, as JSON, what ``facts`` returns; in a process of its own, because libtpu reads its environment
once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    import tpu_schedule

    tpu_schedule.require_libtpu()

import jax
import jax.numpy as jnp
from compiled_text import Collective, collectives

from t5x_like.losses import TokenLoss
from t5x_like.models.families import llama
from t5x_like.models.transformer import make_model
from t5x_like.optim import AdamW
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.plan.memory import bytes_per_device
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.setup import Setup
from t5x_like.train.step import compile_step

ROWS, LENGTH = 32, 128


def facts(mesh: MeshConfig, devices=None, micro_batches: int = 1, **model: Any) -> dict[str, Any]:
    """{"collectives": as ``collectives``, "gradient": bytes of the parameters' gradients on a device, "flops",
    "temporary": bytes}."""
    sizes = dict(vocab_size=512, d_model=64, heads=4, kv_heads=4, head_dim=16, d_ff=128, decoder_layers=3)
    config = llama(**(sizes | dict(scan_layers=True) | model))
    structure, specs = make_model(config)
    optimizer = make_optimizer(AdamW(learning_rate=1e-3, clip_norm=1.0), specs, 10)
    setup = Setup(structure, specs, optimizer, TokenLoss(), micro_batches)
    placement = make_placement(mesh, devices)
    names = {"decoder_tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    batch = {k: jax.ShapeDtypeStruct((ROWS, LENGTH), t, sharding=placement.batch) for k, t in names.items()}
    step = compile_step(setup, placement)
    traced = step.trace(setup.abstract_state(placement), batch)
    compiled = traced.lower(lowering_platforms=(placement.mesh.devices.flat[0].platform,)).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "collectives": collectives(compiled.as_text(), placement.mesh.shape),
        "gradient": bytes_per_device(specs, dict(placement.mesh.shape)),
        "flops": cost["flops"],
        "temporary": memory.temp_size_in_bytes,
    }


def main() -> None:
    from jax.experimental import topologies

    topology = sys.argv[1]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    wide = dict(d_model=256, heads=2, kv_heads=2, head_dim=128, d_ff=512, dtype="bfloat16", attention_backend="tpu")
    for mesh in sys.argv[2:]:
        found = facts(MeshConfig(**json.loads(mesh)), devices, 2, **wide)
        found["collectives"] = [vars(one) for one in found["collectives"]]
        print(json.dumps(found), flush=True)


def read(line: str) -> dict[str, Any]:
    """What ``main`` printed for one mesh, as ``facts`` returns it."""
    found = json.loads(line)
    for one in found["collectives"]:
        one["axes"] = tuple(one["axes"])
        one["operands"] = tuple((dtype, tuple(shape)) for dtype, shape in one["operands"])
    return found | {"collectives": [Collective(**one) for one in found["collectives"]]}


if __name__ == "__main__":
    main()
