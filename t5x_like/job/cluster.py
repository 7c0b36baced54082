"""Which process of which job this is, and where process 0 is: the one place that reads a cluster's variables.

In this order: the config, JAX_* variables, JobSet, SkyPilot, Slurm, TPU (GKE's variables, GCE's metadata), Open MPI and
other MPI, torchrun. Each of the three facts is taken from the first that has it. Must not know JAX.
"""

from __future__ import annotations

import importlib.util
import os
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from t5x_like.core.errors import UserError, refuse

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
PORT = 8476  # of process 0, where a cluster names a host alone
Environment = Mapping[str, str]


@dataclass(frozen=True)
class World:
    """This process in its job.

    Attributes:
      index: number of this process, from 0.
      count: number of processes.
      host, port: where process 0 listens.
      source: where this was found, in words.
      local_devices: numbers of the devices of this machine that are this process's; None: all that it sees.
    """

    index: int
    count: int
    host: str
    port: int
    source: str
    local_devices: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}, process 0 at {self.host}:{self.port} (from {self.source})"


@dataclass(frozen=True)
class _Found:
    """What a cluster says; an empty host: not where process 0 is."""

    cluster: str
    variables: str
    count: int
    index: int
    host: str = ""
    port: int = PORT
    local: int | None = None
    first: str = "HOST_OF_0"  # what a shell may say instead


def _number(environment: Environment, name: str, default: int | None = None) -> int | None:
    found = environment.get(name, "")
    return int(found) if found.isascii() and found.isdecimal() else default


def _pair(e: Environment, size: str, index: str) -> tuple[int, int] | None:
    count, number = _number(e, size), _number(e, index)
    return None if count is None or number is None else (count, number)


def _jobset(e: Environment) -> _Found | None:
    """Fields of a pod of a JobSet: the manifest takes them from the pod's labels and annotations."""
    within, each = _number(e, "JOB_COMPLETION_INDEX"), _number(e, "PROCESSES_IN_JOB")
    if within is None or each is None or not (name := e.get("JOBSET_NAME")):
        return None
    jobs = _number(e, "JOBS", _number(e, "MEGASCALE_NUM_SLICES", 1)) or 1
    host = f"{name}-{e.get('REPLICATED_JOB_NAME', 'job')}-0-0.{name}"
    index = within + each * (_number(e, "JOB_INDEX", 0) or 0)
    return _Found("JobSet", "JOBSET_NAME, JOB_INDEX, JOB_COMPLETION_INDEX, PROCESSES_IN_JOB", each * jobs, index, host)


def _skypilot(e: Environment) -> _Found | None:
    if not (pair := _pair(e, "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK")):
        return None
    host = next(iter(e.get("SKYPILOT_NODE_IPS", "").split()), "")
    return _Found("SkyPilot", "SKYPILOT_NUM_NODES, SKYPILOT_NODE_RANK, SKYPILOT_NODE_IPS", *pair, host)


