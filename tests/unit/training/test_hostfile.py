"""Lines of a hostfile: what DeepSpeed's launcher takes is read as it does, the rest explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from distforge.training.distributed import init_world, prepare_deepspeed
from distforge.training.hostfile import Hostfile, read_hostfile

RIGHT = (
    "node-1 slots=8\n",
    "# a comment\n\n  node-1\tslots=2  \nuser@10.0.0.2 slots=4 max_slots=8\r\nnode_3.lan slots=1",
    "node-1 slots=1 # the head\n",
)
WRONG = {
    "node-1 slots=eight": ("line 1 is 'node-1 slots=eight': slots is 'eight', which is", "write a"),
    "node-1 slots=": ("line 1 is 'node-1 slots=': slots is ''", "write a host's name and its"),
    "node-1 slots=-2": ("slots is '-2', which is not a whole number", "such as 'node-1 slots=8'"),
    "# head\nnode-1": ("line 2 is 'node-1': it has no slots", "such as 'node-1 slots=8'"),
    "node-1 slots = 8": ("'slots' stands where 'slots=N' should", "such as 'node-1 slots=8'"),
    "node-1:8": ("line 1 is 'node-1:8': it has no slots", "such as 'node-1 slots=8'"),
    "a slots=1\nb slots=1\na slots=2": ("line 3 names a again, as line 1 does", "one line"),
    "# nothing\n\n": ("hosts names no host", "write a line for each, such as"),
    "": ("hosts names no host", "write a line for each, such as"),
}
# The launcher reads something else there than the line says.
MISREAD = {
    "node-1 slots=8x": ("slots is '8x', which is not a whole number", "such as 'node-1 slots=8'"),
    "node-1 slots=0": ("slots is 0, so it would train nothing", "leave it out"),
    "node-[1-4] slots=8": ("'node-[1-4]' is no host's name", "each host's own name on its own"),
    "node-1,node-2 slots=8": ("'node-1,node-2' is no host's name", "each host's own name on its"),
    "\ufeffnode-1 slots=8": ("is no host's name", "each host's own name on its own line"),
    "-l slots=8": ("'-l' is no host's name", "each host's own name on its own line"),
}


def read(text: str, folder: Path) -> Hostfile:
    (folder / "hosts").write_text(text, encoding="utf-8", newline="")
    return read_hostfile(folder / "hosts")


@pytest.mark.parametrize("text", [*RIGHT, *WRONG])
def test_the_launcher_s_own_reader_agrees(text: str, tmp_path: Path) -> None:
    init_world()
    prepare_deepspeed()
    from deepspeed.launcher.runner import fetch_hostfile

    found = read(text, tmp_path)
    if text in WRONG:
        assert found.faults
        with pytest.raises(ValueError, match="Hostfile"):
            fetch_hostfile(str(tmp_path / "hosts"))
    else:
        assert not found.faults
        expected = list(fetch_hostfile(str(tmp_path / "hosts")).items())
        assert [(host.name, host.slots) for host in found.hosts] == expected


@pytest.mark.parametrize("text", [*WRONG, *MISREAD])
def test_every_fault_has_its_line_and_a_remedy(text: str, tmp_path: Path) -> None:
    (fault,) = read(text, tmp_path).faults
    found, remedy = {**WRONG, **MISREAD}[text]
    assert found in fault.found
    assert remedy in fault.remedy


def test_lines_that_are_right_are_read_beside_others(tmp_path: Path) -> None:
    found = read("a slots=1\nb\nc slots=3\nd slots=x\n", tmp_path)
    assert [(host.name, host.line) for host in found.hosts] == [("a", 1), ("c", 3)]
    assert [fault.found[:6] for fault in found.faults] == ["line 2", "line 4"]


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    (fault,) = read_hostfile(tmp_path / "absent").faults
    assert fault.found == f"{tmp_path}/absent is not there"
    (tmp_path / "hosts").write_bytes(b"\xff\xfe\0")
    (fault,) = read_hostfile(tmp_path / "hosts").faults
    assert "is not text in UTF-8" in fault.found
