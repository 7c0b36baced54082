"""A launcher of one's own: starts two processes of one job, each told who it is by three environment variables."""

import os
import socket
import subprocess
import sys


def main() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = {"JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    jobs = [subprocess.Popen(sys.argv[1:], env=os.environ | told | {"JAX_PROCESS_ID": str(n)}) for n in range(2)]
    return max(job.wait() for job in jobs)


if __name__ == "__main__":
    sys.exit(main())
