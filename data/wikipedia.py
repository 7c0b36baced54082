"""Wikipedia's articles without markup, as people have them on disk: copy this file, or give it another folder in a run
file, as ``recipe("../data/wikipedia.py", directory="/data/wikipedia/20231101.en")``.

Hugging Face's layout (``wikimedia/wikipedia``) is the folder of a date and language with
``train-00000-of-00041.parquet`` and so on (extra ``parquet``):

    hf download wikimedia/wikipedia --repo-type dataset --include "20231101.en/*" --local-dir wikipedia

TFDS's (``tfds build wikipedia``), with ``tfds=True`` (extra ``tfds``), is the folder of a version in either format,
such as ``~/tensorflow_datasets/wikipedia/20230601.en/1.0.0`` with ``wikipedia-train.array_record-00000-of-00064``.

Origin: dumps of Wikipedia. Licence: CC BY-SA 3.0 and GFDL.
Size: 20231101.en has 6,407,814 articles, 11.6 GB of Parquet, 20.2 GB of text, about 4.5 billion tokens.
Prepared: one article is one document, its title not among its text. At 1.5 million tokens per second and core
(measured, SentencePiece Unigram with 32,000 pieces) about 50 minutes of one core; the cache takes 2 bytes a token,
9 GB, and as much again while it is prepared. Training the vocabulary reads all of it once before, in one process.
0.1% of the articles are held out.
"""

from t5x_like.config import Corpus, Parquet, SentencePiece, TfdsBuilder, TokenizerConfig


def corpus(
    directory: str = "wikipedia/20231101.en", tfds: bool = False, tokenizer: TokenizerConfig | None = None
) -> Corpus:
    return Corpus(
        name="wikipedia",
        source=TfdsBuilder(directory) if tfds else Parquet((f"{directory}/train-*.parquet",)),
        tokenizer=tokenizer or SentencePiece(vocab_size=32_100),
        licence="CC BY-SA 3.0 and GFDL",
        origin="https://huggingface.co/datasets/wikimedia/wikipedia, from https://dumps.wikimedia.org",
        heldout=0.001,
    )
