"""What step 2 leaves behind: samples, summary, registry entry, hand-off, table and report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from distforge.evaluation.intervals import Interval, bootstrap_mean
from distforge.evaluation.scoring import summarize
from distforge.handoff.to_phase4 import write_handoff
from distforge.handoff.verdict import Verdict
from distforge.quietstar.step2_config import Step2Config
from distforge.reports.samples import SAMPLES_NAME, write_samples
from distforge.reports.step2_report import write_reinforcement_report
from distforge.reports.step2_summary import Step2Summary
from distforge.reports.tables import reinforcement_table
from distforge.reports.verdict_table import verdict_table
from distforge.telemetry import RunLogger
from distforge.theater.conditions import CONTROLS, Condition, ProbeResult
from distforge.theater.exam import Examined
from distforge.training.afterwards import spared
from distforge.training.run_directory import SUMMARY_FILE
from distforge.training.run_record import RunRecord

_WAYS: tuple[tuple[str, Condition], ...] = (("with_thoughts", "own"), ("without", "none"))


def summarize_step2(
    config: Step2Config, before: Examined, after: Examined, verdict: Verdict, **known: Any
) -> Step2Summary:
    """Hold the trained model against the baked one and against its controls.

    Args:
        before, after: both examined on the same held-out items.
        verdict: on the trained model.
        known: the other fields of `Step2Summary`.
    """
    gain = _gain(before, after)
    own = after.results["own"].hits.numpy().astype(np.float64)
    intervals = {"gain": (gain.low, gain.high)}
    for control in CONTROLS:
        difference = own - after.results[control].hits.numpy()
        found = bootstrap_mean(difference, clusters=after.sources)
        intervals[f"ablation_{control}"] = (found.low, found.high)
    scores, baked = summarize(after.answered), summarize(before.answered)
    return Step2Summary(
        improved=gain.low > 0,
        accuracy_overall=scores.accuracy_overall,
        accuracy=scores.accuracy,
        token_usage=scores.token_usage,
        before_accuracy=baked.accuracy_overall,
        before_accuracy_by_strategy=baked.accuracy,
        controls={
            name: float(result.hits.float().mean()) for name, result in after.results.items()
        },
        bits={
            f"{who}_{how}": _bits(examined.results[condition])
            for who, examined in (("baked", before), ("trained", after))
            for how, condition in _WAYS
        },
        intervals=intervals,
        gain=gain.mean,
        items=len(own),
        task=config.task,
        verdict=verdict.outcome,
        theater=verdict.as_json(),
        registry_version="",
        **known,
    )


def publish(
    config: Step2Config,
    summary: Step2Summary,
    after: Examined,
    directory: Path,
    log: RunLogger,
    record: RunRecord,
) -> Step2Summary:
    """Write hand-off, samples, summary and report, register the model, print the table; rank 0.

    Returns the summary with its registry version, which is empty while the registry is away. The
    summary file is the mark of the end; of the rest, but for the hand-off, what fails is a warning.
    """
    model = Path(summary.model_dir)
    write_handoff(model, summary.verdict, summary.theater, **_measured(summary))
    with spared("samples"):
        write_samples((row.as_dict() for row in after.answered), directory / SAMPLES_NAME)
    if config.registry.enabled:
        with spared("registry entry"):
            version = _register(summary, record)
            summary = summary.model_copy(update={"registry_version": version})
    with spared("W&B artifact"):
        log.artifact(model, f"{config.name}-model", "model")
    summary.write(directory / SUMMARY_FILE)
    with spared("report", f"distforge report {directory} writes it"):
        write_reinforcement_report(directory)
    with spared("table"):
        log.show(reinforcement_table(summary))
        log.show(verdict_table(Verdict.from_json(summary.theater)))
    low, high = summary.intervals["gain"]
    unit = "bits a token" if config.task == "text" else "accuracy"
    log.say(
        f"{'better than' if summary.improved else 'NOT better than'} the baked model: gain "
        f"{summary.gain:+.4f} {unit} [{low:+.4f}, {high:+.4f}] on {summary.items} held-out items\n"
        f"model {model}  registry "
        f"{summary.registry_version or ('spooled' if config.registry.enabled else 'off')}  "
        f"{summary.episodes} episodes in {summary.seconds:.0f} s  "
        f"report {directory / 'report.html'}"
    )
    return summary


def _measured(summary: Step2Summary) -> dict[str, Any]:
    """What the hand-off states beside the verdict."""
    on_baked = {"n": summary.baked_questions, "dataset_sha256": summary.baked_dataset_sha256}
    lineage = {
        "champion_sha256": summary.champion_sha256 or None,
        "baked_sha256": summary.baked_sha256,
    }
    return {
        "baked_accuracy": _known(summary.baked_accuracy),
        "baked_measured_on": on_baked if summary.baked_questions else None,
        "before_accuracy": _known(summary.before_accuracy),
        "accuracy": _known(summary.accuracy_overall),
        "measured_on": {"n": summary.items, "dataset_sha256": summary.dataset_sha256},
        "task": summary.task,
        "gain": summary.gain,
        "gain_interval": summary.intervals["gain"],
        "lineage": lineage,
        "config_sha256": summary.config_sha256,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _gain(before: Examined, after: Examined) -> Interval:
    """Of questions answered freely; of free text, in bits a token that the trained model with its
    thoughts saves over the baked one without any."""
    if after.answered:
        pairs = zip(before.answered, after.answered, strict=True)
        return bootstrap_mean([float(a.correct) - float(b.correct) for b, a in pairs])
    tokens = after.results["own"].tokens.numpy()
    saved = before.results["none"].bits.numpy() - after.results["own"].bits.numpy()
    return bootstrap_mean(saved / tokens, clusters=after.sources)


def _bits(result: ProbeResult) -> float:
    return float(result.bits.sum() / result.tokens.sum())


def _register(summary: Step2Summary, record: RunRecord) -> str:
    """The trained model, child of the baked one, which may be registered already."""
    metrics = {
        "gain": summary.gain,
        "gain_low": summary.intervals["gain"][0],
        "accuracy_overall": summary.accuracy_overall,
        "baked_accuracy": summary.baked_accuracy,
        "before_accuracy": summary.before_accuracy,
        **{f"control_{name}": value for name, value in summary.controls.items()},
    }
    baked = {
        "phase": 3,
        "step": 1,
        "model_type": "baked_reasoning",
        "model_path": Path(summary.baked),
        "metadata": {"weights_sha256": summary.baked_sha256},
        "aliases": (),
    }
    trained = {
        "phase": 3,
        "step": 2,
        "model_type": "rl_reasoning",
        "model_path": Path(summary.model_dir),
        "metadata": {
            "metrics": {name: value for name, value in metrics.items() if np.isfinite(value)},
            "config_sha256": summary.config_sha256,
            "dataset_sha256": summary.dataset_sha256,
            "improved": str(summary.improved).lower(),
            "verdict": summary.verdict,
        },
        "aliases": ("rl-latest",),
        "best": ("rl-best", "gain") if summary.improved and summary.verdict == "PASS" else None,
    }
    return record.register(baked, trained)[1]
