"""Mistakes that people make before a run is submitted, each with the check that has to name it."""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from tiny_runs import run_file, tiny_run

from t5x_like.core.config import override
from t5x_like.input_pipeline.config import Csv, Mixture, Parquet, Part, SentencePiece, TextFiles
from t5x_like.input_pipeline.prepare.prepare import cache_path
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer
from t5x_like.objectives import MaskedLM
from t5x_like.train.config import Run
from t5x_like.train.data import Data


@dataclasses.dataclass
class Kit:
    """What a mistake is made with.

    Attributes:
      folder: an empty folder.
      trained: folder of a run of ``tiny_run()`` with a checkpoint, to be spoiled.
      patch: pytest's monkeypatch.
    """

    folder: Path
    trained: Path
    patch: pytest.MonkeyPatch

    def run(self, **data: Any) -> Run:
        """``tiny_run`` with other fields of its corpus, and a cache of its own."""
        run = tiny_run()
        corpus = dataclasses.replace(run.data.corpus, **data)
        return dataclasses.replace(run, data=dataclasses.replace(run.data, corpus=corpus, cache=str(self.folder / "c")))

    def text(self, name: str, content: bytes) -> TextFiles:
        (self.folder / name).write_bytes(content)
        return TextFiles((str(self.folder / name),))

    def prepared(self) -> tuple[Run, Path]:
        """(a prepared run, the folder of its token cache)."""
        run = self.run()
        Data.open(run)
        return run, cache_path(run.data.corpus, open_tokenizer(run.data.corpus.tokenizer), run.data.cache)


@dataclasses.dataclass(frozen=True)
class Mistake:
    """Attributes:
    check: name of the check that says so.
    words: a part of what it says.
    make: function from a kit to the arguments of ``t5x-like check``.
    also: other checks that may fail by it.
    """

    check: str
    words: str
    make: Callable[[Kit], list[str]]
    also: tuple[str, ...] = ()


FOUND: dict[str, Mistake] = {}


def mistake(check: str, words: str, *also: str) -> Callable[[Callable[[Kit], list[str]]], Callable[[Kit], list[str]]]:
    def add(make: Callable[[Kit], list[str]]) -> Callable[[Kit], list[str]]:
        FOUND[make.__name__] = Mistake(check, words, make, also)
        return make

    return add


def fields(check: str, words: str, name: str, *arguments: str, kind: str = "llama", also: tuple[str, ...] = ()) -> None:
    """A mistake in arguments alone."""
    FOUND[name] = Mistake(check, words, lambda kit: [run_file(tiny_run(kind)), *arguments], also)


fields("config", "train.stepz", "a_field_that_is_not_there", "train.stepz=3")
fields("config", "train.batch_size", "a_number_out_of_range", "train.batch_size=0")
fields("config", "model.vocab_size", "a_vocabulary_larger_than_the_model", "model.vocab_size=100")
fields("config", "train.micro_batches", "micro_batches_that_do_not_divide", "train.micro_batches=3")
fields("config", "matches no parameter", "a_pattern_that_matches_nothing", "optimizer.frozen=embeddding")
fields("config", "warmup", "a_warm_up_longer_than_the_run", "optimizer.schedule.kind=cosine",
       "optimizer.schedule.warmup=9")  # fmt: skip
fields("mesh", "does not divide", "a_mesh_that_does_not_divide", "mesh.data=3")
fields("mesh", "multiply to 16", "a_mesh_of_other_devices", "mesh.fsdp=5", "--topology", "gpu:16", kind="t5")
fields("mesh", "model.heads", "heads_that_the_mesh_does_not_divide", "mesh.tensor=3", "--topology", "gpu:12",
       "train.batch_size=12")  # fmt: skip
fields("mesh", "attention_backend", "kernels_of_other_devices", "model.attention_backend=tpu")
fields("mesh", "--topology", "a_topology_that_is_not_there", "--topology", "v9:2x2")
fields("mesh", "copied to every device", "a_large_weight_on_every_device", "mesh.fsdp=2", "mesh.replicated_limit_mb=0")
fields("batch", "train.batch_size", "rows_that_devices_cannot_share", "train.batch_size=12")
fields("batch", "train.batch_size", "rows_that_many_devices_cannot_share", "--topology", "gpu:16")
fields("batch", "micro-batches", "micro_batches_smaller_than_the_devices", "train.batch_size=16",
       "train.micro_batches=4")  # fmt: skip
