"""Stage `sweep`: runs every configuration of a study that has not been run yet.

Each is a process of its own that takes over a run made for it, tagged with the study. What is
finished already, by its fingerprint, is not run again, so a sweep that was interrupted goes on
where it is started again; so does each run that was interrupted.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Table

from pruneflow.config import (
    BenchmarkConfig,
    PruneConfig,
    SweepConfig,
    given_for_base,
    resolve,
)
from pruneflow.errors import ExperimentError, InputError, user_path
from pruneflow.stages import benchmark, study
from pruneflow.stages.experiment import cores
from pruneflow.stages.progress import Reporter
from pruneflow.stages.study import Configuration
from pruneflow.tracking import finished, resume
from pruneflow.tracking.fingerprints import (
    benchmark_fingerprint,
    fingerprint,
    workload_fingerprint,
)
from pruneflow.tracking.levels import to_csv
from pruneflow.tracking.run import Ended, Run, end_deserted, hand_over, open_run
from pruneflow.workloads import datasets
from pruneflow.workloads.training import Machine

State = Literal["to do", "finished", "failed", "skipped"]
_PATIENCE_SECONDS = 10.0  # that a process gets to end itself


@dataclass
class Job:
    """A run of a study.

    Attributes:
        stage: its entry point.
        given: the parameters it is called with.
        name: what it is called.
        needs: the job before it: a base run, or of a benchmark the pruning run.
        configuration: what is trained or pruned; None of a benchmark.
        state: how far it is.
        run_id: of its run, once there is one.
        seconds: it took, if it was run now.
        failure: why it failed or was skipped.
        metrics: of its run, the last of each, if it was run now.
    """

    stage: str
    given: dict[str, Any]
    name: str
    needs: Job | None
    configuration: Configuration | None
    state: State = "to do"
    run_id: str = ""
    seconds: float | None = None
    failure: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A job as a row of `plan.csv`."""

    number: int
    stage: str
    name: str
    parameters: str
    state: str
    run_id: str
    seconds: float | None
    failure: str


def sweep(config: SweepConfig, reporter: Reporter) -> list[Ended]:
    """Run what a study lists; nothing in a dry run.

    Raises:
        InputError: a study that cannot be read, or names what is not valid.
        ExperimentError: some of its runs failed; the others were run.
    """
    name, jobs = config.study_name, _plan(config)
    _look_up(jobs, name)
    reporter.console.print(_table(jobs))
    if config.dry_run:
        return []
    timed = [job for job in jobs if job.configuration is None]
    trained = [job for job in jobs if job.configuration is not None]
    with open_run("sweep", config, name=f"sweep-{name}", tags={"pruneflow.study": name}) as run:
        reporter.say(f"sweep {name}: run {run.id}")
        for job in jobs:
            if job.state == "finished":
                finished.adopt(job.run_id, name)
        try:
            for _ in _run_all(trained, config, run, reporter):
                run.log_text("plan.csv", _plan_csv(jobs))
            _look_up(timed, name)  # what they time is there only now
            for _ in _run_all(timed, config.resolved(workers=1), run, reporter):
                run.log_text("plan.csv", _plan_csv(jobs))
        finally:
            run.log_text("plan.csv", _plan_csv(jobs))
        reporter.console.print(_table(jobs))
        failed = [job for job in jobs if job.state in ("failed", "skipped")]
        run.describe(_note(jobs))
        if failed:
            raise ExperimentError(
                f"{len(failed)} of {len(jobs)} runs of study {name} failed or were skipped, the "
                f"first: {failed[0].name}: {failed[0].failure}; start the sweep again to retry them"
            )
    return [run.ended]


# ------------------------------------------------------------------------------------- the plan


def _plan(config: SweepConfig) -> list[Job]:
    """The jobs of a study, a base run before the first that starts from it."""
    listed = study.read(config.study)
    if config.data_dir is not None and not user_path("data_dir", config.data_dir).is_dir():
        raise InputError(f"data_dir={config.data_dir!r} is not a folder")
    found = [
        _with_data(one, config)
        for one in study.configurations(listed, _machine(listed, config.workers))
    ]
    jobs: list[Job] = []
    known: dict[str, Job] = {}

    def job_of(one: Configuration) -> Job:
        if one.key not in known:
            base = one.base
            needs = None if base is None else job_of(base)
            known[one.key] = Job(one.stage, dict(one.given), one.name, needs, one)
            jobs.append(known[one.key])
        return known[one.key]

    for one in found:
        job_of(one)
    for one, given in study.benchmarks(listed, found):
        name = f"latency-{one.name}"
        jobs.append(Job("benchmark_latency", given, name, job_of(one), None))
    return jobs


