"""Vocabularies: lossless, sentinels where they belong, documents free of special ids, and clear words about what cannot
be."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t5x_like.core.config import from_json, to_json
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Bytes, Corpus, Filters, Mixture, Part, SentencePiece, TextFiles
from t5x_like.input_pipeline.prepare import vocabulary
from t5x_like.input_pipeline.prepare.vocabulary import load_tokenizer, tokenizer_config, trained_model_path
from t5x_like.input_pipeline.sources.splits import documents_of_split
from t5x_like.input_pipeline.tokenizers import sentencepiece as tokenizer_sentencepiece
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer
from t5x_like.input_pipeline.tokenizers.sentencepiece import SentencePieceTokenizer
from t5x_like.input_pipeline.tokenizers.tokenizer import check_vocabulary, open_tokenizer
from t5x_like.input_pipeline.tokenizers.training import train_sentencepiece

MODES = ("[NLU]", "[NLG]", "[a,b]")
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
    train_sentencepiece(iter(texts), path, 420, request.param, 100, MODES)
    return SentencePieceTokenizer(path, 100, MODES)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, texts):
    """Makes a model with other options than ours: SentencePiece's own, as of T5, unless told otherwise."""
    folder = tmp_path_factory.mktemp("foreign")

    def make(name: str, sentinels: int = 0, **options) -> SentencePieceTokenizer:
        path = folder / f"{name}.model"
        if not path.exists():
            model = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts), model_writer=model, eos_id=1, hard_vocab_limit=False, minloglevel=2,
                **({"vocab_size": 100, "pad_id": 0, "unk_id": 2, "bos_id": -1} | options),
            )  # fmt: skip
            path.write_bytes(model.getvalue())
        return SentencePieceTokenizer(path, sentinels)

    return make


def bare(tokenizer: SentencePieceTokenizer) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))


def batch(tokenizer: Tokenizer, *texts: str) -> list[list[int]]:
    return [ids.tolist() for ids in tokenizer.encode_batch(texts)]


def test_trained_models_are_lossless(trained, texts):
    for text in [*texts, *HARD_TEXTS]:
        assert trained.decode(trained.encode(text)) == text
    assert bare(trained).encode("dog.\n\n", out_type=str)[-2:] == ["\n", "\n"], "a symbol, in no other piece"
    for threads in (0, 1):
        encoded = trained.encode_batch(texts, threads)
        assert [ids.tolist() for ids in encoded] == bare(trained).encode(texts)
        assert all(np.issubdtype(ids.dtype, np.integer) for ids in encoded)
    assert trained.encode_batch([]) == [] and batch(trained, "") == [[]]


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581"), max_size=40))
@settings(max_examples=100, deadline=None)
def test_bytes_are_lossless(text):
    tokenizer = ByteTokenizer()
    wanted = [byte + 3 for byte in text.encode()]
    assert tokenizer.encode(text) == wanted and batch(tokenizer, text, "") == [wanted, []]
    assert tokenizer.decode([*tokenizer.encode(text), 1, 0]) == text


def test_special_ids_of_trained_models(trained):
    assert isinstance(trained, Tokenizer)
    assert (trained.pad_id, trained.eos_id, trained.unk_id, trained.vocab_size) == (0, 1, 2, 420)
    assert len(set(trained.sentinel_ids)) == 100 and max(trained.sentinel_ids) < 420
    assert trained.mask_id is not None and trained.mask_id not in trained.sentinel_ids
    assert trained.decode(trained.sentinel_ids[:2]) == "<extra_id_0><extra_id_1>"
    assert trained.encode("<extra_id_7>") == [trained.sentinel_ids[7]]
    assert trained.decode([0, 1, 419 + 5]) == "<id 424>"
    modes = [trained.find(mode) for mode in MODES]
    assert modes == [trained.sentinel_ids[99] + i for i in (1, 2, 3)], "symbols come after the sentinels"
    assert trained.encode("[NLG]the") == [modes[1], *trained.encode("the")]
    assert set(trained.special_ids) == {0, 1, 2, trained.mask_id, *trained.sentinel_ids, *modes}


