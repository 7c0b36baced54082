"""``tokenizer.json`` files, made tiny by the library itself in the ways that published ones are made."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Corpus, HuggingFaceTokenizer, TextFiles
from t5x_like.input_pipeline.prepare.vocabulary import load_tokenizer
from t5x_like.input_pipeline.tokenizers import hugging_face as tokenizer_hugging_face
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.input_pipeline.tokenizers.hugging_face import JsonTokenizer
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer

hf = pytest.importorskip("tokenizers", reason="needs the extra 'tokenizers'")
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402


def gpt2():
    made = hf.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )


def gpt4():
    """Byte pieces cut by a pattern that joins punctuation and the newlines after it."""
    made, trainer = gpt2()
    pattern = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(hf.Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return made, trainer


def bert():
    made = hf.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_truncation(4)
    made.enable_padding()
    return made, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)


def t5():
    made = hf.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(3))]
    return made, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>")


def llama():
    """A space is put before every text, and those that are there stay."""
    made = hf.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], max_token_length=5)


KINDS = {each.__name__: each for each in (gpt2, gpt4, bert, t5, llama)}


@pytest.fixture(scope="module")
def file(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("tokenizers")

    def make(kind: str) -> Path:
        path = folder / f"{kind}.json"
        if not path.exists():
            made, trainer = KINDS[kind]()
            trainer.show_progress = False
            words = [word for text in texts for word in text.split()]
            made.train_from_iterator(words if kind == "llama" else texts, trainer)  # which has no step that parts them
            made.save(str(path))
        return path

    return make


def ids_of(file, kind: str, text: str) -> list[int]:
    """By the library alone."""
    plain = hf.Tokenizer.from_file(str(file(kind)))
    plain.no_truncation()
    plain.no_padding()
    return plain.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_library(file, kind, texts):
    tokenizer = JsonTokenizer(file(kind))
    assert isinstance(tokenizer, Tokenizer)
    wanted = [ids_of(file, kind, text) for text in texts]
    assert len(wanted[0]) > 20 and [tokenizer.encode(text) for text in texts] == wanted
    for threads in (0, 1):
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts, threads)] == wanted
    assert tokenizer.encode_batch([]) == []
    for text, ids in zip(texts, wanted, strict=True):
        decoded = tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id])
        if kind in ("gpt2", "gpt4"):
            assert decoded == text
        else:  # these know no newline, and BERT's no capitals either
            assert "".join(decoded.replace("<unk>", "").lower().split()) == "".join(text.lower().split())
    pieces = tokenizer.find(tokenizer.piece(wanted[0][3]))
    assert pieces == wanted[0][3] and tokenizer.find("no such piece") is None


@pytest.mark.parametrize(
    "kind, named, count",
    [
        ("gpt2", ("<|endoftext|>", "<|endoftext|>", None, "<|endoftext|>"), 1),
        ("bert", ("[PAD]", "[SEP]", "[MASK]", "[UNK]"), 5),
        ("t5", ("<pad>", "</s>", None, "<unk>"), 6),
        ("llama", ("</s>", "</s>", None, "<unk>"), 3),
    ],
)
def test_special_ids_are_found_by_their_usual_names(file, kind, named, count):
    tokenizer = JsonTokenizer(file(kind))
    found = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.mask_id, tokenizer.unk_id)
    assert found == tuple(name and tokenizer.find(name) for name in named)
    assert len(tokenizer.special_ids) == len(set(tokenizer.special_ids)) == count


def test_names_can_be_given(file):
    tokenizer = JsonTokenizer(file("t5"), pad="</s>", eos="<extra_id_1>", mask="<extra_id_2>")
    assert tokenizer.pad_id == tokenizer.find("</s>") and tokenizer.eos_id == tokenizer.find("<extra_id_1>")
    assert tokenizer.mask_id == tokenizer.find("<extra_id_2>")
    assert tokenizer.fingerprint != JsonTokenizer(file("t5")).fingerprint
    with pytest.raises(UserError, match="data.corpus.tokenizer.mask: .* no piece '<extra_id_9>'") as caught:
        JsonTokenizer(file("t5"), mask="<extra_id_9>")
    assert "<extra_id_" in caught.value.suggestion


def test_sentinels_that_the_file_lacks_come_after_its_last_id(file):
    size = JsonTokenizer(file("t5")).vocab_size
    assert JsonTokenizer(file("t5"), sentinels=2).vocab_size == size, "it has three"
    tokenizer = JsonTokenizer(file("t5"), sentinels=6)
    own = tuple(tokenizer.find(f"<extra_id_{i}>") for i in range(3))
    assert tokenizer.sentinel_ids == (*own, size + 2, size + 1, size) and tokenizer.vocab_size == size + 3
    for text in ("the fox<extra_id_1> jumps<extra_id_4> over the dog", "<extra_id_5>the fox"):
        ids = tokenizer.encode(text)
        assert [i for i in range(6) if tokenizer.sentinel_ids[i] in ids] == [i for i in range(6) if f"_{i}>" in text]
        assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")
    assert tokenizer.decode(tokenizer.encode("the dog<extra_id_4> over")) == "the dog<extra_id_4> over"
    assert tokenizer.decode([size, size + 3]) == f"<extra_id_5><id {size + 3}>"
    assert tokenizer.find("<extra_id_3>") == size + 2 and tokenizer.piece(size + 2) == "<extra_id_3>"
    assert set(tokenizer.sentinel_ids) <= set(tokenizer.special_ids)


AROUND = ["<extra_id_0>", "<extra_id_2>", "<extra_id_5>", "<extra_id_9>", " ", "the", " fox", ".", "s", "(", "\n", "<"]
AROUND += ["</s>", "<|endoftext|>", "[MASK]", "<pad>"]


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(st.sampled_from(AROUND), max_size=12))
@settings(max_examples=60, deadline=None)
def test_prompts_have_the_ids_that_the_library_gives_the_whole(file, kind, parts):
    """The library's own tokenizer, with the missing sentinels added to it as special tokens."""
    tokenizer = open_tokenizer(HuggingFaceTokenizer(str(file(kind)), sentinels=6))
    library = hf.Tokenizer.from_file(str(file(kind)))
    library.no_truncation()
    missing = [f"<extra_id_{i}>" for i in reversed(range(6)) if library.token_to_id(f"<extra_id_{i}>") is None]
    library.add_special_tokens(missing)
    assert tokenizer.encode("".join(parts)) == library.encode("".join(parts), add_special_tokens=False).ids


