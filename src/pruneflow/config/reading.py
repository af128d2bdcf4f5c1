"""Configurations of what reads runs: benchmarks, reports and sweeps."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pruneflow.config.base import Config
from pruneflow.inference import EAGER, ENGINES, FORMS
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
