"""A mixture to copy: the State of the Union addresses and Python's standard library, over one vocabulary.

Origin: sotu.py and python_source.py, beside this file; each row of a batch is of one of them. Licence: theirs.
Size: 12.2 MB of English and 12 MB of Python; 2.6 and 3.5 million training tokens at a vocabulary of 8,192.
Prepared: a BPE vocabulary is trained on the training documents of both, with UL2's three mode tokens in it, then each
corpus is tokenized into a cache of its own.

Rates are the square roots of the corpora's sizes, as if none were larger than ``maximum`` tokens. The rate of a part
can also be a number, ``rate=3.0``, or change with the step, ``rate=RateSchedule((0, 10_000), (1.0, 3.0))``; a part can
come to an end, ``epochs=4``, or be a mixture itself.
"""

from t5x_like.config import Mixture, Part, Proportional, SentencePiece, recipe


def corpus(vocab_size: int = 8192, maximum: int = 0, temperature: float = 2.0) -> Mixture:
    rate = Proportional(maximum, temperature)
    return Mixture(
        name="sotu_and_python",
        parts=(Part(recipe("sotu.py"), rate), Part(recipe("python_source.py"), rate)),
        tokenizer=SentencePiece(vocab_size=vocab_size, model="bpe", symbols=("[NLU]", "[NLG]", "[S2S]")),
    )
