"""Revisage from a clone: `python run_pipeline.py COMMAND`. The installed command `revisage` is the same."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
