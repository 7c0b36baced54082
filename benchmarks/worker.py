"""One contender of ``step.py`` in its own process: told over standard input what to do, answers in lines of JSON.

Not run by hand. ``worker.py MODULE FORM FAMILY SIZES`` imports ``MODULE.Contender`` and ``sizes.FAMILY``, its sizes
and batches, makes the first step, says how long that took, and then obeys
{"do": "steps" | "save" | "losses" | "memory", ...} until its input ends. On the way it stands still, so that contenders
can be measured in turn without starting again.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time

STARTED = time.perf_counter()


def main() -> None:
    module_name, form, family_name, sizes_json = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers

    def answer(**facts) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    module = importlib.import_module(module_name)
    imported = time.perf_counter()

    from parameter_files import read, write

    sizes = getattr(importlib.import_module("sizes"), family_name)(**json.loads(sizes_json))
    contender = module.Contender(sizes, form)
    loss = float(contender.step(sizes.rows(0)))
    now = time.perf_counter()
    answer(imports=imported - STARTED, first_step=now - imported, cpu=time.process_time(), loss=loss)

    made = 1
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "steps":
            batches = [sizes.rows(made + i) for i in range(order["count"])]
            made += order["count"]
            wall, cpu = time.perf_counter(), time.process_time()
            losses = [contender.step(batch) for batch in batches]
            loss = float(losses[-1])  # waits; as in a training loop, nothing before it does
            answer(seconds=time.perf_counter() - wall, cpu=time.process_time() - cpu, loss=loss)
        elif order["do"] == "save":
            write(order["file"], contender.parameters())
            answer()
        elif order["do"] == "losses":
            contender.load(read(order["file"]))
            answer(losses=[float(contender.step(sizes.rows(i))) for i in range(order["count"])])
        elif order["do"] == "memory":  # the peak first: looking at the compiled step may compile it again
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            answer(peak=peak, temporary=contender.temporary_bytes())


if __name__ == "__main__":
    main()
