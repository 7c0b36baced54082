"""C4, the Colossal Clean Crawled Corpus that T5 was trained on, as people have it on disk: copy this file, or give it
another folder in a run file, as ``recipe("../data/c4.py", directory="/data/c4/en")``.

Hugging Face's layout (``allenai/c4``) is the folder of a variant with ``c4-train.00000-of-01024.json.gz`` and so on:

    hf download allenai/c4 --repo-type dataset --include "en/c4-train.*" --local-dir c4

TFDS's (``tfds build c4``), with ``tfds=True``, is the folder of a version in either format, such as
``~/tensorflow_datasets/c4/en/3.1.0`` with ``c4-train.array_record-00000-of-01024`` or ``c4-train.tfrecord-...``.

Origin: Common Crawl of April 2019; Raffel et al. 2020, section 2.2. Licence: ODC-BY, and Common Crawl's terms of use.
Size: 364,868,892 documents in ``train``, 305 GB of json.gz, about 156 billion tokens (Dodge et al. 2021, table 1). Some
shards alone are a corpus too: name them in ``data.corpus.source.paths``.
Prepared: one page is one document. At 1.5 million tokens per second and core (measured, SentencePiece Unigram with
32,000 pieces) about 30 hours of one core, 1 hour of 32; the cache takes 2 bytes a token, 312 GB, and as much again
while it is prepared. Training a vocabulary reads everything once more, in one process: give one, as
``tokenizer=SentencePiece(path="spiece.model")`` for T5's own. 0.05% of the documents are held out; C4's own
``validation`` is not read.
"""

from t5x_like.config import Corpus, JsonLines, SentencePiece, TfdsBuilder, TokenizerConfig


def corpus(
    directory: str = "c4/en", split: str = "train", tfds: bool = False, tokenizer: TokenizerConfig | None = None
) -> Corpus:
    files = JsonLines((f"{directory}/c4-{split}.*.json.gz",))
    return Corpus(
        name="c4",
        source=TfdsBuilder(directory, split) if tfds else files,
        tokenizer=tokenizer or SentencePiece(vocab_size=32_100),
        licence="ODC-BY, and the terms of use of Common Crawl",
        origin="https://huggingface.co/datasets/allenai/c4, from Common Crawl of April 2019",
        heldout=0.0005,
    )
