"""Queries: which runs they find, and what their columns are."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from records import benchmark, latency, prune

import pruneflow
from pruneflow import query
from pruneflow.config import FinetuneConfig
from pruneflow.errors import ExperimentError, InputError
from pruneflow.resolution import resolve
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level
from pruneflow.tracking.query import IDENTITY
from pruneflow.tracking.run import open_run


def test_the_contract_comes_first_and_parameters_have_their_types(store: str) -> None:
    run_id = prune(seed=3, fraction=0.25, exclude="a,b", train_limit=60)
    frame = query.runs()
    assert tuple(frame.columns[: len(IDENTITY)]) == IDENTITY
    (row,) = frame.to_dict("records")
    assert (row["run_id"], row["model"], row["stage"]) == (run_id, "alexnet", "prune_iterative")
    assert (row["seed"], row["fraction"], row["train_limit"]) == (3, 0.25, 60)
    assert (row["exclude"], row["prune_bias"], row["base_run"]) == ("a,b", True, "b0")
    assert pd.isna(row["coupling"])
    assert row["seconds"] >= 0
    assert str(frame["start_time"].dtype).startswith("datetime64")


def test_runs_of_other_programs_are_left_out(store: str) -> None:
    MlflowClient().create_run("0")
    assert query.runs().empty


def test_levels_are_the_curves_and_exact_with_artifacts(store: str) -> None:
    prune()
    quick, exact = query.levels(), query.levels(artifacts=True)
    assert [*quick.columns][: len(IDENTITY)] == [*IDENTITY]
    assert [*quick.columns][-len(fields(Level)) :] == [f.name for f in fields(Level)]
    assert quick["level"].tolist() == [0, 1, 2]
    assert quick["test_after"].tolist() == [0.912346, 0.85, 0.7]
    assert exact["test_after"].tolist() == [0.912345678, 0.85, 0.7]
    assert quick["finetune_seconds"].tolist() == [1.0, 1.0, 1.0]
    assert quick["channels_left"].isna().all()


def test_finished_failed_killed_and_running_are_told_apart(store: str) -> None:
    prune()
    config = resolve(FinetuneConfig, {"device": "cpu", "precision": "fp32", "threads": 1})
    with (
        pytest.raises(ZeroDivisionError),
        open_run("finetune", config, name="f", tags={}),
    ):
        raise ZeroDivisionError("why")
    with pytest.raises(SystemExit), open_run("finetune", config, name="k", tags={}):
        raise SystemExit(143)
    MlflowClient().create_run("0", tags={"pruneflow.stage": "finetune"})
    frame = query.runs()
    assert sorted(frame["status"]) == ["FAILED", "FINISHED", "KILLED", "RUNNING"]
    failed = frame[frame["status"] == "FAILED"].iloc[0]
    assert failed["failure"] == "ZeroDivisionError: why"


def test_a_resumed_run_names_the_one_it_goes_on_from(store: str) -> None:
    first = prune()
    second = prune(seed=1)
    MlflowClient().set_tag(second, "pruneflow.resumed_from", first)
    told = query.runs().set_index("run_id")["resumed_from"]
    assert pd.isna(told[first])
    assert told[second] == first


def test_a_study_has_its_own_runs_and_those_it_shares(store: str) -> None:
    own, shared = prune(study="a"), prune(study="b")
    prune(study="c")
    MlflowClient().set_tag(shared, "pruneflow.study.a", "a")
    assert set(query.runs(study="a")["run_id"]) == {own, shared}
    assert set(query.levels(study="b")["run_id"]) == {shared}


def test_run_ids_are_found_in_any_experiment_and_experiments_by_name_or_id(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = prune()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    there = prune(seed=1)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert query.runs()["run_id"].tolist() == [here]
    assert query.runs("other")["run_id"].tolist() == [there]
    assert set(query.runs(["0", "other"])["run_id"]) == {here, there}
    assert set(query.levels(run_ids=[here, there])["seed"]) == {0, 1}
    only = query.runs(run_ids=[here, there], filter_string="params.`cfg/seed` = '1'")
    assert only["run_id"].tolist() == [there]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"experiment": "Defalt"}, "did you mean Default?"),
        ({"run_ids": "nowhere"}, "nowhere"),
        ({"filter_string": "seed is 3"}, "seed is 3"),
        ({"experiment": 0}, "write '0'"),
        ({"run_ids": ["a", 1]}, "run_ids=1 is not text"),
    ],
)
def test_what_the_store_does_not_know_is_refused_in_a_line(
    store: str, given: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said.replace("?", r"\?")) as refused:
        query.runs(**given)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_an_empty_store_gives_empty_frames_with_all_columns(store: str) -> None:
    for ask, kind in ((query.levels, Level), (query.layers, Layer), (query.latencies, Latency)):
        frame = ask()
        assert frame.empty
        assert {f.name for f in fields(kind)} <= set(frame.columns)
    assert query.runs().empty


def test_curves_that_cannot_be_read_are_named_and_the_others_read(store: str) -> None:
    torn, whole = prune(), prune(seed=1)
    MlflowClient().set_tag(torn, "pruneflow.curves", '{"level":[0],"test_after":[1,2]}')
    with pytest.warns(UserWarning, match=torn):
        frame = query.levels()
    assert set(frame["run_id"]) == {whole}


@pytest.mark.parametrize(
    "text",
    [
        '{"level":[0.5]}',
        '{"level":[0],"test_after":[[1]]}',
        '{"level":"ab"}',
        '{"level":[0],"params":[1e999]}',
        '{"level":[99999999999999999999]}',
        "[" * 3000,
    ],
)
def test_whatever_another_program_put_in_the_tag_the_others_are_read(store: str, text: str) -> None:
    torn, whole = prune(), prune(seed=1)
    MlflowClient().set_tag(torn, "pruneflow.curves", text)
    with pytest.warns(UserWarning, match=torn):
        frame = query.levels()
    assert set(frame["run_id"]) == {whole}


def test_a_parameter_of_another_kind_is_missing(store: str) -> None:
    run = MlflowClient().create_run("0", tags={"pruneflow.stage": "prune_direct"})
    MlflowClient().log_param(run.info.run_id, "cfg/seed", "1.5")
    MlflowClient().log_param(run.info.run_id, "cfg/fraction", "half")
    assert query.runs()[["seed", "fraction"]].isna().all(axis=None)


def test_deleted_runs_and_experiments_are_not_read(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = prune()
    MlflowClient().delete_run(gone)
    assert query.runs().empty
    with pytest.raises(InputError, match="deleted"):
        query.runs(run_ids=gone)
    MlflowClient().delete_experiment(MlflowClient().create_experiment("old"))
    with pytest.raises(InputError, match="deleted"):
        query.runs("old")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with pytest.raises(InputError, match="unknown experiment '77'"):
        query.runs()


def test_a_study_whose_name_holds_a_quote_is_found(store: str) -> None:
    own = prune(study="it's")
    assert query.runs(study="it's")["run_id"].tolist() == [own]


def test_a_store_in_trouble_is_not_blamed_on_the_filter(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any, **named: Any) -> Any:
        raise MlflowException("no connection")

    monkeypatch.setattr(MlflowClient, "search_runs", gone)
    with pytest.raises(ExperimentError, match="does not answer, it cannot be read: no connection"):
        query.runs(filter_string="attributes.status = 'FINISHED'")


def test_the_oldest_run_comes_first(store: str) -> None:
    oldest = MlflowClient().create_run("0", tags={"pruneflow.stage": "prune_direct"}).info.run_id
    newer = prune()
    assert query.runs()["run_id"].tolist() == [oldest, newer]
    assert query.runs(run_ids=[newer, oldest])["run_id"].tolist() == [oldest, newer]


def test_every_page_is_read(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneflow.tracking.reader.PAGE", 2)
    made = [prune(seed=seed) for seed in range(5)]
    assert query.runs()["run_id"].tolist() == made
    assert query.levels()["run_id"].unique().tolist() == made


def test_layers_are_read_from_their_artifact(store: str) -> None:
    run_id = prune()
    frame = query.layers()
    assert frame["layer"].tolist() == ["conv.weight"] * 3
    assert frame["run_id"].unique().tolist() == [run_id]
    assert frame["sparsity"].tolist() == [0.25] * 3


def test_artifacts_that_are_torn_are_named_and_none_at_all_left_out(store: str) -> None:
    client = MlflowClient()
    torn, foreign, without, whole = (prune(seed=seed) for seed in range(4))
    client.log_text(torn, "level,layer,kind,shape\n0,conv.weight\n", "layers.csv")
    client.log_text(foreign, "place\n1\n", "layers.csv")
    (Path(client.download_artifacts(without, "")) / "layers.csv").unlink()
    with pytest.warns(UserWarning, match="left out") as told:
        frame = query.layers()
    assert set(frame["run_id"]) == {whole}
    assert len(told) == 1
    said = str(told[0].message)
    assert [run_id in said for run_id in (torn, foreign, without)] == [True, True, False]


def test_a_layer_may_be_called_what_pandas_takes_for_missing(store: str) -> None:
    prune(layers=[Layer(0, "null", "NA", "2x2", 4, 1, 0.1 + 0.2)])
    frame = query.layers()
    assert frame[["layer", "kind"]].drop_duplicates().to_numpy().tolist() == [["null", "NA"]]
    assert frame["sparsity"].tolist() == [0.1 + 0.2] * 3


def test_benchmarks_of_a_run_are_found_in_every_experiment(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = prune(seed=4)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "times")
    timed = benchmark(pruned, [latency(0, "dense", 1, 5.0)])
    for frame in (query.latencies(run_ids=pruned), query.latencies()):
        assert frame[["run_id", "pruning_run", "seed"]].to_numpy().tolist() == [[timed, pruned, 4]]


def test_a_benchmark_that_failed_before_its_first_level_has_no_rows(store: str) -> None:
    failed = MlflowClient().create_run("0", tags={"pruneflow.stage": "benchmark_latency"})
    MlflowClient().set_terminated(failed.info.run_id, "FAILED")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert query.latencies().empty


def test_latencies_say_what_was_timed(store: str) -> None:
    pruned = prune(model="resnet18", seed=2)
    timed = benchmark(pruned, [latency(0, "dense", 1, 5.0)])
    for frame in (query.latencies(), query.latencies(run_ids=pruned)):
        (row,) = frame.to_dict("records")
        assert (row["run_id"], row["pruning_run"]) == (timed, pruned)
        assert (row["model"], row["seed"], row["stage"]) == ("resnet18", 2, "benchmark_latency")
        assert (row["p50_ms"], row["run_status"], row["status"]) == (5.0, "FINISHED", "ok")


def test_times_say_what_machine_they_are_of_and_old_ones_what_their_run_says(store: str) -> None:
    pruned = prune()
    benchmark(pruned, [latency(0, "dense", 1, 5.0, machine="one"), latency(0, "dense", 4, 9.0)])
    rows = [latency(0, "dense", 1, 5.0), latency(0, "dense", 1, 2.0, device="cuda")]
    old = benchmark(pruned, rows)
    client = MlflowClient()
    table = pd.read_csv(client.download_artifacts(old, "latency.csv")).drop(columns="machine")
    client.log_text(old, table.to_csv(index=False), "latency.csv")
    client.log_text(old, json.dumps({"cpu": "old", "gpu": "GPU"}), "environment.json")
    assert query.latencies()["machine"].tolist() == ["one", "a processor", "old", "GPU, old"]


def test_query_is_reached_from_the_package() -> None:
    assert pruneflow.query is query
    with pytest.raises(AttributeError, match="qeury"):
        _ = pruneflow.qeury


def test_the_documented_example_runs(store: str, root: Path) -> None:
    for seed in (0, 1):
        prune(seed=seed)
    text = (root / "docs" / "query-and-report.md").read_text("utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, pd.DataFrame] = {}
    exec(example, names)  # of this repository
    assert names["table"]["mean"].tolist() == [0.85, 0.7]
    assert names["table"]["count"].tolist() == [2, 2]
    assert len(names["levels"]) == 6


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLflow's own server on a fresh store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.chdir(tmp_path)
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/s.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    try:
        _wait(lambda: requests.get(f"{uri}/health", timeout=1).ok)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def _wait(ready: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except requests.RequestException:
            pass
        time.sleep(0.3)
    raise TimeoutError("the server did not start")


def test_a_server_is_read_as_a_file_is(server: str) -> None:
    run_id = prune(study="a")
    assert query.runs(study="a")["run_id"].tolist() == [run_id]
    assert query.levels()["test_after"].tolist() == [0.912346, 0.85, 0.7]
    assert query.levels(artifacts=True)["test_after"].tolist() == [0.912345678, 0.85, 0.7]
    assert len(query.layers()) == 3
