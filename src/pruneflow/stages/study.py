"""Studies: a file that lists configurations, read and laid out as jobs.

    description: what it compares
    settings: {preset: quick, model: alexnet}         # of every configuration
    axes: {criterion: [l1, random], seed: [0, 1, 2]}  # every combination of these
    exclude: [{criterion: random, seed: 2}]           # but not those that match
    include: [{fraction: 0, seed: [0, 1, 2]}]         # and further ones, lists being axes
    benchmarks: [{of: {criterion: l1}, batch_sizes: "1,16"}]

A name is a parameter of the entry points, or `stage` (`prune_iterative` where nothing is said,
`prune_direct`, `prune_gradual`, `sensitivity` or `finetune`). A value that is itself a list is
written with commas, as on the command line. With `scope=sensitivity` a pruning run goes by the
sensitivity run that the study lists of the same units, where there is one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pruneflow.config import (
    NEWEST,
    BenchmarkConfig,
    DirectConfig,
    FinetuneConfig,
    GradualConfig,
    PruneConfig,
    SensitivityConfig,
    as_text,
)
from pruneflow.errors import InputError, first_line, unknown, user_path
from pruneflow.resolution import base_config, pruning_config, resolve
from pruneflow.tracking.store import check_name
from pruneflow.workloads.datasets import BUNDLED
from pruneflow.workloads.other_datasets import is_other

_STAGES: dict[str, type[FinetuneConfig] | type[PruneConfig] | type[SensitivityConfig]] = {
    "prune_iterative": PruneConfig,
    "prune_direct": DirectConfig,
    "prune_gradual": GradualConfig,
    "sensitivity": SensitivityConfig,
    "finetune": FinetuneConfig,
}
_MOST = 10_000  # configurations of a study
Value = str | int | float | bool
Pattern = dict[str, Value | list[Value]]


class _Benchmark(BaseModel):
    """Which pruning runs are timed; what else it holds says how."""

    model_config = ConfigDict(extra="allow")
    of: Pattern = {}


class Study(BaseModel):
    """What a study file says."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    description: str = ""
    settings: Annotated[dict[str, Value], BeforeValidator(lambda v: v or {})] = {}
    axes: dict[str, Annotated[list[Value], Field(min_length=1)]] = {}
    exclude: list[Pattern] = []
    include: list[Pattern] = []
    benchmarks: list[_Benchmark] = []


@dataclass(eq=False)
class Job:
    """A run of a study: how it is started, after which other one, and what has become of it."""

    stage: str
    given: dict[str, Any]  # parameters that the stage is called with
    config: (
        FinetuneConfig | PruneConfig | SensitivityConfig | BenchmarkConfig
    )  # what they amount to
    name: str
    needs: Job | None = None  # the base run, sensitivity run or, of a benchmark, pruning run
    state: Literal["to do", "finished", "failed", "skipped"] = "to do"
    run_id: str = ""
    seconds: float | None = None  # that it took, if it was run now
    failure: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)  # the last of each
    unsent: bool = False  # whether some of its records are still on this machine alone
    output: str = ""  # of its process

    @property
    def arguments(self) -> list[str]:
        """What `pruneflow` is called with for it."""
        return [self.stage, *(f"--{name}={value}" for name, value in self.given.items())]


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.items():
            if count > 1:
                problem = f"{key!r} stands twice in one mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return dict(super().construct_mapping(node, deep))


def shipped() -> dict[str, Traversable]:
    """Name -> file of the studies that the package carries."""
    package = resources.files("pruneflow")
    files = [*(package / "paper").iterdir(), *(package / "studies").iterdir()]
    return {f.name.removesuffix(".yaml"): f for f in files if f.name.endswith(".yaml")}


