"""Configurations of what reads runs: benchmarks, reports and sweeps."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pruneflow.config.base import Config
from pruneflow.errors import InputError
from pruneflow.inference import EAGER, ENGINES, FORMATS, FORMS
from pruneflow.parameters import (
    Count,
    Counts,
    Names,
    Numbers,
    Pixels,
    Positive,
    Text,
    among,
    devices,
)


class BenchmarkConfig(Config):
    """Configuration of `benchmark_latency`: which levels are timed, how they are run, how long."""

    run: Names = ()
    """ids of pruning runs to time (a,b); by default the newest finished one"""
    study: str | None = None
    """time the finished pruning runs of this study"""
    model: str | None = None
    """time the newest finished pruning run of this model"""
    levels: Numbers = ()
    """levels to time (0,3,6); by default all"""
    forms: Annotated[Names, among("form", FORMS)] = Field(
        (), description=f"forms to time: {', '.join(FORMS)}; by default all that a level has"
    )
    batch_sizes: Annotated[Counts, Field(min_length=1)] = (1, 4, 16, 64, 256)
    """samples in a batch (1,16)"""
    threads: Counts = ()
    """numbers of CPU threads to time with (1,2); all cores when not given"""
    device: Annotated[Names, devices()] = ()
    """cpu, cuda, cuda:N (a GPU by its number) or several (cpu,cuda); by default cpu and cuda, if
    there is one"""
    engines: Annotated[Names, among("engine", ENGINES)] = Field(
        (EAGER,), description=f"{', '.join(ENGINES)}; all but eager need pruneflow[engines]"
    )
    image_size: Pixels | None = None
    """side of the images, in pixels; as the run had it when not given"""
    sequence_length: Annotated[int, Field(ge=1, le=512)] | None = None
    """tokens of a text; the median of the run's data when not given"""
    rounds: Annotated[int, Field(ge=3, le=2000)] = 40
    """times that each form is timed at least, side by side and undisturbed; 30 for an interval"""
    seconds: Positive = 20.0
    """but no longer than this for a level, device and batch size (yet three rounds at least)"""
    energy: bool = False
    """measure joules a sample by RAPL or NVML too, two seconds a form at the most: of packages and
    GPU, whatever else runs on them"""


# What `best` bounds: cost is a share of the unpruned model's, accuracy what may be lost of it.
BOUNDS = ("accuracy", "params", "macs", "bytes")


def _check_best(text: str) -> str:
    name, _, number = text.partition(":")
    try:
        bound = float(number)
    except ValueError:
        bound = -1.0
    if name not in BOUNDS or not 0 <= bound < 1:
        raise InputError(
            f"best={text!r} is not valid: it should be accuracy: and how much of it may be lost "
            "(accuracy:0.01), or params:, macs: or bytes: and a share of the unpruned model's "
            "(macs:0.5), in [0, 1)"
        )
    return text


# pydantic warns of the name `register`, which its base class has for something else
with warnings.catch_warnings(action="ignore"):

    class ExportConfig(Config):
        """Configuration of `export`: which level of which run, as what, and where to."""

        run: str | None = None
        """id of the pruning run; by default the newest finished one"""
        level: Annotated[int, Field(ge=0)] | None = None
        """its level to export; by default the last"""
        best: Annotated[str, AfterValidator(_check_best)] | None = None
        """instead of level: accuracy:0.01 (the smallest that loses at most so much, on the
        validation set) or params:0.5, macs: or bytes: (the most accurate of at most this share)"""
        form: Literal["masked", "compact"] | None = None
        """masked (zeros in place) or compact (removed); by default compact where it differs, but of
        huggingface masked"""
        format: Annotated[str, among("format", FORMATS)] = Field(
            FORMATS[0], description=f"{', '.join(FORMATS)}; onnx needs pruneflow[engines]"
        )
        output_dir: Text = "pruneflow_export"
        """folder that the files are written to; what an earlier export left there is replaced"""
        register: Text | None = None
        """name in MLflow's model registry, of which the level's logged model (and not these files)
        becomes a new version"""
        alias: Text | None = None
        """alias of that version"""

        @model_validator(mode="after")
        def _all_has_effect(self) -> Self:
            if self.level is not None:
                self._refuse(["best"], "and level both say which level: give one of them")
            if self.register is None:
                self._refuse(["alias"], "has no effect without register: pass register=<name>")
            return self


class ReportConfig(Config):
    """Configuration of `report`: of which runs, and where it is written."""

    experiment: str | None = None
    """name or id of the MLflow experiment; by default the current one"""
    study: str | None = None
    """only the runs of this study"""
    output_dir: Text = "pruneflow_report"
    """folder that the report is written to"""
    reference: bool = False
    """compare with the 2020 study: its own curves beneath, its claims judged"""


class SweepConfig(Config):
    """Configuration of `sweep`: which study is run, and how."""

    study: Text = "smoke"
    """a study: smoke, paper, paper_small, or a YAML file of your own"""
    data_dir: str | None = None
    """folder with a folder for each data set of the study (cifar10, sst2), instead of the hub"""
    workers: Count = 1
    """runs at a time, which share the CPU threads; benchmarks run alone"""
    dry_run: bool = False
    """show what would be run, and start nothing"""
    executor: Literal["local", "ray"] = "local"
    """where runs go: local (processes of this machine) or ray (tasks of a Ray cluster; needs
    pruneflow[ray])"""
    ray_address: Text | None = None
    """the cluster: auto, host:port or ray://host:port; by default one is started on this machine"""

    @model_validator(mode="after")
    def _all_has_effect(self) -> Self:
        if self.executor != "ray":
            self._refuse(["ray_address"], "has no effect with executor=local: pass executor=ray")
        return self
