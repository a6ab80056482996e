"""Step 2, Quiet-STaR: ``deepspeed launch/step2.py --config configs/quick.toml``.

The same runs under ``torchrun`` and plain ``python``; settings are those of ``distforge think``.
"""

import sys

from distforge.cli import main

if __name__ == "__main__":
    sys.exit(main(["think", *sys.argv[1:]]))
