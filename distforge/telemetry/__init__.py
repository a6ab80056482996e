"""Telemetry: what a run measures, and where it goes. A failure here never ends a run."""

from distforge.telemetry.console import RunConsole
from distforge.telemetry.jsonl import read_metrics
from distforge.telemetry.metrics import BakingMetrics, RLMetrics
from distforge.telemetry.run_logger import RunLogger, TelemetryConfig
from distforge.telemetry.wandb_logger import WandBLogger

__all__ = [
    "BakingMetrics",
    "RLMetrics",
    "RunConsole",
    "RunLogger",
    "TelemetryConfig",
    "WandBLogger",
    "read_metrics",
]
