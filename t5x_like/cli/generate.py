"""``t5x-like generate``: its arguments, its prompts as they come from a shell, its output."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from t5x_like.core.errors import UserError, refuse

FLAGS = ("--help", "--traceback", "--jsonl")  # options without a value


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own arguments, beside the run's."""
    command.add_argument("prompts", nargs="*", metavar="PROMPT",
                         help="texts (default: lines of standard input); after --, whatever they look like")
    command.add_argument("--set", action="append", default=[], dest="assignments", metavar="field=value",
                         help="set a field, such as mesh.tensor=1")
    command.add_argument("--max-new-tokens", type=int, default=64)
    command.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token (default)")
    command.add_argument("--top-k", type=int, default=0, help="sample among the k most likely; 0 is all")
    command.add_argument("--top-p", type=float, default=1.0, help="sample among the most likely that reach p")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--jsonl", action="store_true", help='print {"prompt": ..., "text": ...}, a line for each')


def split_prompts(arguments: Sequence[str]) -> tuple[list[str], list[str], int]:
    """(what ``argparse`` is to read, prompts, number of those behind ``--``) of the arguments behind ``generate``.

    A prompt may begin with a dash, which ``argparse`` would take for an option: here an option has two dashes, or is
    ``-h``, and what follows one that takes a value is its value, unless it is an option too.
    """
    border = arguments.index("--") if "--" in arguments else len(arguments)
    options, texts = [], []
    given = list(arguments[:border])
    while given:
        argument = given.pop(0)
        if argument == "-h" or argument.startswith("--"):
            options.append(argument)
            takes_one = "=" not in argument and not any(flag.startswith(argument) for flag in ("-h", *FLAGS))
            if takes_one and given and not given[0].startswith("--"):
                options.append(given.pop(0))
        else:
            texts.append(argument)
    literal = arguments[border + 1 :]
    run, *prompts = [*texts, *literal] or [None]
    return [*options, *([] if run is None else ["--", run])], prompts, min(len(literal), len(prompts))


def read_lines(data: bytes) -> list[str]:
    """The lines of standard input that are not blank: UTF-8, with or without byte order mark and carriage returns.

    Raises:
      UserError: bytes that are not UTF-8, with their line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, utf16 = data.count(b"\n", 0, error.start) + 1, data.startswith((b"\xff\xfe", b"\xfe\xff"))
        got = f"line {line} is not UTF-8 (byte 0x{data[error.start]:02x}: {error.reason})"
        how = f"iconv -f {'UTF-16' if utf16 else 'LATIN1'} -t UTF-8, if that is what it is in"
        raise UserError("standard input", got, "text in UTF-8", how) from None
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def generate(options: argparse.Namespace, opened: Callable[[], Any]) -> int:
    """Prints what the run that ``opened`` gives writes for each prompt."""
    from t5x_like.core.ranges import Seed
    from t5x_like.core.structure import structure
    from t5x_like.decode.sample import Sampling

    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_k, options.top_p)
    structure(Seed, options.seed, "seed", text=False)
    for prompt in options.prompts[: len(options.prompts) - options.literal]:
        refuse_field(prompt)
    for number, prompt in enumerate(options.prompts, 1):
        refuse_bytes(prompt, "prompt", f"prompt {number} ")
    if not options.prompts and sys.stdin.isatty():
        print("prompts, a line each; the end of the input (Ctrl-D) starts the writing:", file=sys.stderr, flush=True)
    prompts = options.prompts or read_lines(_standard_input())
    refuse(not prompts, "prompt", "is empty", "a text, or lines on standard input")
    for prompt, text in zip(prompts, opened().generate(prompts, sampling, options.seed), strict=True):
        print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) if options.jsonl else text, flush=True)
    return 0


def refuse_bytes(text: str, where: str, which: str = "") -> None:
    """Raises UserError for an argument that holds bytes which are no text."""
    broken = re.search("[\ud800-\udfff]", text) is not None
    refuse(broken, where, f"{which}is not UTF-8: {text!r}", "text in UTF-8")


def refuse_field(prompt: str) -> None:
    """Raises UserError for a prompt that sets a field of a run, as other commands read it."""
    from t5x_like.train.config import Run

    field = re.fullmatch(r"(\w+)(\.\w+)+=\S*", prompt)
    if field and field[1] in Run.__dataclass_fields__:
        got = f"{prompt!r} looks like a field to be set, not like a text"
        raise UserError("prompt", got, f"--set {prompt}, or as a text behind --", f"--set {prompt}")


def _standard_input() -> bytes:
    stream = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read().encode() if stream is None else stream.read()
