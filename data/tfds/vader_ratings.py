"""A TFDS builder of labelled text, to copy: sentences of four kinds and how positive 20 people found each of them.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 --dest vader
    tfds build data/tfds/vader_ratings.py --manual_dir=vader --file_format=array_record --data_dir=tfds_data

makes tfds_data/vader_ratings/1.0.0, which data/tfds_folder.py reads (the text alone). Where the command ``tfds`` does
not start, for want of TensorFlow: ``python data/tfds/build.py`` in place of ``tfds build``.

Origin: the source distribution of the Python package vaderSentiment 3.3.2, in which lies the data of Hutto and Gilbert
2014, VADER (ICWSM-14). Licence: MIT.
Size: 23,703 sentences of films, products, tweets and editorials, 2.6 MB. Time: 3 s.
"""

import hashlib
import html
import io
import tarfile

import numpy as np
import tensorflow_datasets as tfds

_ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = {
    "film": "movieReviewSnippets_GroundTruth.txt",
    "product": "amazonReviewSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
    "editorial": "nytEditorialSnippets_GroundTruth.txt",
}
_NEUTRAL = 0.5  # the farthest that the mean rating of a neutral sentence is from 0, on the raters' scale of -4 to 4
_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


class VaderRatings(tfds.core.GeneratorBasedBuilder):
    """One example is one sentence; all sentences of one review or editorial are in the same split."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "From vaderSentiment 3.3.2."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"pip download the source distribution {_ARCHIVE} into this folder."

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sentences with the mean of 20 ratings of their sentiment, from -4 to 4.",
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["negative", "neutral", "positive"]),
                    "rating": tfds.features.Scalar(np.float32),
                    "kind": tfds.features.ClassLabel(names=list(_FILES)),
                }
            ),
            supervised_keys=("text", "label"),
            homepage="https://github.com/cjhutto/vaderSentiment",
            license="MIT",
        )

    def _split_generators(self, dl_manager):
        archive = dl_manager.manual_dir / _ARCHIVE
        with tarfile.open(archive) as outer, tarfile.open(fileobj=io.BytesIO(_content(outer, _INNER))) as inner:
            texts = {kind: _content(inner, f"hutto_ICWSM_2014/{file}").decode() for kind, file in _FILES.items()}
        return {split: self._generate_examples(split, texts) for split in _SHARES}

    def _generate_examples(self, split: str, texts: dict[str, str]):  # pyright: ignore[reportIncompatibleMethodOverride]
        for kind, lines in texts.items():
            for line in lines.splitlines():
                number, rating, text = line.split("\t")
                if _split_of(f"{kind} {number.split('_')[0]}") == split:  # 12_3 is sentence 3 of review 12
                    label = int(np.sign(float(rating))) if abs(float(rating)) > _NEUTRAL else 0
                    yield f"{kind} {number}", {
                        "text": html.unescape(text).strip(), "label": label + 1, "rating": float(rating), "kind": kind
                    }  # fmt: skip


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file in {archive.name}")
    return file.read()


def _split_of(group: str) -> str:
    """The split of a review, by a hash: it stays the same whatever else the corpus holds."""
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    for split, share in _SHARES.items():
        if place < share:
            return split
        place -= share
    return list(_SHARES)[-1]  # the shares add up to a little less than 1 in floating point
