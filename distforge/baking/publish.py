"""What step 1 leaves behind: samples, summary, registry entry, final table and report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from distforge.baking.config import Step1Config
from distforge.evaluation.scoring import Answered
from distforge.reports.samples import SAMPLES_NAME, write_samples
from distforge.reports.step1_report import write_report
from distforge.reports.step1_summary import Step1Summary
from distforge.reports.tables import accuracy_table, usage_table
from distforge.telemetry import RunLogger
from distforge.training.afterwards import spared
from distforge.training.run_directory import CHAMPION_DIRECTORY, SUMMARY_FILE
from distforge.training.run_record import RunRecord


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
    summary file is the mark of the end; of the rest, what fails is a warning.
    """
    with spared("samples"):
        write_samples((row.as_dict() for row in answered), directory / SAMPLES_NAME)
    if config.registry.enabled:
        with spared("registry entry"):
            version = _register(summary, directory, record)
            summary = summary.model_copy(update={"registry_version": version})
    with spared("W&B artifact"):
        log.artifact(Path(summary.model_dir), f"{config.name}-model", "model")
    summary.write(directory / SUMMARY_FILE)
    with spared("report", f"distforge report {directory} writes it"):
        write_report(directory)
    with spared("table"):
        for table in (accuracy_table(summary), usage_table(summary)):
            log.show(table)
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
        "best": ("baked-best", "accuracy_overall") if summary.converged else None,
    }
    return record.register(champion, baked)[1]
