"""Configuration of MuonGrokfast: one frozen object that describes the optimizer of a phase."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from distforge.errors import InputError, require_choice, require_in

Algorithm = Literal["muon", "adamw"]
NewtonSchulzCoefficients = Literal["quintic", "polar_express"]
NewtonSchulzDtype = Literal["auto", "float32", "bfloat16", "float16"]
UpdateScale = Literal["spectral", "match_rms_adamw"]


def require_bool(field: str, value: Any) -> None:
    """Raises InputError unless ``value`` is True or False (a string such as "false" is truthy)."""
    if not isinstance(value, bool):
        raise InputError(f"{field} = {value!r} is not a truth value: give true or false.")


def require_betas(field: str, betas: Any) -> None:
    """Raises InputError unless ``betas`` is a pair of numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise InputError(f"{field} = {betas!r} is not a pair: give two numbers in [0, 1).")
    require_in("[0, 1)", **{f"{field}[{index}]": beta for index, beta in enumerate(betas)})


@dataclass(frozen=True)
class MuonGrokfastConfig:
    """Hyperparameters of MuonGrokfast.

    Field by field, with range:

    Muon (hidden matrices)
        muon_lr: learning rate of the matrices that Muon trains, >= 0.
        momentum: beta of the momentum, [0, 1).
        nesterov: look one momentum step ahead.
        ns_steps: Newton-Schulz iterations, 1 to 100.
        ns_coefficients: polynomial of the iteration, by name.
        ns_dtype: dtype of the iteration. "auto" is bfloat16 on a GPU or CPU that multiplies it in
            hardware, float16 on a GPU that has tensor cores for that alone, float32 on others (GTX
            16). Ranks on processors of several kinds take what suits the least able.
        scale: factor of the orthogonalised update of an m x n matrix: "spectral" is
            sqrt(max(1, m/n)), "match_rms_adamw" is 0.2 sqrt(max(m, n)). In Python it may also be a
            function of (m, n), for a weight that maps n inputs to m outputs; like a scheduler's
            functions it is not saved with the state.
        neuron_beta: decay of the second moment by which NorMuon evens out the neurons (rows) of an
            update (Li et al. 2025, arXiv 2510.05491; its norm stays), [0, 1). Zero switches it off.
            It needs whole matrices on one process.
        split_heads: orthogonalise each head of query, key and value by itself. It needs the model.

    Grokfast (Lee et al. 2024, EMA variant: g + lambda h amplifies the slow part of the gradient)
        grokfast_alpha: decay of the gradient's EMA, [0, 1).
        grokfast_lambda: weight of the EMA, >= 0. Zero switches the filter off and keeps no buffer.
        grokfast_on_adamw: filter the gradients of the AdamW parameters as well (one more buffer).

    AdamW (embeddings, head, norms, biases)
        adamw_lr: learning rate of all others, which AdamW trains, >= 0.
        adamw_betas: decay of the first and second moment, each [0, 1).
        adamw_eps: added to the root of the second moment, >= 0.

    Both
        weight_decay: decoupled, >= 0, on matrices only; vectors (norms, biases) are not decayed.
        cautious_weight_decay: decay only where it has the direction of the update.
        stochastic_rounding: of 16-bit weights, which rounding to nearest would not move at small
            learning rates. seed: what the roundings depend on, with step and place.
        muon_patterns: shell patterns of parameter names ("*.router.weight") that Muon trains,
            whatever the rules say. adamw_patterns: such patterns of what AdamW trains.

        bucket_cap_mb: bound on the scratch of a step, in MiB, > 0: matrices go through the update
            (and over the network, where the state is sharded) in buckets that respect it, those
            of one shape together. The largest matrix of each rank is the floor. Larger buckets
            make larger batches, which a GPU needs for small matrices; smaller ones hide more of
            a slow network behind work.

    Read by others, so that one object describes a phase
        qk_clip_threshold: largest attention logit allowed, >= 0; None or 0 switches QK-Clip off.
        kl_coefficient: weight of the KL term in the loss of reinforcement learning, >= 0.

    Raises InputError when a value is out of its range.
    """

    muon_lr: float = 1e-4
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    ns_coefficients: NewtonSchulzCoefficients = "quintic"
    ns_dtype: NewtonSchulzDtype = "auto"
    scale: UpdateScale = "spectral"
    neuron_beta: float = 0.0
    split_heads: bool = False
    grokfast_alpha: float = 0.98
    grokfast_lambda: float = 0.2
    grokfast_on_adamw: bool = False
    adamw_lr: float = 1e-4
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    adamw_eps: float = 1e-8
    weight_decay: float = 0.01
    cautious_weight_decay: bool = False
    stochastic_rounding: bool = True
    seed: int = 0
    muon_patterns: tuple[str, ...] = ()
    adamw_patterns: tuple[str, ...] = ()
    bucket_cap_mb: float = 256.0
    qk_clip_threshold: float | None = 30.0
    kl_coefficient: float = 0.0

    def __post_init__(self) -> None:
        for field in (
            "muon_lr",
            "grokfast_lambda",
            "adamw_lr",
            "adamw_eps",
            "weight_decay",
            "kl_coefficient",
        ):
            require_in("[0, inf)", **{field: getattr(self, field)})
        for field in ("momentum", "grokfast_alpha", "neuron_beta"):
            require_in("[0, 1)", **{field: getattr(self, field)})
        require_betas("adamw_betas", self.adamw_betas)
        for field in (
            "nesterov",
            "split_heads",
            "grokfast_on_adamw",
            "cautious_weight_decay",
            "stochastic_rounding",
        ):
            require_bool(field, getattr(self, field))
        if not isinstance(self.ns_steps, int):
            raise InputError(f"ns_steps = {self.ns_steps!r} is not a whole number: give 1 to 100.")
        if not isinstance(self.seed, int):
            raise InputError(f"seed = {self.seed!r} is not a whole number: give one.")
        require_in("[1, 100]", ns_steps=self.ns_steps)
        require_in("[0.001, inf)", bucket_cap_mb=self.bucket_cap_mb)
        require_choice("ns_coefficients", self.ns_coefficients, get_args(NewtonSchulzCoefficients))
        require_choice("ns_dtype", self.ns_dtype, get_args(NewtonSchulzDtype))
        if not callable(self.scale):
            require_choice("scale", self.scale, get_args(UpdateScale))
        if self.qk_clip_threshold is not None:
            require_in("[0, inf)", qk_clip_threshold=self.qk_clip_threshold)
        for field in ("muon_patterns", "adamw_patterns"):
            patterns = getattr(self, field)
            if isinstance(patterns, str) or not all(isinstance(p, str) for p in patterns):
                raise InputError(f"{field} = {patterns!r} is not a list: give a list of patterns.")

    @classmethod
    def baking(cls) -> MuonGrokfastConfig:
        """Step 1: supervised fine-tuning on reasoning traces."""
        return cls(
            muon_lr=1e-4,
            grokfast_lambda=0.2,
            qk_clip_threshold=30.0,
            kl_coefficient=0.0,
            weight_decay=0.01,
        )

    @classmethod
    def rl(cls) -> MuonGrokfastConfig:
        """Step 2: reinforcement learning. No weight decay: the KL term holds the weights."""
        return cls(
            muon_lr=5e-4,
            grokfast_lambda=0.1,
            qk_clip_threshold=25.0,
            kl_coefficient=0.1,
            weight_decay=0.0,
        )

    def replace(self, **changes: Any) -> MuonGrokfastConfig:
        """A copy with some fields changed, validated again.

        Raises InputError for a name that is not a field.
        """
        unknown = sorted(set(changes) - set(self.__dataclass_fields__))
        if unknown:
            raise InputError(
                f"MuonGrokfastConfig has no field {unknown[0]!r}: "
                f"choose among {', '.join(self.__dataclass_fields__)}."
            )
        return replace(self, **changes)
