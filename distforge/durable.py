"""Files that are on the disk whole or not at all, and files of lines that only ever grow.

A file or directory is written under another name, flushed, and given its own name last; so a kill,
a full disk or a power cut leaves what was there before. One process writes a path at a time: the
other name is the same for all, so that what a killed writer left is replaced by the next.

A file of lines can end in half a line, which is what a kill leaves. Nobody was told that it had
been written, so `read_lines` leaves it out and the next `AppendOnly` removes it.

All raise `OSError` with the path in question.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

_BLOCK_BYTES = 4096

logger = logging.getLogger(__name__)


def temporary(path: Path) -> Path:
    """Where a file or directory lies while it is written."""
    return path.with_name(path.name + ".tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the file that is yielded; when the block ends well, it becomes ``path``.

    After an error ``path`` is as it was and the other file is gone. Only where the directory's own
    flush fails, last of all, is ``path`` the new file already.
    """
    partial = temporary(path)
    try:
        with _naming(path):
            partial.unlink(missing_ok=True)
        with _naming(path, only_nameless=True):
            yield partial
        with _naming(path):
            flush(partial)
            os.replace(partial, path)
            flush(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


def write_files(contents: Mapping[Path, bytes], *, mode: int = 0o666) -> None:
    """Write files, each whole or not at all, and none of them unless all fit on the disk.

    ``mode``: permissions, less the process's umask.
    """
    with ExitStack() as stack:
        for path, content in contents.items():
            partial = stack.enter_context(replacing(path))
            with (
                _naming(path),
                open(partial, "xb", opener=functools.partial(os.open, mode=mode)) as stream,
            ):
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())  # a file system may say only now that it is full


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file that is too large to be in memory at once, whole or not at all."""
    with replacing(path) as partial, _naming(path), open(partial, "xb") as stream:
        stream.writelines(pieces)


def write_text(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write ``text`` as UTF-8, whole or not at all; ``mode`` as in `write_files`."""
    # What a locale that is not UTF-8 made of an argument's bytes becomes those bytes again.
    write_files({path: text.encode("utf-8", "surrogateescape")}, mode=mode)


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write ``value`` as JSON and a line feed, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def flush(path: Path) -> None:
    """Return once a file's bytes, or the names in a directory, are on the disk."""
    with _naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems cannot flush a directory, and lose nothing by it.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
                raise
        finally:
            os.close(descriptor)


def publish_directory(
    partial: Path, final: Path, *, replace: bool = False, flushed: Collection[Path] = ()
) -> None:
    """Give a directory that is complete its name, with every file in it on the disk before.

    Args:
        partial: the complete directory, on the file system of ``final``.
        final: absent or empty, or, with ``replace``, the directory whose place it takes. That one
            steps aside, to a name beside ``partial``, and comes back where the renaming fails.
        replace: allow ``final`` to hold something.
        flushed: files that are on the disk already.
    """
    for folder, _, names in os.walk(partial):
        for file in (Path(folder, name) for name in names):
            if file not in flushed and file.is_file():
                flush(file)
        flush(Path(folder))
    aside = partial.with_name(partial.name + ".old")
    with _naming(final):
        if replace and final.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(final, aside)
        try:
            os.rename(partial, final)
        except BaseException:
            if replace and aside.exists():
                os.rename(aside, final)
            raise
        flush(final.parent)
    if replace:
        shutil.rmtree(aside, ignore_errors=True)


def remove_directory(directory: Path) -> None:
    """Remove a directory, renamed first: no half of it may be taken for a whole one."""
    aside = temporary(directory)
    shutil.rmtree(aside, ignore_errors=True)  # what a kill left of an earlier one
    with _naming(directory):
        os.rename(directory, aside)
    shutil.rmtree(aside)


class AppendOnly:
    """A file of lines, open behind its last whole line; half a line at its end is removed.

    A line is in the file whole when `write` returns and not at all when it raises. Use it as a
    context manager, or `close` it; processes that share a file take turns (`locks.exclusive`).

    Args:
        path: made if absent; its directory must exist.
        synced: a line is on the disk when `write` returns. Else the operating system has it: a
            killed process loses nothing, a power cut perhaps the last seconds, and a line costs
            microseconds instead of milliseconds.
    """

    def __init__(self, path: Path, *, synced: bool = True) -> None:
        self._path = path
        self._synced = synced
        self._torn = False
        with _naming(path):
            self._stream = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by close()
            try:
                self._remove_half_line()
            except BaseException:
                self._stream.close()
                raise

    def last_line(self) -> bytes:
        """The last line without its line feed; empty where there is none."""
        end = self._end()
        start = self._line_start(end - 1)
        return os.pread(self._stream.fileno(), max(0, end - 1 - start), start)

    def write(self, line: str) -> None:
        """Append ``line``, which holds no line feed, and a line feed."""
        rest = memoryview(line.encode("utf-8") + b"\n")
        with _naming(self._path):
            if self._torn:
                self._remove_half_line()
                self._torn = False
            end = self._end()
            try:
                while rest:
                    rest = rest[self._stream.write(rest) :]
                if self._synced:
                    os.fsync(self._stream.fileno())
                    if end == 0:
                        flush(self._path.parent)
            except BaseException:
                self._torn = True
                with suppress(OSError):
                    self._stream.truncate(end)
                    self._torn = False
                raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> int:
        return self._stream.seek(0, os.SEEK_END)

    def _line_start(self, end: int) -> int:
        """Where the line begins whose last byte lies before ``end``."""
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            found = os.pread(self._stream.fileno(), end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def _remove_half_line(self) -> None:
        end = self._end()
        start = self._line_start(end)
        if start < end:
            logger.warning("%s ended in half a line (%d bytes), removed", self._path, end - start)
            self._stream.truncate(start)


def read_lines(path: Path) -> list[bytes]:
    """The whole lines of a file, without their line feeds.

    Half a line at its end is left out, with a warning.
    """
    lines = path.read_bytes().split(b"\n")
    half = lines.pop()
    if half:
        logger.warning("%s ends in half a line (%d bytes), left out", path, len(half))
    return lines


@contextmanager
def _naming(path: Path, *, only_nameless: bool = False) -> Iterator[None]:
    """An `OSError` inside says ``path``: a failed write says nothing, a rename the other name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (only_nameless and error.filename is not None):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
