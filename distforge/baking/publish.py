"""What step 1 leaves behind: samples, summary, registry entry, final table and report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distforge.baking.config import Step1Config
from distforge.evaluation.scoring import Answered
from distforge.extras import optional
from distforge.telemetry import RunLogger, write_report
from distforge.telemetry.samples import SAMPLES_NAME, write_samples
from distforge.telemetry.summary import write_summary
from distforge.training.run_directory import SUMMARY_FILE
from distforge.training.run_record import RunRecord

CHAMPION_DIRECTORY = "champion"


@dataclass(frozen=True)
class Step1Summary:
    """What step 1 reached: the content of ``summary.json``. Fractions are in [0, 1].

    ``champion_accuracy`` (from the question alone) is over the same held-out questions,
    ``champion_prompted_accuracy`` over the validation ones. ``prompt_kl_before`` and
    ``prompt_kl_after`` are those of the baked prompts, where ``mode`` bakes them. ``seconds`` count
    from the loaded champion to the judged model. ``shortfalls`` says in words why it did not
    converge.
    """

    converged: bool
    shortfalls: tuple[str, ...]
    accuracy_overall: float
    accuracy: dict[str, float]
    token_usage: dict[str, float]
    champion_accuracy: float
    champion_accuracy_by_strategy: dict[str, float]
    champion_prompted_accuracy: float
    questions: int
    steps: int
    best_step: int
    stopped_early: bool
    seconds: float
    parameters: int
    model_dir: str
    heldout: str
    registry_version: str
    config_sha256: str
    dataset_sha256: str
    champion: str
    champion_sha256: str
    too_long: int
    targets: dict[str, float]
    mode: str = "sft"
    prompt_kl_before: float | None = None
    prompt_kl_after: float | None = None
    phase: int = 3
    step: int = 1


def publish(
    config: Step1Config,
    summary: Step1Summary,
    answered: Sequence[Answered],
    directory: Path,
    log: RunLogger,
    record: RunRecord,
) -> Step1Summary:
    """Register the model, write summary, samples and report, print the table; on rank 0 alone.

    Returns the summary with its registry version, which is empty while the registry is away. The
    summary file comes last: where it is, the run is finished.
    """
    write_samples((row.as_dict() for row in answered), directory / SAMPLES_NAME)
    if config.registry.enabled:
        version = _register(summary, directory, record)
        summary = dataclasses.replace(summary, registry_version=version)
    log.artifact(Path(summary.model_dir), f"{config.name}-model", "model")
    content = dataclasses.asdict(summary)
    write_summary(directory / SUMMARY_FILE, content)
    with optional("report"):
        write_report(directory)
    log.table(content)
    registered = summary.registry_version or ("spooled" if config.registry.enabled else "off")
    log.say(
        f"{'converged' if summary.converged else 'NOT converged: ' + '; '.join(summary.shortfalls)}"
        f"\nmodel {summary.model_dir}  registry {registered}  "
        f"{summary.steps} steps in {summary.seconds:.0f} s  report {directory / 'report.html'}"
    )
    return summary


def _register(summary: Step1Summary, directory: Path, record: RunRecord) -> str:
    metrics = {
        "accuracy_overall": summary.accuracy_overall,
        "champion_accuracy": summary.champion_accuracy,
        **{f"accuracy_{name}": value for name, value in summary.accuracy.items()},
        **{f"token_usage_{name}": value for name, value in summary.token_usage.items()},
    }
    champion = {
        "phase": 2,
        "step": 0,
        "model_type": "champion",
        "model_path": directory / CHAMPION_DIRECTORY,
        "metadata": {"source": summary.champion, "weights_sha256": summary.champion_sha256},
        "aliases": ("champion",),
    }
    baked = {
        "phase": 3,
        "step": 1,
        "model_type": "baked_reasoning",
        "model_path": Path(summary.model_dir),
        "metadata": {
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
            "config_sha256": summary.config_sha256,
            "dataset_sha256": summary.dataset_sha256,
            "base_model": summary.champion,
            "converged": str(summary.converged).lower(),
        },
        "aliases": ("baked-latest",),
        "best": ("baked-best", "accuracy_overall"),
    }
    return record.register(champion, baked)[1]
