"""The arguments of ``t5x-like COMMAND ...``. Loads nothing heavy, so that --help is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from t5x_like import __version__
from t5x_like.cli.checkpoint import add_arguments as add_checkpoint_arguments
from t5x_like.cli.generate import add_arguments as add_generate_arguments
from t5x_like.cli.generate import split_prompts
from t5x_like.core.spelling import GRAMMAR

Parser = argparse.ArgumentParser
Add = Callable[..., Parser]  # (name, help, *parsers of shared arguments)

EPILOG = f"""\
A CONFIG is a run file by path (configs/t5_sotu.py) or, if it is shipped, by name (t5_sotu).
Any field can be set after it: optimizer.learning_rate=6e-3 train.steps=1_000
't5x-like inspect config CONFIG' shows them all.

{GRAMMAR}"""


def parser() -> argparse.ArgumentParser:
    shown: Any = {"epilog": EPILOG, "formatter_class": argparse.RawDescriptionHelpFormatter}
    description = "Pretrain, resume, evaluate and sample from sharded transformers in JAX."
    top = argparse.ArgumentParser(prog="t5x-like", description=description, **shown)
    top.add_argument("--version", action="version", version=f"t5x-like {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common, own, config, run, fields = (argparse.ArgumentParser(add_help=False) for _ in range(5))
    common.add_argument("--traceback", action="store_true", help="show where in the code an error was found")
    own.add_argument("--code", action="append", default=[], metavar="FILE",
                     help="run this file, which defines a class of the run's folder; repeatable")
    own.add_argument("--accept-changed", action="append", default=[], metavar="FILE",
                     help="accept this file although it has changed since the training; repeatable")
    config.add_argument("config", metavar="CONFIG|RUN", help="a run file, the name of a shipped one, or a run's folder")
    run.add_argument("run", metavar="RUN", help="a run's folder")
    run.add_argument("--step", type=int, help="the checkpoint (default: the latest good one)")
    fields.add_argument("assignments", nargs="*", metavar="field=value", help="set a field, such as train.steps=1_000")

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        description = text[0].upper() + text[1:] + "."
        return commands.add_parser(name, help=text, description=description, parents=[common, *parents], **shown)

    _add_training(add, own, config, run, fields)
    _add_looking(add, own, config, run, fields)
    _add_preparing(add, common, own, config, fields)
    return top


def _add_training(add: Add, own: Parser, config: Parser, run: Parser, fields: Parser) -> None:
    """Commands about a training: made, checked, measured, replayed."""
    train = add("train", "pretrain a model, or resume the run in its directory", own, config, fields)
    train.add_argument("--directory", metavar="DIR", help="the run's folder (default: runs/NAME)")
    train.add_argument("--rewind", type=int, metavar="K", help="go back K steps first; later checkpoints are set aside")
    train.add_argument("--skip", type=int, metavar="M", help="pass over M batches from the step gone back to")

    text = "find what would stop a run, before it is submitted: nothing is trained or written"
    check = add("check", text, own, config, fields)
    check.add_argument("--directory", metavar="DIR", help="the run's folder (default: runs/NAME)")
    check.add_argument("--cluster", choices=("slurm", "jobset", "tpu-vm"), default="", help="where it will run")
    text = "devices that it is for, such as v5e:4x4 or gpu:16 (default: those of this machine)"
    check.add_argument("--topology", default="", metavar="DEVICES", help=text)

    add("eval", "measure a run's held-out loss", own, run, fields)

    explain = add("explain", "replay a step of a run, and show which rows and parameters stand out", own)
    explain.add_argument("run", metavar="RUN", help="a run's folder")
    explain.add_argument("--step", type=int, required=True, help="the step, counted as in metrics.jsonl, from 1")
    explain.add_argument("--rows", type=int, default=3, help="number of rows to show (default 3)")
    explain.add_argument("--no-proof", action="store_true", help="do not train on to the next checkpoint to compare")
    explain.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="as of inspect data")


def _add_looking(add: Add, own: Parser, config: Parser, run: Parser, fields: Parser) -> None:
    """Commands that show something."""
    generate = add("generate", "write text with a run's model", own, run)
    add_generate_arguments(generate)

    text = "show a config, its parameters, a batch as text, or a checkpoint"
    what = argparse.ArgumentParser(add_help=False)
    what.add_argument("what", choices=("config", "parameters", "data", "checkpoint"))
    inspect = add("inspect", text, own, what, config, fields)
    inspect.add_argument("--values", action="store_true", help="config: values alone, without what they mean")
    inspect.add_argument("--step", type=int, help="data: the batch of this step (default 0); checkpoint: which")
    inspect.add_argument("--rows", type=int, default=1, help="data: number of rows of the batch")
    inspect.add_argument("--color", choices=("auto", "always", "never"), default="auto",
                         help="data: colours (default auto: on a terminal, unless $NO_COLOR is set)")
    inspect.add_argument("--plot", metavar="FILE", help="data: draw document lengths and how full rows are")
    inspect.add_argument("--devices", type=int, default=1, help="parameters: number of devices of the mesh")

    diff = add("diff", "compare two runs: configs and curves", own)
    diff.add_argument("one", metavar="RUN|CONFIG")
    diff.add_argument("other", metavar="RUN|CONFIG")
    diff.add_argument("--plot", metavar="FILE", help="draw both runs' curves to this picture")

    report = add("report", "write what happened in a run, or in two, as one HTML page")
    report.add_argument("run", metavar="RUN", help="a run's folder")
    report.add_argument("other", nargs="?", metavar="RUN2", help="a run to compare it with")
    report.add_argument("--out", metavar="FILE", help="the page (default: RUN/report.html)")


def _add_preparing(add: Add, common: Parser, own: Parser, config: Parser, fields: Parser) -> None:
    """Commands about corpora, checkpoints and tokenizers."""
    prepare = add("prepare", "tokenize a run's corpora into the cache, ahead of training", own, config, fields)
    prepare.add_argument("--processes", type=int, default=0, help="processes (default: data.prepare_processes)")
    prepare.add_argument("--beam", action="store_true", help="with Apache Beam; its own options follow after --")

    add_checkpoint_arguments(add("checkpoint", "list, verify, prune or average a run's checkpoints"), [common])

    _tokenizer_arguments(add("tokenizer", "train a SentencePiece tokenizer, or show one of any kind"), common)


def _tokenizer_arguments(command: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser("train", help="train one on files of text", parents=[common])
    train.add_argument("inputs", nargs="+", metavar="FILE",
                       help="files, folders or globs: text, or .jsonl, .csv, .tsv or .parquet")
    train.add_argument("--output", required=True, metavar="MODEL", help="the model file to write")
    train.add_argument("--vocab-size", type=int, default=8192, help="ids in all (default 8192)")
    train.add_argument("--pad-to-multiple", type=int, default=1, metavar="N", help="learn more, to a multiple of N ids")
    train.add_argument("--model", choices=("unigram", "bpe"), default="unigram")
    train.add_argument("--sentinels", type=int, default=100, help="number of <extra_id_i> (default 100)")
    train.add_argument("--symbols", action="append", default=[], metavar="PIECE",
                       help="a further piece, such as '[NLU]'; repeatable")
    train.add_argument("--field", default="text", help="the field or column that holds the text")
    show = actions.add_parser("show", help="show a vocabulary, and the pieces of a text", parents=[common])
    show.add_argument("path", metavar="MODEL", help="a .model or tokenizer.json file, or 'bytes'")
    show.add_argument("text", nargs="?", default="", metavar="TEXT", help="a text to cut into pieces")
    show.add_argument("--symbols", action="append", default=[], metavar="PIECE", help="as it was trained with")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments; assignments, with or without leading dashes, may stand after options too."""
    top = parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    beam_options: list[str] = []
    if given[:1] == ["prepare"] and "--" in given:
        border = given.index("--")
        given, beam_options = given[:border], given[border + 1 :]
    if given[:1] == ["generate"]:
        given[1:], prompts, literal = split_prompts(given[1:])
        options, rest = top.parse_known_args(given)
        options.prompts, options.literal = prompts, literal
        if rest:
            top.error(f"unrecognized arguments: {' '.join(rest)}; a prompt with two dashes in front stands behind --")
        return options
    options, rest = top.parse_known_args(given)
    options.beam_options = beam_options
    if rest and not (hasattr(options, "assignments") and all("=" in argument for argument in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    elif rest:
        options.assignments += rest
    return options
