"""What the GPU or TPU of this machine does, in one command and under 8 minutes: kernels and whole train steps.

    python benchmarks/on_device.py [--json FILE] [--seconds N] [--parts NAME ...]

Needs jax, flax, optax, tensorstore and this checkout, nothing else and no network; rows of PyTorch are left out where
torch or transformers is missing. Each part runs in a process of its own with a time limit of its own
(device_parts.py), and says its rows as it finds them: where a part fails or runs out of time, its other rows and those
of all other parts are still in the JSON, which is written after each part, and in the table, which is printed at the
end.

Kernels, in bfloat16: ours as ``backend="auto"`` chooses, against ``jax.nn.dot_product_attention`` by XLA and by cuDNN,
causal, causal within segments, and with T5's bias; milliseconds of the forward pass and of forward with backward, and
the largest error of the outputs and of the gradients of one head against float64, as a share of the largest number.
Whole steps, activations in bfloat16, parameters in float32, AdamW: T5 1.1 base (512 inputs, 114 targets) and a decoder
of GPT-2 small's shape (1024), ours and by transformers in PyTorch: tokens/s, share of the device's peak, memory.

On a machine without a device the smallest case of each part runs on the CPU, which shows that it runs and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from table import show

HERE = Path(__file__).parent
SECONDS = 465  # for all parts
UNWANTED = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_ENABLE_X64")
Row = dict[str, Any]


class Part(NamedTuple):
    """A name that device_parts.py knows, and its time limit in seconds, start of the process included."""

    name: str
    limit: float


# What matters most comes first: the time for all parts may be less than the sum of their limits.
PARTS = (
    Part("device", 60),
    Part("kernels 2048 64", 75),
    Part("t5 ours auto", 90),
    Part("t5 torch", 100),
    Part("kernels 8192 128", 75),
    Part("gpt ours auto", 80),
    Part("gpt torch", 90),
    Part("t5 ours xla", 80),
    Part("gpt ours xla", 70),
    Part("kernels 2048 128", 60),
    Part("kernels 8192 64", 60),
)
ON_CPU = ("device", "kernels 2048 64", "t5 ours auto", "t5 torch", "gpt ours auto")  # the others are no other there


def main() -> int:
    options = parse()
    parts = [part for part in PARTS if part.name in options.parts]
    found: dict[str, Any] = {"seconds": 0.0, "rows": [], "failures": {}}
    begin = time.monotonic()
    try:
        for part in parts:
            if part.name not in ON_CPU and any(row.get("platform") == "cpu" for row in found["rows"]):
                continue
            left = options.seconds - (time.monotonic() - begin)
            print(f"{part.name}: at most {max(0.0, min(part.limit, left)):.0f} s", file=sys.stderr, flush=True)
            rows, failure = run(part.name, min(part.limit, left))
            found["rows"] += [{"part": part.name} | row for row in rows]
            if failure:
                found["failures"][part.name] = failure
            complete(found["rows"])
            found["seconds"] = round(time.monotonic() - begin, 1)
            Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    finally:
        print_tables(found)
    return 1 if found["failures"] else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="N", help="for all parts together")
    parser.add_argument("--json", default="on_device.json", metavar="FILE", help="(default: on_device.json)")
    return parser.parse_args()


def run(name: str, limit: float) -> tuple[list[Row], str]:
    """(the rows that a part found, why it did not end as it should; empty if it did)."""
    if limit <= 0:
        return [], "no time was left"
    environment = {key: value for key, value in os.environ.items() if key not in UNWANTED}
    with tempfile.TemporaryFile("w+") as rows, tempfile.TemporaryFile("w+") as messages:
        command = [sys.executable, str(HERE / "device_parts.py"), *name.split()]
        process = subprocess.Popen(command, stdout=rows, stderr=messages, env=environment, start_new_session=True)
        failure = ""
        try:
            if process.wait(limit):
                failure = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            failure = f"not done after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        rows.seek(0)
        messages.seek(0)
        last = [line.strip() for line in messages if line.strip()][-1:]
        found = [json.loads(line) for line in rows if line.startswith("{") and line.endswith("}\n")]
    return found, ": ".join([failure, *last])[:300] if failure else ""


def complete(rows: list[Row]) -> None:
    """PyTorch's share of the peak: the model is ours, and so are its operations for a token."""
    ours = {row["row"]: row["MFU"] / row["tokens_s"] for row in rows if row.get("MFU")}
    for row in rows:
        if "tokens_s" in row and "MFU" not in row and row["row"] in ours:
            row["MFU"] = row["tokens_s"] * ours[row["row"]]


def print_tables(found: dict[str, Any]) -> None:
    """Everything that was found, and what was not, with the reason."""
    rows = found["rows"]
    for row in (row for row in rows if row["part"] == "device"):
        print("\n" + ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("part", "row")))
    for kind, heading in (
        ("kernels", ("row", "by", "forward ms", "with backward ms", "error", "error of gradients")),
        ("steps", ("row", "by", "batch", "tokens/s", "MFU %", "memory GB")),
    ):
        if table := [row for row in rows if row.get("kind") == kind]:
            print()
            keys = [name.replace(" ", "_").replace("/", "_").rstrip("_%") for name in heading]
            show(heading, [[cell(row.get(key)) for key in keys] for row in table])
    notes = [f"{row['row']}: {row['note']}" for row in rows if row.get("note")]
    notes += [f"{part}: FAILED: {reason}" for part, reason in found["failures"].items()]
    print("\n" + "\n".join(notes) if notes else "")
    print(f"{found['seconds']:.0f} s in all", flush=True)


def cell(value: object) -> object:
    if isinstance(value, float) and 0 < abs(value) < 1e-2:
        return f"{value:.1e}"
    return "-" if value is None else value




if __name__ == "__main__":
    sys.exit(main())
