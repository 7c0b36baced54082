"""Takes the lock on a folder in a process of its own, says so, and holds it until its input ends.

    python tests/core/lock_holder.py FOLDER RENEWED EXPIRES [MACHINE]
"""

import os
import sys

from t5x_like.core import lock
from t5x_like.core.errors import UserError
from t5x_like.core.storage import place

if len(sys.argv) > 4:
    lock.machine = lambda: sys.argv[4]
    lock.platform.node = lambda: sys.argv[4]
held = lock.Lock(place(sys.argv[1]), renewed=float(sys.argv[2]), expires=float(sys.argv[3]), job=lock.job_name())
print("ready", flush=True)
sys.stdin.readline()
print(held.acquire() or f"held {os.getpid()}", flush=True)
for _ in sys.stdin:
    try:
        held.check()
        print("good", flush=True)
    except UserError as error:
        print(" ".join(str(error).split()), flush=True)
held.release()