def _machine(listed: study.Study, workers: int) -> dict[str, Any]:
    """Device and threads, settled once, so that all runs of a study agree in them."""
    available = cores()
    if workers > available:
        raise InputError(f"workers={workers} is not valid: this process may use {available} cores")
    threads = int(listed.settings.get("threads", max(1, available // workers)))
    machine = Machine.settle(str(listed.settings.get("device", "auto")), threads, available)
    return {"device": machine.device, "threads": machine.threads}


def _with_data(one: Configuration, config: SweepConfig) -> Configuration:
    """A configuration whose data set is read from the sweep's folder, where it has one."""
    name = one.config.dataset
    if config.data_dir is None or name in datasets.BUNDLED or one.config.data_dir is not None:
        return one
    folder = user_path("data_dir", config.data_dir) / name
    if not folder.is_dir():
        raise InputError(
            f"data_dir={config.data_dir!r} has no folder {name}, which the study needs"
        )
    given = {**one.given, "data_dir": str(folder)}
    return Configuration(one.stage, given, resolve(type(one.config), given))


def _look_up(jobs: Sequence[Job], name: str) -> None:
    """Mark the jobs that are finished already, by their fingerprints."""
    known = finished.by_fingerprint(name)
    for job in jobs:
        found = _fingerprint(job)
        if found is not None and found in known and job.state == "to do":
            job.state, job.run_id = "finished", known[found]


def _fingerprint(job: Job) -> str | None:
    """Of the run that a job makes; None while what it needs is not finished."""
    if job.configuration is None:
        assert job.needs is not None
        if job.needs.state != "finished":
            return None
        pruned = finished.fingerprint_of(job.needs.run_id)
        return benchmark_fingerprint(benchmark.settled(resolve(BenchmarkConfig, job.given)), pruned)
    config = job.configuration.config
    digest = _digest(*(getattr(config, name) for name in _OF_DATA))
    if not isinstance(config, PruneConfig):
        return fingerprint(job.stage, config, digest, None)
    base = config.base_run or finished.find_base(
        workload_fingerprint(config, digest), _of_base(job, config)
    )
    if base is None:
        return None
    return fingerprint(job.stage, config, digest, finished.fingerprint_of(base))


def _of_base(job: Job, config: PruneConfig) -> dict[str, object]:
    """What the base run of a pruning run has to have, as the pruning run itself looks for it."""
    assert job.needs is not None
    assert job.needs.configuration is not None
    made_by = job.needs.configuration.config
    return {name: getattr(made_by, name) for name in given_for_base(config)}


_OF_DATA = ("dataset", "data_dir", "image_size", "train_limit", "seed")


@functools.cache
def _digest(
    dataset: str, data_dir: str | None, image_size: int | None, train_limit: int | None, seed: int
) -> str:
    data = datasets.load(
        dataset, data_dir=data_dir, image_size=image_size, train_limit=train_limit, seed=seed
    )
    return data.digest


# ------------------------------------------------------------------------------------- running


def _run_all(
    jobs: Sequence[Job], config: SweepConfig, run: Run, reporter: Reporter
) -> Iterator[Job]:
    """Run what is to do, `workers` at a time, each after what it needs; go on past failures.

    Yields:
        Every job that was run, when it has ended.
    """
    waiting = [job for job in jobs if job.state == "to do"]
    total, started = len(waiting), 0
    running: dict[Future[None], Job] = {}
    with ThreadPoolExecutor(config.workers) as pool, _processes() as processes:
        while waiting or running:
            for job in list(waiting):
                needs = job.needs
                if needs is not None and needs.state in ("failed", "skipped"):
                    job.state, job.failure = "skipped", f"{needs.name} {needs.state}"
                    waiting.remove(job)
                    reporter.say(f"  {job.name}: skipped, {job.failure}")
                elif len(running) < config.workers and (needs is None or needs.state == "finished"):
                    waiting.remove(job)
                    started += 1
                    reporter.say(f"  [{started}/{total}] {job.stage} {job.name} {_told(job)}")
                    running[pool.submit(_run_one, job, config, run, processes)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                future.result()
                reporter.say(f"    {job.name}: {_ended(job)}")
                yield job


def _run_one(
    job: Job, config: SweepConfig, run: Run, processes: list[subprocess.Popen[str]]
) -> None:
    """Run a job in a process of its own, to its end."""
    given = dict(job.given)
    if job.configuration is None:
        assert job.needs is not None
        given["run"] = job.needs.run_id
    known = _fingerprint(job)
    before = None if known is None else resume.earlier(resume.AUTO, known, run.experiment_id)
    if before is None:
        job.run_id = hand_over(
            job.name, {"pruneflow.study": config.study_name, "pruneflow.stage": job.stage}
        )
    else:  # it was interrupted, and goes on
        job.run_id = before.id
        finished.adopt(before.id, config.study_name)
    environment = {
        **os.environ,
        "MLFLOW_RUN_ID": job.run_id,
        "MLFLOW_EXPERIMENT_ID": run.experiment_id,
    }
    options = [f"--{key}={value}" for key, value in given.items()]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pruneflow", job.stage, *options],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        code = process.wait()
        output.seek(0)
        lines = output.read()
    job.seconds = time.monotonic() - start
    run.log_text(f"logs/{job.name}-{job.run_id[:8]}.txt", lines)
    last = (lines.strip().splitlines() or [""])[-1]
    if code != 0:
        end_deserted(job.run_id, f"its process ended with code {code}: {last}")
    job.run_id = finished.stands_for(job.run_id)
    ended = finished.outcome(job.run_id)
    job.state = "finished" if ended.status == "FINISHED" else "failed"
    job.failure = "" if job.state == "finished" else (ended.failure or last)
    job.metrics = ended.metrics


@contextmanager
def _processes() -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of jobs: ended with this one, whatever ends it."""
    started: list[subprocess.Popen[str]] = []
    try:
        yield started
    except BaseException:
        for process in started:
            process.terminate()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for process in started:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        raise


# ------------------------------------------------------------------------------------- telling


def _told(job: Job) -> str:
    """What tells a job from others of its name."""
    quiet = {"data_dir", "preset", "device", "precision", "threads", "model", "seed", "dataset"}
    return study.said({k: v for k, v in job.given.items() if k not in quiet})


def _ended(job: Job) -> str:
    if job.state != "finished":
        return f"{job.state}: {job.failure}"
    test = job.metrics.get("accuracy/test_after", job.metrics.get("accuracy/test"))
    left = job.metrics.get("prune/params_left")
    parts = [f"finished in {job.seconds:.0f} s"]
    if test is not None:
        parts.append(f"test {test:.4f}")
    if left is not None:
        parts.append(f"at {100 * left:.3g} % of the parameters")
    return ", ".join(parts)


def _plan_csv(jobs: Sequence[Job]) -> str:
    rows = [
        Row(
            number,
            job.stage,
            job.name,
            study.said(job.given),
            job.state,
            job.run_id,
            job.seconds,
            job.failure,
        )
        for number, job in enumerate(jobs, 1)
    ]
    return to_csv(rows, Row)


def _table(jobs: Sequence[Job]) -> Table:
    """The jobs as a person reads them."""
    counts = {
        s: sum(job.state == s for job in jobs) for s in ("finished", "to do", "failed", "skipped")
    }
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    table = Table(title=f"{len(jobs)} runs: {said}", title_justify="left")
    for heading in ("", "stage", "run", "parameters", "state", "id"):
        table.add_column(heading, overflow="fold")
    for number, job in enumerate(jobs, 1):
        state = f"{job.state}: {job.failure}" if job.failure else job.state
        table.add_row(str(number), job.stage, job.name, _told(job), state, job.run_id[:8])
    return table


def _note(jobs: Sequence[Job]) -> str:
    lines = ["| run | stage | parameters | state |", "|---|---|---|---|"]
    lines += [f"| {job.name} | {job.stage} | {_told(job)} | {job.state} |" for job in jobs]
    return "\n".join(lines)
