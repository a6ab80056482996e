"""Files that are whole or not there at all, whichever system call of their writing fails."""

from __future__ import annotations

import errno
import os
import re
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distforge import durable
from distforge.durable import AppendOnly, read_lines

PACKAGE = Path(durable.__file__).parent
LARGEST_FILE = 10_000


class Faults:
    """Counts system calls by name, and fails the one at position ``at``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
        self.calls: list[str] = []
        self.at, self.code = -1, errno.EIO
        for name in names:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, genuine: Callable) -> Callable:
        def call(*args, **kwargs):
            self.calls.append(name)
            if len(self.calls) - 1 == self.at:
                raise OSError(self.code, os.strerror(self.code))
            return genuine(*args, **kwargs)

        return call

    def plan(self, at: int, code: int = errno.EIO) -> None:
        self.calls.clear()
        self.at, self.code = at, code


@contextmanager
def files_may_hold(size: int) -> Iterator[None]:
    """As on a full disk, but real: a write gets so far and fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_block(path: Path) -> None:
    with durable.replacing(path) as partial:
        partial.write_bytes(b"new")


WRITERS = {
    "write_text": lambda path: durable.write_text(path, "new"),
    "replacing": write_block,
}


def test_text_is_utf8_and_its_newlines_are_kept(tmp_path: Path) -> None:
    durable.write_text(tmp_path / "a", "ü\r\n\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xbc\r\n\n"
    durable.write_json(tmp_path / "b", {"a": ["ü", 1]})
    assert (tmp_path / "b").read_bytes() == b'{\n  "a": [\n    "\\u00fc",\n    1\n  ]\n}\n'
    durable.write_json(tmp_path / "b", [1, 2], indent=None)
    assert (tmp_path / "b").read_bytes() == b"[1, 2]\n"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_secret_is_never_readable_for_others(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o644)
    durable.write_text(path, "new", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("leftover", ["file", "link"])
def test_what_a_killed_writer_left_is_replaced(tmp_path: Path, writer: str, leftover: str) -> None:
    path, other = tmp_path / "f", tmp_path / "other"
    other.write_text("not ours")
    if leftover == "link":
        durable.temporary(path).symlink_to(other)
    else:
        durable.temporary(path).write_text("longer than what comes")
    WRITERS[writer](path)
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()
    assert other.read_text() == "not ours"
    assert sorted(os.listdir(tmp_path)) == ["f", "other"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("writer", WRITERS)
def test_any_call_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, code: int
) -> None:
    path = tmp_path / "f"
    faults = Faults(monkeypatch, ("open", "fsync", "replace"))
    WRITERS[writer](path)
    unbroken = list(faults.calls)
    # The file is on the disk before it takes its name, and the name before it returns.
    assert unbroken[-5:] == ["open", "fsync", "replace", "open", "fsync"]
    for at in range(len(unbroken)):
        path.write_bytes(b"old")
        faults.plan(at, code)
        with pytest.raises(OSError, match=re.escape(f"{os.strerror(code)}: '{path}'")) as raised:
            WRITERS[writer](path)
        faults.plan(-1)
        assert raised.value.errno == code
        assert path.read_bytes() == (b"old" if at <= unbroken.index("replace") else b"new")
        assert os.listdir(tmp_path) == ["f"]


def test_a_write_that_gets_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with files_may_hold(LARGEST_FILE), pytest.raises(OSError, match=f"large: '{path}'"):
        durable.write_text(path, "x" * (LARGEST_FILE + 1))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_ends_the_block_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def fail() -> None:
        with durable.replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_files_that_cannot_all_be_written_leave_none(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "report.html"
    with pytest.raises(FileNotFoundError, match=str(absent)):
        durable.write_files({tmp_path / "report.png": b"picture", absent: b"page"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code, raises", [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_without_flushes_of_directories_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, raises: bool
) -> None:
    genuine = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if raises:
        with pytest.raises(OSError, match="error: "):
            durable.write_text(tmp_path / "f", "new")
    else:
        durable.write_text(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "new"


def make_directory(path: Path, content: str) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "file").write_text(content)
    return path


def test_a_directory_keeps_its_old_content_unless_all_of_the_new_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch, ("open", "fsync", "rename"))
    flushed = ["open", "fsync"] * 3  # the file, its folder, the directory
    unbroken = [*flushed, "rename", "rename", "open", "fsync"]
    final = make_directory(tmp_path / "final", "old")
    durable.publish_directory(make_directory(tmp_path / "new", "new"), final, replace=True)
    assert faults.calls[: len(unbroken)] == unbroken
    assert os.listdir(tmp_path) == ["final"]
    for at in range(len(unbroken)):
        root = tmp_path / str(at)
        final = make_directory(root / "final", "old")
        partial = make_directory(root / "partial", "new")
        faults.plan(at)
        with pytest.raises(OSError, match=str(root)):
            durable.publish_directory(partial, final, replace=True)
        faults.plan(-1)
        is_renamed = at > len(flushed) + 1
        assert (final / "sub" / "file").read_text() == ("new" if is_renamed else "old")
        assert partial.exists() != is_renamed


def test_a_directory_takes_no_place_that_is_not_given_to_it(tmp_path: Path) -> None:
    final = make_directory(tmp_path / "final", "old")
    partial = make_directory(tmp_path / "partial", "new")
    with pytest.raises(OSError, match=r"not empty.*final"):
        durable.publish_directory(partial, final)
    assert (final / "sub" / "file").read_text() == "old"
    durable.publish_directory(partial, tmp_path / "free")
    assert (tmp_path / "free" / "sub" / "file").read_text() == "new"


def test_what_a_kill_left_aside_goes_with_the_next(tmp_path: Path) -> None:
    final = make_directory(tmp_path / "final", "old")
    partial = make_directory(tmp_path / "partial", "new")
    os.rename(final, tmp_path / "partial.old")  # killed between the two renamings
    durable.publish_directory(partial, final, replace=True)
    assert os.listdir(tmp_path) == ["final"]
    durable.remove_directory(final)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 4094, 4095, 4096, 4097, 9000])
def test_the_last_line_is_found_from_the_end(tmp_path: Path, size: int) -> None:
    path = tmp_path / "lines"
    with AppendOnly(path) as lines:
        assert lines.last_line() == b""
        lines.write("first")
        lines.write("x" * size)
        assert lines.last_line() == b"x" * size
    with open(path, "ab") as stream:
        stream.write(b"y" * size)
    assert read_lines(path) == [b"first", b"x" * size]
    with AppendOnly(path) as lines:
        assert lines.last_line() == b"x" * size
        lines.write("third")
    assert path.read_bytes() == b"first\n" + b"x" * size + b"\nthird\n"


def test_a_line_is_synced_where_it_is_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch, ("fsync",))
    for synced, flushes in ((True, 3), (False, 0)):  # a new file's name is flushed as well
        faults.plan(-1)
        with AppendOnly(tmp_path / str(synced), synced=synced) as lines:
            lines.write("a")
            lines.write("b")
            assert (tmp_path / str(synced)).read_bytes() == b"a\nb\n"
        assert len(faults.calls) == flushes


