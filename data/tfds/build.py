"""``tfds build`` for machines without TensorFlow: the same command of TFDS, with the same options.

    python data/tfds/build.py data/tfds/sotu_speeches.py --file_format=array_record --data_dir=tfds_data

The command ``tfds`` of tensorflow-datasets 4.9.10 starts only where TensorFlow, Apache Beam and mlcroissant are
installed, for the sake of other commands than ``build``: that needs none of them for a builder that reads its files
itself, and the format array_record. The records are the same.
Origin and licence are those of the builder that is built.
"""

from absl import app
from tensorflow_datasets.scripts.cli import build, cli_utils

if __name__ == "__main__":
    app.run(lambda args: args.execute(), flags_parser=cli_utils.make_flags_parser(build.Args, "tfds build"))
