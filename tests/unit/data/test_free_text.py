"""Documents from files and saved datasets."""

import pyarrow as pa
import pytest

from distforge.data.free_text import TextConfig, read_documents
from distforge.errors import InputError


def write_arrow(path, texts, field="text"):
    table = pa.table({field: texts})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def test_a_directory_is_read_by_pattern_and_each_content_once(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"text {number % 30}")
    (tmp_path / "other.md").write_text("not asked for")
    documents = read_documents(TextConfig(str(tmp_path), heldout_fraction=0.3))
    assert sorted(d.text for d in documents) == sorted(f"text {n}" for n in range(30))
    held = {d.text for d in documents if d.heldout}
    assert 2 <= len(held) <= 18
    # The split is a property of the content, not of the directory.
    for path in tmp_path.glob("1*.txt"):
        path.unlink()
    again = read_documents(TextConfig(str(tmp_path), heldout_fraction=0.3))
    assert {d.text for d in again if d.heldout} == held & {d.text for d in again}


def test_a_file_is_cut_into_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"paragraph {n}" for n in range(40)))
    documents = read_documents(TextConfig(str(tmp_path / "a.txt"), heldout_fraction=0.3))
    assert {d.text for d in documents} == {f"paragraph {n}" for n in range(40)}


def test_a_saved_dataset_is_read_whole(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    write_arrow(tmp_path / "data-00000-of-00002.arrow", [f"row {n}" for n in range(20)])
    write_arrow(tmp_path / "data-00001-of-00002.arrow", [f"row {n}" for n in range(20, 40)])
    documents = read_documents(TextConfig(str(tmp_path), heldout_fraction=0.3))
    assert {d.text for d in documents} == {f"row {n}" for n in range(40)}
    with pytest.raises(InputError, match=r"no 'content'; set text\.field"):
        read_documents(TextConfig(str(tmp_path), field="content"))
    (tmp_path / "data-00002.arrow").write_bytes(b"damaged")
    with pytest.raises(InputError, match="is no Arrow stream"):
        read_documents(TextConfig(str(tmp_path)))


def test_what_cannot_be_split_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_documents(TextConfig(str(tmp_path / "nothing")))
    (tmp_path / "a.txt").write_text("one document")
    with pytest.raises(InputError, match="expected some of each"):
        read_documents(TextConfig(str(tmp_path)))


@pytest.mark.parametrize("bad", [{"tokens": 1}, {"max_items": -1}, {"heldout_fraction": 1.0}])
def test_values_out_of_range(bad):
    with pytest.raises(InputError):
        TextConfig("x", **bad)
