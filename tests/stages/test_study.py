"""Studies: what a file is laid out as, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pruneflow.config import PruneConfig
from pruneflow.errors import InputError
from pruneflow.stages import study


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def laid_out(folder: Path, content: dict[str, Any]) -> list[study.Job]:
    """The jobs of a study's pruning runs."""
    jobs = study.jobs(study.read(write(folder, yaml.safe_dump(content))))
    return [job for job in jobs if isinstance(job.config, PruneConfig)]


def test_axes_are_every_combination_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = laid_out(tmp_path, {"axes": {"criterion": ["random", "l1"], "seed": [1, 0]}})
    told = [(one.config.criterion, one.config.seed) for one in found]  # type: ignore[attr-defined]
    assert told == [("random", 1), ("random", 0), ("l1", 1), ("l1", 0)]


def test_exclude_takes_out_what_matches_and_include_adds_with_lists_as_axes(tmp_path: Path) -> None:
    found = laid_out(
        tmp_path,
        {
            "settings": {"iterations": 2},
            "axes": {"criterion": ["l1", "random"], "seed": [0, 1]},
            "exclude": [{"criterion": "random", "seed": [1, 2]}],
            "include": [{"stage": "prune_direct", "seed": [0, 3]}],
        },
    )
    assert [(one.stage, one.given.get("criterion"), one.config.seed) for one in found] == [
        ("prune_iterative", "l1", 0),
        ("prune_iterative", "l1", 1),
        ("prune_iterative", "random", 0),
        ("prune_direct", None, 0),
        ("prune_direct", None, 3),
    ]
    assert all(one.given["iterations"] == 2 for one in found)


def test_one_configuration_said_twice_is_run_once(tmp_path: Path) -> None:
    found = laid_out(tmp_path, {"include": [{"seed": 0}, {"criterion": "l1"}, {}]})
    assert len(found) == 1


def test_configurations_that_differ_in_pruning_alone_share_a_base(tmp_path: Path) -> None:
    found = laid_out(tmp_path, {"axes": {"criterion": ["l1", "random"], "seed": [0, 1]}})
    bases = [one.needs for one in found]
    assert bases[0] is bases[2] is not bases[1]
    assert [base.stage for base in bases if base] == ["finetune"] * 4


def test_benchmarks_time_the_pruning_runs_that_match(tmp_path: Path) -> None:
    content = {
        "axes": {"seed": [0, 1]},
        "include": [{"stage": "finetune"}],
        "benchmarks": [{"of": {"seed": 1}, "batch_sizes": "1,4"}],
    }
    jobs = study.jobs(study.read(write(tmp_path, yaml.safe_dump(content))))
    (timed,) = [job for job in jobs if job.stage == "benchmark_latency"]
    assert timed.needs is not None
    assert (timed.needs.config.seed, timed.given) == (1, {"batch_sizes": "1,4"})


@pytest.mark.parametrize(
    ("of", "fractions"),
    [
        ({"fraction": 0}, [0.0]),
        ({"fraction": [0, 0.5]}, [0.0, 0.5]),
        ({"include": "features*,classifier*"}, [0.0, 0.5]),
    ],
)
def test_patterns_match_numbers_and_lists_however_they_are_written(
    tmp_path: Path, of: dict[str, Any], fractions: list[float]
) -> None:
    content = {
        "settings": {"include": "features*,classifier*"},
        "axes": {"fraction": [0, 0.5]},
        "benchmarks": [{"of": of}],
    }
    jobs = study.jobs(study.read(write(tmp_path, yaml.safe_dump(content))))
    chosen = [job.needs for job in jobs if job.stage == "benchmark_latency"]
    assert [job.config.fraction for job in chosen] == fractions  # type: ignore[union-attr]


def test_what_one_stage_alone_refuses_is_refused_before_anything_runs() -> None:
    axes = {"stage": ["prune_iterative", "prune_direct"], "schedule": ["geometric", "cubic"]}
    with pytest.raises(InputError, match=r"stage=prune_direct .*: schedule=.* has no effect on"):
        study.jobs(study.Study(name="x", axes=axes))


