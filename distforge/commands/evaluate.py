"""``distforge evaluate``: ask any model held-out questions or public benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from distforge.baking.supervised.convergence import ConvergenceConfig, check_convergence
from distforge.data import DataConfig, Example, load_data, of_split
from distforge.errors import InputError, require_choice
from distforge.evaluation.benchmarks import (
    Answerer,
    Benchmark,
    BenchmarksConfig,
    load_benchmarks,
    measure_benchmarks,
)
from distforge.evaluation.benchmarks.plain import PlainAnswerer
from distforge.evaluation.intervals import proportion
from distforge.evaluation.scoring import (
    Answered,
    answer_questions,
    stratified,
    summarize,
    unmarked_note,
)
from distforge.models.loading import Champion, load_champion
from distforge.models.storage import LoadDtype
from distforge.models.weight_files import model_directory
from distforge.quietstar import ThinkingModel
from distforge.reports.samples import SAMPLES_NAME, write_samples
from distforge.theater.answering import ThinkingAnswerer
from distforge.thinking.model import SETTINGS_FILE
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig
from distforge.training.distributed import World, entered_world

# What `--help` shows; `--help-all` shows every setting.
MATTER = {
    "evaluate": (
        "model",
        "data.path",
        "questions",
        "prompted",
        "max_new_tokens",
        "batch_size",
        "benchmarks.gsm8k",
        "benchmarks.arc",
        "benchmarks.limit",
        "output",
        "dtype",
    )
}


def until_it_closes() -> ThoughtConfig:
    """How a model thinks where nobody says how."""
    return ThoughtConfig(max_tokens=128, closing="learned")


@dataclass(frozen=True)
class EvaluateConfig:
    """Ask a model the held-out questions of a dataset, greedily, and judge what it writes.

    model: a Hugging Face directory, a run's, a .safetensors or .pt file, or ``hf://NAME``.
    data: the questions; of a directory the held-out ones, of a single file all that do not say
        that they are for training.
    questions: how many, the strategies in equal parts; 0 asks all.
    prompted: put each example's strategy prompt in front of the question.
    max_new_tokens: longest generation; batch_size: questions at once.
    benchmarks: public ones, asked without thoughts and, of a model with the thinking tokens, with.
    thought: how it thinks there; always greedily.
    output: the directory that keeps ``samples.jsonl``: each question as it was asked, what the
        model answered, what was expected, the verdict and why.
    dtype: to load it in. "auto" is its own where this machine computes in that, else float32.
    """

    model: str
    data: DataConfig = field(default_factory=DataConfig)
    questions: int = 0
    prompted: bool = False
    max_new_tokens: int = 160
    batch_size: int = 128
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    thought: ThoughtConfig = field(default_factory=until_it_closes)
    output: Path = Path("runs/evaluate")
    dtype: LoadDtype = "auto"

    def __post_init__(self) -> None:
        require_choice("dtype", self.dtype, get_args(LoadDtype))


def evaluate(config: EvaluateConfig) -> int:
    """Print what was asked for; 3 when the dataset's questions miss the convergence targets."""
    benchmarks = load_benchmarks(config.benchmarks)
    if not config.data.is_given and not benchmarks:
        raise InputError(
            "nothing to evaluate on: give a file to --data, --benchmarks.gsm8k or --benchmarks.arc"
        )
    # Before the data, which may take minutes to read: a model that is not there is refused at once.
    champion = load_champion(config.model, config.dtype)
    heldout = _heldout(config.data, config.questions) if config.data.is_given else []
    with entered_world() as world:
        champion.model.to(world.device)
        samples: list[dict[str, Any]] = []
        converged = not heldout or _ask_dataset(config, champion, heldout, world, samples)
        if benchmarks:
            _ask_benchmarks(config, champion, benchmarks, world, samples)
        if world.is_main:
            config.output.mkdir(parents=True, exist_ok=True)
            write_samples(samples, config.output / SAMPLES_NAME)
            Console(soft_wrap=True).print(f"answers: {config.output / SAMPLES_NAME}")
    return 0 if converged else 3


