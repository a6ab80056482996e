"""The committed results as one Markdown page: ``python benchmarks/results_page.py PAGE.md``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from distforge import durable

RESULTS = Path(__file__).with_name("results")
HEAD = """# Measured

What `benchmarks/results/` holds, by file, as `distforge bench --page docs/results.md` writes it.
A ratio above 1: ours is better. [benchmarks/README.md](../benchmarks/README.md) says how each was
measured, and what it means; `distforge bench` runs the quick form on your machine.
"""


def section(name: str, found: dict[str, Any]) -> str:
    """One file: its machine, its versions, its rows."""
    machine, versions = found["machine"], found["versions"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['capability']}"
    on = ", ".join(f"{package} {version}" for package, version in versions.items())
    lines = [f"## {name}", "", f"{where}; {on}.", ""]
    lines += ["| work | ours | peer | its value | unit | ratio |", "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        values = (row["work"], number(row["ours"]), row["peer"], number(row["peer_value"]))
        cells = [str(cell).replace("|", "\\|") for cell in (*values, row["unit"])]
        lines.append(f"| {' | '.join(cells)} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Four digits, and no exponent where none is needed."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def page() -> str:
    """All files of the folder, by name."""
    sections = [
        section(path.stem, json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(RESULTS.glob("*.json"))
    ]
    return "\n\n".join([HEAD.rstrip(), *sections]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    path = parser.parse_args().page
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(path, page())
    print(path)


if __name__ == "__main__":
    main()
