"""Installs the TPU compiler into a folder of its own: where it lies among other packages, JAX looks for a TPU at every
start. What compiles for TPUs (``tpu_schedule``) adds the folder to its path.

    python benchmarks/install_libtpu.py FOLDER
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path


def main(folder: str) -> int:
    """The version that the installed jax asks for; where there is none for this machine, its tests skip."""
    wanted = [line.split(";")[0].strip() for line in requires("jax") or () if line.startswith("libtpu")]
    installed = Path(folder) / "installed.txt"
    if not wanted or (installed.is_file() and installed.read_text() == wanted[0]):
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if subprocess.run([*pip, "--target", folder, wanted[0]]).returncode:
        print(f"no {wanted[0]} for this machine: what compiles for TPUs will be skipped")
    else:
        installed.write_text(wanted[0])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
