"""Evidence: configurations, statistics over seeds, and pairs."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from frames import Frames
from records import LEVELS, level, prune
from scipy import stats

from pruneflow.report import evidence
from pruneflow.report.evidence import paired, summary


def test_runs_that_differ_in_seed_alone_are_one_configuration(store: str) -> None:
    for seed in (0, 1, 2):
        prune(seed=seed)
    prune(seed=0, criterion="random")
    prune(seed=0, fraction=0)
    prune(seed=0, stage="prune_direct")
    found = evidence.read("all").configurations
    assert found["n"].tolist() == [3, 1, 1, 1]
    assert found["procedure"].tolist() == ["iterative", "iterative", "dense", "direct"]
    assert found["label"].is_unique
    assert "random" in found["label"].iloc[1]


def test_runs_of_before_there_was_a_parameter_count_as_its_default() -> None:
    runs = Frames()
    for seed in (0, 1):
        runs.prune(seed=seed)
    runs.prune(schedule="cubic")
    for name in ("schedule", "max_layer_sparsity"):
        runs.rows["runs"][1][name] = None
    found = runs.evidence()
    assert found.configurations["n"].tolist() == [2, 1]
    assert found.configurations["schedule"].tolist() == ["geometric", "cubic"]
    labels = found.configurations["label"].tolist()
    assert [label.endswith("schedule cubic") for label in labels] == [False, True]
    assert set(found.levels["schedule"]) == {"geometric", "cubic"}


def test_a_summary_is_the_mean_the_sample_sd_and_students_interval() -> None:
    frame = pd.DataFrame({"level": [0, 0, 0, 1], "x": [1.0, 2.0, 4.0, 5.0]})
    first, second = summary(frame, ["level"], "x").to_dict("records")
    assert first["mean"] == pytest.approx(7 / 3)
    assert first["sd"] == pytest.approx(math.sqrt(7 / 3))
    expected = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (first["low"], first["high"]) == pytest.approx(expected)
    assert (second["mean"], second["n"]) == (5.0, 1)
    assert math.isnan(second["sd"])
    assert math.isnan(second["low"])


def test_pairs_are_of_one_base_at_one_place() -> None:
    seeds = {"seed": [0, 1, 2], "level": [1, 1, 1]}
    one = pd.DataFrame({"base_run": ["a", "b", "c"], "x": [0.9, 0.8, 0.1]} | seeds)
    other = pd.DataFrame({"base_run": ["a", "b", "d"], "x": [0.7, 0.7, 0.0]} | seeds)
    (row,) = paired(one, other, "level", "x").to_dict("records")
    assert row["mean"] == pytest.approx(0.15)
    assert (row["first"], row["second"]) == pytest.approx(
        (0.85, 0.7)
    )  # those of c and d are no pair
    assert row["n"] == 2


@pytest.mark.parametrize("off", [-1e-9, 1e-9, 4e-6])
def test_pairs_meet_though_their_sparsity_is_not_the_same_to_the_last_digit(off: float) -> None:
    one = pd.DataFrame({"base_run": ["a"], "seed": 0, "target_sparsity": [0.9375], "x": [0.9]})
    other = one.assign(target_sparsity=0.9375 + off, x=0.7)
    (row,) = paired(one, other, "target_sparsity", "x").to_dict("records")
    assert row["mean"] == pytest.approx(0.2)
    assert paired(one, other.assign(target_sparsity=0.94), "target_sparsity", "x").empty


def test_a_seed_that_was_run_again_is_one_sample() -> None:
    runs = Frames()
    runs.prune([level(0, 1.0, 0.5)])
    again = runs.prune([level(0, 1.0, 0.6)])
    runs.prune([level(0, 1.0, 0.8)], seed=1)
    runs.prune([level(0, 1.0, 0.1)], seed=2, status="FAILED")
    found = runs.evidence()
    (row,) = summary(found.levels, ["configuration"], "test_after").to_dict("records")
    assert (row["n"], row["mean"]) == (2, pytest.approx(0.7))
    assert again in set(found.levels["run_id"])
    assert found.configurations["n"].tolist() == [2]


def test_a_control_is_of_the_same_base_and_trained_as_long() -> None:
    runs = Frames()
    runs.prune(finetune_epochs=1)
    same = runs.prune(fraction=0, finetune_epochs=1)
    runs.prune(fraction=0, finetune_epochs=9)
    runs.prune(fraction=0, finetune_epochs=1, base="b1")
    found = runs.evidence()
    control = found.control_of(found.of(procedure="iterative"))
    assert set(control["run_id"]) == {same}
    assert len(control) == len(LEVELS)
    assert found.control_of(found.of(procedure="direct")).empty


def test_iterative_runs_are_like_those_that_choose_alike() -> None:
    runs = Frames()
    tied = runs.prune(granularity="channel")
    runs.prune(granularity="channel", coupling="independent")
    runs.prune(scope="layer")
    runs.prune(granularity="channel", schedule="linear")
    runs.prune(granularity="channel", stage="prune_direct")
    found = runs.evidence()
    assert set(found.iterative_like(found.of(procedure="direct"))["run_id"]) == {tied}


def test_models_of_one_short_name_have_labels_of_their_own() -> None:
    runs = Frames()
    for model in ("hf:x/tiny", "hf:y/tiny"):
        runs.prune(model=model, dataset="reviews")
    runs.prune(fraction=0)
    runs.prune(fraction=0, stage="prune_direct")
    assert runs.evidence().configurations["label"].is_unique


def test_only_finished_runs_are_evidence_and_all_are_listed(store: str) -> None:
    prune()
    with pytest.raises(ZeroDivisionError):
        prune([level(0, 1.0, 0.9), Stop()])  # type: ignore[list-item]
    found = evidence.read("all")
    assert sorted(found.runs["status"]) == ["FAILED", "FINISHED"]
    assert found.levels["level"].tolist() == [one.level for one in LEVELS]


class Stop:
    """A level at which a run breaks off."""

    @property
    def level(self) -> int:
        raise ZeroDivisionError
