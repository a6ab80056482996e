import dataclasses
import re
from typing import get_args

import pytest
import torch
import tyro

from distforge.errors import InputError
from distforge.ops import COEFFICIENTS, newton_schulz
from distforge.optim import AdamWConfig, MuonGrokfastConfig, OptimizerConfig, ScheduleConfig
from distforge.optim.config import NewtonSchulzCoefficients


def test_presets_are_those_of_the_specification():
    baking, rl = MuonGrokfastConfig.baking(), MuonGrokfastConfig.rl()
    assert (baking.muon_lr, baking.grokfast_lambda, baking.qk_clip_threshold) == (1e-4, 0.2, 30)
    assert (baking.kl_coefficient, baking.weight_decay) == (0.0, 0.01)
    assert (rl.muon_lr, rl.grokfast_lambda, rl.qk_clip_threshold) == (5e-4, 0.1, 25)
    assert rl.kl_coefficient == 0.1


@pytest.mark.parametrize(
    "field,value",
    [
        ("muon_lr", -1e-4),
        ("muon_lr", float("nan")),
        ("muon_lr", "1e-4"),
        ("muon_lr", True),
        ("adamw_lr", float("inf")),
        ("momentum", 1.0),
        ("grokfast_alpha", -0.1),
        ("grokfast_lambda", -0.2),
        ("weight_decay", -1),
        ("kl_coefficient", -1),
        ("qk_clip_threshold", -30),
        ("adamw_betas", (0.9, 1.0)),
        ("adamw_betas", 0.9),
        ("adamw_eps", -1e-8),
        ("ns_steps", 0),
        ("ns_steps", 2.5),
        ("ns_coefficients", "cubic"),
        ("ns_dtype", "int8"),
        ("scale", "none"),
        ("nesterov", "false"),
        ("grokfast_on_adamw", 1),
        ("muon_patterns", "*.weight"),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(InputError, match=re.escape(field)) as raised:
        MuonGrokfastConfig(**{field: value})
    shown = value[1] if isinstance(value, tuple) else value
    assert repr(shown) in str(raised.value)


def test_replace_validates_and_knows_its_fields():
    changed = MuonGrokfastConfig.rl().replace(muon_lr=0.5, qk_clip_threshold=None)
    assert (changed.muon_lr, changed.qk_clip_threshold, changed.grokfast_lambda) == (0.5, None, 0.1)
    with pytest.raises(InputError, match="no field 'learning_rate'"):
        changed.replace(learning_rate=1.0)
    with pytest.raises(InputError, match="momentum"):
        changed.replace(momentum=2.0)


def test_coefficient_names_are_those_of_the_op():
    assert set(get_args(NewtonSchulzCoefficients)) == set(COEFFICIENTS)
    for name in COEFFICIENTS:
        result = newton_schulz(torch.eye(4), coefficients=name, steps=5)
        # Of the identity only its scale can change; the iterations aim at singular values of 1.
        assert result.diagonal().min() > 0.5
        assert result.diagonal().max() < 1.5


@pytest.mark.parametrize("factory", [OptimizerConfig, ScheduleConfig, AdamWConfig])
def test_configurations_are_frozen_and_made_of_plain_values(factory):
    config = factory()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"

    def plain(value):
        if isinstance(value, dict):
            return all(map(plain, value.values()))
        if isinstance(value, (tuple, list)):
            return all(map(plain, value))
        return value is None or isinstance(value, (str, int, float, bool))

    assert plain(dataclasses.asdict(config))


def test_the_command_line_reaches_every_level():
    config = tyro.cli(
        OptimizerConfig,
        args=[
            "--name=adamw",
            "--muon-grokfast.muon-lr=0.3",
            "--muon-grokfast.qk-clip-threshold=None",
            "--muon-grokfast.adamw-betas",
            "0.5",
            "0.6",
            "--muon-grokfast.no-nesterov",
            "--adamw.lr=0.7",
        ],
    )
    assert config.name == "adamw"
    assert config.muon_grokfast == MuonGrokfastConfig.baking().replace(
        muon_lr=0.3, qk_clip_threshold=None, adamw_betas=(0.5, 0.6), nesterov=False
    )
    assert config.adamw.lr == 0.7


def test_bad_adamw_and_optimizer_names_are_refused():
    with pytest.raises(InputError, match="lr is -1"):
        AdamWConfig(lr=-1)
    with pytest.raises(InputError, match="'sgd'; expected one of"):
        OptimizerConfig(name="sgd")
