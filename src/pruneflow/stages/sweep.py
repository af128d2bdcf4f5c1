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
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import pandas as pd
from rich.table import Table

from pruneflow.config import (
    NEWEST,
    BenchmarkConfig,
    FinetuneConfig,
    SweepConfig,
    base_config,
    given_for_base,
    resolve,
)
from pruneflow.errors import ExperimentError, InputError, first_line, user_path
from pruneflow.stages import benchmark, study
from pruneflow.stages.experiment import ALIVE_SECONDS, cores
from pruneflow.stages.progress import Reporter
from pruneflow.stages.study import Job
from pruneflow.tracking import finished, journal, publish, resume, store, writers
from pruneflow.tracking.fingerprints import benchmark_fingerprint, fingerprint, workload_fingerprint
from pruneflow.tracking.refusals import in_short, is_refusal
from pruneflow.tracking.run import Ended, open_run
from pruneflow.workloads import datasets
from pruneflow.workloads.machine import Machine

_PATIENCE_SECONDS = 10.0  # that a process gets to end itself
_OUTAGE_SECONDS = 900.0  # that a sweep waits for MLflow, with what it has not started
_PAUSE_SECONDS = 2.0  # between two tries
_TRIES = 3  # of a process that finds no store
T = TypeVar("T")


def sweep(config: SweepConfig, reporter: Reporter) -> list[Ended]:
    """Run what a study lists; nothing in a dry run.

    Raises:
        InputError: a study that cannot be read, or names what is not valid.
        ExperimentError: some of its runs failed; the others were run.
    """
    name, jobs = _jobs(config)
    reporter.console.print(_table(jobs))
    if config.dry_run:
        return []
    with open_run("sweep", config, name=f"sweep-{name}", tags={"pruneflow.study": name}) as run:
        reporter.say(f"sweep {name}: run {run.id}")
        processes = Processes(name, run.experiment_id, reporter)

        def record(ended: Sequence[Job]) -> None:
            for job in ended:
                reporter.say(f"    {job.name}: {_outcome(job)}")
                if job.output:
                    run.log_text(f"logs/{job.name}-{job.run_id[:8]}.txt", job.output)
            run.log_text("plan.csv", _plan(jobs).to_csv(index=False))

        for job in jobs:
            if job.state == "finished":
                processes.patiently(functools.partial(finished.adopt, job.run_id, name))
        record([])
        timed = [job for job in jobs if isinstance(job.config, BenchmarkConfig)]
        # what they time is there only after the others, and each is alone on the machine
        _run_all([job for job in jobs if job not in timed], config.workers, processes, record)
        _run_all(timed, 1, processes, record)
        processes.send_rest(jobs)
        reporter.console.print(_table(jobs))
        plan = _plan(jobs)[["name", "stage", "parameters", "state"]]
        run.describe(plan.to_markdown(index=False, disable_numparse=True))
        failed = [job for job in jobs if job.state != "finished"]
        if failed:
            raise ExperimentError(
                f"{len(failed)} of {len(jobs)} runs of study {name} failed or were skipped, the "
                f"first: {failed[0].name}: {failed[0].failure}; start the sweep again to retry them"
            )
    return [run.ended]


# ------------------------------------------------------------------------------------- the plan