fields("storage", "no support for xs://", "an_address_of_another_kind", "--directory", "xs://bucket/run",
       also=("extras",))  # fmt: skip
fields("storage", "cannot be written", "a_folder_that_cannot_be_made", "--directory", "/proc/none/run")
fields("storage", "in the memory of this host", "a_folder_in_memory", "--directory", "/dev/shm/t5x_like_check/run",
       "--cluster", "slurm", "--topology", "gpu:8")  # fmt: skip
fields("room", "free in", "more_checkpoints_than_the_disk_holds", "checkpoint.keep_last=0", "checkpoint.every=1",
       "train.steps=1_000_000_000")  # fmt: skip
fields("extras", "gcsfs", "a_bucket_without_its_package", "data.cache=", "data.corpus.source.paths.0=gs://none/x.txt",
       also=("corpus",))  # fmt: skip
fields("extras", "wandb", "a_service_without_its_package", "report.wandb=project", also=("environment",))


@mistake("config", "line 3")
def a_run_file_that_is_no_python(kit):
    (kit.folder / "run.py").write_text("from t5x_like.config import *\n\ndef run(:\n")
    return [str(kit.folder / "run.py")]


@mistake("config", "no run file")
def a_run_file_that_is_not_there(kit):
    return [str(kit.folder / "none.py")]


@mistake("config", "cannot train a model of shape")
def an_objective_for_another_model(kit):
    path = Path(run_file(tiny_run(), f"objective_{kit.folder.name}"))
    text = path.read_text().replace("return from_json(Run, TEXT)", (
        "import dataclasses\n    from t5x_like.objectives import MaskedLM\n"
        "    return dataclasses.replace(from_json(Run, TEXT), objective=MaskedLM())"))  # fmt: skip
    path.write_text(text)
    assert MaskedLM().shapes
    return [str(path)]


@mistake("memory", "a step needs about")
def a_step_too_large_for_the_device(kit):
    import t5x_like.plan.chips as chips

    (kit.folder / "limit").write_text("400000")  # as a container's
    kit.patch.setattr(chips, "CGROUP_LIMITS", (str(kit.folder / "limit"),))
    return [run_file(tiny_run())]


@mistake("memory", "data.input_length")
def rows_too_long_for_the_device(kit):
    import t5x_like.plan.chips as chips

    (kit.folder / "limit").write_text("80000000")
    kit.patch.setattr(chips, "CGROUP_LIMITS", (str(kit.folder / "limit"),))
    return [run_file(tiny_run()), "data.input_length=100_000"]


@mistake("corpus", "none")
def a_source_that_is_not_there(kit):
    return [run_file(kit.run(source=TextFiles((str(kit.folder / "none"),))))]


@mistake("corpus", "nothing at")
def a_folder_without_texts(kit):
    (kit.folder / "empty").mkdir()
    return [run_file(kit.run(source=TextFiles((str(kit.folder / "empty"),))))]


@mistake("corpus", "not UTF-8")
def a_text_in_another_encoding(kit):
    return [run_file(kit.run(source=kit.text("latin.txt", "déjà vu ".encode("latin-1") * 50)))]


@mistake("corpus", "the file ends too early")
def an_archive_that_was_cut(kit):
    return [run_file(kit.run(source=kit.text("cut.txt.gz", gzip.compress(os.urandom(5000).hex().encode())[:1000])))]


@mistake("corpus", "no column 'text'")
def a_column_that_is_not_there(kit):
    (kit.folder / "table.csv").write_text("title,body\none,two\n")
    return [run_file(kit.run(source=Csv((str(kit.folder / "table.csv"),), "text")))]


@mistake("corpus", "table.parquet")
def a_table_that_is_none(kit):
    pytest.importorskip("pyarrow")
    (kit.folder / "table.parquet").write_text("no table")
    return [run_file(kit.run(source=Parquet((str(kit.folder / "table.parquet"),), "text")))]


@mistake("tokenizer", "none.model")
def a_vocabulary_that_is_not_there(kit):
    return [run_file(kit.run(tokenizer=SentencePiece(0, path=str(kit.folder / "none.model"))))]


@mistake("tokenizer", "broken.model")
def a_vocabulary_that_is_none(kit):
    (kit.folder / "broken.model").write_text("no model")
    return [run_file(kit.run(tokenizer=SentencePiece(0, path=str(kit.folder / "broken.model"))))]


