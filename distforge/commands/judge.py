"""``distforge judge``: whether a model's thoughts do the work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from rich.console import Console
from torch import nn

from distforge import durable
from distforge.cli import GOAL_MISSED
from distforge.commands.evaluate import thinking_model, until_it_closes
from distforge.data import read_examples
from distforge.errors import InputError, require_choice, require_in
from distforge.handoff.verdict import PASS
from distforge.models.loading import Champion, load_champion
from distforge.models.storage import LoadDtype
from distforge.quietstar.inputs import find_model
from distforge.quietstar.items import answer_items
from distforge.reports.verdict_table import verdict_table
from distforge.telemetry import RunConsole
from distforge.theater import TheaterConfig, evaluate_theater, examinee
from distforge.theater.control import CONTROL_DIRECTORY, ControlConfig, train_control
from distforge.theater.judge import too_few
from distforge.thinking.tags import CLOSE, OPEN, Tags
from distforge.thinking.thoughts import ThoughtConfig
from distforge.training.distributed import World, entered_world
from distforge.training.engine_config import EngineConfig

# What `--help` shows; `--help-all` shows every setting.
MATTER = {
    "judge": (
        "model",
        "data",
        "reference",
        "items",
        "thought.max_tokens",
        "thought.closing",
        "tags.opening",
        "tags.closing",
        "control.path",
        "control.tokens",
        "control.start",
        "theater.thoughts",
        "theater.strict",
        "dtype",
        "json",
    )
}


@dataclass(frozen=True)
class TagsConfig:
    """Between which the model thinks; each is one token of its tokenizer.

    opening: begins a thought. closing: ends it.
    """

    opening: str = OPEN
    closing: str = CLOSE


@dataclass(frozen=True)
class ControlChoice(ControlConfig):
    """The model of equal compute that answers without a thought.

    path: a directory with one that was trained before; by default that of the judged model's run.
    tokens: above 0, such a model is trained here, on so many tokens: as many as the judged model
        was trained on. 0 trains none.
    start: the model that its training starts from; by default the judged one.
    data: the training questions for it; by default those that lie beside the judge's.
    keep: where it is kept.
    """

    path: str = ""
    start: str = ""
    tokens: int = 0
    data: Path | None = None
    keep: Path = Path("runs/control")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("[0, inf]", tokens=self.tokens)


@dataclass(frozen=True)
class JudgeConfig:
    """Judge the thoughts of a model on held-out questions: PASS, THEATRE or INCONCLUSIVE.

    model: a Hugging Face directory, or a run's.
    data: a file of questions with answers, or a directory with heldout.jsonl.
    reference: the model before reinforcement, which judges how fluent a thought is; by default the
        model itself.
    items: questions to judge on, at most; 0 takes all.
    max_length: longest question with answer, in tokens.
    dtype: to load the models in. "auto" is their own where this machine computes in that, else
        float32. A control that is trained here is trained in float32 and asked in this.
    thought: how the model thinks. theater: the tests.
    json: where to write the verdict, if anywhere.
    """

    model: str
    data: Path
    reference: str = ""
    items: int = 0
    max_length: int = 512
    dtype: LoadDtype = "auto"
    tags: TagsConfig = field(default_factory=TagsConfig)
    thought: ThoughtConfig = field(default_factory=until_it_closes)
    theater: TheaterConfig = field(default_factory=TheaterConfig)
    control: ControlChoice = field(default_factory=ControlChoice)
    json: Path | None = None

    def __post_init__(self) -> None:
        require_in("[0, inf]", items=self.items)
        require_choice("dtype", self.dtype, get_args(LoadDtype))


def judge(config: JudgeConfig) -> int:
    """Print the verdict; 0 for PASS, 3 for any other."""
    directory = find_model(config.model)
    champion = load_champion(str(directory), config.dtype)
    tags = Tags.from_tokenizer(
        champion.tokenizer, config.tags.opening, config.tags.closing, model=champion.model
    )
    examples = [e for e in read_examples(config.data, split="heldout") if e.split == "heldout"]
    if not examples:
        raise InputError(f"{config.data} holds no held-out questions; name a file of them")
    chosen = examples[: config.items] if config.items else examples
    items = answer_items(chosen, champion.tokenizer, config.max_length)
    if short := too_few(items):
        raise InputError(short)
    with entered_world() as world:
        model = thinking_model(champion, directory).to(world.device)
        reference = model
        if config.reference:
            source = str(find_model(config.reference))
            reference = load_champion(source, config.dtype).model.to(world.device)
        who = examinee(
            model,
            champion.tokenizer,
            config.thought,
            reference=reference,
            direct=_direct(config, champion, directory, world),
            tags=tags,
        )
        console = Console(quiet=not world.is_main)
        verdict = evaluate_theater(who, items, config.theater, world, say=console.print)
        if world.is_main:
            console.print(verdict_table(verdict))
            if config.json:
                durable.write_json(config.json, verdict.as_json())
    return 0 if verdict.outcome == PASS else GOAL_MISSED


def _direct(
    config: JudgeConfig, champion: Champion, directory: Path, world: World
) -> dict[str, nn.Module]:
    """The control that was named, found beside the model or trained here, by name; or none."""
    choice, beside = config.control, directory.parent / CONTROL_DIRECTORY
    if choice.tokens:
        # Loaded anew: training changes it, and the judged model must stay as it is.
        start = load_champion(str(find_model(choice.start)) if choice.start else champion.source)
        examples = read_examples(choice.data or config.data, split="train")
        train = [example for example in examples if example.split == "train"]
        if not train:
            raise InputError(
                f"{choice.data or config.data} holds no training questions for a control; name a "
                "directory with train.jsonl as --control.data"
            )
        console = RunConsole(console=Console(quiet=not world.is_main))
        control = train_control(
            start,
            answer_items(train, start.tokenizer, config.max_length),
            choice.tokens,
            choice,
            EngineConfig(),
            world,
            console,
            choice.keep,
            config.dtype,
        )
        return {"direct": control.model}
    path = choice.path or (str(beside) if beside.is_dir() else "")
    if not path:
        return {}
    return {"direct": load_champion(path, config.dtype).model.to(world.device)}
