"""What step 1 measured of the model that step 2 starts from."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distforge.errors import InputError
from distforge.models.loading import Champion
from distforge.reports.step1_summary import Step1Summary
from distforge.reports.summary import SUMMARY_NAME

logger = logging.getLogger(__name__)

# Figures are quoted to three digits.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class BakedRecord:
    """The baked model's accuracy on step 1's held-out questions, and what vouches for it.

    Where no record of step 1 is of these weights, ``accuracy`` is what somebody stated, or NaN, and
    the other fields are empty.
    """

    accuracy: float = math.nan
    questions: int = 0
    dataset_sha256: str = ""
    champion_sha256: str = ""

    def as_fields(self) -> dict[str, Any]:
        """The fields of `Step2Summary` that it fills."""
        return {
            "baked_accuracy": self.accuracy,
            "baked_questions": self.questions,
            "baked_dataset_sha256": self.dataset_sha256,
            "champion_sha256": self.champion_sha256,
        }


def read_baked_record(
    baked: Champion, stated: float | None, *, expected: bool = True
) -> BakedRecord:
    """The record of the run whose ``model`` directory ``baked`` was loaded from.

    A record is used only if it names these very weights: one that lies beside a model that was
    changed since, or that is older than this rule, says nothing of the model, and a warning says
    why and what to do.

    Args:
        stated: the configured accuracy, for a model that has no record.
        expected: whether step 1 should have made the model; nothing warns of another's.

    Raises:
        InputError: ``stated`` is not what the record says.
    """
    path = Path(baked.source).expanduser().resolve().parent / SUMMARY_NAME
    try:
        summary = _summary_of(baked, path)
    except InputError as error:
        if stated is None and expected:
            logger.warning(
                "%s; without the baked model's accuracy phase 4 takes no model: measure it with "
                "`distforge evaluate --model %s --data FILE` and set baked_accuracy",
                error,
                baked.source,
            )
        return BakedRecord(math.nan if stated is None else stated)
    if stated is not None and abs(stated - summary.accuracy_overall) > _ROUNDING:
        raise InputError(
            f"baked_accuracy is {stated}, but {path} measured {summary.accuracy_overall:.4f} of "
            "this model; remove the setting"
        )
    return BakedRecord(
        summary.accuracy_overall,
        summary.questions,
        summary.dataset_sha256,
        summary.champion_sha256,
    )


def _summary_of(baked: Champion, path: Path) -> Step1Summary:
    """Step 1's summary in ``path``; `InputError` unless it is one, and of these weights."""
    if not path.is_file():
        raise InputError(f"{baked.source} has no {SUMMARY_NAME} of step 1 next to it; bake it here")
    summary = Step1Summary.read(path)
    if not summary.model_sha256:
        raise InputError(f"{path} does not say which weights it is of; run step 1 again")
    if summary.model_sha256 != baked.sha256:
        raise InputError(
            f"{path} is of other weights ({summary.model_sha256[:12]}) than {baked.source} holds "
            f"({baked.sha256[:12]}); run step 1 again"
        )
    if math.isnan(summary.accuracy_overall):
        raise InputError(f"{path} has no accuracy; run step 1 again")
    return summary
