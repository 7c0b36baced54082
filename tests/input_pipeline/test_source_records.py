"""Records of ArrayRecord, TFRecord and TFDS folders: framing, checksums, messages, ranges, damage."""

import gzip
import json
import struct
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import ArrayRecord, TfdsBuilder, TfRecord
from t5x_like.input_pipeline.sources import records
from t5x_like.input_pipeline.sources.records import masked_crc32c
from t5x_like.input_pipeline.sources.tf_example import feature_bytes, feature_names


def read_all(source) -> list[str]:
    return [str(text).partition("\n  allowed")[0] for unit in source.units() for text in source.read_unit(unit)]


def varint(number: int) -> bytes:
    return varint_of_more(number) if number > 127 else bytes([number])


def varint_of_more(number: int) -> bytes:
    return bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def entry(name: str, *values: bytes, kind: int = 1) -> bytes:
    """A feature of an example; numbers are given as the bytes of their packed list."""
    listed = b"".join(field(1, value) for value in values)
    return field(1, field(1, name.encode()) + field(2, field(kind, listed)))


def example(*entries: bytes) -> bytes:
    return field(1, b"".join(entries))


def framed(*records: bytes) -> bytes:
    """A TFRecord file, its checksums by the definition, bit by bit, and not by what is tested."""
    found = b""
    for record in records:
        length = struct.pack("<Q", len(record))
        found += length + struct.pack("<I", slow_masked(length)) + record + struct.pack("<I", slow_masked(record))
    return found


def slow_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def slow_masked(data: bytes) -> int:
    crc = slow_crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


class TestChecksum:
    def test_masked(self):
        assert masked_crc32c(b"123456789") == slow_masked(b"123456789")

    def test_without_the_package_the_error_names_the_extra(self, tmp_path, monkeypatch):
        (tmp_path / "a.tfrecord").write_bytes(framed(b"text"))
        monkeypatch.setitem(sys.modules, "google_crc32c", None)
        records._crc32c.cache_clear()
        records._is_record_header.cache_clear()
        with pytest.raises(UserError, match=r"t5x-like\[tfrecord\]"):
            list(TfRecord((str(tmp_path / "a.tfrecord"),), "text").texts())


class TestExample:
    @settings(deadline=None)
    @given(st.dictionaries(st.text(max_size=200), st.lists(st.binary(max_size=300), max_size=3), max_size=5))
    def test_features_by_name(self, features):
        message = example(*(entry(name, *values) for name, values in features.items()))
        assert feature_names(message) == list(features)
        for name, values in features.items():
            assert feature_bytes(message, name.encode()) == values
        with pytest.raises(KeyError):
            feature_bytes(message, b"\xff")

    def test_any_order_of_fields_and_a_name_within_a_text(self):
        decoy = entry("other", entry("text", b"wrong"))
        backwards = field(1, field(2, field(1, field(1, b"right"))) + field(1, b"text"))
        assert feature_bytes(example(decoy, backwards), b"text") == [b"right"]
        twice = example(entry("text", b"first"), entry("text", b"last"))
        assert feature_bytes(twice, b"text") == [b"last"], "as in every map of protocol buffers"
        halves = example(entry("a", b"x")) + example(entry("text", b"joined"))
        assert feature_bytes(halves, b"text") == [b"joined"], "messages put one after the other are one"

    @settings(deadline=None)
    @given(st.binary(max_size=60))
    def test_other_bytes_are_refused_and_never_more(self, data):
        try:
            feature_names(data)
            feature_bytes(data, b"text")
        except (ValueError, KeyError, TypeError):
            pass

    def test_what_the_real_message_classes_write(self):
        pytest.importorskip("tensorflow_datasets")
        from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

        features = {
            "text": tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=["two é".encode()])),
            "score": tf_feature_pb2.Feature(float_list=tf_feature_pb2.FloatList(value=[1.5, -2])),
            "label": tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[-3, 300])),
            "none": tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList()),
        }
        message = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features)).SerializeToString()
        assert feature_bytes(message, b"text") == ["two é".encode()] and feature_bytes(message, b"none") == []
        assert sorted(feature_names(message)) == sorted(features)
        for name, kind in (("score", "floats"), ("label", "integers")):
            with pytest.raises(TypeError, match=kind):
                feature_bytes(message, name.encode())

    def test_features_of_numbers(self):
        with pytest.raises(TypeError, match="integers"):
            feature_bytes(example(entry("n", kind=3)), b"n")
        with pytest.raises(TypeError, match="floats"):
            feature_bytes(example(entry("n", kind=2)), b"n")


