"""Summaries over seeds: what they say, when they are made anew, and who sees them."""

from __future__ import annotations

import math

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from records import level, prune

from pruneflow import query
from pruneflow.report import summaries
from pruneflow.tracking.levels import METRICS


def _study(name: str = "s", *, seeds: tuple[int, ...] = (0, 1, 2), **given: object) -> list[str]:
    """Runs of a study that differ in seed alone, each with its own test accuracy."""
    ids = []
    for seed in seeds:
        rows = (level(0, 1.0, 0.9 + 0.01 * seed), level(1, 0.5, 0.8 + 0.03 * seed))
        ids.append(prune(rows, seed=seed, base=f"b{seed}", study=name, **given))
    return ids


def _update(study: str = "s") -> list[str]:
    said: list[str] = []
    summaries.update(study, None, said.append)
    return said


def _of_stage() -> list[str]:
    found = MlflowClient().search_runs(["0"], "tags.`pruneflow.stage` = 'summary'")
    return sorted(run.info.run_id for run in found)


def test_a_configuration_is_one_run_with_means_and_intervals_of_every_curve(store: str) -> None:
    ids = _study() + _study(criterion="random", seeds=(0, 1)) + _study(criterion="l2", seeds=(5,))
    assert _update() == ["  summaries over seeds of s: 2 runs, of stage summary"]
    frame = query.summaries()
    assert sorted(frame["criterion"].unique()) == ["l1", "random"]  # one seed is no summary
    test = frame[(frame["criterion"] == "l1") & (frame["quantity"] == "test_after")]
    assert test["level"].tolist() == [0, 1]
    (_, last) = test.to_dict("records")
    assert (last["n"], last["mean"], last["sd"]) == pytest.approx((3, 0.83, 0.03))
    half = 4.302653 * 0.03 / math.sqrt(3)  # Student's t of two degrees of freedom
    assert (last["low"], last["high"]) == pytest.approx((0.83 - half, 0.83 + half), abs=1e-6)
    recorded = level(0, 1.0, 0.9)
    assert set(frame["quantity"]) == {n for n in METRICS if getattr(recorded, n) is not None}
    run = MlflowClient().get_run(last["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy/test_after"] == pytest.approx(0.83)
    assert run.data.metrics["accuracy/test_after_low"] == pytest.approx(0.83 - half, abs=1e-6)
    assert run.data.metrics["accuracy/test_after_n"] == 3
    curve = MlflowClient().get_metric_history(last["run_id"], "by_sparsity/test_after")
    assert {point.step: point.value for point in curve} == pytest.approx({0: 0.91, 500: 0.83})
    assert run.data.params["cfg/seeds"] == "0,1,2"
    assert run.data.params["cfg/criterion"] == "l1"
    assert run.data.tags["pruneflow.runs"].split(",") == ids[:3]
    assert all(run_id in run.data.tags["mlflow.note.content"] for run_id in ids[:3])


def test_what_says_the_same_is_kept_and_what_has_changed_replaced(store: str) -> None:
    _study()
    _study(criterion="random")
    _update()
    before = _of_stage()
    _update()
    assert _of_stage() == before
    _study(criterion="random", seeds=(3,))
    _update()
    after = _of_stage()
    assert len(after) == 2
    assert len({*before} & {*after}) == 1
    assert sorted(query.summaries().groupby("criterion")["n"].max().to_dict().items()) == [
        ("l1", 3),
        ("random", 4),
    ]


def test_runs_that_are_gone_take_their_summary_with_them(store: str) -> None:
    ids = _study()
    _update()
    for run_id in ids[1:]:
        MlflowClient().delete_run(run_id)
    _update()
    assert _of_stage() == []


def test_a_study_touches_no_summary_of_another(store: str) -> None:
    _study("s")
    _study("t", fraction=0.7)
    _update("s")
    before = _of_stage()
    _update("t")
    assert {*before} < {*_of_stage()}
    assert set(query.summaries(study="t")["study"]) == {"t"}


def test_queries_are_of_runs_alone_unless_a_summary_is_named(store: str) -> None:
    ids = _study()
    _update()
    (summary,) = _of_stage()
    assert sorted(query.runs()["run_id"]) == sorted(ids)
    assert sorted(query.runs(study="s")["run_id"]) == sorted(ids)
    assert set(query.levels()["run_id"]) == {*ids}
    assert query.runs(run_ids=[summary])["stage"].tolist() == ["summary"]


def test_an_interrupted_summary_is_replaced_and_none_is_lost(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _study()
    _update()
    (before,) = _of_stage()
    _study(seeds=(3,))
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise MlflowException("API request to http://x failed")

        patch.setattr(MlflowClient, "set_terminated", fail)
        (said,) = _update()
    assert "were not written (API request" in said
    assert "pruneflow report --study s" in said
    assert before in _of_stage()
    _update()
    (after,) = _of_stage()
    assert MlflowClient().get_run(after).info.status == "FINISHED"
    assert query.summaries()["n"].max() == 4
