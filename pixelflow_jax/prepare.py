"""Prepare data sets: `python -m pixelflow_jax.prepare` is `pixelflow prepare`."""

import sys

from pixelflow_jax.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main())
