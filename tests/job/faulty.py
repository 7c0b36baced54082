"""The command ``t5x-like``, in one process of which something goes wrong at the n-th call of a function: $FAULT is JSON
of process, place (module:name), call and what happens."""

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import time

from t5x_like.cli.main import main


def go_wrong(what: str) -> None:
    if what == "raise":
        raise ArithmeticError("planted")
    if what == "thread":
        threading.Thread(target=go_wrong, args=("raise",)).start()
    elif what == "sleep":
        time.sleep(600)  # the planted line
    elif what == "hold":
        ctypes.PyDLL(None).sleep(600)  # C that keeps Python from running
    else:
        os.kill(os.getpid(), getattr(signal, what))


def plant(place: str, call: int, what: str, slow: float) -> None:
    module, name = place.split(":")
    owner = importlib.import_module(module)
    *path, name = name.split(".")
    for each in path:
        owner = getattr(owner, each)
    original, calls = getattr(owner, name), 0

    def faulty(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == call:
            print(f"FAULT at {time.time()}", file=sys.stderr, flush=True)
            go_wrong(what)
        time.sleep(slow)
        return original(*arguments, **named)

    setattr(owner, name, faulty)


if fault := json.loads(os.environ.get("FAULT", "null")):
    if str(fault["process"]) == os.environ.get("JAX_PROCESS_ID", "0"):
        plant(fault["place"], fault.get("call", 1), fault["what"], fault.get("slow", 0.0))
sys.exit(main())
