"""What step 2 leaves behind: samples, summary, registry entry, hand-off, table and report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distforge.evaluation.intervals import Interval, bootstrap_mean
from distforge.evaluation.scoring import summarize
from distforge.extras import optional
from distforge.models.handover import write_handoff
from distforge.quietstar.examine import Examined
from distforge.quietstar.probes import CONTROLS, Condition, ProbeResult
from distforge.quietstar.step2_config import Step2Config
from distforge.telemetry import RunLogger, write_reinforcement_report
from distforge.telemetry.samples import SAMPLES_NAME, write_samples
from distforge.telemetry.summary import write_summary
from distforge.telemetry.tables import reinforcement_table
from distforge.training.run_directory import SUMMARY_FILE
from distforge.training.run_record import RunRecord

_WAYS: tuple[tuple[str, Condition], ...] = (("with_thoughts", "own"), ("without", "none"))
# The hand-off's verdict until the anti-theatre tests have been asked: phase 4 refuses it.
_UNJUDGED = "INCONCLUSIVE"


@dataclass(frozen=True)
class Step2Summary:
    """What step 2 reached: the content of ``summary.json``. Fractions are in [0, 1].

    improved: whether the model beats the baked one on the same held-out items: the lower bound of
        ``intervals["gain"]`` is above 0.
    accuracy_overall, accuracy, token_usage: of free, greedy generations, as in step 1; of free
        text, which has no answers, not measured. baked_accuracy: the baked model's, likewise.
    controls: accuracy given a thought, by what stands in for it ("own" is no control, but what the
        others are held against).
    bits: a target token, with thoughts and without, of both models.
    intervals: 95% bootstrap over questions or documents: "gain" (accuracy, or bits a token for free
        text, over the baked model), and "ablation_<control>" (accuracy with the own thoughts less
        the control's).
    verdict: of the anti-theatre tests; empty until they are asked.
    """

    improved: bool
    accuracy_overall: float
    accuracy: dict[str, float]
    token_usage: dict[str, float]
    baked_accuracy: float
    baked_accuracy_by_strategy: dict[str, float]
    controls: dict[str, float]
    bits: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    gain: float
    items: int
    episodes: int
    steps: int
    best_step: int
    seconds: float
    parameters: int
    model_dir: str
    heldout: str
    registry_version: str
    config_sha256: str
    dataset_sha256: str
    baked: str
    baked_sha256: str
    task: str
    verdict: str = ""
    phase: int = 3
    step: int = 2


def summarize_step2(
    config: Step2Config, before: Examined, after: Examined, **known: Any
) -> Step2Summary:
    """Hold the trained model against the baked one and against its controls.

    Args:
        before, after: both examined on the same held-out items.
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
        baked_accuracy=baked.accuracy_overall,
        baked_accuracy_by_strategy=baked.accuracy,
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
    summary file comes last but for the report: where it is, the run is finished.
    """
    model = Path(summary.model_dir)
    accuracy = config.baked_accuracy
    if accuracy is None:
        accuracy = summary.baked_accuracy if after.answered else 0.0
    metadata = {"judged": False, "config_sha256": summary.config_sha256, "gain": summary.gain}
    write_handoff(model, accuracy, _UNJUDGED, metadata)
    write_samples((row.as_dict() for row in after.answered), directory / SAMPLES_NAME)
    if config.registry.enabled:
        version = _register(summary, record)
        summary = dataclasses.replace(summary, registry_version=version)
    log.artifact(model, f"{config.name}-model", "model")
    content = dataclasses.asdict(summary)
    write_summary(directory / SUMMARY_FILE, content)
    with optional("report"):
        write_reinforcement_report(directory)
    log.show(reinforcement_table(content))
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
        },
        "aliases": ("rl-latest",),
        "best": ("rl-best", "gain"),
    }
    return record.register(baked, trained)[1]
