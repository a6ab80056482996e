"""Do thoughts help a small model to predict free text? Bits a token on Python's standard library.

    python benchmarks/bench_free_text.py --json benchmarks/results/free_text.json --jobs 2

For each size a model is trained on the library's sources, from nothing. Then it is reinforced on
thoughts inside the text, with a mixing head; beside it, the same model is trained on for as much
CPU time, without thoughts. Both are asked about held-out files, at the same places: the tokens
after every eighth one. Differences are in bits a token, with 95% intervals over files. Beside the
JSON stands a plot over the sizes. What a size measured is kept in --work, so that a second call
continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from free_text_plot import draw
from free_text_training import SIZES, measure
from harness import Row, arguments, keep_part, measure_parts, publish, work_directory


def rows_of(sizes: dict[str, dict[str, Any]]) -> list[Row]:
    """The figure in rows; ratios above 1 are fewer bits."""
    rows = []
    for name, found in sizes.items():
        bits, gains = found["bits"], found["gains"]
        for peer, what in (
            ("without", "the same model without thoughts"),
            ("continued", "trained on without thoughts, as much CPU time"),
            ("filler", "fillers for thoughts"),
            ("shuffled", "thoughts of another place"),
        ):
            low, high = gains[peer]["low"], gains[peer]["high"]
            work = f"{name} parameters: bits a token with thoughts, saved [{low:+.4f}, {high:+.4f}]"
            ours, value = bits["with"], bits[peer]
            rows.append(Row(work, ours, what, value, "bits", value / ours))
    return rows


def parse() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--jobs", type=int, default=1, help="sizes at once, one thread each")
    parser.add_argument("--work", type=Path, help="where what was measured is kept")
    parser.add_argument("--size", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.quick:
        options.sizes = options.sizes[:1]
    with work_directory(options.work) as work:
        if options.size:
            keep_part(measure(options.size, work, quick=options.quick), work, options.size)
            return
        quick = ["--quick"] * options.quick
        parts = {size: ["--size", size, *quick] for size in options.sizes}
        sizes = measure_parts(parts, work, options.jobs)
    publish(rows_of(sizes), options.json, sizes=sizes)
    draw(sizes, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
