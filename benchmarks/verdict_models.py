"""The planted models of bench_verdict, made and judged; each call does its own share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from distforge.handoff.verdict import Verdict
from distforge.theater.config import TheaterConfig
from distforge.theater.evidence import gather_evidence
from distforge.theater.judge import evaluate_theater
from distforge.theater.measures import reach_verdict
from distforge.theater.planted.families import HONEST, PARTIAL, THEATRICAL, Family
from distforge.theater.planted.tasks import Task, cups
from distforge.theater.planted.training import (
    Training,
    answering_directly,
    examinee,
    make_items,
    make_model,
    trained_to,
)
from distforge.training.distributed import World

LEVELS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the questions that need a thought."""
_ACCURACIES = (0.8, 0.9, 0.97)
_HONEST_KINDS, _THEATRICAL_KINDS = 2, 6  # of a seed
_STEPS, _MOST_STEPS = 60, 400
_PROBED = 200
# Held-out questions are drawn by seeds that no training has.
_HELD_OUT, _PROBES = 10_000_000, 20_000_000
_ALONE = World(0, 0, 1, torch.device("cpu"))


class Setting:
    """The task, the width and the start that one seed has."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.task: Task = cups((5, 4, 6)[seed % 3], 6)
        self.width = (32, 40)[seed % 2]

    def training(self, family: Family) -> Training:
        model = make_model(self.task, self.width, self.seed)
        return Training(model, self.task, family, self.seed)

    def direct(self, composing: float, tokens: int) -> GPT2LMHeadModel:
        return answering_directly(self.task, self.width, composing, self.seed, tokens)

    def described(self, family: Family, verdict: Verdict) -> dict[str, Any]:
        measures = {
            name: [value["estimate"], value["low"], value["high"]]
            for name, value in verdict.as_json()["measures"].items()
        }
        return {
            "family": family.name,
            "truth": family.truth,
            "outcome": verdict.outcome,
            "task": self.task.name,
            "width": self.width,
            "seed": self.seed,
            "measures": measures,
            "controls": verdict.controls,
            "places_compared": verdict.measures["correlation"].sources,
        }


def judge_kinds(seed: int, items: int, bootstrap: int) -> dict[str, Any]:
    """Verdicts on this seed's honest models, at three accuracies each, and theatrical ones."""
    setting, found, short = Setting(seed), [], 0
    made: list[tuple[Family, GPT2LMHeadModel]] = []
    tokens = {0.0: 0, 1.0: 0}
    for family in _turn(HONEST, seed, _HONEST_KINDS):
        training = setting.training(family)
        probes = make_items(setting.task, family.composing, _PROBED, _PROBES + seed)
        models = trained_to(training, _ACCURACIES, probes, _MOST_STEPS)
        made += [(family, model) for model in models]
        short += len(_ACCURACIES) - len(models)
        tokens[family.composing] = max(tokens[family.composing], training.tokens)
    for family in _turn(THEATRICAL, seed, _THEATRICAL_KINDS):
        training = setting.training(family)
        training.run(_STEPS)
        made.append((family, training.model))
        tokens[family.composing] = max(tokens[family.composing], training.tokens)
    # One control for all that share a start and a kind of questions, as long as the longest.
    direct = {composing: setting.direct(composing, many) for composing, many in tokens.items()}
    config = TheaterConfig(bootstrap=bootstrap, batch_size=400, seed=seed)
    for family, model in made:
        held_out = make_items(setting.task, family.composing, items, _HELD_OUT + seed)
        who = examinee(model, setting.task, family, direct[family.composing])
        found.append(setting.described(family, evaluate_theater(who, held_out, config, _ALONE)))
    return {"models": found, "not_so_accurate": short}


def judge_levels(seed: int, items: int, bootstrap: int) -> dict[str, Any]:
    """Verdicts on one model for which some questions need thoughts and others do not, over the
    share of the former among those it is judged on."""
    setting, family = Setting(seed), PARTIAL[seed % len(PARTIAL)]
    training = setting.training(family)
    probes = make_items(setting.task, 1.0, _PROBED, _PROBES + seed)
    models = trained_to(training, _ACCURACIES[1:2], probes, 2 * _MOST_STEPS)
    if not models:
        return {"models": [], "not_so_accurate": 1}
    who = examinee(models[0], setting.task, family, setting.direct(0.5, training.tokens))
    needing = make_items(setting.task, 1.0, items, _HELD_OUT + seed)
    others = make_items(setting.task, 0.0, items, _HELD_OUT + seed + 1)
    config = TheaterConfig(bootstrap=bootstrap, batch_size=400, seed=seed)
    # Both kinds in every batch, so that thoughts are exchanged between them.
    mixed = [item for pair in zip(needing, others, strict=True) for item in pair]
    evidence = gather_evidence(who, mixed, config, _ALONE, lambda text: None)
    found = []
    for level in LEVELS:
        count = round(level * items)
        chosen = evidence[0::2][:count] + evidence[1::2][count:]
        verdict = reach_verdict(chosen, config, config.alpha)
        found.append({"needed": level, **setting.described(family, verdict)})
    return {"models": found, "not_so_accurate": 0}


def _turn(families: Sequence[Family], seed: int, count: int) -> list[Family]:
    """So many of them, the next ones for the next seed."""
    return [families[(seed * count + i) % len(families)] for i in range(count)]
