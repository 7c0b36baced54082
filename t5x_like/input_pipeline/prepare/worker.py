"""``python -m t5x_like.input_pipeline.prepare.worker``: a process that tokenizes parts of a corpus for another one.

Reads JSON lines from standard input: a ``parts.Work``, then one ``parts.Part`` after the other. Answers with JSON lines
on standard output: {"report": [documents, tokens, bytes]} now and then, {"counts": {...}} when a part is finished,
{"error": [where, got, allowed, suggestion]} for a user's mistake (or another key of ``parts.ERROR_KINDS``),
{"fault": "traceback"} for one of ours. Ends when standard input does: at once, and so with the process that started it,
however that one ends. Must not import JAX.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import TextIO

from t5x_like.core.config import from_json
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.prepare.parts import Part, Work, plain_error, tokenize_part


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the parent decides
    # What a library prints goes to standard error: standard output is for answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    questions = sys.stdin
    first = questions.readline()
    parts: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions, parts), daemon=True).start()
    work = tokenizer = None
    while True:
        line = parts.get()
        try:
            work = work or from_json(Work, first)
            tokenizer = tokenizer or work.open_tokenizer()
            counts = tokenize_part(
                work, from_json(Part, line), tokenizer, lambda *report: _answer(answers, "report", report)
            )
            _answer(answers, "counts", vars(counts))
        except UserError as error:
            _answer(answers, *plain_error(error))
        except Exception:  # a fault of ours: the parent ends, and shows where it was
            _answer(answers, "fault", traceback.format_exc())


def _answer(answers: TextIO, kind: str, value: object) -> None:
    print(json.dumps({kind: value}), file=answers)


def _listen(questions: TextIO, parts: queue.SimpleQueue[str]) -> None:
    for line in questions:
        parts.put(line)
    os._exit(0)  # from whatever the main thread is doing


if __name__ == "__main__":
    main()
