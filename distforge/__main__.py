"""`python -m distforge`, where the command is not on PATH."""

import sys

from distforge.cli import main

if __name__ == "__main__":
    sys.exit(main())
