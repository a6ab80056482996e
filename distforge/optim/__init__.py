"""Optimizers: MuonGrokfast, its configuration, and schedules. Needs torch alone."""

from distforge.optim.build import AdamWConfig, OptimizerConfig, build_optimizer
from distforge.optim.config import MuonGrokfastConfig
from distforge.optim.muon_grokfast import MuonGrokfast
from distforge.optim.param_groups import split_parameters
from distforge.optim.schedule import ScheduleConfig, apply_lr, lr_factor
from distforge.optim.sharding import bind_zero, load_universal

__all__ = [
    "MuonGrokfast",
    "MuonGrokfastConfig",
    "AdamWConfig",
    "OptimizerConfig",
    "build_optimizer",
    "ScheduleConfig",
    "apply_lr",
    "lr_factor",
    "split_parameters",
    "bind_zero",
    "load_universal",
]
