"""The source text of Python's standard library, as it lies on this machine.

Origin: the folder that ``sysconfig`` calls stdlib, without tests, installed packages and IDLE's own tests.
Licence: Python Software Foundation License 2.
Size: about 12 MB of Python in 660 files, 3.5 million tokens (Python 3.11); another version is another cache.
Prepared: one file is one document, indentation and lines kept; a BPE vocabulary is trained on the training files,
unless another tokenizer is given, then all are tokenized. 5% of the files are held out.
"""

import sysconfig

from t5x_like.config import Corpus, SentencePiece, TextFiles, TokenizerConfig


def corpus(tokenizer: TokenizerConfig | None = None) -> Corpus:
    folder = sysconfig.get_path("stdlib")
    return Corpus(
        name="python_source",
        source=TextFiles(
            paths=(f"{folder}/**/*.py",),
            exclude=("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"),
        ),
        tokenizer=tokenizer or SentencePiece(vocab_size=8192, model="bpe"),
        licence="PSF-2.0",
        origin="https://github.com/python/cpython/tree/main/Lib",
    )
