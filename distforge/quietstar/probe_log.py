"""What probes see of a run of reinforcement learning: held-out items, thought about."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from distforge.errors import InputError
from distforge.evaluation.benchmarks import load_benchmarks, measure_benchmarks
from distforge.evaluation.intervals import Interval
from distforge.quietstar.config import LearnerConfig
from distforge.quietstar.step_log import StepLog
from distforge.telemetry import RunLogger
from distforge.telemetry import metrics as names
from distforge.telemetry.metrics import RL
from distforge.theater.answering import ThinkingAnswerer
from distforge.theater.conditions import CONTROLS, Condition, ThoughtProbe
from distforge.theater.thought_metrics import ThoughtMetrics, measure_thoughts
from distforge.thinking.items import ThoughtItem
from distforge.thinking.language_model import language_model
from distforge.thinking.model import ThinkingModel
from distforge.thinking.positions import placed, with_places
from distforge.thinking.tags import Tags, heading_ids
from distforge.training.distributed import World


@dataclass(frozen=True)
class ProbeScores:
    """The model on held-out items.

    accuracy: fraction of items answered rightly, by condition. bits_with, bits_without: a target
    token, with the own thoughts and with none. thoughts: measured on some of them. inference_ms: to
    think about and answer an item. by_bits: whether models are compared by ``bits_with``.
    benchmarks: accuracy with its 95% interval by name, of those that are configured.
    """

    accuracy: dict[Condition, float]
    bits_with: float
    bits_without: float
    thoughts: ThoughtMetrics
    inference_ms: float
    by_bits: bool
    benchmarks: dict[str, Interval]

    @property
    def score(self) -> float:
        """What the best weights are picked by; higher is better."""
        return -self.bits_with if self.by_bits else self.accuracy["own"]

    @property
    def ablation(self) -> float:
        """Accuracy with the own thoughts less that of the best control."""
        return self.accuracy["own"] - max(self.accuracy[control] for control in CONTROLS)


class ProbeLog(StepLog):
    """Measures and logs; holds what the averages need.

    Args:
        heldout: items; the first ``config.probe.items`` are probed.
        reference: the baked model, which judges how fluent a thought is.

    Raises:
        InputError: fewer than two places a rank, or a benchmark that is not where the configuration
            says.
    """

    def __init__(
        self,
        config: LearnerConfig,
        tokenizer: PreTrainedTokenizerBase,
        heldout: Sequence[ThoughtItem],
        reference: nn.Module,
        world: World,
        logger: RunLogger,
    ) -> None:
        super().__init__(config, logger)
        self._world = world
        self._benchmarks, self._tokenizer = load_benchmarks(config.benchmarks), tokenizer
        self._tags = Tags.from_tokenizer(tokenizer, model=language_model(reference))
        self._headings = heading_ids(tokenizer)
        # Held-out text is thought about at the same places before and after training.
        chosen = with_places(heldout[: config.probe.items], config.positions)
        self._items = placed(chosen, reference, config.positions, self._tags)
        if (places := sum(len(item.positions) for item in self._items)) < 2 * world.size:
            raise InputError(
                f"there are {places} held-out places to probe thoughts at, on {world.size} ranks; "
                "two a rank are needed: raise probe.items, or give more held-out data"
            )
        self._reference = reference

    def look(self, model: ThinkingModel, step: int) -> float:
        """Probe, log, and say how good the weights are; collective."""
        scores = self.probe(model)
        self.log_probe(step, scores)
        return scores.score

    def probe(self, model: ThinkingModel) -> ProbeScores:
        """Examine ``model`` on the probed items; collective, ranks share them."""
        config, chosen = self._config, self._items
        mine = chosen[self._world.rank :: self._world.size] or chosen[:1]
        conditions: list[Condition] = ["own", "sampled", *CONTROLS]
        if all(item.gold is not None for item in chosen):
            conditions.append("gold")
        began = time.perf_counter()
        probe = ThoughtProbe(model, mine, self._tags, config.thought, config.probe.batch_size)
        own = probe.ask("own")
        thinking = (time.perf_counter() - began) / len(mine)
        results = {"own": own} | {c: probe.ask(c) for c in conditions if c != "own"}
        sums = self._world.all_reduce_sum(
            [
                float(len(own.hits)),
                *(float(results[c].hits.sum()) for c in conditions),
                float(own.tokens.sum()),
                float(own.bits.sum()),
                float(results["none"].bits.sum()),
            ]
        )
        places, tokens = sums[0], sums[-3]
        return ProbeScores(
            accuracy={c: sums[1 + i] / places for i, c in enumerate(conditions)},
            bits_with=sums[-2] / tokens,
            bits_without=sums[-1] / tokens,
            thoughts=measure_thoughts(
                model,
                self._reference,
                chosen[: config.probe.coherence_items],
                self._tags,
                config.thought,
                config.episodes.thoughts,
                self._headings,
            ),
            inference_ms=1000 * thinking,
            by_bits=config.reward.kind == "prediction_gain",
            benchmarks=self._ask_benchmarks(model),
        )

    def _ask_benchmarks(self, model: ThinkingModel) -> dict[str, Interval]:
        asked = self._config.benchmarks
        answerer = ThinkingAnswerer(
            model, self._tokenizer, self._config.thought, asked.max_new_tokens, asked.batch_size
        )
        found = measure_benchmarks(self._benchmarks, answerer, self._world)
        return {scores.name: scores.measures[scores.headline] for scores in found}

    def log_probe(self, step: int, scores: ProbeScores) -> None:
        """Log what the probe saw and, from the first step on, the 17 metrics."""
        benchmarks = {f"{name}_accuracy": found.mean for name, found in scores.benchmarks.items()}
        bounds = {
            key: value
            for name, found in scores.benchmarks.items()
            for key, value in zip(
                names.RL_BENCHMARK_BOUNDS[name], (found.low, found.high), strict=True
            )
        }
        if self._latest is None:
            early = {RL[name]: value for name, value in benchmarks.items()}
        else:
            early = {}
            metrics = replace(
                self._latest,
                coherence_semantic=scores.thoughts.coherence.semantic,
                coherence_syntactic=scores.thoughts.coherence.syntactic,
                coherence_predictive=scores.thoughts.coherence.predictive,
                coherence_composite=scores.thoughts.coherence.composite,
                thought_diversity=scores.thoughts.diversity,
                inference_time_ms=scores.inference_ms,
                anti_theater_divergence=scores.thoughts.divergence,
                anti_theater_ablation=scores.ablation,
                anti_theater_correlation=scores.thoughts.correlation,
                **benchmarks,
            )
            self._logger.log_rl_probe(step, metrics)
        self._logger.log(
            step,
            {
                **early,
                **bounds,
                **{names.RL_ACCURACY[c]: value for c, value in scores.accuracy.items()},
                names.RL_BITS_WITH_THOUGHTS: scores.bits_with,
                names.RL_BITS_WITHOUT: scores.bits_without,
            },
        )