def test_pieces_are_found_by_what_they_are(trained):
    assert trained.find("<extra_id_3>") == trained.sentinel_ids[3] and trained.find("<mask>") == trained.mask_id
    assert [trained.find(piece) for piece in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert trained.find("[S2S]") is None and trained.find("not a piece") is None
    assert all(trained.find(trained.piece(identifier)) == identifier for identifier in range(420))
    tokenizer = ByteTokenizer()
    assert [tokenizer.find(piece) for piece in ("<pad>", "a", "<extra_id_1>", "ab", "é")] == [0, 100, 257, None, None]
    assert [tokenizer.piece(identifier) for identifier in (1, 100, 258)] == ["</s>", "a", "<0xFF>"]


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


def test_sentinels_beyond_a_model_that_has_none_are_those_of_t5(foreign):
    """T5's own model has 32,000 pieces and no sentinel: the first one is 32,099."""
    tokenizer = foreign("t5", 10)
    pieces = tokenizer.vocab_size - 10
    assert tokenizer.sentinel_ids == tuple(range(pieces + 9, pieces - 1, -1))
    ids = tokenizer.encode("the fox <extra_id_0> over <extra_id_9>")
    assert pieces + 9 in ids and ids[-1] == pieces
    assert tokenizer.decode(ids) == "the fox <extra_id_0> over <extra_id_9>"
    assert tokenizer.find("<extra_id_0>") == pieces + 9 and tokenizer.piece(pieces) == "\u2581<extra_id_9>"
    assert max(batch(tokenizer, "the <extra_id_0>")[0]) < pieces, "in a document it is text"
    assert tokenizer.mask_id is None
    assert tokenizer.fingerprint != foreign("t5", 0).fingerprint
    assert len(tokenizer.word_starts) == tokenizer.vocab_size


SENTINELS = {
    "t5": {},
    "t5_bpe": {"model_type": "bpe", "vocab_size": 200},
    "llama": {"pad_id": -1, "unk_id": 0, "byte_fallback": True, "vocab_size": 330, "model_type": "bpe",
              "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "no_prefix": {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "vocab_size": 150},
    "user": {"user_defined_symbols": ["<extra_id_0>", "<extra_id_1>"], "byte_fallback": True, "vocab_size": 400},
    "mt5": {"user_defined_symbols": ["\u2581<extra_id_0>", "\u2581<extra_id_1>"], "byte_fallback": True,
            "vocab_size": 400},
}  # fmt: skip
AROUND = ["<extra_id_0>", "<extra_id_1>", "<extra_id_7>", " ", "the", " fox", ".", ",", "s", "(", ")", "\n", "_", "<"]
AROUND += ["<mask>", "[NLU]", "</s>", "<unk>"]


def with_sentinels(tokenizer: SentencePieceTokenizer) -> sentencepiece.SentencePieceProcessor:
    """The library's own processor; of a model without sentinels, with them in it, as SeqIO puts them there."""
    plain = bare(tokenizer)
    if plain.get_piece_size() == tokenizer.vocab_size:
        return plain
    mark, made = "\u2581" if plain.normalize("a")[0] == "\u2581" else "", tokenizer.path.read_bytes()
    for number in reversed(range(len(tokenizer.sentinel_ids))):
        name = f"{mark}<extra_id_{number}>".encode()
        piece = bytes([10, len(name)]) + name + bytes([21, 0, 0, 0, 0, 24, 4])  # score 0, user-defined
        made += bytes([10, len(piece)]) + piece
    return sentencepiece.SentencePieceProcessor(model_proto=made)


@pytest.mark.parametrize("kind", ["trained", *SENTINELS])
@given(parts=st.lists(st.sampled_from(AROUND), max_size=12))
@example(["the", " ", "<extra_id_0>", ".", " ", "<extra_id_1>", "s"])
@settings(max_examples=60, deadline=None)
def test_prompts_have_the_ids_that_the_library_gives_the_whole(trained, foreign, kind, parts):
    tokenizer = trained if kind == "trained" else foreign(kind, 2, **SENTINELS[kind])
    text, library = "".join(parts), with_sentinels(tokenizer)
    ids = tokenizer.encode(text)
    if library.id_to_piece(tokenizer.sentinel_ids[0]).startswith("\u2581"):  # inside a word it stands as behind a space
        text = re.sub(r"(?<=[^ ])(?=<extra_id_[01]>)", " ", text)
    assert ids == library.encode(text)
    assert tokenizer.decode(ids) == library.decode(ids)
    known = re.findall("|".join(f"<extra_id_{i}>(?!\\d)" for i in range(len(tokenizer.sentinel_ids))), text)
    assert [tokenizer.find(each) for each in known] == [each for each in ids if each in tokenizer.sentinel_ids]


@given(st.lists(st.sampled_from([*AROUND, "é", "\u2581"]), max_size=12))
def test_byte_prompts_are_bytes_around_sentinels(parts):
    tokenizer, wanted = ByteTokenizer(), []
    for part in parts:
        number = re.fullmatch(r"<extra_id_(\d)>", part)
        wanted += [258 - int(number[1])] if number else [byte + 3 for byte in part.encode()]
    assert tokenizer.encode("".join(parts)) == wanted


def test_a_model_without_padding_pads_with_its_eos(foreign):
    tokenizer = foreign("unpadded", pad_id=-1, unk_id=0, byte_fallback=True, vocab_size=330)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.special_ids) == (1, 1, 0, (1, 0))


def test_ids_that_no_text_is_made_of_are_special(foreign):
    tokenizer = foreign("control", bos_id=3, control_symbols=["<turn>"])
    assert set(tokenizer.special_ids) == {0, 1, 2, 3, tokenizer.find("<turn>")}


# Documents


@given(st.lists(st.sampled_from([*MODES, "<mask>", "<extra_id_3>", "<extra_id_", "<", " ", "the", "3>", "\n"])))
@settings(max_examples=50, deadline=None)
def test_no_document_holds_a_special_id(trained, parts):
    text = "".join(parts)
    (ids,) = batch(trained, text)
    assert not set(ids) & set(trained.special_ids) and trained.decode(ids) == text
    if not any(special in text for special in (*MODES, "<mask>", "<extra_id_3>")):
        assert ids == trained.encode(text)


def test_only_the_document_with_a_special_piece_is_encoded_otherwise(trained):
    plain, text = "the quick fox", "the <mask> fox"
    assert trained.mask_id in trained.encode(text)
    first, second, third = batch(trained, plain, text, plain)
    assert first == third == trained.encode(plain)
    place = trained.encode(text).index(trained.mask_id)
    assert second[:place] == trained.encode(text)[:place] and trained.mask_id not in second


def test_special_pieces_of_other_models_are_text_in_documents_too(foreign):
    """A dummy prefix puts a space before what is encoded; inside a word there is none. mT5's sentinels bring theirs."""
    options = {"vocab_size": 400, "byte_fallback": True}
    near = foreign("user", 2, user_defined_symbols=["<extra_id_0>", "<extra_id_1>"], **options)
    mt5 = foreign("mt5", 2, user_defined_symbols=["\u2581<extra_id_0>", "\u2581<extra_id_1>"], **options)
    for tokenizer in (near, mt5):
        for text in ("the <extra_id_1> fox", "the<extra_id_0>fox", "<extra_id_0>", "＜extra_id_0＞ wide"):
            (ids,) = batch(tokenizer, text)
            assert not set(ids) & set(tokenizer.sentinel_ids)
            assert tokenizer.decode(ids) == text.replace("＜", "<").replace("＞", ">"), "T5 normalizes"
    assert near.sentinel_ids[0] in near.encode("＜extra_id_0＞ wide") and mt5.sentinel_ids[1] in mt5.encode(
        "the <extra_id_1> fox"
    )


def test_what_is_symbol_decides_ids_and_so_the_fingerprint(trained):
    assert SentencePieceTokenizer(trained.path, 100).fingerprint != trained.fingerprint
    assert SentencePieceTokenizer(trained.path, 100, MODES[::-1]).fingerprint == trained.fingerprint


# Long documents

LONG = ["dog ", "fox, ", "the  quick ", "\n", "jugs\n\n", "naïve ", "\t", "日本", " 7\n", "wizards", "_x ", "(of) "]
OTHERS = {
    "t5": {},
    "llama": {"pad_id": -1, "unk_id": 0, "byte_fallback": True, "vocab_size": 330, "model_type": "bpe",
              "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "across": {"split_by_whitespace": False, "vocab_size": 200},
    "suffix": {"treat_whitespace_as_suffix": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["trained", *OTHERS])
@given(parts=st.lists(st.sampled_from(LONG), min_size=20, max_size=80))
@settings(max_examples=30, deadline=None)
def test_a_text_that_is_cut_has_the_ids_of_the_whole(trained, foreign, kind, parts):
    tokenizer = trained if kind == "trained" else foreign(kind, **OTHERS[kind])
    text = "".join(parts)
    whole = bare(tokenizer).encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_sentencepiece, "_CHUNK", 15)
        assert batch(tokenizer, text, "the fox") == [whole, tokenizer.encode("the fox")]
        assert tokenizer.encode(text) == whole


def test_texts_are_cut_where_they_may_be(trained, foreign, monkeypatch):
    monkeypatch.setattr(tokenizer_sentencepiece, "_CHUNK", 15)
    text = "the quick brown fox jumps over\na lazy dog while seven"
    assert trained._cut(text) == ["the quick brown", " fox jumps over", "\na lazy dog while", " seven"]
    assert foreign("t5")._cut(text) == trained._cut(text)
    llama = foreign("llama", **OTHERS["llama"])
    assert llama._cut(text) == ["the quick brown", "fox jumps over\na", "lazy dog while seven"]
    assert foreign("across", **OTHERS["across"])._cut(text) == [text], "its pieces reach across words"


def test_a_text_without_white_space_is_cut_too(trained, monkeypatch):
    sizes = []
    encode = trained._encode_all

    def watched(chunks, threads):
        sizes.extend(map(len, chunks))
        return encode(chunks, threads)

    monkeypatch.setattr(trained, "_encode_all", watched)
    monkeypatch.setattr(tokenizer_sentencepiece, "_CHUNK", 50)
    monkeypatch.setattr(tokenizer_sentencepiece, "_LONGEST", 120)
    text = "日本語dog" * 100 + "the end"
    assert trained.decode(batch(trained, text)[0]) == text
    assert sizes == [120] * 5 + [7]


def test_a_long_prompt_keeps_its_sentinels(foreign, trained, monkeypatch):
    monkeypatch.setattr(tokenizer_sentencepiece, "_CHUNK", 50)
    text = "the fox " * 30 + "<extra_id_0>" + " jumps over" * 20
    for tokenizer in (trained, foreign("t5", 10)):
        ids = tokenizer.encode(text)
        assert ids.count(tokenizer.sentinel_ids[0]) == 1
        assert tokenizer.decode(ids).replace(" <", "<") == text.replace(" <", "<")


# Words


def test_words_begin_where_their_space_is(trained):
    starts = trained.word_starts
    assert starts.shape == (420,) and starts.dtype == bool and starts is trained.word_starts
    text = "the wizards jump, 77 dogs\n"
    words: list[str] = []
    for identifier in trained.encode(text):
        if starts[identifier] or not words:
            words.append("")
        words[-1] += trained.decode([identifier])
    assert words == ["the", " wizards", " jump", ",", " 77", " dogs", "\n"]
    assert not starts[trained.find("<0xE6>")] and starts[trained.find("<0x09>")], "bytes: half a character, a tab"


def test_words_of_bytes():
    tokenizer = ByteTokenizer()
    starts = tokenizer.word_starts
    assert starts.shape == (259,)
    assert [bool(starts[i]) for i in tokenizer.encode("a é.7\n")] == [False, True, False, False, True, False, True]


def test_a_vocabulary_that_does_not_mark_words_says_so(foreign):
    assert not foreign("suffix", **OTHERS["suffix"]).word_starts.any()


# Training


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


@pytest.mark.parametrize("symbol", ["<mask>", "<extra_id_5>", "</s>", "\n", "x", "a b"])
def test_symbols_that_cannot_be_are_explained(tmp_path, texts, symbol):
    with pytest.raises(UserError, match="data.corpus.tokenizer.symbols"):
        train_sentencepiece(iter(texts), tmp_path / "m", 400, "bpe", 100, ["[S]", symbol])


def test_a_model_that_cannot_be_used_is_explained(tmp_path, trained):
    with pytest.raises(UserError, match="no file"):
        SentencePieceTokenizer(tmp_path / "none.model")
    for content in ("not a model", ""):
        (tmp_path / "bad.model").write_text(content)
        with pytest.raises(UserError, match="is not a SentencePiece model"):
            SentencePieceTokenizer(tmp_path / "bad.model")
    with pytest.raises(UserError, match="has 100"):
        SentencePieceTokenizer(trained.path, sentinels=120)
    with pytest.raises(UserError, match=r"has no '\[S2S\]'"):
        SentencePieceTokenizer(trained.path, symbols=["[NLU]", "[S2S]"])


# Loading


def corpus_with(tokenizer, folder, **options) -> Corpus:
    source = TextFiles((str(folder),))
    return Corpus(**({"name": "tiny", "source": source, "tokenizer": tokenizer, "licence": "none", "origin": "made up",
                      "heldout": 0.2} | options))  # fmt: skip


def test_loading(tmp_path, trained, text_folder, cache):
    assert isinstance(load_tokenizer(corpus_with(Bytes(), text_folder), cache), ByteTokenizer)
    given = SentencePiece(vocab_size=420, path=str(trained.path), symbols=MODES)
    assert load_tokenizer(corpus_with(given, text_folder), cache).fingerprint == trained.fingerprint
    assert tokenizer_config(corpus_with(given, text_folder), cache) == given
    with pytest.raises(UserError, match="holds 420 ids"):
        load_tokenizer(corpus_with(SentencePiece(vocab_size=500, path=str(trained.path)), text_folder), cache)
    with pytest.raises(UserError, match="no file"):
        load_tokenizer(corpus_with(SentencePiece(vocab_size=0, path=str(tmp_path / "x")), text_folder), cache)


def test_tokenizers_pickle_as_their_paths(trained):
    for tokenizer in (trained, ByteTokenizer()):
        assert tokenizer.word_starts.any()
        data = pickle.dumps(tokenizer)
        again = pickle.loads(data)
        assert len(data) < 1000 and again.fingerprint == tokenizer.fingerprint
        assert again.special_ids == tokenizer.special_ids and again.encode("the fox") == tokenizer.encode("the fox")


def test_a_trained_vocabulary_is_trained_once_and_again_when_the_text_changes(tmp_path, texts):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    cache = str(tmp_path / "cache")
    mine = corpus_with(SentencePiece(vocab_size=420, model="bpe", symbols=MODES), folder)
    lines: list[str] = []
    first = load_tokenizer(mine, cache, lines.append)
    assert first.find("[NLU]") is not None and len(lines) == 2 and "420 pieces (bpe) on tiny" in lines[0]
    config = tokenizer_config(mine, cache, lines.append)
    assert load_tokenizer(mine, cache) is first is open_tokenizer(config) and len(lines) == 2
    (folder / "0.txt").write_text("something else entirely")
    assert load_tokenizer(mine, cache) is not first
    load_tokenizer(corpus_with(mine.tokenizer, folder, filters=Filters(min_characters=50)), cache)
    assert len(list((tmp_path / "cache" / "tokenizers").glob("*.model"))) == 3


def test_a_number_written_without_its_point_is_the_same_vocabulary(tmp_path, text_folder):
    filters = Filters(max_mean_word_length=10)
    mine = corpus_with(SentencePiece(vocab_size=420, model="bpe"), text_folder, heldout=0, filters=filters)
    mixed = Mixture("mixed", (Part(mine, 1),), mine.tokenizer)
    for each in (mine, mixed):
        again = from_json(type(each), to_json(each))
        assert repr(again) == repr(each)
        assert trained_model_path(again, str(tmp_path)) == trained_model_path(each, str(tmp_path))


def trained_on(corpus: Corpus | Mixture, cache: Path, monkeypatch) -> list[str]:
    """The texts that a tokenizer of ``corpus`` would be trained on."""
    seen: list[str] = []

    def train(texts, path, *options):
        seen.extend(texts)
        path.write_bytes(b"a model")

    monkeypatch.setattr(vocabulary, "train_sentencepiece", train)
    trained_model_path(corpus, str(cache))
    return seen


def test_training_sees_the_training_documents_of_every_corpus_of_a_mixture(tmp_path, texts, monkeypatch):
    halves = {"one": texts[:12], "other": texts[12:]}
    for name, some in halves.items():
        (tmp_path / name).mkdir()
        for number, text in enumerate(some):
            (tmp_path / name / f"{number:02}.txt").write_text(text)
    (tmp_path / "other" / "bad.txt").write_bytes(b"caf\xe9")
    wanted = SentencePiece(vocab_size=420, model="bpe")
    one = corpus_with(Bytes(), tmp_path / "one", name="one", filters=Filters(min_characters=400))
    other = corpus_with(Bytes(), tmp_path / "other", name="other", heldout=0.0, bad_documents="skip")
    nested = Mixture("inner", (Part(other, 0.001),), Bytes())
    seen = trained_on(Mixture("both", (Part(one, 5.0), Part(nested, 1.0)), wanted), tmp_path / "cache", monkeypatch)
    kept = [text for text in halves["one"] if len(text) >= 400]
    assert 0 < len(kept) < 12 and seen == [*documents_of_split(lambda: kept, 0.2, "train"), *halves["other"]]
    assert [path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache" / "tokenizers").glob("*.model")] == ["both"]
    with pytest.raises(UserError, match="UTF-8"):
        trained_on(corpus_with(wanted, tmp_path / "other"), tmp_path / "cache", monkeypatch)


def test_a_model_too_small_for_the_vocabulary_is_refused():
    check_vocabulary(ByteTokenizer(), 259)
    with pytest.raises(UserError, match="model.vocab_size: 256, but the tokenizer has 259") as caught:
        check_vocabulary(ByteTokenizer(), 256)
    assert caught.value.suggestion.startswith("384")
