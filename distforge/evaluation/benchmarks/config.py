"""Which public benchmarks are asked, and how much of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from distforge.errors import require_in


@dataclass(frozen=True)
class BenchmarksConfig:
    """Public benchmarks from local files; one whose path is empty is not asked.

    gsm8k: a JSONL or Parquet file of questions and answers ("… #### 18"), or a directory with such
        files called test and train, or a saved ``datasets`` directory; solved examples are taken
        from train, and from the end of a single file (those are not asked then).
    arc: the same of ARC, as its authors or the Hugging Face hub lay it out.
    limit: the first so many questions of each; 0 asks all.
    gsm8k_shots: solved examples in front of each question of GSM8K; fewer where the model's
        context ends sooner. arc_shots: the same of ARC.
    max_new_tokens: of a written answer, the thought not counted.
    batch_size: questions at once.
    """

    RENAMED: ClassVar[dict[str, str]] = {"items": "limit"}

    gsm8k: str = ""
    arc: str = ""
    limit: int = 0
    gsm8k_shots: int = 5
    arc_shots: int = 0
    max_new_tokens: int = 256
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("limit", "gsm8k_shots", "arc_shots"):
            require_in("[0, inf]", **{name: getattr(self, name)})
        require_in("[1, inf]", max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
