"""From evidence to a verdict: the measures of the three tests with their bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from distforge.activity import named
from distforge.handoff.verdict import MEASURES, WANTED_ITEMS, Measure, Verdict
from distforge.theater.coherence import ranks, spearman
from distforge.theater.config import STRICT_CORRELATION, TheaterConfig
from distforge.theater.evidence import PlaceEvidence
from distforge.theater.statistics import (
    FEWEST_SOURCES,
    Floats,
    Sums,
    fisher_z,
    holm_bounds,
    permuted_means,
    resampled_means,
)

_UNSURE_SHARE = 0.25  # of the target tokens, those of highest entropy without a thought
_PERMUTATIONS = 1000


def unknown_verdict(config: TheaterConfig, items: int, missing: str) -> Verdict:
    """INCONCLUSIVE, because of what is missing."""
    thresholds = config.thresholds
    unknown = {
        name: Measure(math.nan, -math.inf, math.inf, thresholds[name], 0) for name in MEASURES
    }
    return Verdict(unknown, {}, items, 0, config.alpha, math.nan, (missing,))


# In front of a control's name, among the parts.
_CONTROL = "control_"


@named("computing the intervals of the verdict")
def reach_verdict(
    evidence: Sequence[PlaceEvidence],
    config: TheaterConfig,
    alpha: float,
    missing: Sequence[str] = (),
) -> Verdict:
    """The verdict on evidence that is there.

    Args:
        evidence: of every place, over any number of sources.
        alpha: of this look, two-sided.
        missing: what keeps it from PASS whatever the measures say.
    """
    z = [_place_z(place) for place in evidence]
    varied = [
        _centred_ranks(place)
        for place, found in zip(evidence, z, strict=True)
        if not math.isnan(found)
    ]
    parts = _by_source(evidence, z)
    controls = [name for name in parts if name.startswith(_CONTROL)]
    means = {name: part.mean for name, part in parts.items()}
    estimates = {
        "divergence_edit": means["edit"],
        "divergence_prediction": means["variation"],
        "ablation": means["own"] - max(means[name] for name in controls),
        "correlation": math.tanh(means["z"]),
    }
    answered = _answered([parts["own"], *(parts[name] for name in controls)])
    bounds = holm_bounds(_replicates(parts, controls, answered, config), config.thresholds, alpha)
    places = {"divergence_edit": "edit", "divergence_prediction": "variation", "correlation": "z"}
    sources = {name: parts[part].sources for name, part in places.items()} | {"ablation": answered}
    measures = {
        name: Measure(
            estimate=estimates[name],
            low=bounds[name][0],
            high=bounds[name][1],
            threshold=config.thresholds[name],
            sources=sources[name],
        )
        for name in MEASURES
    }
    accuracy = {name.removeprefix(_CONTROL): means[name] for name in controls}
    return Verdict(
        measures=measures,
        controls={"own": means["own"], **accuracy},
        items=len({place.source for place in evidence}),
        thoughts=sum(place.thoughts for place in evidence),
        alpha=alpha,
        floor=means["floor"],
        missing=tuple(missing),
        notes=tuple(_notes(measures, parts, varied, config)),
    )


def _replicates(
    parts: dict[str, Sums], controls: Sequence[str], answered: int, config: TheaterConfig
) -> dict[str, Floats]:
    """Of each measure, see `holm_bounds`."""
    drawn = resampled_means(parts, config.bootstrap, config.seed)
    lost = np.stack([drawn["own"] - drawn[name] for name in controls])
    return {
        "divergence_edit": drawn["edit"],
        "divergence_prediction": drawn["variation"],
        "ablation": lost if answered >= FEWEST_SOURCES else np.full_like(lost, math.nan),
        "correlation": np.tanh(drawn["z"]),
    }


def _by_source(evidence: Sequence[PlaceEvidence], z: Sequence[float]) -> dict[str, Sums]:
    """Every mean of the verdict, taken apart by source; ``z``: of each place, see `_place_z`."""
    number = {source: i for i, source in enumerate(dict.fromkeys(e.source for e in evidence))}
    at = [number[place.source] for place in evidence]
    border = _entropy_border([pair[0] for place in evidence for pair in place.tokens])

    def sums(values: Sequence[float], weights: Sequence[float]) -> Sums:
        return Sums(
            np.bincount(at, values, len(number)).astype(np.float64),
            np.bincount(at, weights, len(number)).astype(np.float64),
        )

    ones = [1.0] * len(evidence)
    unsure = [[v for e, v in place.tokens if e >= border] for place in evidence]
    return {
        "own": sums([place.own for place in evidence], ones),
        **{
            _CONTROL + name: sums([place.controls[name] for place in evidence], ones)
            for name in evidence[0].controls
        },
        "edit": sums([place.edit for place in evidence], ones),
        "floor": sums([place.floor for place in evidence], ones),
        "variation": sums([math.fsum(v) for v in unsure], [float(len(v)) for v in unsure]),
        "z": sums([0.0 if math.isnan(v) else v for v in z], [float(not math.isnan(v)) for v in z]),
    }


def _answered(accuracies: Sequence[Sums]) -> int:
    """How many sources are right at all, with or without thoughts: of a question that nobody
    answers, no thought can be the reason."""
    return int(np.any([part.totals > 0 for part in accuracies], axis=0).sum())


def _entropy_border(entropies: Sequence[float]) -> float:
    """The entropy from which on a token is in the top quartile."""
    count = max(1, math.ceil(_UNSURE_SHARE * len(entropies)))
    return sorted(entropies, reverse=True)[count - 1]


def _place_z(place: PlaceEvidence) -> float:
    """Fisher's z of the rank correlation there; NaN where the place says nothing."""
    if not place.coherence:
        return math.nan
    rho = spearman(place.coherence, place.gain)
    return math.nan if math.isnan(rho) else float(fisher_z(rho))