def test_what_goes_by_sensitivity_comes_after_that_run_of_its_base_and_units(
    tmp_path: Path,
) -> None:
    content = {
        "axes": {"scope": ["sensitivity", "layer"], "criterion": ["l1", "l2"], "seed": [0, 1]},
        "include": [
            {"stage": "sensitivity", "criterion": "l2", "seed": [0, 1], "fractions": "0.2,0.6"},
            {"scope": "sensitivity", "criterion": "l2", "sensitivity_run": "0123"},
        ],
    }
    jobs = study.jobs(study.read(write(tmp_path, yaml.safe_dump(content))))
    measured = [job for job in jobs if job.stage == "sensitivity"]
    assert [job.name for job in measured] == [
        f"sensitivity-l2-weight-alexnet-digits-s{seed}" for seed in (0, 1)
    ]
    by_needs = {
        job: (job.config.scope, job.config.criterion, job.config.seed)
        for job in jobs
        if isinstance(job.config, PruneConfig) and job.needs in measured
    }
    assert list(by_needs.values()) == [("sensitivity", "l2", seed) for seed in (0, 1)]
    assert [job.needs for job in by_needs] == measured
    assert [base.needs.stage for base in measured if base.needs] == ["finetune"] * 2
    for job in jobs:
        assert job.needs is None or jobs.index(job.needs) < jobs.index(job)


@pytest.mark.parametrize("name", study.shipped())
def test_shipped_studies_resolve(name: str) -> None:
    read = study.read(name)
    jobs = study.jobs(read)
    assert any(isinstance(job.config, PruneConfig) for job in jobs)
    assert any(job.stage == "benchmark_latency" for job in jobs)
    assert read.description


def test_the_papers_study_has_its_models_criteria_and_fractions() -> None:
    found = study.jobs(study.read("paper"))
    pruned = [one.config for one in found if isinstance(one.config, PruneConfig)]
    assert {c.model for c in pruned} == {"alexnet", "vgg16", "resnet18", "resnet50", "bert"}
    assert {c.criterion for c in pruned} == {"l1", "l2", "random"}
    assert {c.fraction for c in pruned if c.model == "bert"} == {0.5, 0.2929, 0.1591}
    assert any(one.stage == "prune_direct" for one in found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("axes: {criterion: [l3]}", "unknown criterion 'l3'"),
        ("axes: {sede: [1]}", "unknown parameter 'sede'"),
        ("axes: {stage: [report]}", "unknown stage 'report'"),
        ("axes: {fraction: [2]}", "fraction=2"),
        ("axes: {seed: []}", "axes.seed"),
        ("axis: {seed: [1]}", "axis"),
        ("axes: {seed: [1]}\nexclude: [{seed: 2}]", "matches none"),
        ("description: nothing", "no configurations"),
        ("name: other\naxes: {seed: [1]}", "leave out name"),
        ("axes: {seed: [1]}\nbenchmarks: [{run: abc}]", "run is not valid here"),
        ("axes: {seed: [1]}\nbenchmarks: [{study: x}]", "study is not valid here"),
        ("axes: {seed: [1]}\nbenchmarks: [{batch_sizes: [1, 16]}]", "batch_sizes: '1,16'"),
        ("axes: {seed: [1]}\nbenchmarks: [{of: {seed: 2}}]", "matches no pruning run"),
        ("axes: {seed: [1]}\nbenchmarks: [{forms: dens}]", "unknown form 'dens'"),
        ("[1, 2]", "a mapping"),
        ("a: [", "is not YAML"),
        ("settings: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("axes: {seed: [1]}\naxes: {seed: [2]}", "'axes' stands twice"),
        ("axes: {seed: [1], seed: [2]}", "'seed' stands twice"),
        ("include: [{seed: 1, fraction: 0, 'seed': 2}]", "'seed' stands twice"),
        ("axes: {seed: [1]}\nbenchmarks: [{of: {seed: 1, seed: 1}}]", "'seed' stands twice"),
        ("settings: {seed: 1}\naxes: {seed: [2]}", "seed stands in settings and in axes"),
    ],
)
def test_what_is_no_study_is_refused_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        study.jobs(study.read(write(tmp_path, text)))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["it's", 'say "x"', "a`b", "a;b", "x" * 201, " a", "a\tb", "☃"])
def test_a_name_that_runs_cannot_be_tagged_with_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_text("axes: {seed: [1]}", "utf-8")
    with pytest.raises(InputError, match="is not a name that MLflow can take") as refused:
        study.read(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["mine", "größer v2.1", "a_b-c"])
def test_other_names_are_fine(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_text("axes: {seed: [1]}", "utf-8")
    assert study.read(str(path)).name == name


@pytest.mark.parametrize(
    ("name", "said"), [("smoek", "did you mean smoke?"), ("./none.yaml", "cannot be read")]
)
def test_a_study_that_is_not_there_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        study.read(name)
    assert said in str(refused.value)
