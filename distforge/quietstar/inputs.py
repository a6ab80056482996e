"""What step 2 starts from: the baked model and the items it thinks about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from distforge.data import (
    DataConfig,
    Example,
    data_note,
    dataset_sha256,
    load_data,
    of_split,
)
from distforge.data.free_text import documents_sha256, read_documents
from distforge.errors import InputError
from distforge.models.loading import Champion, load_champion
from distforge.models.weight_files import model_directory
from distforge.quietstar.baked_record import BakedRecord, read_baked_record
from distforge.quietstar.config import LearnerConfig
from distforge.quietstar.items import answer_items, question_items, text_items
from distforge.quietstar.step2_config import Step2Config
from distforge.theater.conditions import ThoughtProbe
from distforge.thinking.items import ThoughtItem
from distforge.thinking.positions import with_places
from distforge.thinking.tags import Tags


@dataclass(frozen=True)
class Step2Inputs:
    """``probed`` items are held out to pick the weights by, ``heldout`` ones to judge them by.

    ``examples`` are the questions of both splits; there are none with free text. ``data_note`` says
    which files were read as which split.
    """

    baked: Champion
    record: BakedRecord
    items: list[ThoughtItem]
    probed: list[ThoughtItem]
    heldout: list[ThoughtItem]
    examples: list[Example]
    dataset_sha256: str
    data_note: str = ""


def load_inputs(config: Step2Config) -> Step2Inputs:
    """Read all of it, and refuse what cannot be used before anything is written.

    Raises:
        InputError: no model, one without the thinking tokens, a stated accuracy that its record
            contradicts, or no items of a split.
    """
    baked = load_champion(str(find_model(config.baked)))
    Tags.from_tokenizer(baked.tokenizer)
    record = read_baked_record(baked, config.baked_accuracy)
    if config.task == "text":
        documents = read_documents(config.text)
        train, heldout = (
            text_items(
                [document for document in documents if document.heldout is held],
                baked.tokenizer,
                config.text,
            )
            for held in (False, True)
        )
        train, heldout = (with_places(part, config.positions) for part in (train, heldout))
        split = split_probed(heldout, config.probe.items)
        return Step2Inputs(baked, record, train, *split, [], documents_sha256(documents))
    examples = load_data(questions_of(config))
    train, heldout = (
        _items(of_split(examples, name), baked.tokenizer, config.data.max_length)
        for name in ("train", "heldout")
    )
    # Asked with the same length limit, so that items and questions are the same.
    asked = {item.id for item in heldout} | {item.id for item in train}
    kept = [example for example in examples if example.id in asked]
    split = split_probed(heldout, config.probe.items)
    note = data_note(examples)
    return Step2Inputs(baked, record, train, *split, kept, dataset_sha256(kept), note)


def find_model(baked: str) -> Path:
    """The model's directory, where ``baked`` is that or a run's.

    Raises:
        InputError: it is neither.
    """
    path = model_directory(baked)
    if (path / "config.json").is_file():
        return path
    raise InputError(f"{baked!r} holds no model; name a run that has ended, or a model's directory")


def _items(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[ThoughtItem]:
    """Of rows with reasoning the thought that they give; of rows without, the answer alone."""
    told = [example for example in examples if example.reasoning]
    untold = [example for example in examples if not example.reasoning]
    items = question_items(told, tokenizer, length) if told or not untold else []
    return items + (answer_items(untold, tokenizer, length) if untold else [])


def questions_of(config: Step2Config) -> DataConfig:
    """Where the questions are: those that are named, else those of the baked model's run.

    Raises:
        InputError: none are named, and ``config.baked`` is no run.
    """
    if config.data.is_given:
        return config.data
    directory = Path(config.baked).expanduser() / "data"
    if not directory.is_dir():
        raise InputError(
            f"{config.baked} is not the directory of a run, so it has no data; set data.path to "
            "the questions, or name the run of step 1"
        )
    return replace(config.data, path=str(directory))


def split_probed(
    heldout: Sequence[ThoughtItem], most: int
) -> tuple[list[ThoughtItem], list[ThoughtItem]]:
    """Held-out items that may pick weights, and those that are examined at the end.

    About ``most`` are probed, whole documents of them, but no more than half.

    Raises:
        InputError: fewer than four items.
    """
    if len(heldout) < 4:
        raise InputError(
            f"there are {len(heldout)} held-out items; give four at the least, two to probe the "
            "thoughts with and two to examine the model on"
        )
    half = len(heldout) // 2
    sources = [item.source for item in heldout]
    borders = [i for i in range(1, half + 1) if sources[i] != sources[i - 1]]
    # One long document is cut inside.
    wanted = min(most, half)
    cut = min(borders, key=lambda border: abs(border - wanted), default=wanted)
    return list(heldout[:cut]), list(heldout[cut:])


def require_baked(
    model: nn.Module, items: Sequence[ThoughtItem], config: LearnerConfig, tags: Tags
) -> None:
    """Refuse a model that answers too few questions with sampled thoughts.

    Args:
        items: the probed ones.

    Raises:
        InputError: fewer than ``config.probe.min_sampled_accuracy`` of them are answered.
    """
    wanted = config.probe.min_sampled_accuracy
    probe = ThoughtProbe(model, items, tags, config.thought, config.probe.batch_size)
    sampled = float(probe.ask("sampled").hits.float().mean())
    if sampled < wanted:
        raise InputError(
            f"the baked model answers {sampled:.1%} of the probed items with sampled thoughts, "
            f"below probe.min_sampled_accuracy ({wanted:.0%}); bake it further first: from less, "
            "reinforcement learning makes small models worse"
        )
