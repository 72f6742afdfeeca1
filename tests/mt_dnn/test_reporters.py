"""Runs that report to trackers without an account or a network; skipped where requirements-trackers.txt is missing."""

import json
import sqlite3
import struct

import pytest
import torch
from safetensors.torch import load_file

from mt_dnn.reporters import MLflow, ReportedRun
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir


def mlflow_points(folder):
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'pats_finetuning'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert (found.data.params["pats.noise_scale"], found.data.params["epochs"]) == ("0.01", "2")
    histories = (client.get_metric_history(found.info.run_id, name) for name in found.data.metrics)
    return [(point.step, point.key, point.value) for history in histories for point in history]


def trackio_points(folder):
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
        configs = connection.execute("SELECT config FROM configs").fetchall()
    assert all(json.loads(config)["pats.noise_scale"] == 0.01 for (config,) in configs)
    assert len({name for name, *_ in rows}) == 1
    return [(step, name, value) for _, step, metrics in rows for name, value in json.loads(metrics).items()]


def leveldb_records(data):
    """Yield the records of a log in LevelDB's format: blocks of 32 KiB, a file header of 7 bytes in the first."""
    position, whole = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)  # after a checksum
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


def wandb_points(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(folder.rglob("run-*.wandb"))
    assert len({file.stem for file in files}) == 1, "one run, however many sessions"
    points = []
    for data in (record for file in files for record in leveldb_records(file.read_bytes())):
        items = Record.FromString(data).history.item
        values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
        points += [(values["_step"], name, value) for name, value in values.items() if not name.startswith("_")]
    return points


def expected_points(metrics_jsonl):
    points = []
    for line in map(json.loads, metrics_jsonl.read_text().splitlines()):
        named = {f"train/{name}": value for name, value in line.items() if name not in ("step", "epoch")}
        if "evaluation" in line:
            named = {f"dev/toy_dev/{name}": value for name, value in line["evaluation"]["toy_dev"].items()}
        points += [(line["step"], name, value) for name, value in named.items() if value is not None]
    return points


@pytest.mark.parametrize("name", ["mlflow", "trackio", "wandb"])
def test_a_tracker_has_every_point_once_and_the_run_its_weights(tiny_run, tmp_path, monkeypatch, name):
    pytest.importorskip(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    if name == "trackio":
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")

    def fail(progress):
        if progress.step == 7:
            raise RuntimeError("as if the machine had gone")

    settings = {"method": "pats", "pats": {"noise_scale": 1e-2}, "epochs": 2, "save": "last"}
    plain, told = tiny_run(**settings, output_dir=tmp_path / "plain"), tiny_run(**settings, report_to=name)
    run(plain)
    assert run(told, fail).status is Status.FAILED
    assert run(told).status is not Status.FAILED
    found = {"mlflow": mlflow_points, "trackio": trackio_points, "wandb": wandb_points}[name](tmp_path)
    assert sorted(found) == sorted(expected_points(run_dir(told) / "metrics.jsonl"))
    weights = [load_file(run_dir(config) / "checkpoints/last/model.safetensors") for config in (plain, told)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_an_experiment_of_mlflow_may_be_made_by_two_at_a_time(tiny_run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    create, made = mlflow.MlflowClient.create_experiment, []

    def create_behind_another(client, name):
        made.append(create(client, name))
        return create(client, name)

    monkeypatch.setattr(mlflow.MlflowClient, "create_experiment", create_behind_another)
    config = tiny_run()
    reporter = MLflow(ReportedRun(config, RunDirectory(run_dir(config)), 0, None))
    assert [mlflow.MlflowClient().get_run(reporter.known).info.experiment_id] == made