@mistake("tokenizer", "model.vocab_size")
def a_vocabulary_file_larger_than_the_model(kit):
    from t5x_like.input_pipeline.tokenizers.training import train_sentencepiece

    texts = [path.read_text() for path in tiny_runs.text_folder().glob("*.txt")]
    train_sentencepiece(iter(texts * 20), kit.folder / "own.model", 400, "bpe", 20, ())
    own = SentencePiece(0, sentinels=20, path=str(kit.folder / "own.model"))
    return [run_file(override(kit.run(tokenizer=own), ["model.vocab_size=264"]))]


@mistake("cache", "used up")
def a_text_too_short_for_the_steps(kit):
    run = kit.run()
    part = Part(run.data.corpus, epochs=0.5)
    mixture = Mixture("mixed", (part,), run.data.corpus.tokenizer)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, corpus=mixture))
    Data.open(run)
    return [run_file(run), "train.steps=1_000"]


@mistake("cache", "not a token cache")
def a_torn_manifest(kit):
    run, cache = kit.prepared()
    (cache / "manifest.json").write_text((cache / "manifest.json").read_text()[:100])
    return [run_file(run)]


@mistake("cache", "of format")
def a_manifest_of_another_version(kit):
    run, cache = kit.prepared()
    manifest = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    return [run_file(run)]


@mistake("cache", "not as it was written")
def a_flipped_bit_in_the_tokens(kit):
    run, cache = kit.prepared()
    content = bytearray((cache / "train.tokens").read_bytes())
    content[100] ^= 1
    (cache / "train.tokens").write_bytes(content)
    return [run_file(run)]


@mistake("cache", "missing")
def a_token_file_that_was_removed(kit):
    run, cache = kit.prepared()
    (cache / "train.offsets").unlink()
    return [run_file(run)]


@mistake("cache", "cannot be written")
def a_cache_that_cannot_be_written(kit):
    (kit.folder / "file").write_text("")
    run = kit.run()
    return [run_file(override(run, [f"data.cache={kit.folder}/file/below"]))]


@mistake("storage", "cannot be written")
def a_directory_that_is_a_file(kit):
    (kit.folder / "file").write_text("")
    return [run_file(tiny_run()), "--directory", str(kit.folder / "file")]


@mistake("storage", "is running in this folder")
def another_training_in_the_folder(kit):
    descriptor = os.open(kit.trained, os.O_RDONLY)  # another opening of it, as another process has it
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    kit.patch.setattr(kit, "held", descriptor, raising=False)
    return [run_file(tiny_run()), "--directory", str(kit.trained)]


@mistake("storage", "metrics.jsonl")
def metrics_that_are_a_folder(kit):
    (kit.folder / "run" / "metrics.jsonl").mkdir(parents=True)
    return [run_file(tiny_run()), "--directory", str(kit.folder / "run")]


@mistake("checkpoint", "train.seed")
def another_seed_than_the_checkpoints(kit):
    return [run_file(tiny_run()), "train.seed=1", "--directory", str(kit.trained)]


@mistake("checkpoint", "model")
def another_model_than_the_checkpoints(kit):
    run = override(tiny_run(), ["model.decoder.groups.0.pattern.0.feed_forward.width=64"])
    return [run_file(run), "--directory", str(kit.trained)]


@mistake("checkpoint", "of another model or optimizer")
def another_optimizer_than_the_checkpoints(kit):
    from t5x_like.optim import Lion

    run = dataclasses.replace(tiny_run(), optimizer=Lion(learning_rate=1e-3))
    return [run_file(run), "--directory", str(kit.trained)]


@mistake("checkpoint", "its text, tokenizer or split has changed")
def another_text_than_the_checkpoints(kit):
    texts = kit.folder / "texts"
    shutil.copytree(tiny_runs.text_folder(), texts)
    (texts / "0.txt").write_text("Another text altogether, of the length that it had before it was changed.\n" * 2)
    run = kit.run(source=TextFiles((str(texts),)))
    Data.open(run)
    return [run_file(run), "--directory", str(kit.trained)]


@mistake("checkpoint", "data.skip")
def other_batches_skipped_before_the_checkpoint(kit):
    return [run_file(tiny_run()), "data.skip=0:1", "--directory", str(kit.trained)]


