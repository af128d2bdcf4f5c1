"""sweep: what it runs, shares, skips and goes on past."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from mlflow.artifacts import load_text
from mlflow.tracking import MlflowClient

import pruneflow
from pruneflow import query
from pruneflow.errors import ExperimentError, InputError

STUDY = """
settings:
  {train_limit: 60, batch_size: 20, base_epochs: 1, iterations: 1, finetune_epochs: 0,
   threads: 1, precision: fp32, device: cpu, model: resnet18}
axes: {criterion: [l1, random]}
include:
  - {include: "nothing*"}
"""


def test_a_sweep_shares_bases_goes_on_past_failures_and_skips_what_is_finished(
    store: str, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY, "utf-8")

    assert pruneflow.sweep(study=str(path), dry_run=True) is None
    assert query.runs().empty

    with pytest.raises(ExperimentError, match=r"1 of 4 runs .*nothing\*"):
        pruneflow.sweep(study=str(path))
    runs = query.runs(study="tiny")
    by_stage = runs.groupby("stage")["status"].apply(sorted).to_dict()
    assert by_stage == {
        "finetune": ["FINISHED"],
        "prune_iterative": ["FAILED", "FINISHED", "FINISHED"],
        "sweep": ["FAILED"],
    }
    base = runs.loc[runs["stage"] == "finetune", "run_id"].iloc[0]
    pruned = runs[(runs["stage"] == "prune_iterative") & (runs["status"] == "FINISHED")]
    assert set(pruned["base_run"]) == {base}
    assert set(pruned["criterion"]) == {"l1", "random"}

    sweep = runs[runs["stage"] == "sweep"].iloc[0]
    uri = MlflowClient().get_run(sweep["run_id"]).info.artifact_uri
    plan = list(csv.DictReader(io.StringIO(load_text(f"{uri}/plan.csv"))))
    assert [row["state"] for row in plan] == ["finished", "finished", "finished", "failed"]
    assert "nothing*" in plan[-1]["failure"]

    path.write_text(STUDY.replace('- {include: "nothing*"}', "- {}"), "utf-8")
    done = pruneflow.sweep(study=str(path))  # all that is left is finished already
    assert done is not None
    assert len(query.runs()) == len(runs) + 1  # the sweep's own run


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"study": "smoek"}, "did you mean smoke?"),
        ({"data_dir": "nowhere"}, "data_dir='nowhere' is not a folder"),
        ({"study": "paper_small", "data_dir": "."}, "has no folder cifar10"),
        ({"workers": 1000}, "workers=1000 is not valid"),
        ({"dry_run": "perhaps"}, "dry_run='perhaps'"),
    ],
)
def test_bad_input_is_refused_before_a_run_is_made(
    store: str, given: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as refused:
        pruneflow.sweep(**given)
    assert said in str(refused.value)
    assert query.runs().empty
