"""Layouts of data sets as they are on the Hub, made small: the files' class numbers mean nothing without the names."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import SettingError
from data_utils.hub_folder import dev_name, read_hub_folder, split_in_name
from data_utils.import_dataset import main
from data_utils.labelled_texts import ColumnNames, labelled_texts
from data_utils.table_file import RawTable
from data_utils.task_def import load_task_defs

CARD = """---
dataset_info:
- config_name: default
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': 'yes'
          '1': 'no'
- config_name: other
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': never
---
# A card
"""
SPLITS = ("train", "validation", "test")


def put(path: Path, labels: tuple[int, ...] = (1, 0, 1), metadata: dict[str, Any] | None = None) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": [f"{path.stem} {i}" for i in range(len(labels))], "label": list(labels)})
    parquet.write_table(table.replace_schema_metadata(metadata and {"huggingface": json.dumps(metadata)}), path)


def in_data(folder: Path) -> None:
    for split in SPLITS:
        put(folder / f"data/{split}-00000-of-00001.parquet", (-1, -1) if split == "test" else (1, 0, 1))
    (folder / "README.md").write_text(CARD)


def in_a_configuration(folder: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["yes", "no"], "_type": "ClassLabel"}}}}
    for split in SPLITS:
        put(
            folder / f"plain/{split}-00000-of-00001-0123456789abcdef.parquet",
            (-1, -1) if split == "test" else (1, 0, 1),
            names,
        )


def converted(folder: Path) -> None:
    for split in SPLITS:
        put(folder / f"plain/{split}/0000.parquet", (-1, -1) if split == "test" else (1, 0, 1))
    infos = {"plain": {"features": {"label": {"names": ["yes", "no"], "_type": "ClassLabel"}}}}
    (folder / "dataset_infos.json").write_text(json.dumps(infos))


def saved_to_disk(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    for split in SPLITS:
        part = folder / split
        part.mkdir(parents=True)
        labels = [-1, -1] if split == "test" else [1, 0, 1]
        table = pa.table({"text": [f"{split}-00000-of-00001 {i}" for i in range(len(labels))], "label": labels})
        with (
            pa.OSFile(str(part / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
        info = {"features": {"label": {"names": ["yes", "no"], "_type": "ClassLabel"}}}
        (part / "dataset_info.json").write_text(json.dumps(info))
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')


@pytest.mark.parametrize("layout", [in_data, in_a_configuration, converted, saved_to_disk])
def test_a_folder_of_the_hub_is_read_as_it_is(tmp_path: Path, layout: Any, capsys: pytest.CaptureFixture[str]) -> None:
    layout(tmp_path / "set")
    arguments = [str(tmp_path / "set"), "--task", "mine", "--text", "text", "--label", "label", "--out", str(tmp_path)]
    assert main(arguments) == 0, capsys.readouterr().err
    assert load_task_defs(tmp_path / "task_def.yml")["mine"].labels == ("yes", "no"), "the Hub's order"
    train, dev, test = ((tmp_path / f"mine_{split}.tsv").read_text().splitlines() for split in ("train", "dev", "test"))
    assert [row.split("\t")[:2] for row in train] == [["0", "no"], ["1", "yes"], ["2", "no"]]
    assert [row.split("\t")[1] for row in dev] == ["no", "yes", "no"]
    assert [row.split("\t")[1] for row in test] == ["yes", "yes"], "no labels there: MT-DNN's dummy"


def test_shards_come_in_order_and_other_splits_are_passed_over(tmp_path: Path) -> None:
    for name in ("train-00001-of-00002", "train-00000-of-00002", "unsupervised-00000-of-00001"):
        put(tmp_path / f"data/{name}.parquet")
    found = read_hub_folder(tmp_path)
    assert [table.path.name for table in found["train"]] == [f"train-0000{i}-of-00002.parquet" for i in (0, 1)]
    assert list(found) == ["train"]


def test_several_configurations_want_one_to_be_chosen(tmp_path: Path) -> None:
    for name in ("cola", "mnli"):
        put(tmp_path / f"{name}/train-00000-of-00001.parquet")
    put(tmp_path / "mnli/validation_matched-00000-of-00001.parquet")
    with pytest.raises(SettingError, match="holds several data sets: cola, mnli; give one of them as --config"):
        read_hub_folder(tmp_path)
    assert list(read_hub_folder(tmp_path, "mnli")) == ["train", "matched_dev"]
    with pytest.raises(SettingError, match=r"--config 'x': no folder .*; there are cola, mnli"):
        read_hub_folder(tmp_path, "x")


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    with pytest.raises(SettingError, match="no table of a split"):
        read_hub_folder(tmp_path)


def test_a_class_beyond_the_names_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "set/data/train-00000-of-00001.parquet", (0, 1, 2))
    (tmp_path / "set/README.md").write_text(CARD)
    arguments = [str(tmp_path / "set"), "--task", "mine", "--text", "text", "--label", "label", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "row 3: class 2, but label has 2 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (("1", "0", "1.0"), ("yes", "no"), ["no", "yes", "no"]),
        (("no", "yes", "yes"), ("yes", "no"), ["no", "yes", "yes"]),
        (("2", "0", "1"), ("1", "2", "3"), ["3", "1", "2"]),
        (("2", "3", "1"), ("1", "2", "3"), ["2", "3", "1"]),
        (("-1", "0", ""), ("yes", "no"), [None, "yes", None]),
    ],
)
def test_classes_in_a_csv_file_are_numbers_or_names(
    tmp_path: Path, labels: tuple[str, ...], classes: tuple[str, ...], expected: list[str | None]
) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t,{label}\n" for label in labels))
    features = {"label": {"names": list(classes), "_type": "ClassLabel"}}
    (tmp_path / "dataset_infos.json").write_text(json.dumps({"default": {"features": features}}))
    found = labelled_texts(read_hub_folder(tmp_path)["train"], ColumnNames("text", "label"))
    assert found.labels == expected
    assert found.class_names == classes


def test_classes_that_a_missing_one_made_floats_have_their_names(tmp_path: Path) -> None:
    table = RawTable(tmp_path, {"text": ["a", "b", "c"], "label": [1.0, float("nan"), 0.0]}, {"label": ("yes", "no")})
    assert labelled_texts([table], ColumnNames("text", "label")).labels == ["no", None, "yes"]


def test_names_of_splits() -> None:
    assert [dev_name(name) for name in ("train", "validation", "validation_matched", "dev", "other")] == [
        "train", "dev", "matched_dev", "dev", None,
    ]  # fmt: skip
    assert [split_in_name(Path(name)) for name in ("x_train.csv", "Dev.tsv.gz", "my.test.json", "retrained.csv")] == [
        "train", "dev", "test", None,
    ]  # fmt: skip


@pytest.mark.parametrize("config", [None, "b"])
def test_names_of_classes_come_from_no_other_data_set_of_the_folder(tmp_path: Path, config: str | None) -> None:
    root = tmp_path if config else tmp_path / "b"
    put(tmp_path / "b/train-00000-of-00001.parquet")
    other = {"features": {"label": {"names": ["wrong", "names"], "_type": "ClassLabel"}}}
    for place in ("a", "a/train"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "dataset_info.json").write_text(json.dumps(other))
    (tmp_path / "dataset_infos.json").write_text(json.dumps({"a": other}))
    (tmp_path / "README.md").write_text(CARD.replace("default", "a"))
    assert read_hub_folder(root, config)["train"][0].class_names == {}
    (tmp_path / "README.md").write_text(CARD.partition("- config_name: other")[0].replace("default", "a") + "---\n")
    assert read_hub_folder(root, config)["train"][0].class_names == {}
    (tmp_path / "b/dataset_info.json").write_text(json.dumps(other).replace("wrong", "right"))
    assert read_hub_folder(root, config)["train"][0].class_names == {"label": ("right", "names")}
