"""One function per command: from parsed arguments to printed lines."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import textwrap
from dataclasses import fields, replace
from pathlib import Path

from t5x_like.core.config import diff as config_diff
from t5x_like.core.config import flatten, override, to_plain
from t5x_like.core.errors import refuse
from t5x_like.core.loading import load_run
from t5x_like.core.own_code import check_loadable
from t5x_like.core.spelling import spell
from t5x_like.core.storage import is_address, is_folder, place
from t5x_like.core.text import short, table


def _folder(name: str) -> Path:
    """The folder of a run that is only read."""
    from t5x_like.train.working import opened

    return opened(name)


def _run_of(name: str, options: argparse.Namespace, partial: bool = True):
    """The config of a run's folder or address or of a run file, with fields set; ``partial`` as of ``load_config``."""
    from t5x_like.train.config import Run

    if is_folder(name):
        from t5x_like.train.directory import load_config

        run = load_config(_folder(name), options.code, options.accept_changed, partial)
    else:
        run = load_run(name, Run)
    run = override(run, getattr(options, "assignments", []))
    check_loadable(run)
    return run


def train(options: argparse.Namespace) -> int:
    run = _run_of(options.config, options, partial=False)
    directory = options.directory or (options.config if is_folder(options.config) else f"runs/{run.name}")
    from t5x_like.train.history import Rewind
    from t5x_like.train.run import train as train_run

    back = None if options.rewind is None and options.skip is None else Rewind(options.rewind or 0, options.skip or 0)
    outcome = train_run(run, directory, options.accept_changed, back, ends_process=True)
    import jax

    if jax.process_index():
        return outcome.exit_code
    if not outcome.complete:
        where = ["--directory", options.directory] if options.directory else []
        command = shlex.join([*_program(), "train", options.config, *options.assignments, *where])
        print(f"saved at step {outcome.step:,}; to resume: {command}", flush=True)
    else:
        _print_next(run, outcome)
    return outcome.exit_code


def check(options: argparse.Namespace) -> int:
    from t5x_like.cli.check import check

    return check(lambda: _run_of(options.config, options, partial=False), options)


def _print_next(run, outcome) -> None:
    """Prints a sample of the model, and commands to try next."""
    if outcome.sample:
        print("\na held-out text")
        for name, text in outcome.sample.items():
            print(f"  {name:<6} {' '.join(text.split())}")
    directory = outcome.directory
    prompt = " ".join(outcome.sample.get("given", "The state of the union").split())
    commands = {"eval": ("eval", directory), "generate": ("generate", directory, prompt)}
    commands = [command for name, command in commands.items() if name in outcome.commands]
    others = ("checkpoint", directory), ("data", directory, "--step", "0")
    print("\nnext")
    for command in (*commands, *(("inspect", *other) for other in others[len(commands) > 1 :])):
        print("  " + shlex.join([*_program(), *map(str, command)]), flush=True)


def _program() -> list[str]:
    """How to call this program from the user's shell: by name if that is found there, else as it was called."""
    if shutil.which("t5x-like"):
        return ["t5x-like"]
    return [sys.argv[0]] if Path(sys.argv[0]).name == "t5x-like" else [sys.executable, "-m", "t5x_like"]


def _opened(options: argparse.Namespace):
    from t5x_like.train.opened import open_run

    return open_run(options.run, options.step, options.assignments, options.code, options.accept_changed)


def eval(options: argparse.Namespace) -> int:  # noqa: A001, named after its command
    import jax

    from t5x_like.report.live import LiveLine

    opened, line = _opened(options), LiveLine(sys.stderr, silent=jax.process_index() > 0)
    with line.waiting(f"evaluating step {opened.step:,}"):
        evaluations = opened.evaluate()
    line.close()
    for name, found in evaluations.items():
        refuse(not found, "data.corpus.heldout", f"{name}: nothing to measure", "a larger share, or more text")
    if jax.process_index():
        return 0
    print(f"{options.run} at step {opened.step:,}")
    for name, found in evaluations.items():
        for key, value in (found or {}).items():
            print(f"  {name.replace('_', '-')} {key:<11} {value:{',.0f' if key == 'targets' else '.4f'}}")
    return 0


def explain(options: argparse.Namespace) -> int:
    from t5x_like.cli.explain import explain

    return explain(options)


