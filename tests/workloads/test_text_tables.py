"""Tables: what a CSV or Parquet file holds, exactly, or one line on the row that is wrong."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruneflow.errors import InputError
from pruneflow.workloads.tables import Table, class_names, read

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=12)
ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def written(folder: Path, rows: Sequence[Sequence[str]]) -> Path:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    (folder / "train.csv").write_bytes(out.getvalue().encode())
    return folder


def table(folder: Path) -> Table:
    ((only,),) = read(folder)[0].values()
    return only


@settings(ONE_FOLDER, max_examples=25)
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6))
def test_a_csv_is_read_as_it_was_written(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    made = table(written(tmp_path, [("text", "label"), *(("t" + x, "l" + y) for x, y in rows)]))
    assert [*made.columns["text"]] == ["t" + text for text, _ in rows]
    assert [*made.columns["label"]] == ["l" + label for _, label in rows]


@ONE_FOLDER
@given(count=st.integers(1, 9), odd=st.integers(0, 8), fields=st.sampled_from([1, 2, 4, 5]))
def test_a_row_of_another_number_of_fields_is_refused_by_its_number(
    tmp_path: Path, count: int, odd: int, fields: int
) -> None:
    odd %= count
    rows = [["a", "b", "c"] for _ in range(count)]
    rows[odd] = ["x"] * fields
    with pytest.raises(InputError) as refused:
        read(written(tmp_path, [["text", "label", "id"], *rows]))
    assert f"row {odd} (of {count}, from 0; line {odd + 2}) has {fields} field" in str(
        refused.value
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot be read: No columns"),
        (b"\n\n", "cannot be read: No columns"),
        ("text,label\nschön,1\n".encode("latin-1"), "cannot be read: 'utf-8' codec"),
        ("text,label\na,1\n".encode("utf-16"), "cannot be read: 'utf-8' codec"),
        (b'text,label\na,1\n"never closed,1\nb,0\n', "starts at line 3 cannot be read"),
        (b'text,label\n"closed" early,1\n', "starts at line 2 cannot be read"),
        (b"text,label,Text\na,1,b\n", "two columns of one name: text"),
        (b"text,label\na,1\ntext,label\nb,0\n", "row 1 .*line 3. is the header again"),
        (b"text,label\na film,0,\nb film,1,\n", "row 0 .*line 2. has 3 fields, the header has 2"),
    ],
)
def test_a_csv_that_is_not_what_it_says_is_refused(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"train\.csv.*{problem}"):
        read(tmp_path)


def test_marks_blank_lines_long_texts_and_columns_without_a_name_do_no_harm(tmp_path: Path) -> None:
    text = "x" * 200_000
    content = f'\ufeff, text ,label\r\n\r\n0,"{text}",a\r\n1,"two\nlines",b\r\n'
    (tmp_path / "train.csv").write_bytes(content.encode())
    made = table(tmp_path)
    assert [*made.columns] == ["#0", "text", "label"]
    assert made.texts("text") == [text, "two\nlines"]
    assert made.lines == [3, 4]


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 2],
        [0.0, 1.0, 2.0],
        [True, False, True],
        pd.Categorical(["b", "a", "b"]),
        ["x", "1", "01x"],
        [0.25, 0.5, 1.0],
    ],
)
def test_a_label_is_the_same_text_in_parquet_and_in_csv(tmp_path: Path, values: object) -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": values})
    for kind in ("csv", "parquet"):
        (tmp_path / kind).mkdir()
    frame.to_csv(tmp_path / "csv" / "train.csv", index=False)
    frame.to_parquet(tmp_path / "parquet" / "train.parquet")
    one, other = (
        table(tmp_path / "csv").labels("label"),
        table(tmp_path / "parquet").labels("label"),
    )
    names = class_names([*one, *other])
    assert [names[label] for label in one] == [names[label] for label in other]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "1.0", "1", "01"], ["1", "9", "10"]),
        (["-1", "+1", "0"], ["-1", "0", "1"]),
        (["0.25", "1", "0.5"], ["0.25", "0.5", "1.0"]),
        (["b", "2", "a", "10"], ["2", "10", "a", "b"]),
        (["12345678901234567890", "12345678901234567891"], None),
        (["nan", "inf", "1e3", "1_0", "\u0661"], None),
        (["9" * 5_000, "1"], ["1", "9" * 5_000]),
    ],
)
def test_classes_are_in_the_order_of_their_numbers_then_of_their_words(
    labels: list[str], classes: list[str] | None
) -> None:
    names = class_names(labels)
    assert list(dict.fromkeys(names.values())) == (classes or sorted(labels))
    assert set(names) == set(labels)


def test_other_kinds_of_tables_are_told(tmp_path: Path) -> None:
    for name in ("a.tsv", "b.jsonl", "c.csv.gz"):
        (tmp_path / name).write_text("x")
    with pytest.raises(
        InputError, match=r"neither CSV nor Parquet files: left out: 3 files \(\.gz"
    ):
        read(tmp_path)
    written(tmp_path, [("text", "label"), ("a", "b")])
    assert read(tmp_path)[1] == ["left out: 3 files (.gz, .jsonl, .tsv)"]