@pytest.mark.parametrize("synced", [True, False])
def test_a_line_that_cannot_be_written_is_not_there(tmp_path: Path, synced: bool) -> None:
    path = tmp_path / "lines"
    with AppendOnly(path, synced=synced) as lines:
        lines.write("x" * (LARGEST_FILE - 100))
        whole = path.read_bytes()
        with files_may_hold(LARGEST_FILE), pytest.raises(OSError, match=f"large: '{path}'"):
            lines.write("y" * 200)
        assert path.read_bytes() == whole
        lines.write("z")
    assert path.read_bytes() == whole + b"z\n"


def test_a_line_that_does_not_reach_the_disk_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    faults = Faults(monkeypatch, ("fsync",))
    with AppendOnly(path) as lines:
        lines.write("a")
        faults.plan(0, errno.ENOSPC)
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
            lines.write("b")
        lines.write("c")
    assert path.read_bytes() == b"a\nc\n"


# Files of a directory that is published whole, and whole directories that step aside.
ELSEWHERE = {
    "artifacts.py": ['open(target, "xb"'],
    "bench.py": ['open(log, "w"'],  # what another process prints
    "previous.py": ["os.rename("] * 2,
}


def test_no_file_is_written_in_another_way() -> None:
    pattern = re.compile(
        r'\.write_(?:text|bytes)\(|\bfsync\(|os\.re(?:place|name)\(|\bopen\(.*?"[awx]b?\+?b?"'
    )
    found = {
        path.name: calls
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "durable.py"
        and (calls := pattern.findall(re.sub(r"durable\.write_\w+", "", path.read_text())))
    }
    assert found == {**ELSEWHERE, "files.py": ['open("w"']}, "write files by distforge.durable"


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch) -> None:
    path, done = tmp_path / "weights", []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        fsync(descriptor)
        done.append(os.fstat(descriptor).st_ino)

    def renamed(source: Path, target: Path) -> None:
        done.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    with durable.replacing(path) as partial:
        partial.write_text("whole")
    assert done == [path.stat().st_ino, "renamed", tmp_path.stat().st_ino]
