"""Published numbers: each has its source, and is laid beside the levels that fit it alone."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pandas as pd
import pytest
from frames import Frames
from records import level

from pruneflow.paper import addition
from pruneflow.paper.published import published, section
from pruneflow.workloads import models

RUN = {"model": "cifar_resnet56", "dataset": "cifar10", "preset": "standard"}
LEVELS = [level(0, 1.0, 0.93), level(1, 0.7, 0.925), level(2, 0.46, 0.92)]


@pytest.mark.parametrize("fact", published(), ids=lambda fact: fact["source"][:20])
def test_every_fact_has_a_source_a_recipe_and_numbers_in_range(fact: dict[str, object]) -> None:
    assert re.search(r"https://\S+$", str(fact["source"]))
    assert fact["recipe"]
    assert fact["model"] in models.names()
    assert 0.5 < float(str(fact["accuracy"])) < 1
    assert ("sparsity" in fact) != ("macs_left" in fact)
    assert fact.get("sparsity") == 0 or fact["granularity"] in ("weight", "channel")
    assert ("base" in fact) == (fact.get("sparsity") != 0)


def test_levels_that_fit_are_laid_beside_with_what_differs() -> None:
    runs = Frames()
    runs.prune(LEVELS, granularity="channel", **RUN)
    found = section(runs.evidence())
    assert found is not None
    dense = [s for s in found.statements if "dense" in s.text]
    channels = [s for s in found.statements if "of the MACs" in s.text]
    assert len(dense) == 2
    assert len(channels) == 1
    rows = channels[0].rows
    assert rows["level"].tolist() == [2]
    assert rows["lost"].tolist() == pytest.approx([0.01])
    assert rows["published lost"].tolist() == pytest.approx([-0.0024])
    assert channels[0].outcome == f"{0.92 - 0.9377:+.4f}"
    assert "epochs of the base: not in this report" in channels[0].reason
    assert "trained sparsely" in channels[0].reason
    assert [s.id for s in addition(runs.evidence(), reference=False).sections] == ["published"]


def test_epochs_are_those_of_the_base_and_not_of_the_preset() -> None:
    runs = Frames()
    runs.prune(LEVELS, granularity="channel", base="b7", **RUN)
    evidence = runs.evidence()
    base = {"run_id": "b7", "stage": "finetune", "epochs": 30}
    evidence = replace(evidence, runs=pd.concat([evidence.runs, pd.DataFrame([base])]))
    found = section(evidence)
    assert found is not None
    assert all("epochs of the base: 30," in statement.reason for statement in found.statements)


def test_levels_that_do_not_say_their_macs_are_not_compared_by_them() -> None:
    runs = Frames()
    unknown = [level(n, left, 0.9, macs_left=math.nan) for n, left in enumerate((1.0, 0.46))]
    runs.prune(unknown, granularity="channel", **RUN)
    found = section(runs.evidence())
    assert found is not None
    assert all("dense" in statement.text for statement in found.statements)


@pytest.mark.parametrize(
    "given",
    [
        {"granularity": "weight"},
        {"granularity": "channel", "left": 0.6},
    ],
)
def test_what_is_of_another_kind_or_too_far_away_is_not_compared(given: dict[str, object]) -> None:
    runs, left = Frames(), float(str(given.pop("left", 0.46)))
    runs.prune([level(0, 1.0, 0.93), level(1, left, 0.92)], **given, **RUN)
    found = section(runs.evidence())
    assert found is not None
    assert all("dense" in statement.text for statement in found.statements)


@pytest.mark.parametrize("given", [{"model": "alexnet"}, {"dataset": "digits"}])
def test_nothing_is_said_of_models_and_data_that_no_fact_is_of(given: dict[str, object]) -> None:
    runs = Frames()
    runs.prune(LEVELS, **RUN | given)
    assert section(runs.evidence()) is None
    assert addition(runs.evidence(), reference=False).sections == []
