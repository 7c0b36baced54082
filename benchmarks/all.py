"""The quick benchmarks one after the other, as ``make bench`` runs them: train step, attention, input, checkpoints,
installation.

    python benchmarks/all.py [--json FILE]

A few minutes on 2 cores. PyTorch is measured too where it is installed. With --json the points of all are joined in
one file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
QUICK = (
    ("step.py", "--starts", "1", "--rounds", "9", "--steps", "1"),
    ("attention_cpu.py", "--rounds", "3", "--lengths", "256", "1024", "2048"),
    ("input.py", "--megabytes", "20", "--documents", "2e7", "--rounds", "3"),
    ("checkpoint.py", "--rounds", "3"),
    ("install.py",),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write all points to this file")
    options = parser.parse_args()
    points, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for script, *arguments in QUICK:
            if script == "step.py" and importlib.util.find_spec("torch") is not None:
                arguments.append("--torch")
            print(f"\n== benchmarks/{script} {' '.join(arguments)}\n", flush=True)
            file = Path(folder) / "points.json"
            command = [sys.executable, str(HERE / script), *arguments, "--json", str(file)]
            if subprocess.run(command).returncode:
                failed.append(script)
            else:
                points += json.loads(file.read_text())
    if options.json:
        Path(options.json).write_text(json.dumps(points, indent=1) + "\n")
    met = [point["met"] for point in points if point["met"] is not None]
    print(f"\n{sum(met)} of {len(met)} goals met" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
