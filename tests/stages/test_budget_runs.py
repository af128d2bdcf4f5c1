"""Budgets through whole runs: what was asked, what the records say, and that it is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from torch import nn

import pruneflow
from pruneflow import query
from pruneflow.errors import InputError
from pruneflow.stages import budgets
from tests.stages.test_resume import same_levels, stop_at

SMALL: dict[str, Any] = {
    "model": "shufflenet_v2_x0_5",
    "image_size": 32,
    "train_limit": 100,
    "batch_size": 50,
    "base_epochs": 1,
    "finetune_epochs": 0,
    "iterations": 2,
    "threads": 1,
    "precision": "fp32",
}
CHANNEL = {"granularity": "channel"}
COMPACT = CHANNEL | {"form": "compact"}
BERT = {"model": "bert", "dataset": "reviews", "image_size": None, "train_limit": 60}
CASES: dict[str, dict[str, Any]] = {
    "weights, params": {"budget": "params:0.1"},
    "weights, macs": {"budget": "macs:0.25", "scope": "layer", "model": "mobilenet_v2"},
    "weights, bytes": {"budget": "bytes:0.2"},
    "channels, macs": CHANNEL | {"budget": "macs:0.25"},
    "channels, bytes": CHANNEL | {"budget": "bytes:0.3"},
    "compact, bytes": COMPACT | {"budget": "bytes:0.25"},
    "BERT, bytes": BERT | {"budget": "bytes:0.3"},
    "BERT, macs": COMPACT | BERT | {"budget": "macs:0.5"},
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] if "BERT" in c else []) for c in CASES],
)
def test_a_budget_is_met_and_recorded(folder: Path, case: str) -> None:
    given = SMALL | CASES[case]
    run = pruneflow.prune_iterative(**given)
    levels, currency = run.levels, given["budget"].partition(":")[0]
    share = float(given["budget"].partition(":")[2])
    assert levels["budget_target"].tolist()[1:] == pytest.approx([share**0.5, share])
    assert levels["budget_achieved"].tolist()[1:] == pytest.approx([share**0.5, share], rel=0.01)
    (recorded,) = {name for name in ("params", "macs") if name == currency} or {"size_bytes"}
    of_form = "_left" if given.get("granularity") != "channel" else "_compact"
    if recorded == "size_bytes":
        cost = levels["size_bytes"] / levels["size_bytes"][0]
    elif of_form == "_left":
        cost = levels[f"{recorded}_left"]
    else:
        cost = levels[f"{recorded}_compact"] / levels[recorded]
    assert cost.tolist()[1:] == pytest.approx([share**0.5, share], rel=0.01)
    # a search of MLflow alone has them too
    found = query.levels(run_ids=run.run_id)["budget_achieved"].tolist()[1:]
    assert found == pytest.approx(levels["budget_achieved"].tolist()[1:], rel=1e-5)


def test_one_level_goes_straight_to_the_budget(folder: Path) -> None:
    given = {k: v for k, v in SMALL.items() if k != "iterations"} | CHANNEL
    levels = pruneflow.prune_direct(**given, budget="macs:0.25").levels
    assert levels["level"].tolist() == [0, 1]
    assert levels["budget_achieved"][1] == pytest.approx(0.25, rel=0.01)
    with pytest.raises(InputError, match="iterations=2 has no effect on prune_direct with budget"):
        pruneflow.prune_direct(**given, budget="macs:0.25", iterations=2)


def test_a_timed_budget_searches_the_compact_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_size(_: object, dense: nn.Module, compact: nn.Module) -> float:
        """What a clock would say of models whose time is in their parameters."""
        sizes = [sum(p.numel() for p in model.parameters()) for model in (compact, dense)]
        return 0.2 + 0.8 * sizes[0] / sizes[1]

    monkeypatch.setattr(budgets, "time_share", by_size)
    levels = pruneflow.prune_iterative(**SMALL, **COMPACT, budget="latency:0.5").levels
    compact = levels["params_compact"] / levels["params"]
    assert (0.2 + 0.8 * compact).tolist()[1:] == pytest.approx([0.5**0.5, 0.5], rel=0.01)
    assert levels["budget_achieved"].tolist()[1:] == (0.2 + 0.8 * compact).tolist()[1:]
    with pytest.raises(InputError, match=r"budget=latency:0\.1 cannot be met: .* 0\.2\d* of the"):
        pruneflow.prune_iterative(**SMALL, **COMPACT, budget="latency:0.1")


def test_a_level_that_cannot_meet_its_budget_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = SMALL | BERT | CHANNEL | {"targets": "heads", "iterations": 1}  # 16 of them
    levels = pruneflow.prune_iterative(**heads, budget="macs:0.969").levels
    assert levels["channels_left"][1] in (15 / 16, 14 / 16)
    said = " ".join(capsys.readouterr().out.split())
    left = f"left {levels['budget_achieved'][1]:.4f}: whole units only"
    assert f"asked to leave 0.9690 of the multiplications of a sample, {left}" in said


def test_a_run_that_goes_on_meets_its_budget_by_the_same_masks(folder: Path) -> None:
    given = SMALL | COMPACT | {"budget": "bytes:0.3", "finetune_epochs": 1, "seed": 1}
    whole = pruneflow.prune_iterative(**given, resume="never")
    MlflowClient().delete_run(whole.run_id)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, "recorded")
        with pytest.raises(KeyboardInterrupt):
            pruneflow.prune_iterative(**given)
    same_levels(pruneflow.prune_iterative(**given).levels, whole.levels)
