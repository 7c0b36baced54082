"""Which process of which job this is, read from the environments of clusters as they set them."""

from __future__ import annotations

import http.server
import threading

import pytest

from t5x_like.core.errors import UserError
from t5x_like.job.cluster import World, first_host, resolve

JAX = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2",
    "SLURM_STEP_NODELIST": "rack[1-2]-n[07,09-12],login", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1",
}  # fmt: skip
TPU = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_COORDINATOR_ADDRESS": "first:8080", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
JOBSET = {
    "JOBSET_NAME": "train", "REPLICATED_JOB_NAME": "slice", "JOB_INDEX": "1", "JOB_COMPLETION_INDEX": "1", "JOBS": "2",
    "PROCESSES_IN_JOB": "2",
}  # fmt: skip
SKY = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
TORCH = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "host", "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": "2",
         "LOCAL_RANK": "1"}  # fmt: skip


def refused(environment: dict, coordinator: str = "") -> UserError:
    with pytest.raises(UserError) as error:
        resolve(environment, coordinator)
    return error.value


def found(environment: dict, coordinator: str = "") -> tuple:
    world = resolve(environment, coordinator)
    assert world is not None
    return world.index, world.count, world.host, world.port, world.local_devices


@pytest.mark.parametrize(
    "environment, expected, source",
    [
        (JAX, (3, 4, "host", 1234, None), "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        (SLURM, (2, 4, "rack1-n07", 61452, (1,)), "Slurm"),
        (SLURM | {"SLURM_RESTART_COUNT": "1"}, (2, 4, "rack1-n07", 61553, (1,)), "Slurm"),  # not the port it died with
        (SLURM | {"CUDA_VISIBLE_DEVICES": "3"}, (2, 4, "rack1-n07", 61452, None), "Slurm"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, (2, 4, "rack1-n07", 61452, None), "Slurm"),
        (SLURM | {"JAX_COORDINATOR_PORT": "7000"}, (2, 4, "rack1-n07", 7000, (1,)), "Slurm"),
        (SLURM | SKY, (1, 2, "10.0.0.1", 8476, None), "SkyPilot"),
        (TPU, (1, 2, "a", 8476, None), "TPU hosts"),
        (TPU | SLICES, (3, 4, "first", 8476, None), "MEGASCALE_*"),
        (JOBSET | TPU | SLICES, (3, 4, "train-slice-0-0.train", 8476, None), "JobSet"),
        (JOBSET | {"JAX_COORDINATOR_ADDRESS": "[fe80::1]:99"}, (3, 4, "fe80::1", 99, None), "JAX_COORDINATOR_A"),
        (MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.1.0.1,10.2.0.1:34911"},
         (1, 2, "10.1.0.1", None, None), "Open MPI"),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
         (1, 2, "127.0.0.1", None, (1,)), "Open MPI"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0", "MPI_LOCALNRANKS": "2"}, (0, 2, "127.0.0.1", None, None), "MPI"),
        (TORCH, (3, 4, "host", 29500, (1,)), "torchrun"),
        (TORCH | {"TORCHELASTIC_USE_AGENT_STORE": "True"}, (3, 4, "host", 29501, (1,)), "torchrun"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "kubeflow",
          "JAX_COORDINATOR_PORT": "6666"}, (1, 2, "kubeflow", 6666, None), "JAX_"),
    ],
)  # fmt: skip
def test_each_cluster_says_who_this_is(environment, expected, source):
    index, count, host, port, local = found(environment)
    assert (index, count, host, port if expected[3] else None, local) == expected  # None: any
    assert source in resolve(environment).source


def test_processes_of_one_cluster_agree_on_process_0():
    worlds = [resolve(SLURM | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % 2)}) for i in range(4)]
    assert [world.index for world in worlds] == [0, 1, 2, 3]
    assert len({(world.host, world.port) for world in worlds}) == 1


@pytest.mark.parametrize("alone", [
    {}, {"JAX_COORDINATOR_ADDRESS": ""}, JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    SLURM | {"JAX_NUM_PROCESSES": "1"}, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {"SLURM_NTASKS": "4"},
    {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # one step of a larger job
    {"SLURM_NTASKS": "²", "SLURM_PROCID": "0"}, {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    {"WORLD_SIZE": "1", "RANK": "0"},
])  # fmt: skip
def test_one_process_is_no_job_of_several(alone):
    assert resolve(alone) is None


@pytest.mark.parametrize(
    "environment, part",
    [
        (JAX | {"JAX_PROCESS_ID": ""}, "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES set, JAX_PROCESS_ID not"),
        (JAX | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4 of JAX_NUM_PROCESSES=4\n  allowed: 0 to 3"),
        (JAX | {"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1"),
        (JAX | {"JAX_NUM_PROCESSES": "four"}, "is not a number"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "host:99999"}, "'host:99999'\n  allowed: HOST:PORT"),
        # known, but nothing says where process 0 is
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, "start it with srun"),
        ({"PMI_SIZE": "4", "PMI_RANK": "2"}, "one of 4 processes of MPI"),
        (MPI, "JAX_COORDINATOR_ADDRESS=HOST_OF_0:61000 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1"),
    ],
)
def test_what_cannot_be_resolved_is_refused(environment, part):
    assert part in str(refused(environment))


def test_the_config_may_name_process_0():
    assert found({"PMI_SIZE": "4", "PMI_RANK": "2"}, "node7:99")[:4] == (2, 4, "node7", 99)
    assert resolve(JAX, "node7:99").host == "node7"
    assert "set, JAX_PROCESS_ID not" in str(refused({"JAX_NUM_PROCESSES": "4"}, "node7:99"))


def test_lists_of_nodes():
    lists = {"n1": "n1", "n1,n2": "n1", "n[001-0015],h": "n001", "n[001,007-015],h": "n001", "a[1-2]-b[3-4]": "a1-b3"}
    assert {text: first_host(text) for text in lists} == lists


def test_a_tpu_vm_asks_its_metadata():
    """A stand-in of Compute Engine's metadata server, in both of its formats of the workers."""
    values = {"agent-worker-number": "1", "tpu-env": "ZONE: 'us'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            key = self.path.rsplit("/", 1)[1]
            self.send_response(200 if key in values and self.headers["Metadata-Flavor"] == "Google" else 404)
            self.end_headers()
            self.wfile.write(values.get(key, "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        for workers in ("10.0.0.1,10.0.0.2", "x:0:10.0.0.1,y:1:10.0.0.2"):
            values["worker-network-endpoints"] = workers
            world = resolve(environment)
            assert world == World(3, 4, "10.0.0.1", 8476, "Compute Engine: its metadata")
        assert resolve(environment | {"JAX_PLATFORMS": "cpu"}) is None
        del values["agent-worker-number"]
        assert resolve(environment) is None  # not a TPU VM
        server.shutdown()
