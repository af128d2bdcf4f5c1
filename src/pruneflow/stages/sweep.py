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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from rich.table import Table

from pruneflow.config import (
    NEWEST,
    BenchmarkConfig,
    PruneConfig,
    SweepConfig,
    base_config,
    given_for_base,
    resolve,
)
from pruneflow.errors import ExperimentError, InputError, first_line, user_path
from pruneflow.stages import benchmark, study
from pruneflow.stages.experiment import ALIVE_SECONDS, cores
from pruneflow.stages.progress import Reporter
from pruneflow.stages.study import Configuration
from pruneflow.tracking import finished, journal, resume, store
from pruneflow.tracking.fingerprints import (
    benchmark_fingerprint,
    fingerprint,
    workload_fingerprint,
)
from pruneflow.tracking.publish import publish_folder
from pruneflow.tracking.refusals import in_short, is_refusal
from pruneflow.tracking.run import Ended, Run, open_run
from pruneflow.tracking.tables import to_csv
from pruneflow.tracking.writers import dismiss, end_deserted, hand_over
from pruneflow.workloads import datasets
from pruneflow.workloads.machine import Machine

State = Literal["to do", "finished", "failed", "skipped"]
_PATIENCE_SECONDS = 10.0  # that a process gets to end itself
_OUTAGE_SECONDS = 900.0  # that a sweep waits for MLflow, with what it has not started
_PAUSE_SECONDS = 2.0  # between two tries
_TRIES = 3  # of a process that finds no store
T = TypeVar("T")


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
        unsent: whether some of its records are still on this machine alone.
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
    unsent: bool = False


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
        children = Children(reporter)
        for job in jobs:
            if job.state == "finished":
                children.patiently(functools.partial(finished.adopt, job.run_id, name))
        try:
            for _ in _run_all(trained, config, run, children):
                run.log_text("plan.csv", _plan_csv(jobs))
            # what they time is there only now; each looks for what is finished already
            for _ in _run_all(timed, config.resolved(workers=1), run, children):
                run.log_text("plan.csv", _plan_csv(jobs))
        finally:
            run.log_text("plan.csv", _plan_csv(jobs))
        _send_rest(jobs, reporter)
        reporter.console.print(_table(jobs))
        failed = [job for job in jobs if job.state in ("failed", "skipped")]
        run.describe(_note(jobs))
        if failed:
            raise ExperimentError(
                f"{len(failed)} of {len(jobs)} runs of study {name} failed or were skipped, the "
                f"first: {failed[0].name}: {failed[0].failure}; start the sweep again to retry them"
            )
    return [run.ended]


def _send_rest(jobs: Sequence[Job], reporter: Reporter) -> None:
    """Send what processes could not, or say where it is."""
    for job in jobs:
        try:
            _send(job)
        except Exception as error:  # whatever a store, a driver or a network has to say
            reporter.say(
                f"{job.name} is finished, but MLflow has not all of it ({in_short(error)}): send "
                f"it later with: pruneflow sync {journal.folder_of(job.run_id)}"
            )


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
    machine = Machine.choose(str(listed.settings.get("device", "auto")), threads, available)
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
    """Of the run that a job makes; None while what it needs is not there."""
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
    made_by = base_config(config)
    if config.base_run is None:
        return fingerprint(
            job.stage, config, digest, fingerprint("finetune", made_by, digest, None)
        )
    base: str | None = config.base_run
    if config.base_run == NEWEST:
        wanted = {name: getattr(made_by, name) for name in given_for_base(config)}
        base = finished.newest_base(workload_fingerprint(config, digest), wanted)
    else:
        config = config.resolved(weights=finished.base_weights(config.base_run))
    if base is None:
        return None
    return fingerprint(job.stage, config, digest, finished.fingerprint_of(base))


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


