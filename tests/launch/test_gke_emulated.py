"""The pods of a JobSet for two TPU slices of two hosts as four processes on this machine, each with the environment
that the manifest and GKE give its pod and by the pod's own command: they train what one process trains. The chips are
virtual CPU devices, and every host name is this machine's."""

from __future__ import annotations

import importlib
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny_runs import ROOT, assert_close, checkpoint, losses, run_file, start, tiny_run

from t5x_like.cli.main import main

sys.path.append(str(ROOT / "launch"))
jobset = importlib.import_module("jobset")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def pods(manifest: dict[str, Any], port: int, joined_by: str) -> list[tuple[list[str], dict[str, str]]]:
    """The command and the environment of every pod, as the kubelet, JobSet and GKE's webhook make them."""
    job = manifest["spec"]["replicatedJobs"][0]
    slices, hosts = job["replicas"], job["template"]["spec"]["parallelism"]
    container = job["template"]["spec"]["template"]["spec"]["containers"][0]
    name = manifest["metadata"]["name"]
    addresses = {f"{name}-{job['name']}-{s}-{h}.{name}": "127.0.0.1" for s in range(slices) for h in range(hosts)}
    found = []
    for index in range(slices * hosts):
        label = "metadata.labels['jobset.sigs.k8s.io/{}']"
        fields = {label.format("job-index"): str(index // hosts), label.format("jobset-uid"): "8f2c-1",
                  "status.podIP": "127.0.0.1"}  # fmt: skip
        known: dict[str, str] = {}
        for each in container["env"]:
            value = each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            known[each["name"]] = re.sub(r"\$\((\w+)\)", lambda match: known[match[1]], value)  # noqa: B023
        for host, address in addresses.items():
            known["JAX_COORDINATOR_ADDRESS"] = known["JAX_COORDINATOR_ADDRESS"].replace(host, address)
        gke = {
            "TPU_WORKER_ID": str(index % hosts),
            "TPU_WORKER_HOSTNAMES": ",".join(list(addresses)[index // hosts * hosts :][:hosts]),
            "MEGASCALE_NUM_SLICES": str(slices),
            "MEGASCALE_SLICE_ID": str(index // hosts),
            "MEGASCALE_COORDINATOR_ADDRESS": f"{next(iter(addresses))}:8080",
        }
        known = {key: value.replace(f":{jobset.PORT}", f":{port}") for key, value in known.items()}
        here = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        command = [word.replace("$$", "$") for word in [*container["command"], *container["args"]]]
        if joined_by == "GKE":  # a manifest without any JAX_ variable, as others write it
            command, known = container["args"], {"JAX_COORDINATOR_PORT": str(port)}
            gke = {key: re.sub(r"[a-z]+-slice-[-0-9]+\.[a-z]+", "127.0.0.1", value) for key, value in gke.items()}
        found.append((command, {**known, **gke, "JOB_COMPLETION_INDEX": str(index % hosts), **here}))
    return found


@pytest.mark.parametrize("joined_by", ["the manifest", "GKE"])
def test_two_slices_of_two_hosts_train_what_one_process_trains(tmp_path, joined_by):
    if joined_by == "GKE":
        pytest.importorskip("t5x_like.job.cluster", reason="this version reads JAX_ variables only")
    config = run_file(tiny_run("llama", "train.steps=4", "mesh.fsdp=4", "mesh.tensor=2"))
    parser = jobset.parser()
    words = ["--topology", "v5e:2x4", "--slices", "2", "--image", "x", "--claim", f"runs:{tmp_path}", "--",
             sys.executable, "-m", "t5x_like", "train", config, "--directory", str(tmp_path / "two")]  # fmt: skip
    options = parser.parse_args(words)
    job = jobset.on_claim(jobset.jobs.parse(parser, options), str(tmp_path))
    manifest = jobset.manifest(options, job, "tiny")
    assert jobset.rules.problems(manifest) == []
    processes: list[subprocess.Popen] = []
    try:
        for command, environment in pods(manifest, free_port(), joined_by):
            processes.append(start(command, **environment))
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(said)
    assert "8 x cpu in 4 processes" in said[0]
    assert main(["train", config, "--directory", str(tmp_path / "one")]) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert_close(checkpoint(tmp_path / "two"), checkpoint(tmp_path / "one"))
    assert Path(tmp_path / "two" / "config.json").exists()
