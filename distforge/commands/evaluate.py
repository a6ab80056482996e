"""``distforge evaluate``: ask any model held-out questions and judge the answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distforge.baking.convergence import ConvergenceConfig, check_convergence
from distforge.data import read_examples
from distforge.errors import InputError
from distforge.evaluation.scoring import answer_questions, stratified, summarize
from distforge.models.loading import load_champion
from distforge.training.distributed import close_world, init_world


@dataclass(frozen=True)
class EvaluateConfig:
    """Ask a model the held-out questions of a dataset, greedily, and judge what it writes.

    model: as a champion: a Hugging Face directory, a file or a hub name.
    data: a file of examples, or a directory with train.jsonl and heldout.jsonl.
    questions: how many, the strategies in equal parts; 0 asks all.
    prompted: put each example's strategy prompt in front of the question.
    max_new_tokens: longest generation; batch_size: questions at once.
    """

    model: str
    data: Path
    questions: int = 0
    prompted: bool = False
    max_new_tokens: int = 160
    batch_size: int = 128


def evaluate(config: EvaluateConfig) -> int:
    """Print accuracy and token usage; 3 when they do not meet the convergence targets."""
    examples = read_examples(config.data, split="heldout")
    heldout = [e for e in examples if e.split == "heldout"]
    if not heldout:
        raise InputError(f"{config.data} holds no held-out examples")
    if config.questions:
        heldout = stratified(heldout, config.questions)
    champion = load_champion(config.model)
    world = init_world()
    try:
        scores = summarize(
            answer_questions(
                champion.model.to(world.device),
                champion.tokenizer,
                heldout,
                world,
                max_new_tokens=config.max_new_tokens,
                batch_size=config.batch_size,
                prompted=config.prompted,
            )
        )
    finally:
        close_world(world)
    convergence = check_convergence(
        ConvergenceConfig(), scores.accuracy_overall, scores.accuracy, scores.token_usage
    )
    if world.is_main:
        table = Table("measured on generated answers", "value")
        table.add_row(f"accuracy over {scores.count} questions", f"{scores.accuracy_overall:.1%}")
        for name, value in scores.accuracy.items():
            table.add_row(f"  {name}", f"{value:.1%}")
        for name, value in scores.token_usage.items():
            table.add_row(f"usage of {name}", f"{value:.1%}")
        console = Console()
        console.print(table)
        console.print("meets the targets" if convergence.converged else "misses: ", end="")
        console.print("; ".join(convergence.shortfalls))
    return 0 if convergence.converged else 3