def _jobs(config: SweepConfig) -> tuple[str, list[Job]]:
    """The name of a study and its jobs, those marked that are finished already."""
    listed, available, workers = study.read(config.study), cores(), config.workers
    if workers > available:
        raise InputError(f"workers={workers} is not valid: this process may use {available} cores")
    folder = None if config.data_dir is None else user_path("data_dir", config.data_dir)
    if folder is not None and not folder.is_dir():
        raise InputError(f"data_dir={config.data_dir!r} is not a folder")
    # device and threads, settled once, so that all runs of the study agree in them
    given = {k: v for k, v in listed.settings.items() if k in ("device", "threads")}
    settings = resolve(FinetuneConfig, given)
    threads = settings.threads or max(1, available // workers)
    machine = Machine.choose(settings.device, threads, available)
    jobs = study.jobs(listed, {"device": machine.device, "threads": machine.threads}, folder)
    known = finished.by_fingerprint(listed.name)
    for job in jobs:
        job.run_id = known.get(_fingerprint(job) or "", "")
        job.state = "finished" if job.run_id else "to do"
    return listed.name, jobs


def _fingerprint(job: Job) -> str | None:
    """Of the run that a job makes; None while what it needs is not there."""
    config = job.config
    if isinstance(config, BenchmarkConfig):
        if job.needs is None or job.needs.state != "finished":
            return None
        pruned = finished.fingerprint_of(job.needs.run_id)
        return benchmark_fingerprint(benchmark.settled(config), pruned)
    names = ("dataset", "data_dir", "image_size", "train_limit", "seed")
    digest = _digest(**{name: getattr(config, name) for name in names})
    if isinstance(config, FinetuneConfig):
        return fingerprint(job.stage, config, digest, None)
    base, run_id = base_config(config), config.named_base
    if run_id is not None:
        config = config.resolved(weights=finished.base_weights(run_id))
    elif config.base_run == NEWEST:
        wanted = {name: getattr(base, name) for name in given_for_base(config)}
        run_id = finished.newest_base(workload_fingerprint(config, digest), wanted)
    exact = fingerprint("finetune", base, digest, None)
    of_base = exact if run_id is None else finished.fingerprint_of(run_id)
    return fingerprint(job.stage, config, digest, of_base)


@functools.cache
def _digest(dataset: str, **options: Any) -> str:
    return datasets.load(dataset, **options).digest


def _plan(jobs: Sequence[Job]) -> pd.DataFrame:
    """A row a job, as in `plan.csv`."""
    columns = ["number", "stage", "name", "parameters", "state", "run_id", "seconds", "failure"]
    rows = [
        {"number": number, "parameters": study.in_words(job.given)} | vars(job)
        for number, job in enumerate(jobs, 1)
    ]
    return pd.DataFrame(rows, columns=columns)


def _table(jobs: Sequence[Job]) -> Table:
    """The jobs as a person reads them."""
    counts = ", ".join(f"{n} {state}" for state, n in Counter(job.state for job in jobs).items())
    table = Table(title=f"{len(jobs)} runs: {counts}", title_justify="left")
    for heading in ("", "stage", "run and parameters", "state", "id"):
        table.add_column(heading, overflow="fold")
    for number, job in enumerate(jobs, 1):
        state = f"{job.state}: {job.failure}" if job.failure else job.state
        table.add_row(str(number), job.stage, _in_words(job), state, job.run_id[:8])
    return table


def _in_words(job: Job) -> str:
    """A job's name, and what tells it from others of that name."""
    shown = {"data_dir", "preset", "device", "precision", "threads", "model", "seed", "dataset"}
    return f"{job.name} {study.in_words({k: v for k, v in job.given.items() if k not in shown})}"


def _outcome(job: Job) -> str:
    """How a job ended, in a line."""
    if job.state != "finished":
        return f"{job.state}: {job.failure}"
    if job.seconds is None:
        return "finished already"
    parts = [f"finished in {job.seconds:.0f} s"]
    test = job.metrics.get("accuracy/test_after", job.metrics.get("accuracy/test"))
    if test is not None:
        parts.append(f"test {test:.4f}")
    if "prune/params_left" in job.metrics:
        parts.append(f"at {100 * job.metrics['prune/params_left']:.3g} % of the parameters")
    return ", ".join(parts)


# ------------------------------------------------------------------------------------- running


def _run_all(
    jobs: Sequence[Job],
    workers: int,
    executor: Processes,
    record: Callable[[Sequence[Job]], None],
) -> None:
    """Run what is to do, `workers` at a time, each after what it needs; go on past failures.

    `record` is called with those that have ended, and with none once in a while.
    """
    waiting = [job for job in jobs if job.state == "to do"]
    total, running = len(waiting), dict[Future[None], Job]()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or running:
                ready = [job for job in waiting if job.needs is None or job.needs.state != "to do"]
                for job in ready[: workers - len(running)]:
                    waiting.remove(job)
                    executor.say(f"  [{total - len(waiting)}/{total}] {job.stage} {_in_words(job)}")
                    running[pool.submit(executor.run, job)] = job
                ended, _ = wait(running, ALIVE_SECONDS, return_when=FIRST_COMPLETED)
                record([running.pop(future) for future in ended])
        except BaseException:
            executor.end()
            raise


class Processes:
    """Runs jobs, each in a process of its own, and waits while MLflow does not answer."""

    def __init__(self, study_name: str, experiment_id: str, reporter: Reporter) -> None:
        self.say = reporter.say
        self._study, self._experiment_id = study_name, experiment_id
        self._processes: list[subprocess.Popen[str]] = []
        self._stopping = threading.Event()
        self._silent_since: float | None = None  # when the first call failed that was not answered

    def run(self, job: Job) -> None:
        """Run a job to its end, and keep in it what has become of it."""
        needs, start = job.needs, time.monotonic()
        if needs is not None and needs.state != "finished":
            job.state, job.failure = "skipped", f"{needs.name} {needs.state}"
            return
        try:
            for _ in range(_TRIES):
                self.patiently(functools.partial(self._hand_over, job))
                if job.state == "finished":
                    return
                code = self._process(job)
                if code == 0 or store.NO_ANSWER not in job.failure:
                    break
            job.seconds = time.monotonic() - start
            _conclude(job, code)
        except Exception as error:  # of this job alone: the others go on
            job.state, job.failure = "failed", first_line(error)

    def _hand_over(self, job: Job) -> None:
        """Find or make the run that a job's process is to fill, once what it needs is in MLflow."""
        if job.needs is not None:
            _send(job.needs)
            job.needs.run_id = finished.stands_for(job.needs.run_id)
            if isinstance(job.config, BenchmarkConfig):
                job.given["run"] = job.needs.run_id
        known = _fingerprint(job)
        before = resume.earlier(resume.AUTO, known, self._experiment_id) if known else None
        if before is None:
            tags = {"pruneflow.study": self._study, "pruneflow.stage": job.stage}
            run_id = writers.hand_over(job.name, tags)
        else:  # it was interrupted, and goes on, or was finished meanwhile
            run_id = before.id
            finished.adopt(run_id, self._study)
            job.state = "finished" if before.finished else job.state
        if job.run_id not in ("", run_id):  # of a process that found no store
            writers.dismiss(job.run_id, run_id)
        job.run_id = run_id

    def _process(self, job: Job) -> int:
        """Run a job's process, and keep what it prints and what it says last; its exit code."""
        handed_over = {"MLFLOW_RUN_ID": job.run_id, "MLFLOW_EXPERIMENT_ID": self._experiment_id}
        command = [sys.executable, "-m", "pruneflow", job.stage]
        command += [f"--{name}={value}" for name, value in job.given.items()]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
            process = subprocess.Popen(
                command, env=os.environ | handed_over, stdout=file, stderr=file, text=True
            )
            self._processes.append(process)
            if self._stopping.is_set():
                process.terminate()
            code = process.wait()
            file.seek(0)
            job.output = file.read()
        job.failure = (job.output.strip().splitlines() or [""])[-1]
        return code

    def patiently(self, call: Callable[[], T]) -> T:
        """What a call to MLflow returns, made again and again while MLflow does not answer.

        Raises:
            ExperimentError: it has not answered for too long, or the sweep is ended.
        """
        while not self._stopping.is_set():
            try:
                result = call()
            except Exception as error:  # whatever a store, a driver or a network has to say
                if is_refusal(error):
                    raise
                if self._silent_since is None:
                    self._silent_since = time.monotonic()
                    self.say(f"  MLflow does not answer ({in_short(error)}): waiting")
                if time.monotonic() - self._silent_since >= _OUTAGE_SECONDS:
                    silence = f"MLflow did not answer for {_OUTAGE_SECONDS:.0f} s"
                    raise ExperimentError(f"{silence}: {in_short(error)}") from error
                self._stopping.wait(_PAUSE_SECONDS)
            else:
                self._silent_since = None
                return result
        raise ExperimentError("the sweep was ended")

    def send_rest(self, jobs: Sequence[Job]) -> None:
        """Send what the processes could not, or say where it is."""
        for job in jobs:
            try:
                _send(job)
            except Exception as error:  # whatever a store, a driver or a network has to say
                self.say(
                    f"{job.name} is finished, but MLflow has not all of it ({in_short(error)}): "
                    f"send it later with: pruneflow sync {journal.folder_of(job.run_id)}"
                )

    def end(self) -> None:
        """End all that are running."""
        self._stopping.set()
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _send(job: Job) -> None:
    """Send what a job's process could not."""
    if job.unsent:
        publish.publish_folder(journal.folder_of(job.run_id))
        job.unsent = False


def _conclude(job: Job, code: int) -> None:
    """What has become of a job, as its run says or, in an outage, its records."""
    status = ""
    try:
        if code != 0:
            reason = f"its process ended with code {code}: {job.failure}"
            writers.end_deserted(job.run_id, reason)
        job.run_id = finished.stands_for(job.run_id)
        run = finished.outcome(job.run_id)
        status, job.failure, job.metrics = run.status, run.failure or job.failure, run.metrics
    except Exception as error:  # whatever a store, a driver or a network has to say
        if is_refusal(error):
            raise
    unsent = journal.unsent_metrics(job.run_id)
    if unsent is not None:
        job.unsent, job.metrics = True, unsent
    well = code == 0 and (job.unsent or status in ("", "FINISHED"))
    job.state, job.failure = ("finished", "") if well else ("failed", job.failure)
