"""``python -m t5x_like`` is ``t5x-like``."""

import sys

from t5x_like.cli.main import main

sys.exit(main())
