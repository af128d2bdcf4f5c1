"""Studies: a file that lists configurations, read and laid out as one.

    description: what it compares
    settings: {preset: quick, model: alexnet}         # of every configuration
    axes: {criterion: [l1, random], seed: [0, 1, 2]}  # every combination of these
    exclude: [{criterion: random, seed: 2}]           # but not those that match
    include: [{fraction: 0, seed: [0, 1, 2]}]         # and further ones, lists being axes
    benchmarks: [{of: {criterion: l1}, batch_sizes: "1,16"}]

A name is a parameter of the entry points, or `stage` (`prune_iterative` where nothing is said,
`prune_direct` or `finetune`). A value that is itself a list is written with commas, as on the
command line.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pruneflow.config import (
    BenchmarkConfig,
    FinetuneConfig,
    PruneConfig,
    Settings,
    base_config,
    resolve,
)
from pruneflow.errors import InputError, first_line, unknown, user_path
from pruneflow.tracking.store import check_name

_STAGES: dict[str, type[Settings]] = {
    "prune_iterative": PruneConfig,
    "prune_direct": PruneConfig,
    "finetune": FinetuneConfig,
}
_MOST = 10_000  # configurations of a study
_SUBJECTS = ("run", "study", "model")  # of a benchmark: a study's has `of` for them
Value = str | int | float | bool
Axes = dict[str, Value | list[Value]]
Axis = Annotated[list[Value], Field(min_length=1)]


class _Benchmark(BaseModel):
    """Which pruning runs are timed, and how."""

    model_config = ConfigDict(extra="allow")
    of: Axes = {}


class Study(BaseModel):
    """What a study file says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    settings: Annotated[dict[str, Value], BeforeValidator(lambda v: v or {})] = {}
    axes: dict[str, Axis] = {}
    exclude: list[Axes] = []
    include: list[Axes] = []
    benchmarks: list[_Benchmark] = []


@dataclass(frozen=True)
class Configuration:
    """One run of a study.

    Attributes:
        stage: its entry point.
        given: the parameters it is called with; the rest comes from the preset.
        config: what they amount to.
    """

    stage: str
    given: Mapping[str, Any]
    config: Settings

    @property
    def key(self) -> str:
        """The same for configurations that are the same, however they were given."""
        return f"{self.stage} {self.config.model_dump_json()}"

    @property
    def name(self) -> str:
        """What its run is called."""
        if isinstance(self.config, PruneConfig):
            return self.config.run_name(self.stage)
        assert isinstance(self.config, FinetuneConfig)
        return self.config.run_name

    @property
    def base(self) -> Configuration | None:
        """The finetune run that a pruning run starts from; None where it asks for another."""
        if not isinstance(self.config, PruneConfig) or self.config.base_run is not None:
            return None
        made_by = base_config(self.config)
        given = {name: getattr(made_by, name) for name in sorted(made_by.given)}
        return Configuration("finetune", given, made_by)


def _files() -> dict[str, Traversable]:
    """Name -> file of the studies that the package carries."""
    package = resources.files("pruneflow")
    found = [*(package / "studies").iterdir(), *(package / "paper").iterdir()]
    return {f.name.removesuffix(".yaml"): f for f in found if f.name.endswith(".yaml")}


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a mapping or list as a key: refused below
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} stands twice in one mapping",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def shipped() -> list[str]:
    """Names of the studies that the package carries."""
    return sorted(_files())


