"""Copies that must not drift apart: MLproject, options, entry files, README, CI, pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from importlinter import cli as importlinter
from packaging.requirements import Requirement

from pruneflow import __version__
from pruneflow.cli import command
from pruneflow.resolution import PRESET
from pruneflow.stages import STAGES


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    return yaml.safe_load((root / "MLproject").read_text("utf-8"))


def _options(stage: str) -> list[str]:
    return [p.name or "" for p in command(stage).params if isinstance(p, click.Option)]


def test_mlproject_has_the_stages(project: dict[str, dict[str, object]]) -> None:
    assert set(project["entry_points"]) == set(STAGES)
    assert str(project["conda_env"]) == "conda.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_mlproject_parameters_are_the_options(
    stage: str, project: dict[str, dict[str, dict[str, dict[str, str]]]]
) -> None:
    entry = project["entry_points"][stage]
    assert list(entry["parameters"]) == _options(stage)
    passed = re.findall(r"--(\w+) \{(\w+)\}", str(entry["command"]))
    assert passed == [(name, name) for name in _options(stage)]


@pytest.mark.parametrize("stage", STAGES)
def test_mlproject_declares_no_default_of_its_own(
    stage: str, project: dict[str, dict[str, dict[str, dict[str, dict[str, str]]]]]
) -> None:
    fields = STAGES[stage].config.model_fields
    for name, spec in project["entry_points"][stage]["parameters"].items():
        assert spec["type"] == "string"
        assert spec["default"] == (fields["preset"].default if name == "preset" else PRESET)


def test_no_placeholder_is_quoted(root: Path) -> None:
    text = (root / "MLproject").read_text("utf-8")
    assert re.search(r"\{\w+\}", text)
    assert not re.search(r"""['"]\{\w+\}|\{\w+\}['"]""", text)


def test_every_stage_has_its_entry_file(root: Path) -> None:
    files = {path.stem for path in (root / "entrypoints").glob("*.py")} - {"__init__"}
    assert files == set(STAGES)
    for stage in STAGES:
        text = (root / "entrypoints" / f"{stage}.py").read_text("utf-8")
        assert f'run_entrypoint("{stage}")' in text


def test_imports_only_point_down(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert importlinter.lint_imports(no_cache=True) == 0


def test_version_is_the_same_everywhere(root: Path) -> None:
    with (root / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == __version__


def test_pins_lie_in_the_declared_ranges(root: Path) -> None:
    with (root / "pyproject.toml").open("rb") as file:
        declared = [Requirement(r) for r in tomllib.load(file)["project"]["dependencies"]]
    conda = yaml.safe_load((root / "conda.yaml").read_text("utf-8"))
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    pins = dict(line.split("==") for line in pip)
    assert set(pins) == {requirement.name for requirement in declared}
    for requirement in declared:
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_ci_runs_the_readme_commands(root: Path) -> None:
    readme = (root / "README.md").read_text("utf-8")
    ci = (root / ".ci" / "run").read_text("utf-8")
    tests = re.search(r"^(pip install '\.\[test\]' && .*pytest.*)$", readme, re.MULTILINE)
    main = re.search(r"^pip install \. && (mlflow run .*)$", readme, re.MULTILINE)
    assert tests is not None
    assert main is not None
    for part in tests[1].split(" && "):
        assert part in ci
    assert main[1] in ci