def generate(options: argparse.Namespace) -> int:
    from t5x_like.cli.generate import generate

    return generate(options, lambda: _opened(options))


def inspect(options: argparse.Namespace) -> int:
    if options.what == "config":
        return _inspect_config(_run_of(options.config, options), options.values)
    if options.what == "checkpoint":
        return _inspect_checkpoint(_folder(options.config), options.step)
    run = _run_of(options.config, options)
    if options.what == "parameters":
        return _inspect_parameters(run, options.devices)
    from t5x_like.cli.inspect_data import inspect_data

    return inspect_data(run, options)


def _inspect_config(run, values_only: bool) -> int:
    from t5x_like.cli.fields import explained

    known = {} if values_only else explained(type(run), to_plain(run))
    for name, value in flatten(run).items():
        print(f"{name} = {spell(value)}")
        if field := known.get(name):
            for text in (field.meaning, f"allowed: {field.allowed}", f"default: {field.default}" * bool(field.default)):
                for line in textwrap.wrap(text, 116):
                    print(f"    {line}")
    return 0


def _inspect_parameters(run, devices: int) -> int:
    from t5x_like.core.ranges import PositiveInt
    from t5x_like.core.structure import structure
    from t5x_like.models.counts import parameter_count, train_flops
    from t5x_like.plan.memory import in_bytes, step_memory
    from t5x_like.sharding.rules import axis_ways, rules_of
    from t5x_like.sharding.table import parameter_table
    from t5x_like.train.setup import make_setup

    structure(PositiveInt, devices, "--devices", text=False)
    setup, mesh = make_setup(run), run.mesh.sizes(devices)
    run.model.check_sizes(axis_ways(rules_of(run.mesh), mesh))
    print(parameter_table(setup.specs, mesh, rules_of(run.mesh)))
    flops = run.train.batch_size * train_flops(run.model, setup.specs, *run.lengths())
    state = sum(row.state_bytes for row in setup.optimizer.table())
    print(f"\n{parameter_count(setup.specs):,} parameters, {short(flops)}FLOP per step of {run.train.batch_size} rows")
    print(f"optimizer state {short(state)}B over all devices")
    memory = step_memory(setup, run, mesh)
    rows = [(name, in_bytes(size)) for name, size in [*vars(memory).items(), ("in all", memory.total)]]
    print(f"\nan estimate of a step's memory on each device of {devices}")
    print("\n".join(table(rows, indent="  ")))
    return 0


def _inspect_checkpoint(directory: Path, step: int | None) -> int:
    from t5x_like.checkpoint.checkpoints import Checkpoints
    from t5x_like.job.join import check_devices
    from t5x_like.train.directory import read_config
    from t5x_like.train.working import checkpoints_of

    run = read_config(directory)
    check_devices()
    with Checkpoints(checkpoints_of(directory), read_only=True) as checkpoints:
        metadata = checkpoints.metadata(step)
        arrays = checkpoints.arrays(metadata["step"])
        steps = ", ".join(f"{s:,}" for s in checkpoints.steps())
    print(f"{run.name}: checkpoints of steps {steps}")
    print(f"step {metadata['step']:,}, epoch {metadata['data']['epoch']:.3f}, seed {metadata['seed']}")
    print("versions: " + ", ".join(f"{name} {version}" for name, version in metadata["versions"].items()))
    rows = [(path, "x".join(map(str, array.shape)) or "scalar", str(array.dtype)) for path, array in arrays.items()]
    print("\n".join(table(rows, indent="  ")))
    size = sum(array.size * array.dtype.itemsize for array in arrays.values())
    print(f"{len(arrays)} arrays, {size / 1e6:,.1f} MB")
    return 0


def checkpoint(options: argparse.Namespace) -> int:
    from t5x_like.cli.checkpoint import checkpoint

    return checkpoint(options)


def diff(options: argparse.Namespace) -> int:
    found = config_diff(_run_of(options.one, options), _run_of(options.other, options))
    rows = [(name, f"{one} -> {other}") for name, (one, other) in found.items()]
    print("\n".join(table(rows, left=2)) if found else "the configs are the same")
    runs = [_folder(name) for name in (options.one, options.other) if is_folder(name)]
    folders = [folder for folder in runs if (folder / "metrics.jsonl").is_file()]
    if len(folders) == 2:
        from t5x_like.report.compare import compare_metrics

        print("\n" + compare_metrics(folders[0], folders[1], [options.one, options.other]))
    if options.plot:
        refuse(len(folders) < 2, "--plot", "needs two folders of runs that have begun", "RUN RUN")
        from t5x_like.report.plots import plot_runs

        print(plot_runs(folders, options.plot))
    return 0


