"""The first ten minutes: `python -m pixelflow_jax.quickstart`."""

import sys

from pixelflow_jax.cli.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
