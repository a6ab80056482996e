"""What step 2 leaves behind: samples, summary, registry entry, hand-off, table and report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from distforge.evaluation.intervals import Interval, bootstrap_mean
from distforge.evaluation.scoring import summarize
from distforge.handoff.to_phase4 import write_handoff
from distforge.handoff.verdict import Verdict
from distforge.quietstar.saved_bits import Savings, interval_over, savings
from distforge.quietstar.step2_config import Step2Config
from distforge.reports.formats import interval
from distforge.reports.samples import SAMPLES_NAME, write_samples
from distforge.reports.step2_report import write_reinforcement_report
from distforge.reports.step2_summary import Step2Summary
from distforge.reports.tables import reinforcement_table
from distforge.reports.verdict_table import verdict_table
from distforge.telemetry import RunLogger
from distforge.theater.conditions import CONTROLS, Condition, ProbeResult
from distforge.theater.exam import Examined
from distforge.training.afterwards import spared
from distforge.training.keeping import drop_checkpoints
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
    saved = None
    if config.task == "text":
        saved = savings(before.results, after.results, after.sources)
    gain = saved.with_thoughts if saved else _questions_gained(before, after)
    scores, baked = summarize(after.answered), summarize(before.answered)
    return Step2Summary(
        improved=saved.improved if saved else gain.low > 0,
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
        intervals=_intervals(after, gain, saved),
        gain=gain.mean,
        gain_without=saved.without.mean if saved else math.nan,
        gain_by_thoughts=saved.by_thoughts.mean if saved else math.nan,
        note=saved.note if saved else "",
        items=len(after.results["own"].hits),
        task=config.task,
        verdict=verdict.outcome,
        theater=verdict.as_json(),
        registry_version="",
        **known,
    )


def _intervals(
    after: Examined, gain: Interval, saved: Savings | None
) -> dict[str, tuple[float, float]]:
    """By the names that `Step2Summary` gives them."""
    found = {"gain": gain}
    if saved:
        found |= {"gain_without": saved.without, "gain_by_thoughts": saved.by_thoughts}
    own = after.results["own"].hits.numpy().astype(np.float64)
    for control in CONTROLS:
        difference = own - after.results[control].hits.numpy()
        found[f"ablation_{control}"] = (
            interval_over(difference, after.sources)
            if saved
            else bootstrap_mean(difference, clusters=after.sources)
        )
    return {name: (mean.low, mean.high) for name, mean in found.items()}


def publish(
    config: Step2Config,
    summary: Step2Summary,
    samples: Iterable[dict[str, Any]],
    directory: Path,
    log: RunLogger,
    record: RunRecord,
) -> Step2Summary:
    """Write hand-off, samples, summary and report, register the model, print the table, remove the
    checkpoints that led to it; on rank 0 alone.

    Returns the summary with its registry version, which is empty while the registry is away. The
    summary file is the mark of the end; of the rest, but for the hand-off, what fails is a warning.
    """
    model = Path(summary.model_dir)
    write_handoff(model, summary.verdict, summary.theater, **_measured(summary))
    with spared("samples"):
        write_samples(samples, directory / SAMPLES_NAME)
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
    log.say(
        f"{_said(summary)}\n"
        f"model {model}  registry "
        f"{summary.registry_version or ('spooled' if config.registry.enabled else 'off')}  "
        f"{summary.episodes} episodes in {summary.seconds:.0f} s  "
        f"report {directory / 'report.html'}"
    )
    if not config.keep_checkpoints:
        drop_checkpoints(directory, record)
    return summary


def _said(summary: Step2Summary) -> str:
    """Whether it gained, and by what that was measured."""
    word = "better than" if summary.improved else "NOT better than"
    on = f"on {summary.items} held-out items"
    if summary.task != "text":
        low, high = summary.intervals["gain"]
        unit = "accuracy" if summary.task == "questions" else "reward"
        gained = f"{summary.gain:+.4f} {unit} [{low:+.4f}, {high:+.4f}]"
        return f"{word} the baked model: gain {gained} {on}"
    parts = (
        ("with thoughts on both sides", summary.gain, "gain"),
        ("without on both", summary.gain_without, "gain_without"),
        ("by thoughts, their difference,", summary.gain_by_thoughts, "gain_by_thoughts"),
    )
    gained = ", ".join(
        f"{how} {mean:+.4f} {interval(*summary.intervals[name], lambda x: f'{x:+.4f}')}"
        for how, mean, name in parts
    )
    note = f"; {summary.note}" if summary.note else ""
    return f"{word} the baked model: bits a token saved {on}: {gained}{note}"


def _measured(summary: Step2Summary) -> dict[str, Any]:
    """What the hand-off states beside the verdict."""
    gain = summary.intervals["gain"]
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
        "gain_interval": None if math.isnan(gain[0]) else gain,
        "lineage": lineage,
        "config_sha256": summary.config_sha256,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _questions_gained(before: Examined, after: Examined) -> Interval:
    """Of questions answered freely, the fraction that the trained model answers more."""
    pairs = zip(before.answered, after.answered, strict=True)
    return bootstrap_mean([float(a.correct) - float(b.correct) for b, a in pairs])


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
