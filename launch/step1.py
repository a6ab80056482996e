"""Step 1, prompt baking: ``deepspeed launch/step1.py --config configs/quick.toml``.

The same runs under ``torchrun`` and plain ``python``; settings are those of ``distforge bake``.
"""

import sys

from distforge.cli import main

if __name__ == "__main__":
    sys.exit(main(["bake", *sys.argv[1:]]))