class TestTfRecord:
    def test_contents(self, tmp_path):
        texts = ["one", "two é" * 1000, ""]
        (tmp_path / "a.tfrecord-00000-of-00001").write_bytes(
            framed(*(example(entry("label", b"x"), entry("text", text.encode())) for text in texts))
        )
        source = TfRecord((str(tmp_path),))
        assert read_all(source) == texts and list(source.texts()) == texts[:2]
        (tmp_path / "a.tfrecord-00000-of-00001").write_bytes(framed(*(text.encode() for text in texts)))
        assert read_all(TfRecord((str(tmp_path),), "text")) == texts
        (tmp_path / "a.tfrecord-00000-of-00001").write_bytes(framed(*(json.dumps({"t": x}).encode() for x in texts)))
        assert read_all(TfRecord((str(tmp_path),), "json", "t")) == texts

    def test_gzip_is_known_by_its_bytes(self, tmp_path):
        (tmp_path / "a.tfrecord").write_bytes(gzip.compress(framed(b"one")))
        # 0x8b1f is the length of this record, and gzip's magic number.
        (tmp_path / "b.tfrecord").write_bytes(framed(b"x" * 0x8B1F))
        assert list(map(len, read_all(TfRecord((str(tmp_path),), "text")))) == [3, 0x8B1F]
        assert (tmp_path / "b.tfrecord").read_bytes()[:2] == b"\x1f\x8b"

    def test_a_record_with_a_wrong_checksum_is_lost_alone(self, tmp_path):
        content = bytearray(framed(b"first", b"second", b"third"))
        content[content.index(b"second")] ^= 1
        file = tmp_path / "a.tfrecord"
        file.write_bytes(content)
        expected = ["first", f"{file}, record 2: its checksum is wrong", "third"]
        assert read_all(TfRecord((str(tmp_path),), "text")) == expected

    @pytest.mark.parametrize("cut", [1, 8, 12, 15, 20])
    def test_files_that_were_cut(self, tmp_path, cut):
        one = framed(b"first")
        file = tmp_path / "a.tfrecord"
        file.write_bytes(one + framed(b"second")[:cut])
        good, error = read_all(TfRecord((str(tmp_path),), "text"))
        assert good == "first" and "the file ends within a record, after record 1" in error
        file.write_bytes(gzip.compress(one + framed(b"second" * 9))[:-cut])
        assert "after record" in read_all(TfRecord((str(tmp_path),), "text"))[-1]

    def test_a_wrong_length_ends_the_file_before_it_is_believed(self, tmp_path):
        content = bytearray(framed(b"first", b"second"))
        content[len(framed(b"first")) + 6] = 0xFF  # 2**55 bytes
        (tmp_path / "a.tfrecord").write_bytes(content)
        good, error = read_all(TfRecord((str(tmp_path),), "text"))
        assert good == "first" and "the checksum of a length is wrong, after record 1" in error

    def test_bad_records_are_named(self, tmp_path):
        records = [
            example(entry("txt", b"x")),
            example(entry("text", kind=3)),
            example(entry("text", b"a", b"b")),
            example(entry("text", b"\xff")),
            b"no message",
            example(entry("text", b"good")),
            example(entry("text")),
        ]
        file = tmp_path / "a.tfrecord"
        file.write_bytes(framed(*records))
        assert read_all(TfRecord((str(file),))) == [
            f"{file}, record 1: no feature 'text'",
            f"{file}, record 2: feature 'text' holds integers",
            f"{file}, record 3: feature 'text' holds 2 texts",
            f"{file}: not UTF-8 at record 4",
            f"{file}, record 5: not a tf.train.Example",
            "good",
            "",
        ]
        with pytest.raises(UserError, match="did you mean 'txt'"):
            list(TfRecord((str(file),)).texts())

    def test_an_empty_file(self, tmp_path):
        file = tmp_path / "a.tfrecord"
        file.write_bytes(b"")
        assert read_all(TfRecord((str(tmp_path),))) == []
        assert read_all(TfRecord((str(file),))) == [f"{file}: an empty file"]


