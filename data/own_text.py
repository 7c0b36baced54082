"""Text files of your own: copy this file, or set ``data.corpus.source.paths`` on the command line.

Origin: files of yours. Licence: theirs; say both here, they are kept with every checkpoint.
Prepared: one file is one document. A SentencePiece Unigram vocabulary of 32,000 pieces with 100 sentinels is trained on
the training files, then all are tokenized, once.
"""

from t5x_like.config import Corpus, SentencePiece, TextFiles


def corpus(path: str = "texts", vocab_size: int = 32_100) -> Corpus:
    return Corpus(
        name="own_text",
        source=TextFiles(paths=(path,)),
        tokenizer=SentencePiece(vocab_size=vocab_size),
        licence="of its owner",
        origin="files given by the user",
        heldout=0.005,
    )
