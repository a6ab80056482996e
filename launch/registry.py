"""The central registry: ``python launch/registry.py --port 5000``.

Settings are those of ``distforge registry serve``; see there, or ``--help``.
"""

import sys

from distforge.cli import main

if __name__ == "__main__":
    sys.exit(main(["registry", "serve", *sys.argv[1:]]))