class TestArrayRecord:
    @pytest.fixture
    def write(self, tmp_path):
        module = pytest.importorskip("array_record.python.array_record_module")

        def write(name, records, options="group_size:1"):
            writer = module.ArrayRecordWriter(str(tmp_path / name), options)
            for record in records:
                writer.write(record)
            writer.close()
            return tmp_path / name

        return write

    @pytest.mark.parametrize("options", ["group_size:1", "group_size:100"])
    def test_ranges_of_records_are_units(self, tmp_path, write, monkeypatch, options):
        monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 20_000)
        texts = [f"document {number} é" for number in range(2500)]
        write("a.array_record", (text.encode() for text in texts), options)
        write("b.arrayrecord", [b"last"], options)
        source = ArrayRecord((str(tmp_path),))
        assert len(source.units()) >= 4
        assert read_all(source) == [*texts, "last"]

    def test_contents(self, tmp_path, write):
        write("a.array_record", [example(entry("text", b"one")), b"{}"])
        good, error = read_all(ArrayRecord((str(tmp_path),), "example"))
        assert good == "one" and "a.array_record, record 2: not a tf.train.Example" in error
        write("a.array_record", [b'{"text": "one"}', b"{}", b"\xff", b"3"])
        assert [line.rpartition("/")[2] for line in read_all(ArrayRecord((str(tmp_path),), "json"))] == [
            "one",
            "a.array_record, record 2: no field 'text'",
            "a.array_record: not UTF-8 at record 3",
            "a.array_record, record 4: a JSON int",
        ]

    @pytest.mark.parametrize("large", [False, True])
    def test_files_that_were_cut(self, tmp_path, write, monkeypatch, large):
        """The reader itself says of such a file that it has no records, and no more."""
        if large:
            monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 1000)
        file = write("a.array_record", (str(number).encode() * 50 for number in range(2000)))
        whole = file.read_bytes()
        for size in (len(whole) - 1, len(whole) // 2, 10, 0):
            file.write_bytes(whole[:size])
            (error,) = read_all(ArrayRecord((str(tmp_path),)))
            assert "broken ArrayRecord data" in error and "from record 1 on" in error

    def test_damage_in_the_middle_loses_what_follows(self, tmp_path, write):
        texts = [f"{number} " * 100 for number in range(3000)]
        file = write("a.array_record", (text.encode() for text in texts))
        whole = bytearray(file.read_bytes())
        whole[len(whole) // 2] ^= 0xFF
        file.write_bytes(whole)
        *good, error = read_all(ArrayRecord((str(tmp_path),)))
        assert good == texts[: len(good)] and len(good) >= 256
        assert "broken ArrayRecord data" in error and f"from record {len(good) + 1} on" in error

    def test_an_empty_file(self, tmp_path, write):
        file = write("a.array_record", [])
        assert read_all(ArrayRecord((str(tmp_path),))) == []
        assert read_all(ArrayRecord((str(file),))) == [f"{file}: an empty file"]

    def test_a_remote_file_is_copied_to_be_read(self, tmp_path, write):
        fsspec = pytest.importorskip("fsspec")
        file = write("a.array_record", [b"one", b"two"])
        fsspec.filesystem("memory").pipe_file("/records/a.array_record", file.read_bytes())
        assert read_all(ArrayRecord(("memory://records",))) == ["one", "two"]


class TestTfds:
    @pytest.fixture
    def folder(self, tmp_path):
        """300 documents in two ArrayRecord files, as TFDS writes them."""
        tfds = pytest.importorskip("tensorflow_datasets")
        pytest.importorskip("array_record")
        folder = tmp_path / "tiny" / "1.0.0"
        folder.mkdir(parents=True)
        texts = tfds.features.FeaturesDict({"title": tfds.features.Text(), "body": tfds.features.Text()})
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=3), "parts": texts}
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity(name="tiny", version="1.0.0", data_dir=str(folder), module_name=""),
            features=tfds.features.FeaturesDict(features),
        )
        writer = tfds.core.SequentialWriter(info, 200, file_format="array_record", overwrite=True)
        writer.initialize_splits(["train"])
        parts = {"title": "t", "body": "b"}
        rows = [{"text": f"document {i} é", "label": i % 3, "parts": parts} for i in range(300)]
        writer.add_examples({"train": rows})
        writer.close_all()
        return folder

    @pytest.fixture
    def tf_record_folder(self, folder):
        """The same in TFRecord files, which TFDS cannot write without TensorFlow."""
        from array_record.python.array_record_module import ArrayRecordReader

        for file in list(folder.glob("*array_record*")):
            records = ArrayRecordReader(str(file)).read_all()
            (folder / file.name.replace("array_record", "tfrecord")).write_bytes(framed(*records))
            file.unlink()
        self.describe(folder, fileFormat="tfrecord")
        return folder

    @staticmethod
    def describe(folder, **changed):
        info = json.loads((folder / "dataset_info.json").read_text()) | changed
        (folder / "dataset_info.json").write_text(json.dumps(info))

    @pytest.mark.parametrize("kind", ["folder", "tf_record_folder"])
    def test_splits(self, kind, request):
        folder = request.getfixturevalue(kind)
        texts = [f"document {i} é" for i in range(300)]
        assert list(TfdsBuilder(str(folder)).texts()) == texts
        assert list(TfdsBuilder(str(folder), "train[:1%]").texts()) == texts[:3]
        assert list(TfdsBuilder(str(folder), "train[150:250]").texts()) == texts[150:250]
        assert list(TfdsBuilder(str(folder), "train[-2:]+train[:1]").texts()) == [*texts[-2:], texts[0]]
        assert list(TfdsBuilder(str(folder), field="parts/title").texts())[:2] == ["t", "t"]
        assert "tensorflow" not in sys.modules

    def test_large_files_are_cut(self, folder, monkeypatch):
        monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 20_000)
        source = TfdsBuilder(str(folder), "train[1:]")
        assert len(source.units()) > 4
        assert list(source.texts()) == [f"document {i} é" for i in range(1, 300)]

    def test_mistakes(self, folder):
        with pytest.raises(UserError, match="did you mean 'text'"):
            list(TfdsBuilder(str(folder), field="txt").texts())
        with pytest.raises(UserError, match="Unknown split 'nosplit'"):
            list(TfdsBuilder(str(folder), "nosplit").texts())
        with pytest.raises(UserError, match=r"(?s)'label' is ClassLabel.*encodes in its own way.*tfds.features.Text"):
            list(TfdsBuilder(str(folder), field="label").texts())
        with pytest.raises(UserError, match="no feature 'parts/none'"):
            list(TfdsBuilder(str(folder), field="parts/none").texts())

    def test_formats_that_cannot_be_read_say_what_to_do(self, folder):
        for name in ("parquet", "riegeli"):
            self.describe(folder, fileFormat=name)
            with pytest.raises(UserError, match=rf"(?s)the format '{name}'.*again with file_format='array_record'"):
                list(TfdsBuilder(str(folder)).texts())

    def test_data_sets_from_before_the_format_was_written_down(self, tf_record_folder):
        info = json.loads((tf_record_folder / "dataset_info.json").read_text())
        del info["fileFormat"]
        (tf_record_folder / "dataset_info.json").write_text(json.dumps(info))
        assert len(list(TfdsBuilder(str(tf_record_folder)).texts())) == 300

    def test_records_that_are_missing(self, folder):
        (split,) = json.loads((folder / "dataset_info.json").read_text())["splits"]
        self.describe(folder, splits=[split | {"shardLengths": ["200", "150"]}])
        *good, error = read_all(TfdsBuilder(str(folder)))
        assert len(good) == 300 and "100 records, where its description says 150" in error

    def test_files_that_are_missing(self, folder):
        sorted(folder.glob("*array_record*"))[1].unlink()
        with pytest.raises(UserError, match=r"has no tiny-train.array_record-00001"):
            TfdsBuilder(str(folder)).units()

    def test_through_fsspec(self, folder):
        pytest.importorskip("fsspec")
        source = TfdsBuilder(f"file://{folder}", "train[199:202]")
        assert list(source.texts()) == [f"document {i} é" for i in (199, 200, 201)]

    def test_a_remote_array_record_file_is_one_unit(self, folder, monkeypatch):
        """It is copied for each unit."""
        pytest.importorskip("fsspec")
        monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 2000)
        source = TfdsBuilder(f"file://{folder}", "train[1:]")
        assert len(source.units()) == 2 < len(TfdsBuilder(str(folder), "train[1:]").units())
        assert list(source.texts()) == [f"document {i} é" for i in range(1, 300)]

    @pytest.mark.parametrize("way", ["nested", "snake", "legacy", "json"])
    @pytest.mark.parametrize("place", ["", "file://"])
    def test_no_class_outside_tfds_is_loaded(self, folder, monkeypatch, tmp_path, way, place):
        (tmp_path / "feature_of_nobody.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
        monkeypatch.syspath_prepend(str(tmp_path))
        name = "feature_of_nobody.Feature"
        description = json.loads((folder / "features.json").read_text())
        parts = description["featuresDict"]["features"]["parts"]["featuresDict"]["features"]
        legacy = {
            "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "content": {"a": {"type": name}},
        }
        inner = {"a": {"type": name, "content": {}}}
        if way == "nested":
            parts["title"]["pythonClassName"] = name
        elif way == "snake":
            parts["title"]["python_class_name"] = name
            del parts["title"]["pythonClassName"]
        elif way == "legacy":
            legacy["content"]["a"]["content"] = {}
            description = legacy
        else:
            del description["featuresDict"]
            description["jsonFeature"] = {"json": json.dumps(inner)}
        (folder / "features.json").write_text(json.dumps(description))
        with pytest.raises(UserError, match="features.json: names feature_of_nobody.Feature, whose code would be run"):
            TfdsBuilder(f"{place}{folder}").units()
        assert not (tmp_path / "imported").exists()

    def test_tfds_is_optional_and_only_units_need_it(self, folder, monkeypatch):
        source = TfdsBuilder(str(folder))
        units = source.units()
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
        assert sum(len(list(source.read_unit(unit))) for unit in units) == 300
        with pytest.raises(UserError, match=r"pip install 't5x-like\[tfds\]'"):
            source.units()
