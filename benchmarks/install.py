"""What an installation for training costs: packages, megabytes, and the seconds that ``t5x-like --help`` takes.

    python benchmarks/install.py [--json FILE]

Makes a fresh virtual environment in a temporary folder and installs this repository into it as a user would (``pip
install .``), then again with the quickstart's corpus. Needs a package index, or pip's settings for a folder of wheels.
Packages are all that pip lists, itself included; megabytes are what the environment takes on the disk, compiled
bytecode included. TensorFlow and PyTorch must not be among them. MaxText's (0.2.5) is 234 packages and 2.5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import Point, at_most, show, show_points, write_json

REPOSITORY = Path(__file__).parent.parent
HEAVY = ("tensorflow", "tensorflow-cpu", "tf-nightly", "torch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the points to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        rows, points = [], []
        for name, target in (("training", "."), ("with the quickstart's corpus", ".[quickstart]")):
            seconds = install(environment, target)
            packages, megabytes = distributions(environment), size(environment)
            rows.append((name, len(packages), megabytes, seconds))
            points.append(at_most(f"packages, {name}", len(packages), 75))
            points.append(at_most(f"GB on disk, {name}", megabytes / 1000, 1.4))
            points.append(at_most(f"TensorFlow and PyTorch, {name}", len(packages & set(HEAVY)), 0))
        points.append(at_most("seconds of t5x-like --help, median of 5", help_seconds(environment), 1.0))
        points += largest(environment)
    show(("installation", "packages", "MB", "s to install"), rows)
    print()
    show_points(points)
    write_json(options.json, points)
    return 0


def install(environment: Path, target: str) -> float:
    """Seconds to install this repository; ends the program with pip's own words if that fails."""
    begin = time.perf_counter()
    pip = [str(python(environment)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", target]
    if subprocess.run(pip, cwd=REPOSITORY).returncode:
        raise SystemExit(f"pip could not install {target!r} from {REPOSITORY}; its error is above")
    return time.perf_counter() - begin


def distributions(environment: Path) -> set[str]:
    """The names of all installed distributions, pip itself included."""
    command = [str(python(environment)), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {entry["name"].lower().replace("_", "-") for entry in listed}


def size(folder: Path) -> float:
    """Megabytes (10^6 bytes) on the disk; links are not followed."""
    total = 0
    for parent, _, files in os.walk(folder):
        total += sum(os.lstat(os.path.join(parent, file)).st_blocks * 512 for file in files)
    return total / 1e6


def largest(environment: Path, count: int = 5) -> list[Point]:
    """The packages that take the most, without goals."""
    site = next(environment.glob("lib/python*/site-packages"))
    sizes = {entry.name: size(entry) for entry in site.iterdir() if entry.is_dir()}
    return [Point(f"MB of {name}", sizes[name]) for name in sorted(sizes, key=lambda n: -sizes[n])[:count]]


def help_seconds(environment: Path, repeats: int = 5) -> float:
    """The median over ``repeats`` after one that is not counted, which fills the disk's cache."""
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        subprocess.run([str(environment / "bin" / "t5x-like"), "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def python(environment: Path) -> Path:
    return environment / "bin" / "python"


if __name__ == "__main__":
    sys.exit(main())
