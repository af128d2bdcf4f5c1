"""Records have the contract's columns and fit where they are put."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields, replace

import pytest

from pruneflow.tracking import levels, tables
from pruneflow.tracking.levels import METRICS, Layer, Level


def level(number: int) -> Level:
    return Level(
        number, 0.5, 0.123456789, 57_044_810, 1 / 3, 90_000_000, 2 / 3, 228_000_000,
        0.1 / 3, 0.2 / 3, 0.3 / 3, 0.4 / 3, 0.5 / 3, 0.001, 100.0, 10.0,
        0.7 / 3, 2_469_696, 1_234_567, 50_000_000, 70_000_000, 0.8 / 3,
    )  # fmt: skip


def test_levels_csv_has_the_contract_columns() -> None:
    text = tables.to_csv([level(0)], Level)
    assert text.splitlines()[0] == (
        "level,target_sparsity,sparsity,params,params_left,macs,macs_left,size_bytes,test_before,"
        "test_after,train_before,train_after,val_after,score_seconds,finetune_seconds,"
        "evaluate_seconds,"
        "channels_left,conv_params_masked,conv_params_compact,params_compact,macs_compact,"
        "test_compact,budget_target,budget_achieved,energy_joules"
    )


def test_layers_csv_has_the_contract_columns() -> None:
    text = tables.to_csv([Layer(0, "fc.weight", "Linear", "10x512", 5120, 0, 0.0)], Layer)
    assert text == (
        "level,layer,kind,shape,params,zeros,sparsity\n0,fc.weight,Linear,10x512,5120,0,0.0\n"
    )


def test_csv_keeps_every_digit() -> None:
    (row,) = csv.DictReader(io.StringIO(tables.to_csv([level(3)], Level)))
    assert float(row["params_left"]) == 1 / 3
    assert float(row["test_before"]) == 0.1 / 3


def test_every_number_of_a_level_but_its_own_is_a_metric() -> None:
    assert set(METRICS) == {field.name for field in fields(Level)} - {"level"}
    assert len(set(METRICS.values())) == len(METRICS)


def test_curves_hold_the_levels() -> None:
    table = json.loads(levels.curves([level(0), level(1)]))
    assert table["level"] == [0, 1]
    assert table["test_after"] == [0.0666667, 0.0666667]
    assert table["params"] == [57_044_810, 57_044_810]


def test_what_was_not_measured_is_empty_and_in_no_curve() -> None:
    unmeasured = replace(level(0), channels_left=None, test_compact=None)
    (row,) = csv.DictReader(io.StringIO(tables.to_csv([unmeasured], Level)))
    assert row["channels_left"] == row["test_compact"] == ""
    assert "test_compact" not in json.loads(levels.curves([unmeasured]))
    assert "channels left" not in levels.to_markdown([unmeasured])
    assert "| 0.2667 |" in levels.to_markdown([level(0)])


def test_curves_of_the_longest_schedule_fit_into_a_tag() -> None:
    text = levels.curves([level(number) for number in range(100)])
    table = json.loads(text)
    assert len(text) < 8_000
    assert len(table["level"]) == 100
    assert {"sparsity", "params_left", "test_after", "test_before"} <= set(table)


def test_rows_come_back_from_their_csv_as_they_were() -> None:
    rows = [level(0), replace(level(1), channels_left=None, test_compact=None)]
    assert tables.from_csv(tables.to_csv(rows, Level), Level) == rows
    layers = [Layer(0, "null", "NA", "", 1, 0, 0.1 + 0.2)]  # a single number has no shape
    assert tables.from_csv(tables.to_csv(layers, Layer), Layer) == layers


@pytest.mark.parametrize("cut", range(1, 130, 7))
def test_a_table_that_is_torn_is_refused(cut: int) -> None:
    whole = tables.to_csv([level(0)], Level)
    with pytest.raises(ValueError, match="torn"):
        tables.from_csv(whole[:-cut], Level)
