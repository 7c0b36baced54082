"""Vocabularies: lossless, sentinels where they belong, and clear words about what cannot be."""

import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Bytes, Corpus, SentencePiece, TextFiles
from t5x_like.input_pipeline.tokenizer_training import train_sentencepiece
from t5x_like.input_pipeline.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
)

HARD_TEXTS = [
    "",
    " leading, trailing ",
    "two  spaces\n\nand\tlines\n",
    "    def f(x):\n        return x  # naïve café ☃ 日本 😀\n",
    "\x00 control \x07",
    "e\u0301 stays as it is, ﬁ too",
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request, tmp_path_factory, texts) -> SentencePieceTokenizer:
    path = tmp_path_factory.mktemp("model") / "tiny.model"
    train_sentencepiece(iter(texts), path, 400, request.param, sentinels=100)
    return SentencePieceTokenizer(path)


def test_trained_models_are_lossless(trained, texts):
    for text in [*texts, *HARD_TEXTS]:
        assert trained.decode(trained.encode(text)) == text
    processor = sentencepiece.SentencePieceProcessor(model_file=str(trained.path))
    assert processor.encode("dog.\n\n", out_type=str)[-2:] == ["\n", "\n"], "newline is a symbol, in no other piece"
    assert trained.encode_batch(texts) == [trained.encode(text) for text in texts]


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581"), max_size=40))
@settings(max_examples=100, deadline=None)
def test_bytes_are_lossless(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(text) == [byte + 3 for byte in text.encode()]
    assert tokenizer.decode([*tokenizer.encode(text), 1, 0]) == text


def test_special_ids_of_trained_models(trained):
    assert isinstance(trained, Tokenizer)
    assert (trained.pad_id, trained.eos_id, trained.unk_id, trained.vocab_size) == (0, 1, 2, 400)
    assert len(set(trained.sentinel_ids)) == 100 and max(trained.sentinel_ids) < 400
    assert trained.mask_id is not None and trained.mask_id not in trained.sentinel_ids
    assert trained.decode(trained.sentinel_ids[:2]) == "<extra_id_0><extra_id_1>"
    assert trained.encode("<extra_id_7>") == [trained.sentinel_ids[7]]
    assert trained.decode([0, 1, 399 + 5]) == "<id 404>"
    assert set(trained.special_ids) == {0, 1, 2, trained.mask_id, *trained.sentinel_ids}


def test_byte_sentinels_are_those_of_byt5():
    tokenizer = ByteTokenizer()
    assert isinstance(tokenizer, Tokenizer)
    assert (
        tokenizer.vocab_size == 259 and tokenizer.sentinel_ids[:2] == (258, 257) and len(tokenizer.sentinel_ids) == 100
    )
    assert tokenizer.encode("a<extra_id_1>b<extra_id_100>")[:3] == [100, 257, 101]
    assert tokenizer.decode([100, 258, 101, 257]) == "a<extra_id_0>b<extra_id_1>"
    assert tokenizer.decode([258 - 50]) == "<extra_id_50>", "a byte that makes no character is shown as a sentinel"
    assert tokenizer.decode(tokenizer.encode("“é”")) == "“é”", "one that does, as the character"
    assert tokenizer.decode([2, 3 + 0xC2, 300]) == "\ufffd<extra_id_61><id 300>"


def test_sentinels_beyond_a_model_that_has_none_are_those_of_t5(tmp_path, texts):
    """T5's own model has 32,000 pieces and no sentinel: the first one is 32,099."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "t5.model"
    path.write_bytes(model.getvalue())
    tokenizer = SentencePieceTokenizer(path, sentinels=10)
    pieces = tokenizer.vocab_size - 10
    assert tokenizer.sentinel_ids == tuple(range(pieces + 9, pieces - 1, -1))
    ids = tokenizer.encode("the fox <extra_id_0> over <extra_id_9>")
    assert pieces + 9 in ids and ids[-1] == pieces
    assert tokenizer.decode(ids) == "the fox<extra_id_0> over<extra_id_9>"
    assert tokenizer.encode_batch(["the <extra_id_0>"])[0][-1] == pieces + 9
    assert tokenizer.mask_id is None
    assert tokenizer.fingerprint != SentencePieceTokenizer(path, sentinels=0).fingerprint


def test_training_gives_the_same_file_twice(tmp_path, texts):
    for name in ("a", "b"):
        train_sentencepiece(iter(texts), tmp_path / name, 400, "unigram")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"], "no temporary file is left"


def test_a_vocabulary_that_does_not_fit_the_text_is_explained(tmp_path, texts):
    with pytest.raises(UserError, match="more than this text can fill") as caught:
        train_sentencepiece(iter(texts), tmp_path / "m", 9000, "bpe")
    largest = int(caught.value.suggestion)
    train_sentencepiece(iter(texts), tmp_path / "m", largest, "bpe")
    assert SentencePieceTokenizer(tmp_path / "m").vocab_size == largest
    with pytest.raises(UserError, match="does not hold the characters") as caught:
        train_sentencepiece(iter(texts), tmp_path / "m", 362, "bpe")
    assert int(caught.value.suggestion) > 362
    with pytest.raises(UserError, match="no text to train"):
        train_sentencepiece(iter([]), tmp_path / "m", 400)


def test_a_model_that_cannot_be_used_is_explained(tmp_path, trained):
    with pytest.raises(UserError, match="no file"):
        SentencePieceTokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_text("not a model")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "bad.model")
    with pytest.raises(UserError, match="has 100"):
        SentencePieceTokenizer(trained.path, sentinels=120)


def corpus_with(tokenizer, folder) -> Corpus:
    return Corpus("tiny", TextFiles((str(folder),)), tokenizer, "none", "made up", heldout=0.2)


def test_loading(tmp_path, trained, text_folder, cache):
    assert isinstance(load_tokenizer(corpus_with(Bytes(), text_folder), cache), ByteTokenizer)
    given = SentencePiece(vocab_size=400, path=str(trained.path))
    assert load_tokenizer(corpus_with(given, text_folder), cache).fingerprint == trained.fingerprint
    with pytest.raises(UserError, match="holds 400 ids"):
        load_tokenizer(corpus_with(SentencePiece(vocab_size=500, path=str(trained.path)), text_folder), cache)
    with pytest.raises(UserError, match="no file"):
        load_tokenizer(corpus_with(SentencePiece(vocab_size=0, path=str(tmp_path / "x")), text_folder), cache)


def test_a_trained_vocabulary_is_trained_once_and_again_when_the_text_changes(tmp_path, corpus, texts):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    mine = corpus_with(corpus.tokenizer, folder)
    first = load_tokenizer(mine, str(tmp_path / "cache"))
    assert load_tokenizer(mine, str(tmp_path / "cache")) is first
    (folder / "0.txt").write_text("something else entirely")
    assert load_tokenizer(mine, str(tmp_path / "cache")) is not first
    assert len(list((tmp_path / "cache" / "tokenizers").glob("*.model"))) == 2


def test_a_model_too_small_for_the_vocabulary_is_refused():
    check_vocabulary(ByteTokenizer(), 259)
    with pytest.raises(UserError, match="model.vocab_size: 256, but the tokenizer has 259") as caught:
        check_vocabulary(ByteTokenizer(), 256)
    assert caught.value.suggestion.startswith("384")
