"""SeqIO's side of ``input.py``, run by the Python of an environment that has seqio; imports nothing of this project.

    python seqio_input.py FOLDER MODEL LENGTH

Reads the paragraphs of the text files in FOLDER, tokenizes them with the SentencePiece model, packs them into rows of
LENGTH for a language model, and prints tokens per CPU second as one line of JSON: tokenizing and packing as it goes,
and packing tokens that are in memory.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
SECONDS = 10.0


def main() -> None:
    folder, model, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
    started = time.perf_counter()
    import numpy as np
    import seqio  # pyright: ignore
    import tensorflow as tf  # pyright: ignore

    tf.config.set_visible_devices([], "GPU")
    vocabulary = seqio.SentencePieceVocabulary(model)
    features = {"targets": seqio.Feature(vocabulary, add_eos=True)}
    texts = [part for file in sorted(Path(folder).glob("*.txt")) for part in file.read_text().split("\n\n") if part]

    def from_texts(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": texts})  # pyright: ignore

    ids = [np.asarray(each, np.int32) for each in vocabulary.tokenizer.encode(texts[:20_000])]
    ragged = tf.ragged.constant(ids, dtype=tf.int32)

    def from_ids(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": ragged})  # pyright: ignore

    chunked = functools.partial(_cut, length=length)
    for name, source, preprocessors in (
        ("tokenized", from_texts, [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos, chunked]),
        ("packed", from_ids, [seqio.preprocessors.append_eos, chunked]),
    ):
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(source, splits=["train"]),
            preprocessors=preprocessors,
            output_features=features,
        )
    found = {}
    for name in ("tokenized", "packed"):
        dataset = seqio.get_dataset(
            mixture_or_task_name=name,
            task_feature_lengths={"targets": length},
            dataset_split="train",
            shuffle=True,
            num_epochs=None,
            seed=0,
            feature_converter=seqio.LMFeatureConverter(pack=True),
        )
        rows = dataset.batch(128).as_numpy_iterator()
        next(rows)
        found.setdefault("first", time.perf_counter() - started)
        tokens, cpu, end = 0, time.process_time(), time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            tokens += int(np.count_nonzero(next(rows)["decoder_segment_ids"]))
        found[name] = tokens / (time.process_time() - cpu)
    print(json.dumps(found))


def _cut(dataset, length: int):
    """Long documents in pieces of at most ``length``, as the other side cuts them."""
    import tensorflow as tf  # pyright: ignore

    def pieces(features):
        ids = features["targets"]
        starts = tf.range(0, tf.maximum(tf.size(ids), 1), length)
        return tf.data.Dataset.from_tensor_slices(starts).map(lambda start: {"targets": ids[start : start + length]})

    return dataset.flat_map(pieces)


if __name__ == "__main__":
    main()