def _heldout(data: DataConfig, questions: int) -> Sequence[Example]:
    heldout = of_split(load_data(data, split="heldout"), "heldout")
    if not len(heldout):
        raise InputError(
            f"{data.path} holds no held-out examples; name a file of questions, or a directory "
            "with heldout, validation or test"
        )
    return stratified(heldout, questions) if questions else heldout


def _ask_dataset(
    config: EvaluateConfig,
    champion: Champion,
    heldout: Sequence[Example],
    world: World,
    samples: list[dict[str, Any]],
) -> bool:
    """Print accuracy and token usage; whether the convergence targets are met."""
    answered = answer_questions(
        champion.model,
        champion.tokenizer,
        heldout,
        world,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        prompted=config.prompted,
    )
    scores = summarize(answered)
    convergence = check_convergence(
        ConvergenceConfig(), scores.accuracy_overall, scores.accuracy, scores.token_usage
    )
    if world.is_main:
        console = Console(soft_wrap=True)
        console.print(_accuracies(answered, scores.accuracy))
        if scores.token_usage:
            usage = (f"{name} {value:.1%}" for name, value in scores.token_usage.items())
            console.print(f"thinking tokens in use: {', '.join(usage)}", markup=False)
        missed = "; ".join(convergence.shortfalls)
        console.print("meets the targets" if convergence.converged else f"misses: {missed}")
        if note := unmarked_note(answered):
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    samples += [one.as_dict() for one in answered]
    return convergence.converged


def _accuracies(answered: Sequence[Answered], strategies: Iterable[str]) -> Table:
    """A row for all, and one for each strategy, with the interval that so few questions allow."""
    table = Table("generated answers", "accuracy", "95% interval", "questions")
    named = [("all", list(answered))]
    named += [
        (name, [one for one in answered if one.example.strategy == name]) for name in strategies
    ]
    for name, some in named:
        if some:
            value = proportion(sum(one.correct for one in some), len(some))
            interval = f"{value.low:.1%} to {value.high:.1%}"
            table.add_row(name, f"{value.mean:.1%}", interval, f"{len(some):,}")
    return table


def _ask_benchmarks(
    config: EvaluateConfig,
    champion: Champion,
    benchmarks: list[Benchmark],
    world: World,
    samples: list[dict[str, Any]],
) -> None:
    """Print each measure of each benchmark with its interval."""
    table = Table("benchmark", "measure", "thoughts", "accuracy", "95% interval", "questions")
    for thinking, answerer in _answerers(config, champion, world).items():
        for scores in measure_benchmarks(benchmarks, answerer, world):
            samples += [
                one.as_sample(scores.name, thinking, scores.headline) for one in scores.judged
            ]
            asked = f"{scores.count:,}"
            if scores.too_long:
                asked += f", {scores.too_long:,} of them too long for the context"
            for name, value in scores.measures.items():
                interval = f"{value.low:.1%} to {value.high:.1%}"
                table.add_row(scores.name, name, thinking, f"{value.mean:.1%}", interval, asked)
    if world.is_main:
        Console().print(table)


def _answerers(config: EvaluateConfig, champion: Champion, world: World) -> dict[str, Answerer]:
    """The model without thoughts and, where its tokenizer has the thinking tokens, with them."""
    lm, tokenizer = champion.model, champion.tokenizer
    sizes = config.benchmarks.max_new_tokens, config.benchmarks.batch_size
    found: dict[str, Answerer] = {"no": PlainAnswerer(lm, tokenizer, *sizes)}
    try:
        Tags.from_tokenizer(tokenizer)
    except InputError as error:
        if world.is_main:
            print(f"evaluated without thoughts only: {error}")
        return found
    model = thinking_model(champion, model_directory(config.model))
    found["yes"] = ThinkingAnswerer(model, tokenizer, config.thought, *sizes)
    return found


def thinking_model(champion: Champion, directory: Path) -> ThinkingModel:
    """The model with what a thinking model has beside it in ``directory``, if it has anything."""
    if (directory / SETTINGS_FILE).is_file():
        return ThinkingModel.restore(champion.model, directory)
    return ThinkingModel.wrap(champion.model, mixing=False)