@mistake("checkpoint", "ordered by rules")
def a_checkpoint_of_another_order(kit):
    import t5x_like.train.resume as resume

    kit.patch.setattr(resume, "ORDER_VERSION", -1)
    return [run_file(tiny_run()), "--directory", str(kit.trained)]


@mistake("checkpoint", "checkpoints")
def a_checkpoint_without_its_metadata(kit):
    for path in (kit.trained / "checkpoints").rglob("_CHECKPOINT_METADATA"):
        path.write_text("{}")
    for path in (kit.trained / "checkpoints").rglob("checkpoint_metadata*"):
        path.write_text("{}")
    return [run_file(tiny_run()), "--directory", str(kit.trained)]


@mistake("environment", "JAX_NUM_PROCESSES")
def half_of_the_variables_of_a_job(kit):
    kit.patch.setenv("JAX_NUM_PROCESSES", "2")
    return [run_file(tiny_run())]


@mistake("environment", "JAX_PROCESS_ID=5")
def a_process_beyond_the_last(kit):
    for name, value in (("NUM_PROCESSES", "2"), ("PROCESS_ID", "5"), ("COORDINATOR_ADDRESS", "localhost:1")):
        kit.patch.setenv(f"JAX_{name}", value)
    return [run_file(tiny_run())]


@mistake("environment", "GOOGLE_APPLICATION_CREDENTIALS", "extras", "corpus")
def credentials_that_are_not_there(kit):
    kit.patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(kit.folder / "none.json"))
    return [run_file(kit.run(source=TextFiles(("gs://none/x.txt",))))]


@mistake("environment", "AWS_SECRET_ACCESS_KEY", "extras", "corpus")
def half_of_a_key(kit):
    kit.patch.setenv("AWS_ACCESS_KEY_ID", "A")
    kit.patch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    return [run_file(kit.run(source=TextFiles(("s3://none/x.txt",))))]


@mistake("environment", "WANDB_API_KEY", "extras")
def a_service_without_its_key(kit):
    kit.patch.setenv("HOME", str(kit.folder))
    kit.patch.delenv("WANDB_API_KEY", raising=False)
    return [run_file(tiny_run()), "report.wandb=project"]


def good_runs() -> Iterator[tuple[str, Callable[[Kit], list[str]]]]:
    """Names of runs with nothing wrong, and what makes their arguments."""
    for kind in tiny_runs.MODELS:
        yield f"a tiny {kind}", lambda kit, kind=kind: [_ready(tiny_run(kind)), *_new(kit)]
    for name in sorted(path.stem for path in (tiny_runs.ROOT / "configs").glob("*.py")):
        yield f"{name} shrunk", lambda kit, name=name: [_ready(_shrunk(name)), *_new(kit)]
    variants = {
        "for 16 devices": ["train.batch_size=16", "--topology", "gpu:16"],
        "for two dimensions": ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"],
        "in micro-batches": ["train.batch_size=32", "train.micro_batches=4"],
        "recomputed": ["model.remat=full", "model.scan_layers=true"],
        "for a cluster": ["--cluster", "slurm"],
        "by length": ["data.packing=first_fit"],
        "with a warm-up": ["optimizer.schedule.kind=cosine", "optimizer.schedule.warmup=2"],
        "of one step": ["train.steps=1"],
    }
    for name, arguments in variants.items():
        yield name, lambda kit, more=arguments: [_ready(tiny_run()), *more, *_new(kit)]
    resumed = {
        "resumed": [], "resumed for longer": ["train.steps=20"],
        "resumed on another mesh": ["mesh.fsdp=8", "mesh.data=1"], "resumed from its folder alone": None,
    }  # fmt: skip
    for name, arguments in resumed.items():
        yield name, lambda kit, more=arguments: (
            [str(kit.trained)] if more is None else [run_file(tiny_run()), *more, "--directory", str(kit.trained)]
        )


def _new(kit: Kit) -> list[str]:
    return ["--directory", str(kit.folder / "run")]


def _ready(run: Run) -> str:
    Data.open(run)
    return run_file(run)


def _shrunk(name: str) -> Run:
    from t5x_like.core.loading import load_run

    run = load_run(name, Run)
    kinds = {"encoder-decoder": "t5", "decoder-only": "llama", "encoder-only": "bert"}
    run = tiny_runs.shrink(run, kinds[run.model.shape])
    return override(run, ["train.batch_size=8", "mesh.fsdp=1", "mesh.data=-1"])
