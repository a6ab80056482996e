"""Free text from local files or a saved Hugging Face dataset, split by whole documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.ipc

from distforge.errors import InputError, first_line, require_in


@dataclass(frozen=True)
class TextConfig:
    """Free text to think about.

    path: a text file, a directory of them, or a directory that ``datasets.save_to_disk`` wrote.
    pattern: which files of a directory, as a shell pattern; subdirectories are searched.
    field: the column of a saved dataset that holds the text.
    tokens: of each item, cut from a document one after another.
    heldout_fraction: of the documents, in (0, 1). Whole ones are held out; a single file is cut
        into paragraphs first.
    max_items: most items of each split; 0 takes all.
    """

    path: str = ""
    pattern: str = "*.txt"
    field: str = "text"
    tokens: int = 96
    heldout_fraction: float = 0.1
    max_items: int = 0

    def __post_init__(self) -> None:
        require_in("[2, inf]", tokens=self.tokens)
        require_in("[0, inf]", max_items=self.max_items)
        require_in("(0, 1)", heldout_fraction=self.heldout_fraction)


@dataclass(frozen=True)
class Document:
    """A text, its name, and whether it is held out: a property of its content."""

    name: str
    text: str
    heldout: bool


def documents_sha256(documents: Iterable[Document]) -> str:
    """Of the contents and of how they are split, whatever the documents are called."""
    digest = hashlib.sha256()
    for document in documents:
        content = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()
        digest.update(f"{content} {document.heldout}\n".encode())
    return digest.hexdigest()


def read_documents(config: TextConfig) -> list[Document]:
    """All documents, each content once, by name.

    Raises:
        InputError: nothing there, no document, or a split without any.
    """
    path = Path(config.path).expanduser()
    if not config.path or not path.exists():
        raise InputError(f"text.path is {config.path!r}, which does not exist; name a text")
    seen: set[bytes] = set()
    documents = []
    for name, text in _texts(path, config):
        digest = hashlib.sha256(text.encode()).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            share = int.from_bytes(digest[:4]) / 2**32
            documents.append(Document(name, text, share < config.heldout_fraction))
    held = sum(document.heldout for document in documents)
    if not 0 < held < len(documents):
        raise InputError(
            f"{path} holds {len(documents)} documents, of which heldout_fraction "
            f"{config.heldout_fraction} takes {held}; expected some of each, so give more text"
        )
    return documents


def _texts(path: Path, config: TextConfig) -> Iterator[tuple[str, str]]:
    if path.is_file():
        paragraphs = _read(path).split("\n\n")
        yield from ((f"{path.name}:{number}", text) for number, text in enumerate(paragraphs))
    elif (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _saved_dataset(path, config.field)
    else:
        for file in sorted(p for p in path.rglob(config.pattern) if p.is_file()):
            yield str(file.relative_to(path)), _read(file)


def _read(path: Path) -> str:
    """Bytes that are no UTF-8 are shown as such, not skipped: a text corpus has a few."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _saved_dataset(path: Path, field: str) -> Iterator[tuple[str, str]]:
    """Every row of every split, from the Arrow streams that hold them: documents are split here,
    by content."""
    for file in sorted(path.rglob("*.arrow")):
        name = file.relative_to(path).with_suffix("")
        try:
            with pyarrow.memory_map(str(file)) as source:
                table = pyarrow.ipc.open_stream(source).read_all()
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise InputError(
                f"{file} is no Arrow stream ({first_line(error)}); save the dataset again"
            ) from error
        if field not in table.column_names:
            raise InputError(
                f"{file} has the columns {table.column_names} and no {field!r}; set text.field"
            )
        for number, text in enumerate(table.column(field).to_pylist()):
            yield f"{name}:{number}", str(text)
