"""Checks of what a run needs around it: optional packages, secrets, variables, a cluster's programs."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

from t5x_like.check.case import Case
from t5x_like.check.said import Said
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.own_code import list_of_digests, own_code, trusted
from t5x_like.core.structure import parts
from t5x_like.input_pipeline.sources.remote import is_remote

# Class of a config, to the package that it needs and the extra that installs it.
CLASSES = {
    "HuggingFaceTokenizer": ("tokenizers", "tokenizers"), "Parquet": ("pyarrow", "parquet"),
    "HuggingFaceDataset": ("datasets", "datasets"), "TfRecord": ("google_crc32c", "tfrecord"),
    "TfdsBuilder": ("tensorflow_datasets", "tfds"),
}  # fmt: skip
PROTOCOLS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}
PROGRAMS = {"slurm": "sbatch", "jobset": "kubectl", "tpu-vm": "gcloud"}
GOOGLE = "gcloud/application_default_credentials.json"


def extras(case: Case) -> Said:
    """The optional packages that the run needs are installed."""
    needed = dict(_needed(case))
    for package, (why, install) in needed.items():
        missing = importlib.util.find_spec(package) is None
        got = f"{why} needs it, and it is not installed"
        refuse(missing, f"package {package}", got, suggestion=f"pip install {install}")
    return Said(", ".join(needed) if needed else "none is needed")


def _needed(case: Case) -> Iterator[tuple[str, tuple[str, str]]]:
    """Import name of a package, to what needs it and what to install."""
    for part in parts(case.run):
        if found := CLASSES.get(type(part).__name__):
            yield found[0], (type(part).__name__, f"'t5x-like[{found[1]}]'")
    if case.run.report.wandb:
        yield "wandb", ("report.wandb", "wandb")
    for address in _addresses(case):
        if Path(address).suffix.lower() == ".zst":
            yield "zstandard", (address, "'t5x-like[zstd]'")
        own = address in (str(case.directory), case.run.data.cache)  # which TensorStore reaches
        if is_remote(address) and not own:
            yield "fsspec", (address, "'t5x-like[remote]'")
            if package := PROTOCOLS.get(_protocol(address)):
                yield package, (address, package)


def _addresses(case: Case) -> list[str]:
    """Paths and addresses that the run reads and writes."""
    named = [str(case.directory), case.run.data.cache]
    for part in parts(case.run):
        for name in getattr(part, "places", ()):
            value = getattr(part, name, "")
            named += value if isinstance(value, tuple) else [value]
    return [address for address in named if address]


def _protocol(address: str) -> str:
    return address.rpartition("::")[2].partition("://")[0]


def environment(case: Case) -> Said:
    """Variables and secrets that the run needs are there, and none contradicts another."""
    told, variables = [], case.environment
    if case.processes > 1:
        told.append(f"one of {case.processes} processes")
    if case.run.report.wandb:
        told.append(_wandb(case))
    protocols = {_protocol(address) for address in _addresses(case) if is_remote(address)}
    told += [_storage(case, protocol) for protocol in sorted(protocols & PROTOCOLS.keys())]
    if own := own_code(case.run):
        trusted()  # raises where the list of what this user runs can be written by others
        told.append(f"own code in {', '.join(own)}: eval and generate run it on hosts that share {list_of_digests()}")
    program = PROGRAMS.get(case.cluster)
    if program and not shutil.which(program, path=variables.get("PATH")):
        told.append(f"{program} is not on PATH: submit {case.cluster} jobs from where it is")
        return Said("; ".join(told), "warning")
    return Said("; ".join(told) or "nothing is needed")


def _wandb(case: Case) -> str:
    variables = case.environment
    if variables.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return f"WANDB_MODE={variables['WANDB_MODE']}"
    if variables.get("WANDB_API_KEY"):
        return "WANDB_API_KEY is set"
    netrc = Path(variables.get("NETRC") or _home(case) / ".netrc")
    known = netrc.is_file() and "wandb" in netrc.read_text(errors="replace")
    if not known:
        got = f"not set, and report.wandb={case.run.report.wandb}: the run would stop to ask"
        raise UserError("WANDB_API_KEY", got, "a key", "WANDB_API_KEY=..., WANDB_MODE=offline, or report.wandb=''")
    return f"the key of W&B is in {netrc}"


def _storage(case: Case, protocol: str) -> str:
    """Where the credentials of a bucket come from; raises UserError where a variable names what is not there."""
    variables = case.environment
    name = "AWS_SHARED_CREDENTIALS_FILE" if protocol == "s3" else "GOOGLE_APPLICATION_CREDENTIALS"
    if given := variables.get(name):
        refuse(not Path(given).is_file(), name, f"there is no file {given}", "the file with the credentials")
        return f"{protocol}://: {name}"
    if protocol == "s3" and variables.get("AWS_ACCESS_KEY_ID"):
        refuse(not variables.get("AWS_SECRET_ACCESS_KEY"), "AWS_SECRET_ACCESS_KEY", "not set, beside AWS_ACCESS_KEY_ID",
               "both, or none")  # fmt: skip
        return "s3://: AWS_ACCESS_KEY_ID"
    usual = _home(case) / (".aws/credentials" if protocol == "s3" else f".config/{GOOGLE}")
    return f"{protocol}://: {usual if usual.is_file() else 'no key here, so the own role of the host, if it has one'}"


def _home(case: Case) -> Path:
    return Path(case.environment.get("HOME") or "~").expanduser()