def _slurm(e: Environment) -> _Found | None:
    """Of a step (srun) before those of the job; a batch script itself is one process that has to call srun."""
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in e else "SLURM_NTASKS"
    if not (pair := _pair(e, size, "SLURM_PROCID")):
        return None
    job, step, restarts = (_number(e, f"SLURM_{name}", 0) or 0 for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    port = 61440 + (job + 7 * step + 101 * restarts) % 4096  # jobs of one node, and one that is tried again, differ
    alone = re.fullmatch(r"1(\(x\d+\))?", e.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    local = None if alone else _number(e, "SLURM_LOCALID")
    first = "$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)"
    nodes = first_host(e.get("SLURM_STEP_NODELIST", ""))
    return _Found("Slurm", f"{size}, SLURM_PROCID, SLURM_STEP_NODELIST", *pair, nodes, port, local, first)


def first_host(nodes: str) -> str:
    """The first name of a list of Slurm's: node[001-004,007],login -> node001."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0]) if found else ""


def _tpu(e: Environment) -> _Found | None:
    """A TPU slice as GKE describes it, or several (MEGASCALE_*)."""
    hosts = (e.get("TPU_PROCESS_ADDRESSES") or e.get("TPU_WORKER_HOSTNAMES") or "").split(",")
    worker = _number(e, "TPU_WORKER_ID")
    if worker is None or not hosts[0]:
        return None
    slices, number = _number(e, "MEGASCALE_NUM_SLICES", 1) or 1, _number(e, "MEGASCALE_SLICE_ID", 0) or 0
    first = (e.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).split(":")[0]
    variables = "TPU_WORKER_HOSTNAMES, TPU_WORKER_ID" + ", MEGASCALE_*" * (slices > 1)
    return _Found("TPU hosts", variables, len(hosts) * slices, worker + len(hosts) * number, first)


def _metadata(e: Environment) -> _Found | None:
    """A TPU VM of Google Compute Engine, asked only where libtpu is installed and not switched off."""
    on_tpu = importlib.util.find_spec("libtpu") is not None or bool(e.get("GCE_METADATA_IP"))
    if not on_tpu or e.get("TPU_SKIP_MDS_QUERY") or e.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return None

    def ask(key: str) -> str:
        where = e.get("GCE_METADATA_IP", "metadata.google.internal")
        url = f"http://{where}/computeMetadata/v1/instance/attributes/{key}"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=5) as r:
            return r.read().decode()

    try:
        workers, number = ask("worker-network-endpoints").split(","), ask("agent-worker-number")
        told = dict(re.findall(r"^(\w+): '?([^'\n]*)'?", ask("tpu-env"), re.MULTILINE))
    except (urllib.error.URLError, OSError, ValueError):
        return None
    hosts = ",".join(each.split(":")[2] if each.count(":") == 2 else each for each in workers)  # name:id:address
    slices = {name: value for name, value in told.items() if name.startswith("MEGASCALE_")}
    found = _tpu({**slices, "TPU_WORKER_HOSTNAMES": hosts, "TPU_WORKER_ID": number.strip()})
    return found and _Found("Compute Engine", "its metadata", found.count, found.index, found.host)


def _open_mpi(e: Environment) -> _Found | None:
    if not (pair := _pair(e, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")):
        return None
    here, local = _number(e, "OMPI_COMM_WORLD_LOCAL_SIZE"), _number(e, "OMPI_COMM_WORLD_LOCAL_RANK")
    job = e.get("OMPI_MCA_orte_hnp_uri") or e.get("PMIX_NAMESPACE") or ""
    launcher = re.search(r"tcp6?://\[?([^,:\]]+)", e.get("OMPI_MCA_orte_hnp_uri", ""))
    host = "127.0.0.1" if here == pair[0] else launcher[1] if launcher else ""
    local = local if (here or 1) > 1 else None
    return _Found("Open MPI", "OMPI_COMM_WORLD_*", *pair, host, 61440 + zlib.crc32(job.encode()) % 4096, local)


def _mpi(e: Environment) -> _Found | None:
    """MPICH and Intel MPI: they name no host, so only processes of one machine find one another, by their parent."""
    if not (pair := _pair(e, "PMI_SIZE", "PMI_RANK")):
        return None
    host = "127.0.0.1" if _number(e, "MPI_LOCALNRANKS") == pair[0] else ""
    return _Found("MPI", "PMI_SIZE, PMI_RANK, MPI_LOCALNRANKS", *pair, host, 61440 + os.getppid() % 4096,
                  _number(e, "MPI_LOCALRANKID"))  # fmt: skip


def _torchrun(e: Environment) -> _Found | None:
    if not (pair := _pair(e, "WORLD_SIZE", "RANK")):
        return None
    port = _number(e, "MASTER_PORT", PORT) or PORT
    port += e.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself listens on its port
    local = _number(e, "LOCAL_RANK") if (_number(e, "LOCAL_WORLD_SIZE", 1) or 1) > 1 else None
    return _Found("torchrun", "WORLD_SIZE, RANK, MASTER_ADDR", *pair, e.get("MASTER_ADDR", ""), port, local)


CLUSTERS: tuple[Callable[[Environment], _Found | None], ...] = (
    _jobset, _skypilot, _slurm, _tpu, _metadata, _open_mpi, _mpi, _torchrun,
)  # fmt: skip


def resolve(environment: Environment, coordinator: str = "") -> World | None:
    """This process in the job that the environment describes; None for a job of one process.

    Args:
      environment: its variables.
      coordinator: HOST:PORT of process 0 if the config names it.

    Raises:
      UserError: some of ``VARIABLES`` are missing with nothing that replaces them, or are not numbers; or a cluster
        says that there are several processes, and nothing says where process 0 is: each would do the whole job.
    """
    given = [name for name in VARIABLES if environment.get(name)]
    if environment.get("JAX_NUM_PROCESSES") == "1" and len(given) != 2:
        return None
    found = None
    if len(given) < 3:
        found = next((f for each in CLUSTERS if (f := each(environment)) and f.count > 1), None)
    missing = [name for name in VARIABLES if name not in given and not (coordinator and name == VARIABLES[0])]
    if found is None and not given:
        return None
    if found is None and missing:
        raise UserError("environment", f"{', '.join(given)} set, {', '.join(missing)} not", "all three, or none")
    try:
        count = int(environment.get(VARIABLES[1]) or (found and found.count) or 0)
        index = int(environment[VARIABLES[2]]) if VARIABLES[2] in given else found.index if found else 0
    except ValueError:
        raise UserError("environment", "JAX_NUM_PROCESSES or JAX_PROCESS_ID is not a number", "whole numbers") from None
    if not 0 <= index < count:
        raise UserError("environment", f"JAX_PROCESS_ID={index} of JAX_NUM_PROCESSES={count}", f"0 to {count - 1}")
    if count == 1:
        return None
    if not (address := coordinator or environment.get(VARIABLES[0], "")) and found:
        _refuse_lost(found)
    host, port = _split(address or f"[{found.host}]" if found else address)
    port = port or _number(environment, "JAX_COORDINATOR_PORT") or (found.port if found and not address else PORT)
    if coordinator:
        given = ["job.coordinator", *(name for name in given if name != VARIABLES[0])]
    words = ", ".join([*given, *([f"{found.cluster}: {found.variables}"] if found else [])])
    local = found.local if found else None
    named = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if environment.get("JAX_LOCAL_DEVICE_IDS") or len(named) == 1:  # jax reads the first; the cluster has chosen
        local = None
    return World(index, count, host, port, words, None if local is None else (local,))


def _split(address: str) -> tuple[str, int | None]:
    """(host, port) of HOST:PORT, [IPV6]:PORT, or either without its port, which is None then."""
    found = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:\[\]]+)(?::(\d+))?|([0-9a-fA-F:]+)", address)
    host, port = (found[1] or found[3] or found[5], int(found[2] or found[4] or 0)) if found else ("", 0)
    if not host or port > 65535:
        raise UserError("job.coordinator, JAX_COORDINATOR_ADDRESS", f"got {address!r}", "HOST:PORT")
    return host, port or None


def _refuse_lost(found: _Found) -> None:
    """Raises UserError if a cluster does not say where process 0 is."""
    srun = "; in a batch script, start it with srun" if found.cluster == "Slurm" else ""
    got = (f"{found.variables} say that this is one of {found.count} processes of {found.cluster}, and nothing says "
           "where process 0 is: each would do the whole job")
    values = f"{found.first}:61000", found.count, found.index
    trying = " ".join(f"{name}={value}" for name, value in zip(VARIABLES, values, strict=True))
    allowed = f"{', '.join(VARIABLES)} set in every process, or job.coordinator{srun}"
    refuse(not found.host, "environment", got, f"{allowed}; JAX_NUM_PROCESSES=1 where one is to work alone", trying)