SPECIAL = ["<|endoftext|>", "<extra_id_1>", "</s>", "[MASK]", "<unk>", "the", " ", "s>", "<"]


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(st.sampled_from(SPECIAL)))
@settings(max_examples=30, deadline=None)
def test_no_document_holds_a_special_id(file, kind, parts):
    tokenizer = open_tokenizer(HuggingFaceTokenizer(str(file(kind)), sentinels=3))
    text = "".join(parts)
    (ids,) = tokenizer.encode_batch([text])
    assert not set(ids.tolist()) & (set(tokenizer.special_ids) - {tokenizer.unk_id})
    if kind in ("gpt2", "gpt4"):
        assert tokenizer.decode(ids) == text


def test_a_special_token_that_takes_the_space_before_it_is_text_with_its_space_in_documents(file, tmp_path):
    made = hf.Tokenizer.from_file(str(file("gpt2")))
    made.add_special_tokens([hf.AddedToken("<mask>", lstrip=True)])  # as RoBERTa's
    made.save(str(tmp_path / "roberta.json"))
    tokenizer, text = JsonTokenizer(tmp_path / "roberta.json"), "the <mask> dog"
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.mask_id in tokenizer.encode(text) and tokenizer.mask_id not in ids.tolist()
    assert tokenizer.decode(ids) == text


def test_a_special_piece_that_is_no_special_token_is_spelled_out(file, tmp_path):
    tokenizer = JsonTokenizer(file("gpt2"), mask="Ġthe")
    text = "over the dog"
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.mask_id in tokenizer.encode(text) and tokenizer.mask_id not in ids.tolist()
    assert tokenizer.decode(ids) == text


LONG = "dog |fox, |the  quick |\n|jugs.\n\n|naïve |\t|日本 | 7\n|wizards|_x |(of) |12 ".split("|")


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(st.sampled_from(LONG), min_size=20, max_size=60))
@settings(max_examples=20, deadline=None)
def test_a_text_that_is_cut_has_the_ids_of_the_whole(file, kind, parts):
    tokenizer, text = open_tokenizer(HuggingFaceTokenizer(str(file(kind)))), "".join(parts)
    wanted = ids_of(file, kind, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_hugging_face, "_CHUNK", 20)
        assert tokenizer.encode(text) == wanted
        assert tokenizer.encode_batch([text, "the"])[0].tolist() == wanted


