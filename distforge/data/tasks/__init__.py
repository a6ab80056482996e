"""The task families: for each strategy, questions whose derivation is known and checked."""

from distforge.data.strategies import STRATEGIES
from distforge.data.tasks import (
    bayesian_rationalist,
    chain_of_thought,
    expert_perspective,
    falsification_testing,
    mece_decomposition,
    orthogonal_wisdom,
    self_doubt,
)
from distforge.data.tasks.base import Task, TraceError, check_arithmetic

_MODULES = (
    chain_of_thought,
    mece_decomposition,
    falsification_testing,
    expert_perspective,
    orthogonal_wisdom,
    self_doubt,
    bayesian_rationalist,
)

TASKS: dict[str, Task] = {task.name: task for module in _MODULES for task in module.TASKS}
TASKS_BY_STRATEGY: dict[str, tuple[Task, ...]] = {
    strategy: tuple(task for task in TASKS.values() if task.strategy == strategy)
    for strategy in STRATEGIES
}

__all__ = [
    "TASKS",
    "TASKS_BY_STRATEGY",
    "Task",
    "TraceError",
    "check_arithmetic",
]
