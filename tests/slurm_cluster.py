"""A real Slurm on this machine, for one test: munged, slurmctld and two slurmd, all in one folder, ended afterwards.

Two partitions: jobs in ``high`` preempt those in ``low``, told 20 seconds before they are killed and requeued.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
NODES = ("slurmn1", "slurmn2")
HOSTS, MARK = Path("/etc/hosts"), "# t5x_like tests"
CONF = """\
ClusterName=t5xlike
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/linear
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=slurmn1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2
NodeName=slurmn2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2
PartitionName=low Nodes=slurmn1,slurmn2 Default=YES PriorityTier=1 GraceTime=20 State=UP
PartitionName=high Nodes=slurmn1,slurmn2 PriorityTier=10 State=UP
"""


def why_not() -> str:
    """Why no Slurm can be started here; empty if one can."""
    if os.getuid():
        return "only root can start a Slurm"
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [program for program in PROGRAMS if not shutil.which(program, path=path)]
    return f"no {', '.join(missing)}: make slurm installs them" if missing else ""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


@contextlib.contextmanager
def named_nodes() -> Iterator[None]:
    """The nodes' names resolve to this machine."""
    before = HOSTS.read_text()
    lines = [f"127.0.0.1 {node} {MARK}\n" for node in NODES if node not in before.split()]
    with HOSTS.open("a") as file:
        file.write("".join(lines))
    try:
        yield
    finally:
        kept = [line for line in HOSTS.read_text().splitlines(keepends=True) if not line.endswith(f"{MARK}\n")]
        HOSTS.write_text("".join(kept))


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which its commands find it."""
    for name in ("munge", "state"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    host, ports = socket.gethostname().split(".")[0], free_ports(3)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, port=ports[0], first=ports[1], second=ports[2]))
    environment = os.environ | {"SLURM_CONF": str(conf), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    munge = ["munged", "--force", "--foreground", f"--socket={folder}/munge/socket", f"--key-file={key}"]
    munge += [f"--{name}-file={folder}/munge/{name}" for name in ("log", "pid", "seed")]
    daemons = [munge, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)]
    started: list[subprocess.Popen] = []
    with named_nodes(), (folder / "daemons.log").open("w") as log:
        try:
            for daemon in daemons:
                new = subprocess.Popen(daemon, env=environment, stdout=log, stderr=log, start_new_session=True)
                started.append(new)
                if daemon is munge:
                    _wait(lambda: (folder / "munge" / "socket").exists(), folder, started)
            _wait(lambda: _idle(environment) == len(NODES), folder, started)
            yield environment
        finally:
            subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=20)
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline and _jobs(environment):
                time.sleep(0.3)
            for process in reversed(started):
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()


def _jobs(environment: dict[str, str]) -> str:
    return subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True, timeout=20).stdout


def _idle(environment: dict[str, str]) -> int:
    command = ["sinfo", "-h", "-p", "low", "-N", "-o", "%T"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
    return done.stdout.split().count("idle")


def _wait(ready, folder: Path, started: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        ended = [process.args for process in started if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in folder.glob("*.log"))
            raise RuntimeError(f"Slurm has not started: {ended}\n{logs}")
        time.sleep(0.2)
