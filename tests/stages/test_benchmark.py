"""benchmark_latency: what it times, what it records, and what it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

import pruneflow
from pruneflow.errors import InputError
from pruneflow.inference import ENGINES, FORMS, engines, forms, latency
from pruneflow.inference.load import Load
from pruneflow.pruning import cost
from pruneflow.tracking import environment
from pruneflow.workloads import models

SMALL: dict[str, Any] = {
    "model": "resnet18",
    "image_size": 32,
    "train_limit": 60,
    "batch_size": 20,
    "base_epochs": 1,
    "finetune_epochs": 0,
    "threads": 1,
    "precision": "fp32",
}
QUICK: dict[str, Any] = {"device": "cpu", "threads": 1, "rounds": 3, "seconds": 0.2}


@pytest.fixture(scope="module")
def weights(folder: Path) -> pruneflow.FinishedRun:
    """Single weights, 99 %."""
    return pruneflow.prune_direct(target_sparsity=0.99, prune_bias=True, **SMALL)


@pytest.fixture(scope="module")
def channels(folder: Path, weights: Any) -> dict[str, pruneflow.FinishedRun]:
    """Half of the channels, kept in each form; and independently, whose removal changes outputs."""
    how = {"granularity": "channel", "target_sparsity": 0.5} | SMALL
    return {
        "masked": pruneflow.prune_direct(**how),
        "compact": pruneflow.prune_direct(form="compact", **how),
        "independent": pruneflow.prune_direct(coupling="independent", **how),
    }


@pytest.fixture(scope="module")
def timed(weights: Any, channels: dict[str, Any]) -> pruneflow.FinishedRun:
    """All of them benchmarked at once."""
    ids = [weights.run_id, *(done.run_id for done in channels.values())]
    return pruneflow.benchmark_latency(run=ids, batch_sizes=[1, 3], **QUICK)


def of(timed: Any, done: Any) -> pd.DataFrame:
    """The rows of one pruning run."""
    client = MlflowClient()
    for run_id, rows in timed.latencies.groupby("run_id"):
        if client.get_run(str(run_id)).data.tags["pruneflow.pruning_run"] == done.run_id:
            return rows
    raise AssertionError("it was not benchmarked")


def test_names_of_forms_and_engines_are_those_of_the_registries() -> None:
    assert tuple(forms.FORMS) == FORMS
    assert tuple(engines.ENGINES) == ENGINES


def test_each_level_has_the_forms_that_apply(
    timed: Any, weights: Any, channels: dict[str, Any]
) -> None:
    def have(done: Any) -> dict[int, list[str]]:
        rows = of(timed, done)
        return {level: sorted(set(group["form"])) for level, group in rows.groupby("level")}

    assert have(channels["masked"]) == {0: ["dense"], 1: ["compact", "dense", "masked", "sparse"]}
    assert have(channels["compact"]) == {0: ["dense"], 1: ["compact", "dense"]}
    assert have(channels["independent"])[1] == ["compact", "dense", "masked", "sparse"]
    assert {"dense", "masked", "sparse"} <= set(have(weights)[1])


def test_every_form_gives_the_outputs_of_the_masked_one(
    timed: Any, weights: Any, channels: dict[str, Any]
) -> None:
    for done in (weights, channels["masked"]):
        rows = of(timed, done).set_index("form")
        assert rows.loc[["sparse"], "difference"].max() < 1e-5
        assert rows.loc[["dense", "masked"], "difference"].isna().all()
    rows = of(timed, channels["masked"]).set_index("form")
    assert rows.loc[["compact"], "difference"].max() < 1e-5
    assert of(timed, channels["compact"])["difference"].isna().all()  # it is the reference itself
    rows = of(timed, channels["independent"]).set_index("form")
    assert rows.loc[["compact"], "difference"].isna().all()
    assert rows.loc[["sparse"], "difference"].max() < 1e-5


def test_counts_are_of_the_form_as_it_is_stored(
    timed: Any, weights: Any, channels: dict[str, Any]
) -> None:
    for done in (channels["masked"], channels["compact"]):
        rows = of(timed, done).query("level == 1 and batch_size == 1").set_index("form")
        level = done.levels.loc[1]
        assert rows.loc["compact", "params"] == level["params_compact"]
        assert rows.loc["compact", "macs"] == level["macs_compact"]
        assert rows.loc["dense", "params"] == level["params"]
        assert rows.loc["dense", "macs"] == level["macs"]
        assert rows.loc["dense", "params_left"] == level["params_left"]
    rows = of(timed, weights).query("level == 1 and batch_size == 1").set_index("form")
    assert rows.loc["masked", "params"] == rows.loc["dense", "params"]
    assert rows.loc["masked", "weight_bytes"] == rows.loc["dense", "weight_bytes"]


def test_rows_say_how_they_were_measured_and_hang_together(timed: Any) -> None:
    rows = timed.latencies
    assert (rows["status"] == "ok").all()
    assert (rows["machine"] == environment.cpu()).all()
    assert (rows["n"] >= 3).all()
    assert (rows["p50_ms"] <= rows["p95_ms"]).all()
    few, many = rows[rows["n"] < 30], rows[rows["n"] >= 30]
    assert few[["speedup_low", "speedup_high"]].isna().all(axis=None)
    assert (many["speedup_low"] <= many["speedup"]).all()
    assert (many["speedup"] <= many["speedup_high"]).all()
    dense = rows[rows["form"] == "dense"]
    assert (dense["speedup"] == 1).all()
    expected = 1e3 * rows["batch_size"] / rows["p50_ms"]
    assert rows["samples_per_second"].tolist() == pytest.approx(expected.tolist())
    assert (rows["peak_memory_bytes"] > rows["weight_bytes"]).all()
    reached = rows[rows["pruned_share"].notna()]
    assert set(reached["form"]) == set(rows["form"]) - {"dense"}
    assert reached["pruned_share"].between(0, 1).all()
    assert reached["pruned_macs_left"].between(0, 1).all()
    one, three = (dense[dense["batch_size"] == n]["peak_memory_bytes"].mean() for n in (1, 3))
    assert three > one


def test_the_run_has_the_contract(timed: Any, weights: Any, tmp_path: Path) -> None:
    client = MlflowClient()
    run = client.get_run(timed.run_id)
    assert run.data.tags["pruneflow.stage"] == "benchmark_latency"
    assert run.data.tags["pruneflow.pruning_run"] == weights.run_id
    assert run.info.run_name == "latency-direct-l1-weight-resnet18-digits-s0"
    first = of(timed, weights)
    for form, level in (("dense", 0), ("masked", 1), ("sparse", 1)):
        key = f"latency/{form}_b3_p50_ms"
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, key)}
        row = first.query(f"form == '{form}' and level == {level} and batch_size == 3").iloc[0]
        assert history[level] == row["p50_ms"]
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    table = pd.read_csv(folder / "latency.csv")
    contract = (
        "machine,level,form,engine,status,device,threads,batch_size,n,p50_ms,p95_ms,mean_ms,sd_ms,samples_per_second,"
        "peak_memory_bytes,params,macs"
    )
    assert ",".join(table.columns).startswith(contract)
    assert table["p50_ms"].tolist() == first["p50_ms"].tolist()
    for name in ("latency_by_batch_size", "latency_by_params_left"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 10_000
    profile = pd.read_csv(folder / "profile.csv")
    assert set(profile["form"]) == {"dense", "masked", "sparse"} | (set(first["form"]))
    assert (profile.groupby(["level", "form", "batch_size"])["share"].sum() <= 1 + 1e-9).all()
    why = (folder / "why.md").read_text()
    assert why.count("- level") == len(table[table["form"] != "dense"])
    assert why.count("the layers that were pruned took") == why.count("; most time: ") > 0
    config = json.loads((folder / "config.json").read_text())
    assert (config["levels"], config["image_size"]) == ([0, 1], 32)
    assert "times as fast as dense" in run.data.tags["mlflow.note.content"]


def test_a_batch_that_does_not_fit_is_recorded_and_the_rest_goes_on(
    channels: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    done = pruneflow.benchmark_latency(
        run=channels["masked"].run_id, levels="1,1", batch_sizes=f"{10**9},2", **QUICK
    )
    rows = done.latencies.groupby("batch_size")["status"].unique()
    assert rows[10**9].tolist() == ["out of memory"]
    assert rows[2].tolist() == ["ok"]
    failed = done.latencies[done.latencies["status"] != "ok"]
    assert failed["p50_ms"].isna().all()
    assert failed["form"].tolist() == ["dense", "masked", "compact"]
    compact = done.latencies.query("form == 'compact'")
    assert compact["params"].nunique() == 1
    assert (failed["n"] == 0).all()
    assert "does not fit in the memory of cpu" in capsys.readouterr().out
    metrics = MlflowClient().get_run(done.run_id).data.metrics
    assert f"latency/dense_b{10**9}_p50_ms" not in metrics
    assert "latency/compact_b2_p95_ms" in metrics


def test_the_newest_run_is_taken_and_forms_and_levels_can_be_chosen(
    channels: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    done = pruneflow.benchmark_latency(
        model="resnet18", levels=[1], forms="compact", batch_sizes=1, **QUICK
    )
    tags = MlflowClient().get_run(done.run_id).data.tags
    assert tags["pruneflow.pruning_run"] == channels["independent"].run_id
    assert sorted(done.latencies["form"]) == ["compact", "dense"]
    pruneflow.benchmark_latency(
        run=channels["compact"].run_id, levels=1, forms="masked", batch_sizes=1, **QUICK
    )
    assert "level 1 has no masked form: the run kept its levels compact" in capsys.readouterr().out


def test_without_any_run_the_command_that_makes_one_is_named(store: str) -> None:
    refused = r"no finished pruning run of resnet18 .* pruneflow prune_iterative --model resnet18"
    with pytest.raises(InputError, match=refused):
        pruneflow.benchmark_latency(model="resnet18", batch_sizes=1, **QUICK)
    with pytest.raises(InputError, match="no finished pruning run to time"):
        pruneflow.benchmark_latency()
    assert MlflowClient().search_runs(["0"]) == []


def test_a_larger_image_takes_more_arithmetic(channels: dict[str, Any]) -> None:
    done = pruneflow.benchmark_latency(
        run=channels["masked"].run_id,
        levels=1,
        image_size=64,
        forms="dense",
        batch_sizes=1,
        **QUICK,
    )
    torch.manual_seed(0)
    model = models.build("resnet18", 10)
    uses = cost.positions(model, torch.zeros(1, 3, 64, 64))
    assert done.latencies["macs"].tolist() == [cost.macs(model, uses)[0]]


def test_engines_give_the_same_outputs_and_absent_ones_are_skipped_with_a_line(
    channels: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    done = pruneflow.benchmark_latency(
        run=channels["masked"].run_id,
        levels=1,
        batch_sizes="1,2",
        forms="compact",
        engines="onnxruntime,openvino",
        **QUICK,
    )
    said = capsys.readouterr().out
    eager = done.latencies[done.latencies["engine"] == "eager"]
    assert eager["difference"].max() < 1e-5  # nothing has changed the models' mode
    assert (done.latencies["status"] == "ok").all()
    for engine in ("onnxruntime", "openvino"):
        rows = done.latencies[done.latencies["engine"] == engine]
        if engines.missing(engine) is None:
            assert sorted(rows["form"]) == ["compact", "compact", "dense", "dense"]
            assert rows["difference"].max() < 1e-4
            metrics = MlflowClient().get_run(done.run_id).data.metrics
            assert f"latency/compact_{engine}_b2_p50_ms" in metrics
        else:
            assert rows.empty
            assert f"engine {engine} is skipped" in said


def test_beside_other_work_there_are_no_times_and_a_sweep_measures_again(
    channels: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(Load):
        window_seconds = 0.0

        def others(self) -> float:
            return 0.4

    given = QUICK | {"run": channels["compact"].run_id, "levels": 1, "batch_sizes": 1}
    quiet = pruneflow.benchmark_latency(**given)
    monkeypatch.setattr(latency, "Load", Busy)
    busy = pruneflow.benchmark_latency(**given)
    rows = busy.latencies
    assert sorted(rows["form"]) == ["compact", "dense"]
    assert (rows["status"] == "contended").all()
    assert (rows["n"] == 0).all()
    times = ["p50_ms", "p95_ms", "mean_ms", "speedup", "speedup_low", "speedup_high"]
    assert rows[times].isna().all(axis=None)
    assert (rows["macs"] == quiet.latencies["macs"]).all()
    said = capsys.readouterr().out
    assert "contended: other work took 40 % of the processors, and 0 of" in said
    assert "taskset" in said
    one, other = (MlflowClient().get_run(done.run_id).data for done in (quiet, busy))
    assert one.tags["pruneflow.fingerprint"] != other.tags["pruneflow.fingerprint"]
    assert not any(name.startswith("latency/") for name in other.metrics)


def test_a_form_that_computes_something_else_has_no_speed_up(
    channels: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(level: forms.PrunedLevel, run: object, batch: str) -> torch.nn.Module:
        model = copy.deepcopy(level.model)
        with torch.no_grad():
            next(reversed(list(model.parameters()))).add_(1.0)
        return model

    monkeypatch.setitem(forms.FORMS, "sparse", wrong)
    done = pruneflow.benchmark_latency(
        run=channels["masked"].run_id, levels=1, batch_sizes=1, forms="masked,sparse", **QUICK
    )
    rows = done.latencies.set_index("form")
    assert rows["status"].to_dict() == {
        "dense": "ok",
        "masked": "ok",
        "sparse": "outputs differ",
    }
    assert rows.loc["sparse", ["p50_ms", "speedup"]].isna().all()
    assert rows.loc["sparse", "difference"] > 1e-3
    assert "level 1, sparse, batch 1 on cpu, threads 1: its logits differ by" in (
        capsys.readouterr().out
    )


def test_an_encoder_is_timed_at_its_own_length_or_the_given_one(folder: Path) -> None:
    pruned = pruneflow.prune_direct(
        model="bert",
        granularity="channel",
        target_sparsity=0.5,
        train_limit=60,
        base_epochs=1,
        finetune_epochs=0,
        threads=1,
        precision="fp32",
    )
    own = pruneflow.benchmark_latency(run=pruned.run_id, levels=1, batch_sizes=2, **QUICK)
    rows = own.latencies.set_index("form")
    assert set(rows.index) == {"dense", "masked", "compact", "sparse"}
    assert rows["difference"].max() < 1e-5
    assert rows.loc["dense", "macs"] == pruned.levels["macs"][1]
    assert rows.loc["compact", "params"] == pruned.levels["params_compact"][1]
    longer = pruneflow.benchmark_latency(
        run=pruned.run_id, levels=1, batch_sizes=2, forms="dense", sequence_length=64, **QUICK
    )
    assert longer.latencies["macs"].iloc[0] > 2 * rows.loc["dense", "macs"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"run": "nowhere"}, "does not exist"),
        ({"levels": "9"}, "has the levels 0 to 1"),
        ({"sequence_length": 8}, "whose model reads images: pass image_size"),
        ({"threads": 4096}, "this process may use"),
        ({"study": "none"}, "no finished pruning runs"),
        ({"study": "o'neill"}, "has no finished pruning runs"),
        ({"study": "a", "model": "b"}, "give one of them"),
        ({"forms": "dense,fast"}, "unknown form 'fast'"),
        ({"engines": "tensorrt"}, "unknown engine 'tensorrt'"),
        ({"batch_sizes": "0"}, "greater than or equal to 1"),
        ({"rounds": 2}, "greater than or equal to 3"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(
    given: dict[str, Any], said: str, channels: dict[str, Any]
) -> None:
    if not {"run", "study", "model"} & given.keys():
        given = given | {"run": channels["masked"].run_id}
    client = MlflowClient()
    before = len(client.search_runs(["0"]))
    with pytest.raises(InputError, match=said) as refused:
        pruneflow.benchmark_latency(**(QUICK | given))
    assert "\n" not in str(refused.value)
    assert len(client.search_runs(["0"])) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused only where there is no GPU")
def test_a_device_that_is_not_there_is_refused(channels: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="device='cuda' is not available"):
        pruneflow.benchmark_latency(run=channels["masked"].run_id, device="cuda")


def test_a_run_that_has_lost_its_checkpoints_is_refused(folder: Path, weights: Any) -> None:
    lost = pruneflow.prune_direct(target_sparsity=0.3, **SMALL)
    artifacts = Path(MlflowClient().get_run(lost.run_id).info.artifact_uri)
    (artifacts / "checkpoints" / "level_01" / "model.safetensors").unlink()
    before = len(MlflowClient().search_runs(["0"]))
    with pytest.raises(InputError, match="has no checkpoint of level 1") as refused:
        pruneflow.benchmark_latency(run=[weights.run_id, lost.run_id], **QUICK)
    assert "\n" not in str(refused.value)
    assert len(MlflowClient().search_runs(["0"])) == before
