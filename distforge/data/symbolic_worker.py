"""The process of `symbolic`: a line with two formulas in, whether they are equal out.

Run by its path, so that it loads nothing of distforge, torch least of all.
"""

from __future__ import annotations

import json
import sys

from math_verify import parse, verify


def same(given: str, truth: str) -> bool:
    """Whether math-verify finds them equal; its own alarms are off, the caller has a deadline."""
    wanted, found = (
        parse(text if "$" in text or "\\boxed" in text else f"${text}$", parsing_timeout=None)
        for text in (truth, given)
    )
    return bool(verify(wanted, found, timeout_seconds=None))


def main() -> None:
    """Answer lines until there are none."""
    sys.stdin.readline()
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            answer = same(*json.loads(line))
        except (
            Exception
        ):  # whatever a parser of free text raises, the two are not known to be equal
            answer = False
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
