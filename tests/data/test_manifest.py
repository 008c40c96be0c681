"""Manifests: CSV and JSON-lines files that name images and their targets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from surgery.data import as_dataset, open_data, open_part
from surgery.errors import SurgeryError
from surgery.marks import set_labels
from tests.data.models import model_with_input
from tests.graphs import parse

MODEL = model_with_input("N", 1, 4, 4)


def two_outputs() -> ir.Model:
    return parse(
        "(float[N,1,4,4] x) => (float[N,2] kind, float[N,1] size)",
        "f = Flatten(x) kind = Gemm<transB = 1>(f, w, b) size = Gemm<transB = 1>(f, v, c)",
        {"w": [2, 16], "b": [2], "v": [1, 16], "c": [1]},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("L", (4, 4), number * 10).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def write(folder: Path, text: str, name: str = "data.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def shades(data: object) -> list[int]:
    """Which of the images there are, told by their gray."""
    return [round(float(x[0, 0, 0]) * 255 / 10) for xs, _ in data.batches(2) for x in xs]  # type: ignore[attr-defined]


def test_names_of_classes_are_numbered_by_the_alphabet(folder: Path) -> None:
    path = write(folder, "path,label\nimages/2.png,wasp\nimages/0.png,ant\nimages/1.png,wasp\n")
    data, held = open_data(path, MODEL)
    assert held is None
    assert shades(data) == [2, 0, 1]
    assert data.targets.tolist() == [1, 0, 1]
    assert data.labels == ("ant", "wasp")


def test_the_models_labels_give_the_numbers_where_they_have_the_names(folder: Path) -> None:
    path = write(folder, "file,class\nimages/2.png,wasp\nimages/0.png,ant\n")
    model = model_with_input("N", 1, 4, 4)
    set_labels(model, "out", ["wasp", "bee", "ant"])
    data, _ = open_data(path, model)
    assert data.targets.tolist() == [0, 2]
    assert data.labels == ("wasp", "bee", "ant")


def test_the_column_split_divides_the_rows(folder: Path) -> None:
    rows = ["images/0.png,train,b", "images/1.png,validation,a", "images/2.png,test,a", "images/3.png,train,b"]
    path = write(folder, "\n".join(["path,split,label", *rows]))
    data, held = open_data(path, MODEL)
    assert held is not None
    assert (shades(data), shades(held)) == ([0, 3], [1])
    assert data.targets.tolist() == [1, 1]  # numbered over all rows
    assert open_part(path, MODEL).part == "test"
    bad = write(folder, "path,split,label\nimages/0.png,holdout,1\n")
    with pytest.raises(SurgeryError, match=r"data.csv:2: split is 'holdout'; train, val or test"):
        open_data(bad, MODEL)


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("path,label\nimages/0.png,3\nimages/1.png,0\n", np.array([3, 0])),
        ("path,label\nimages/0.png,0.5\nimages/1.png,2\n", np.array([0.5, 2], np.float32)),
        ("path,x,y\nimages/0.png,0.5,1\nimages/1.png,2,3\n", np.array([[0.5, 1], [2, 3]], np.float32)),
        ("path,age\nimages/0.png,41\nimages/1.png,7\n", np.array([41, 7])),
        ("path,labels\nimages/0.png,a|c\nimages/1.png,b\n", np.array([[1, 0, 1], [0, 1, 0]], np.float32)),
        ("path,labels\nimages/0.png,a\nimages/1.png,\n", np.array([[1], [0]], np.float32)),
        ("path,label\nimages/0.png,01\nimages/1.png,1x\n", np.array([0, 1])),
    ],
    ids=["classes", "number", "several numbers", "any column", "labels", "no label", "text like numbers"],
)
def test_what_a_column_is_a_target_of(folder: Path, text: str, targets: np.ndarray) -> None:
    data, _ = open_data(write(folder, text), MODEL)
    np.testing.assert_array_equal(data.targets, targets)
    assert data.targets.dtype == targets.dtype


def test_json_lines_have_lists(folder: Path) -> None:
    lines = [
        {"image": "images/0.png", "labels": ["cat", "dog"]}, {"image": "images/3.png", "labels": []},
    ]  # fmt: skip
    data, _ = open_data(write(folder, "\n".join(map(json.dumps, lines)), "d.jsonl"), MODEL)
    assert shades(data) == [0, 3]
    assert data.targets.tolist() == [[1, 1], [0, 0]]
    assert data.labels == ("cat", "dog")
    numbers = [{"image": f"images/{i}.png", "box": [i, 0.5]} for i in range(3)]
    data, _ = open_data(write(folder, "\n\n".join(map(json.dumps, numbers)), "n.jsonl"), MODEL)
    assert data.targets.tolist() == [[0, 0.5], [1, 0.5], [2, 0.5]]


def test_several_outputs_have_columns_of_their_names(folder: Path) -> None:
    text = "path\tkind\tsize\tnote\nimages/0.png\tbig\t2.5\tx\nimages/1.png\tsmall\t1\ty\n"
    data, _ = open_data(write(folder, text, "d.tsv"), two_outputs())
    assert isinstance(data.targets, dict)
    assert data.targets["kind"].tolist() == [0, 1]
    assert data.targets["size"].tolist() == [2.5, 1]
    assert data.labels_of("kind") == ("big", "small")
    assert data.labels_of("size") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        ("place,label\nimages/0.png,1\n", "no column is the path of an image; call it path .there are place, label"),
        ("path\nimages/0.png\n", "no column is the target; add one called label"),
        ("path,label\nimages/9.png,1\n", r"data.csv:2: there is no file .*images/9.png"),
        ("path,label\nimages/0.png\n", "data.csv:2: has 1 values, but there are 2 columns"),
        ("path,label\nimages/0.png,1\nimages/0.png,1,2\n", "data.csv:3: has 3 values, but there are 2 columns"),
        ("path,label\nimages/0.png,1\nimages/1.png,\n", "data.csv:3: has no label"),
        ("path,a,b\nimages/0.png,1,x\n", "data.csv:2: b is 'x', not a number"),
        ("path,label\nimages/0.png,nan\n", "data.csv:2: label is nan, not a number"),
        ("path,label\n,1\n", "data.csv:2: has no path"),
        ("path,label,label\nimages/0.png,1,2\n", "several columns called 'label'"),
        ('path,label\n"images/0.png,1\n', "cannot be read"),
        (f"path,label\nimages/0.png,{10**30}\n", "too large for 64 bits"),
    ],
)
def test_manifests_that_lack_something_are_told_by_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        open_data(write(folder, text), MODEL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "images/0.png", "label": 1}\nno json', "d.jsonl:2: is not JSON"),
        ("[1]", "d.jsonl:1: a JSON object is needed"),
        ('{"path": "images/0.png", "label": [1]}\n{"path": "images/0.png", "label": 2}', "a list in some rows"),
        (
            '{"path": "images/0.png", "box": [1]}\n{"path": "images/0.png", "box": [2, 3]}',
            "are not finite numbers",
        ),
        ('{"path": "images/0.png", "box": [null]}', "are not finite numbers"),
        ('{"path": "images/0.png", "label": null}', "d.jsonl:1: has no label"),
        ('{"path": "images/0.png", "label": 1e400}', "label is inf, not a number"),
        ('{"path": 5, "label": 1}', "d.jsonl:1: has no path"),
        ('{"path": "a\\u0000b", "label": 1}', "there is no file"),
        ("[" * 100_000, "d.jsonl:1: is not JSON"),
    ],
)
def test_json_lines_that_are_wrong(folder: Path, text: str, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        open_data(write(folder, text, "d.jsonl"), MODEL)


def test_images_that_do_not_decode_are_left_out_with_their_targets(folder: Path) -> None:
    (folder / "images" / "1.png").write_bytes(b"no picture")
    path = write(folder, "path,label\nimages/0.png,5\nimages/1.png,6\nimages/2.png,7\n")
    with pytest.raises(SurgeryError, match=r"1 image does not decode: .*1\.png"):
        open_data(path, MODEL)
    data, _ = open_data(path, MODEL, skip_bad=True)
    assert data.targets.tolist() == [5, 7]
    assert data.skipped == (str(folder / "images" / "1.png"),)


def test_a_byte_order_mark_is_no_part_of_the_first_name(folder: Path) -> None:
    (folder / "data.csv").write_bytes(b"\xef\xbb\xbfpath,label\r\nimages/0.png,1\r\n")
    assert len(as_dataset(folder / "data.csv", MODEL)[0]) == 1


CELLS = st.text(max_size=5) | st.sampled_from(
    ["images/0.png", "images/1.png", "1", "0.5", "a|b", "", "nan", "1e999", "train", "val"]
)
HEADS = st.sampled_from(["path", "label", "labels", "split", "target", "x", "y", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HEADS, inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.just(["path", "label"]) | st.lists(HEADS, max_size=4),
    st.lists(st.lists(CELLS, max_size=4) | st.tuples(st.just("images/0.png"), CELLS), max_size=3),
)
def test_any_table_is_read_or_refused_in_a_line(folder: Path, heads: list[str], cells: list) -> None:
    with (folder / "f.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows([heads, *cells])
    read_or_refuse(folder / "f.csv")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(HEADS, VALUES, max_size=4)
        | st.fixed_dictionaries({"path": st.just("images/0.png"), "label": VALUES}),
        max_size=3,
    )
)
def test_any_objects_are_read_or_refused_in_a_line(folder: Path, rows: list[dict]) -> None:
    read_or_refuse(write(folder, "\n".join(map(json.dumps, rows)), "f.jsonl"))


def read_or_refuse(path: Path) -> None:
    try:
        data, _ = open_data(path, MODEL)
    except SurgeryError:
        return
    assert len(data) == len(data.targets) > 0
    assert np.isfinite(data.targets).all()


def test_a_split_that_the_first_row_lacks_is_missed(folder: Path) -> None:
    rows = [{"path": "images/0.png", "label": 0}, {"path": "images/1.png", "label": 1, "split": "test"}]
    path = write(folder, "\n".join(map(json.dumps, rows)), "data.jsonl")
    with pytest.raises(SurgeryError, match=r"data.jsonl:1: has no split"):
        open_data(path, MODEL)


def test_blanks_behind_commas_are_no_part_of_names_and_numbers(folder: Path) -> None:
    path = write(folder, 'path, label\nimages/0.png, 1\nimages/1.png, "0"\n')
    data, _ = open_data(path, MODEL)
    assert data.targets.tolist() == [1, 0]
    assert data.targets.dtype == np.int64  # class numbers, not values to predict