def read(name: str) -> Study:
    """A study by the name of one that is shipped, or from a file.

    Raises:
        InputError: neither is there, or the file is no study.
    """
    path = user_path("study", name)
    if name in shipped():
        text = _files()[name].read_text("utf-8")
    elif path.suffix in (".yaml", ".yml") or "/" in name:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"study={name!r} cannot be read ({first_line(error)}): pass a YAML file, or one of "
                f"{', '.join(shipped())}"
            ) from None
    else:
        raise unknown("study", name, shipped())
    check_name("study", path.stem)
    try:
        values = _Loader(text).get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # dates that are none, too
        raise InputError(f"study={name!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"study={name!r} is not a study: it should be a mapping")
    try:
        if "name" in values:
            raise InputError(f"study={name!r}: a study is called as its file is: leave out name")
        return Study.model_validate({"name": path.stem} | values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(f"study={name!r}: {where}: {problem['msg']}") from None


def configurations(study: Study, machine: Mapping[str, Any]) -> list[Configuration]:
    """Every configuration of a study, each once, in the order of the file.

    Args:
        study: as read.
        machine: parameters that hold where the study says nothing of them.

    Raises:
        InputError: a name or value that no entry point takes, an exclusion that matches nothing,
            or a study without configurations.
    """
    twice = sorted(study.settings.keys() & study.axes.keys())
    if twice:
        raise InputError(f"study {study.name}: {twice[0]} stands in settings and in axes")
    product = list(_expand(study.settings | study.axes)) if study.axes else []
    for number, pattern in enumerate(study.exclude):
        left = [one for one in product if not matches(one, pattern)]
        if len(left) == len(product):
            raise InputError(f"study {study.name}: exclude[{number}] {said(pattern)} matches none")
        product = left
    for pattern in study.include:
        product += _expand(study.settings | pattern)
    found: dict[str, Configuration] = {}
    for given in product:
        one = _resolve(study, given, machine)
        found.setdefault(one.key, one)
    if not found:
        raise InputError(f"study {study.name} has no configurations: give axes or include")
    return list(found.values())


def matches(given: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    """Whether parameters have the values of a pattern, a list meaning any of its own."""
    return all(
        any(_same(given.get(name), one) for one in (value if isinstance(value, list) else [value]))
        for name, value in pattern.items()
    )


def _same(value: Any, wanted: Value) -> bool:
    """Whether a parameter is what a pattern says: 0 is 0.0, and a list is written with commas."""
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return bool(value == wanted) or str(value) == str(wanted)


def benchmarks(
    study: Study, found: Iterable[Configuration]
) -> list[tuple[Configuration, dict[str, Any]]]:
    """The pruning configurations that a study times, with the parameters of their benchmark.

    Raises:
        InputError: a name or value that `benchmark_latency` does not take, or a pattern that
            matches nothing.
    """
    pruned = [one for one in found if isinstance(one.config, PruneConfig)]
    chosen: list[tuple[Configuration, dict[str, Any]]] = []
    for number, benchmark in enumerate(study.benchmarks):
        given = dict(benchmark.model_extra or {})
        where = f"study {study.name}: benchmarks[{number}]"
        for name, value in given.items():
            if name in _SUBJECTS:
                raise InputError(
                    f"{where}: {name} is not valid here: `of` says which runs are timed"
                )
            if isinstance(value, list):
                written = ",".join(map(str, value))
                raise InputError(f"{where}: {name}={value} is a list: write {name}: {written!r}")
        try:
            resolve(BenchmarkConfig, given)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        fitting = [
            one
            for one in pruned
            if matches({"stage": one.stage, **one.config.model_dump()}, benchmark.of)
        ]
        if not fitting:
            raise InputError(f"{where}: of {said(benchmark.of)} matches no pruning run")
        chosen += [(one, given) for one in fitting]
    return chosen


def _expand(pattern: Mapping[str, Any]) -> Iterator[dict[str, Value]]:
    """Every combination of what a mapping's lists hold, the first name varying slowest.

    Raises:
        InputError: more of them than anybody will run.
    """
    values = [value if isinstance(value, list) else [value] for value in pattern.values()]
    count = math.prod(len(value) for value in values)
    if count > _MOST:
        raise InputError(f"the study lists {count:,} combinations: at most {_MOST:,} are valid")
    for combination in itertools.product(*values):
        yield dict(zip(pattern, combination, strict=True))


def _resolve(study: Study, given: dict[str, Any], machine: Mapping[str, Any]) -> Configuration:
    values = {**machine, **given}
    stage = str(values.pop("stage", "prune_iterative"))
    try:
        if stage not in _STAGES:
            raise unknown("stage", stage, _STAGES)
        return Configuration(stage, values, resolve(_STAGES[stage], values))
    except InputError as error:
        raise InputError(f"study {study.name}: {said(given)}: {error}") from None


def said(values: Mapping[str, Any]) -> str:
    """Parameters in one line, as a person reads them."""
    return " ".join(f"{name}={value}" for name, value in values.items())
