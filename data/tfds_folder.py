"""A corpus that TFDS has built: copy this file, or give it another folder in a run file, as
``recipe("../data/tfds_folder.py", directory="tfds_data/vader_ratings/1.0.0")``. Its own is what this makes:

    tfds build data/tfds/sotu_speeches.py --file_format=array_record --data_dir=tfds_data

Origin: whatever was built; data/tfds/ has two builders to copy. Licence: of its owner; say both here, they are kept
with every checkpoint.
Prepared: one example's ``field`` is one document, read without TensorFlow (extra ``tfds``); a SentencePiece Unigram
vocabulary of 8,192 ids is trained on the training documents, then all are tokenized.
"""

from t5x_like.config import Corpus, SentencePiece, TfdsBuilder


def corpus(
    directory: str = "tfds_data/sotu_speeches/1.0.0", field: str = "text", split: str = "train", vocab_size: int = 8192
) -> Corpus:
    return Corpus(
        name="tfds_folder",
        source=TfdsBuilder(directory=directory, split=split, field=field),
        tokenizer=SentencePiece(vocab_size=vocab_size),
        licence="of its owner",
        origin="built by tfds",
    )