@dataclass
class Children:
    """The processes of jobs, and how long the store that they report to has been silent.

    Attributes:
        reporter: of the sweep.
        processes: that were started.
        stopping: set when the sweep is ended.
        silent_since: when a call first failed, of those since the last that did not.
    """

    reporter: Reporter
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    silent_since: float | None = None

    def patiently(self, call: Callable[[], T]) -> T:
        """What a call to MLflow returns, made again and again while MLflow does not answer.

        Raises:
            ExperimentError: it has not answered for too long, or the sweep is ended.
        """
        while not self.stopping.is_set():
            try:
                result = call()
            except Exception as error:  # whatever a store, a driver or a network has to say
                if is_refusal(error):
                    raise
                now = time.monotonic()
                if self.silent_since is None:
                    self.silent_since = now
                    self.reporter.say(f"  MLflow does not answer ({in_short(error)}): waiting")
                if now - self.silent_since >= _OUTAGE_SECONDS:
                    raise ExperimentError(
                        f"MLflow did not answer for {_OUTAGE_SECONDS:.0f} s: {in_short(error)}"
                    ) from error
                self.stopping.wait(_PAUSE_SECONDS)
            else:
                self.silent_since = None
                return result
        raise ExperimentError("the sweep was ended")

    def end(self) -> None:
        """End all that are running."""
        self.stopping.set()
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _run_all(
    jobs: Sequence[Job], config: SweepConfig, run: Run, children: Children
) -> Iterator[Job]:
    """Run what is to do, `workers` at a time, each after what it needs; go on past failures.

    Yields:
        Every job that was run, when it has ended.
    """
    say = children.reporter.say
    waiting = [job for job in jobs if job.state == "to do"]
    total, started = len(waiting), 0
    running: dict[Future[str], Job] = {}
    with ThreadPoolExecutor(config.workers) as pool, _ended_with(children):
        while waiting or running:
            for job in list(waiting):
                needs = job.needs
                if needs is not None and needs.state in ("failed", "skipped"):
                    job.state, job.failure = "skipped", f"{needs.name} {needs.state}"
                    waiting.remove(job)
                    say(f"  {job.name}: skipped, {job.failure}")
                elif len(running) < config.workers and (needs is None or needs.state == "finished"):
                    waiting.remove(job)
                    started += 1
                    say(f"  [{started}/{total}] {job.stage} {job.name} {_told(job)}")
                    running[pool.submit(_run_one, job, config, run, children)] = job
            done, _ = wait(running, ALIVE_SECONDS, return_when=FIRST_COMPLETED)
            run.publish(every=ALIVE_SECONDS)
            for future in done:
                job = running.pop(future)
                problem = future.exception()
                if problem is not None:
                    job.state, job.failure = "failed", first_line(problem)
                elif job.run_id and future.result():
                    run.log_text(f"logs/{job.name}-{job.run_id[:8]}.txt", future.result())
                say(f"    {job.name}: {_ended(job)}")
                yield job


@contextmanager
def _ended_with(children: Children) -> Iterator[None]:
    """Processes are ended with this one, whatever ends it."""
    try:
        yield
    except BaseException:
        children.end()
        raise


def _run_one(job: Job, config: SweepConfig, run: Run, children: Children) -> str:
    """Run a job in a process of its own, to its end; again where that found no store.

    Returns:
        What its process printed; nothing if the run was finished already.
    """
    start = time.monotonic()
    for _ in range(_TRIES):
        children.patiently(lambda: _hand_over(job, config, run))
        if job.state == "finished":
            return ""
        code, lines = _process(job, run, children)
        last = (lines.strip().splitlines() or [""])[-1]
        if code == 0 or store.NO_ANSWER not in last:
            break
    job.seconds = time.monotonic() - start
    try:
        if code != 0:
            end_deserted(job.run_id, f"its process ended with code {code}: {last}")
        job.run_id = finished.stands_for(job.run_id)
        ended = finished.outcome(job.run_id)
        status, job.failure, job.metrics = ended.status, ended.failure or last, ended.metrics
    except Exception as error:  # in an outage its own records say how it ended
        if is_refusal(error):
            raise
        status, job.failure = "", last
    owed = journal.unsent_metrics(job.run_id)
    if owed is not None:
        job.metrics = owed
    if code == 0 and (status in ("", "FINISHED") or owed is not None):
        job.state, job.failure, job.unsent = "finished", "", owed is not None
    else:
        job.state = "failed"
    return lines


def _hand_over(job: Job, config: SweepConfig, run: Run) -> None:
    """Find or make the run that a job's process is to fill, once what it needs is with MLflow."""
    if job.needs is not None:
        _send(job.needs)
        job.needs.run_id = finished.stands_for(job.needs.run_id)
        if job.configuration is None:
            job.given["run"] = job.needs.run_id
    known = _fingerprint(job)
    before = None if known is None else resume.earlier(resume.AUTO, known, run.experiment_id)
    if before is None:
        tags = {"pruneflow.study": config.study_name, "pruneflow.stage": job.stage}
        run_id = hand_over(job.name, tags)
    else:  # it was interrupted, and goes on, or was finished meanwhile
        run_id = before.id
        finished.adopt(run_id, config.study_name)
        job.state = "finished" if before.finished else job.state
    if job.run_id not in ("", run_id):  # of a process that found no store
        dismiss(job.run_id, run_id)
    job.run_id = run_id


def _send(job: Job) -> None:
    """Send what a job's process could not."""
    if job.unsent:
        publish_folder(journal.folder_of(job.run_id))
        job.unsent = False


def _process(job: Job, run: Run, children: Children) -> tuple[int, str]:
    """Run a job's process; its exit code and what it said."""
    environment = {
        **os.environ,
        "MLFLOW_RUN_ID": job.run_id,
        "MLFLOW_EXPERIMENT_ID": run.experiment_id,
    }
    options = [f"--{key}={value}" for key, value in job.given.items()]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pruneflow", job.stage, *options],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        children.processes.append(process)
        code = process.wait()
        output.seek(0)
        return code, output.read()


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
    if job.seconds is None:
        return "finished already"
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