def test_long_texts_are_cut(file, monkeypatch):
    monkeypatch.setattr(tokenizer_hugging_face, "_CHUNK", 20)
    monkeypatch.setattr(tokenizer_hugging_face, "_LONGEST", 50)
    text = "the quick brown fox jumps over a lazy dog while"
    parts = ["the quick brown fox jumps", " over a lazy dog while"]
    assert JsonTokenizer(file("gpt2"))._cut(text) == parts
    assert JsonTokenizer(file("llama"))._cut(text) == [part.strip() for part in parts]
    assert [len(part) for part in JsonTokenizer(file("gpt2"))._cut("a" * 120)] == [50, 50, 20]


def test_words_begin_where_pieces_say(file):
    text = "the wizards jump, dogs"
    words = {"bert": ["the", "wizards", "jump", ",", "dogs"]}
    for kind in KINDS:
        tokenizer = JsonTokenizer(file(kind), sentinels=5)
        starts = tokenizer.word_starts
        assert starts.shape == (tokenizer.vocab_size,) and starts.dtype == bool
        found: list[list[int]] = []
        for identifier in tokenizer.encode(text):
            if starts[identifier] or not found:
                found.append([])
            found[-1].append(identifier)
        assert [tokenizer.decode(word).strip() for word in found] == words["bert"], kind


def test_a_vocabulary_with_holes_has_its_greatest_id(file, tmp_path):
    described = json.loads(file("gpt2").read_text())
    described["model"]["vocab"]["late"] = 500
    (tmp_path / "holes.json").write_text(json.dumps(described))
    tokenizer = JsonTokenizer(tmp_path / "holes.json", sentinels=2)
    assert tokenizer.vocab_size == 503 and tokenizer.sentinel_ids == (502, 501)
    assert tokenizer.encode("<extra_id_0>the<extra_id_1>") == [502, *tokenizer.encode("the"), 501]
    assert tokenizer.word_starts.shape == (503,) and not tokenizer.word_starts[450]
    assert tokenizer.piece(450) == "<id 450>" and tokenizer.decode([450]) == "<id 450>"
    assert tokenizer.find("late") == 500 and 500 not in tokenizer.special_ids
    assert {450, 499} <= set(tokenizer.special_ids), "no text is made of them"


def test_what_cannot_be_used_is_explained(file, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no file"):
        JsonTokenizer(tmp_path / "none.json")
    for content in (b"{}", b"\xff", b"not json"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UserError, match="is not a tokenizer.json"):
            JsonTokenizer(tmp_path / "bad.json")
    described = json.loads(file("gpt2").read_text())
    random = {**described, "model": described["model"] | {"dropout": 0.1}}
    (tmp_path / "random.json").write_text(json.dumps(random))
    with pytest.raises(UserError, match="at random"):
        JsonTokenizer(tmp_path / "random.json")
    hf.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "plain.json"))
    with pytest.raises(UserError, match="data.corpus.tokenizer.eos"):
        JsonTokenizer(tmp_path / "plain.json")
    assert not JsonTokenizer(tmp_path / "plain.json", eos="a").word_starts.any()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="not installed") as caught:
        JsonTokenizer(file("gpt2"))
    assert "t5x-like[tokenizers]" in caught.value.suggestion


def test_loading_and_pickling(file, text_folder):
    config = HuggingFaceTokenizer(str(file("t5")), sentinels=5)
    corpus = Corpus("tiny", TextFiles((str(text_folder),)), config, "none", "made up")
    tokenizer = load_tokenizer(corpus)
    assert load_tokenizer(corpus) is tokenizer and tokenizer.word_starts.any()
    data = pickle.dumps(tokenizer)
    again = pickle.loads(data)
    assert len(data) < 1000
    assert (again.fingerprint, again.sentinel_ids) == (tokenizer.fingerprint, tokenizer.sentinel_ids)
    assert np.array_equal(again.encode_batch(["the fox"])[0], tokenizer.encode_batch(["the fox"])[0])
    with pytest.raises(UserError, match="holds 202 ids"):
        open_tokenizer(HuggingFaceTokenizer(str(file("t5")), sentinels=5, vocab_size=200))