def read(name: str) -> Study:
    """A study by the name of one that is shipped, or from a file.

    Raises:
        InputError: neither is there, or the file is no study.
    """
    path, files = user_path("study", name), shipped()
    if name not in files and path.suffix not in (".yaml", ".yml") and "/" not in name:
        raise unknown("study", name, files)
    try:
        text = files.get(name, path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = f"pass a YAML file, or one of {', '.join(sorted(files))}"
        raise InputError(f"study={name!r} cannot be read ({first_line(error)}): {hint}") from None
    check_name("study", path.stem)
    try:
        values = _Loader(text).get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # dates that are none, too
        raise InputError(f"study={name!r} is not YAML: {error}") from None
    with _named(f"study={name!r}"):
        if not isinstance(values, dict):
            raise InputError("it is not a study: it should be a mapping")
        if "name" in values:
            raise InputError("a study is called as its file is: leave out name")
        try:
            return Study.model_validate({"name": path.stem} | values)
        except ValidationError as error:
            problem = error.errors()[0]
            raise InputError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def jobs(
    study: Study, machine: Mapping[str, Any] | None = None, data_dir: Path | None = None
) -> list[Job]:
    """Every run of a study, once: in the order of the file, after what it needs; benchmarks last.

    `machine` has parameters that hold where the study has none, `data_dir` a folder a data set.

    Raises:
        InputError: a name or value that no entry point takes, a pattern that matches nothing, or
            a study without configurations.
    """
    listed: dict[str, Job] = {}
    with _named(f"study {study.name}"):
        for given in _combinations(study):
            with _named(in_words(given)):
                _add(listed, {**(machine or {}), **given}, data_dir)
        if not listed:
            raise InputError("it has no configurations: give axes or include")
        pruned = [job for job in listed.values() if isinstance(job.config, PruneConfig)]
        measured = [job for job in listed.values() if isinstance(job.config, SensitivityConfig)]
        for job in pruned:
            job.needs = _sensitivity_of(job, measured) or job.needs
        timed: list[Job] = []
        for number, benchmark in enumerate(study.benchmarks):
            with _named(f"benchmarks[{number}]"):
                timed += _timed(benchmark, pruned)
    last = [job for job in pruned if job.needs in measured]
    return [*(job for job in listed.values() if job not in last), *last, *timed]


def _combinations(study: Study) -> list[dict[str, Value]]:
    """Parameters of the configurations that a study lists, some perhaps twice."""
    for name in study.settings.keys() & study.axes.keys():
        raise InputError(f"{name} stands in settings and in axes")
    product = list(_expand({**study.settings, **study.axes})) if study.axes else []
    for number, pattern in enumerate(study.exclude):
        kept = [given for given in product if not _matches(given, pattern)]
        if len(kept) == len(product):
            raise InputError(f"exclude[{number}] {in_words(pattern)} matches none")
        product = kept
    for pattern in study.include:
        product += _expand({**study.settings, **pattern})
    return product


def _expand(pattern: Mapping[str, Value | list[Value]]) -> Iterator[dict[str, Value]]:
    """Every combination of what a mapping's lists hold, the first name varying slowest."""
    values = [value if isinstance(value, list) else [value] for value in pattern.values()]
    count = math.prod(len(value) for value in values)
    if count > _MOST:
        raise InputError(f"the study lists {count:,} combinations: at most {_MOST:,} are valid")
    for combination in itertools.product(*values):
        yield dict(zip(pattern, combination, strict=True))


def _add(listed: dict[str, Job], given: dict[str, Any], data_dir: Path | None) -> Job:
    """The job of a configuration; a new one, after that of its base run, if it is not listed."""
    stage = str(given.pop("stage", "prune_iterative"))
    if stage not in _STAGES:
        raise unknown("stage", stage, _STAGES)
    config = resolve(_STAGES[stage], given)
    if data_dir is not None and config.data_dir is None and not _needs_no_folder(config.dataset):
        if not (data_dir / config.dataset).is_dir():
            raise InputError(f"data_dir={str(data_dir)!r} has no folder {config.dataset}")
        given["data_dir"] = str(data_dir / config.dataset)
        config = resolve(_STAGES[stage], given)
    key = f"{stage} {config.model_dump_json()}"
    if key not in listed:
        named = config.run_name
        name = named if isinstance(named, str) else named(stage)
        pruning = pruning_config(config) if isinstance(config, SensitivityConfig) else config
        needs = None
        if isinstance(pruning, PruneConfig) and pruning.base_run is None:
            base = base_config(pruning)
            values = base.model_dump(include=set(base.given))
            needs = _add(listed, {"stage": "finetune", **values}, None)
        listed[key] = Job(stage, given, config, name, needs)
    return listed[key]


def _needs_no_folder(dataset: str) -> bool:
    return dataset in BUNDLED or is_other(dataset)


def _sensitivity_of(job: Job, measured: list[Job]) -> Job | None:
    """The last sensitivity run of the same base and units, of a pruning run that goes by one."""
    config = job.config
    assert isinstance(config, PruneConfig)
    if config.scope != "sensitivity" or config.sensitivity_run not in (None, NEWEST):
        return None
    names = (SensitivityConfig.model_fields.keys() & PruneConfig.model_fields.keys()) - {"resume"}
    for other in reversed(measured):
        same = all(getattr(other.config, name) == getattr(config, name) for name in names)
        if same and other.needs is job.needs:
            return other
    return None


def _timed(benchmark: _Benchmark, pruned: list[Job]) -> list[Job]:
    """The benchmarks of those pruning jobs that a pattern matches."""
    given = dict(benchmark.model_extra or {})
    for name in given.keys() & {"run", "study", "model"}:
        raise InputError(f"{name} is not valid here: `of` says which runs are timed")
    for name, value in given.items():
        if isinstance(value, list):
            raise InputError(f"{name} is a list: write {name}: {as_text(tuple(value))!r}")
    config = resolve(BenchmarkConfig, given)
    timed = [
        Job("benchmark_latency", dict(given), config, f"latency-{job.name}", job)
        for job in pruned
        if _matches({"stage": job.stage, **dict(job.config)}, benchmark.of)
    ]
    if not timed:
        raise InputError(f"of {in_words(benchmark.of)} matches no pruning run")
    return timed


def _matches(given: Mapping[str, Any], pattern: Pattern) -> bool:
    """Whether parameters have the values of a pattern: of a list any, of numbers 0 for 0.0."""

    def fits(value: Any, wanted: Value | list[Value]) -> bool:
        values = wanted if isinstance(wanted, list) else [wanted]
        return value in values or as_text(value) in map(str, values)

    return all(fits(given.get(name), wanted) for name, wanted in pattern.items())


def in_words(values: Mapping[str, Any]) -> str:
    """Parameters in one line, as a person reads them."""
    return " ".join(f"{name}={value}" for name, value in values.items())


@contextmanager
def _named(place: str) -> Iterator[None]:
    """What is refused within is refused with its place."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