def report(options: argparse.Namespace) -> int:
    from t5x_like.report.page import PAGE, write_report

    names = [name for name in (options.run, options.other) if name]
    other, out = _folder(options.other) if options.other else None, Path(options.out) if options.out else None
    path = write_report(_folder(options.run), other, out, names)
    if is_address(options.run) and not options.out:
        place(options.run, "report").write(PAGE, path.read_bytes())
        path = f"{options.run.rstrip('/')}/{PAGE}"
    print(path)
    return 0


def prepare(options: argparse.Namespace) -> int:
    from t5x_like.cli.prepare_data import prepare_data

    return prepare_data(_run_of(options.config, options, partial=False), options)


def tokenizer(options: argparse.Namespace) -> int:
    return _show_tokenizer(options) if options.action == "show" else _train_tokenizer(options)


def _train_tokenizer(options: argparse.Namespace) -> int:
    from t5x_like.input_pipeline.config import SentencePiece
    from t5x_like.input_pipeline.prepare.vocabulary import source_by_suffix
    from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer
    from t5x_like.input_pipeline.tokenizers.training import Sample, train_sentencepiece

    refuse(options.pad_to_multiple < 1, "--pad-to-multiple", str(options.pad_to_multiple), "1 or more")
    size = -(-options.vocab_size // options.pad_to_multiple) * options.pad_to_multiple
    wanted = SentencePiece(size, options.model, options.sentinels, tuple(options.symbols))
    source, output = source_by_suffix(options.inputs, options.field), Path(options.output)
    print(f"training {size:,} pieces on {source.describe()}", file=sys.stderr, flush=True)
    sample = Sample(source.texts())
    train_sentencepiece(sample, output, size, wanted.model, wanted.sentinels, wanted.symbols)
    config = replace(wanted, path=str(output))
    made = open_tokenizer(config)
    ids = f"{made.vocab_size:,} ids, {len(made.sentinel_ids)} sentinels, fingerprint {made.fingerprint[:12]}"
    print(f"{output}: {ids}, {output.stat().st_size:,} bytes")
    tokens = sum(map(len, made.encode_batch(sample.texts)))
    characters, words = sum(map(len, sample.texts)), sum(len(text.split()) for text in sample.texts)
    print(f"on {characters:,} characters of it: {characters / tokens:.2f} characters per token, "
          f"{tokens / words:.2f} tokens per word")
    chosen = {each.name: getattr(config, each.name) for each in fields(config) if each.name != "model"}
    shown = ", ".join(f"{name}={value!r}" for name, value in chosen.items() if value != getattr(SentencePiece, name))
    print(f"in a corpus file: tokenizer=SentencePiece({shown})")
    return 0


def _show_tokenizer(options: argparse.Namespace) -> int:
    from t5x_like.cli.generate import refuse_bytes
    from t5x_like.input_pipeline.tokenizers.tokenizer import config_of_file, open_tokenizer

    refuse_bytes(options.text, "text")
    shown = open_tokenizer(config_of_file(options.path, options.symbols))
    ids = {"padding": shown.pad_id, "EOS": shown.eos_id, "unknown": shown.unk_id, "mask": shown.mask_id}
    print(f"{options.path}: {shown.vocab_size:,} ids, fingerprint {shown.fingerprint}")
    for name, identifier in ids.items():
        print(f"  {name:<9} " + ("none" if identifier is None else f"{identifier:>7}  {shown.piece(identifier)}"))
    sentinels = shown.sentinel_ids
    print(f"  sentinels {len(sentinels):>7}" + (f"  ids {sentinels[0]} to {sentinels[-1]}" if sentinels else ""))
    others = sorted(set(shown.special_ids) - {*ids.values(), *sentinels})
    for identifier in others[:16]:
        print(f"  special   {identifier:>7}  {shown.piece(identifier)}")
    if len(others) > 16:
        print(f"            and {len(others) - 16} more")
    if options.text:
        tokens = shown.encode(options.text)
        print(f"\n{len(tokens):,} tokens")
        for identifier in tokens:
            print(f"  {identifier:>7}  {shown.piece(identifier)!r}")
    return 0