def _centred_ranks(place: PlaceEvidence) -> tuple[Floats, Floats]:
    one, other = ranks(place.coherence), ranks(place.gain)
    return one - one.mean(), other - other.mean()


def _notes(
    measures: dict[str, Measure],
    parts: dict[str, Sums],
    varied: list[tuple[Floats, Floats]],
    config: TheaterConfig,
) -> list[str]:
    notes = []
    items = len(parts["own"].totals)
    if items < WANTED_ITEMS:
        notes.append(f"on {items:,} items; {WANTED_ITEMS:,} are wanted")
    wanted = max((_items_to_tell(measure, items) for measure in measures.values()), default=0)
    if wanted > items:
        notes.append(f"about {wanted:,} items would decide it, if the estimates do not change")
    if (answered := measures["ablation"].sources) < FEWEST_SOURCES <= items:
        notes.append(
            f"only {answered} items are answered right, with thoughts or without; whether thoughts "
            f"are needed takes {FEWEST_SOURCES}: give easier items or more of them"
        )
    if not varied:
        notes.append(
            "at no place do thoughts differ in worth, so that coherence and gain cannot be "
            "compared: sample at a higher temperature, or give items that the model is less sure of"
        )
    else:
        null = np.tanh(np.quantile(permuted_means(varied, _PERMUTATIONS, config.seed), 0.95))
        if 0 < measures["correlation"].sources < FEWEST_SOURCES:
            notes.append(
                f"at only {measures['correlation'].sources} items do thoughts differ in worth; "
                f"bounds of the correlation take {FEWEST_SOURCES}"
            )
        notes.append(
            f"correlation: over {len(varied)} places whose thoughts differ; below {null:.2f} in "
            f"95% of random pairings; the specification's threshold is {STRICT_CORRELATION}"
        )
    return notes


def _items_to_tell(measure: Measure, items: int) -> int:
    """How many would move the nearer bound to the threshold; 0 where it is told already."""
    if measure.clears or measure.is_below or math.isnan(measure.estimate):
        return 0
    gap = abs(measure.estimate - measure.threshold)
    above = measure.estimate > measure.threshold
    reach = measure.estimate - measure.low if above else measure.high - measure.estimate
    if not (gap > 0 and math.isfinite(reach)):
        return 0
    return math.ceil(items * (reach / gap) ** 2)
