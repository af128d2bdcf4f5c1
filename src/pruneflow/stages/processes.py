"""Processes: what runs each job of a sweep in a process of its own, with a run made for it.

Another executor has its own way to carry a process out and to `close`, see `ray_tasks`.
"""

from __future__ import annotations

import functools
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pruneflow import commands
from pruneflow.config import (
    NEWEST,
    BenchmarkConfig,
    FinetuneConfig,
    PruneConfig,
    SensitivityConfig,
)
from pruneflow.errors import ExperimentError, first_line
from pruneflow.resolution import base_config, given_for_base, pruning_config
from pruneflow.stages import benchmark, sensitivity_run
from pruneflow.stages.experiment import DATA
from pruneflow.stages.study import Job
from pruneflow.tracking import finished, journal, publish, resume, store, writers
from pruneflow.tracking.fingerprints import (
    benchmark_fingerprint,
    fingerprint,
    sensitivity_fingerprint,
    workload_fingerprint,
)
from pruneflow.tracking.refusals import in_short, is_refusal
from pruneflow.workloads import datasets

LOST = "its node was lost"
_OUTAGE_SECONDS = 900.0  # that jobs wait for MLflow before they are started
_PAUSE_SECONDS = 2.0  # between two tries
_TRIES = 3  # of a process that finds no store, or whose node is lost


class Processes:
    """Runs jobs, each in a process of its own, and waits while MLflow does not answer."""

    def __init__(self, study: str, experiment_id: str, say: Callable[[str], None]) -> None:
        self._study, self._experiment_id, self._say = study, experiment_id, say
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
                self._patiently(lambda: self._hand_over(job))
                if job.state == "finished":
                    job.failure = ""
                    return
                code = self._process(job)
                if code == 0 or not any(why in job.failure for why in (store.NO_ANSWER, LOST)):
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
            elif isinstance(job.needs.config, SensitivityConfig):
                job.given["sensitivity_run"] = job.needs.run_id
        known = planned_fingerprint(job)
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
        code, job.output = self._carry_out(job, handed_over)
        job.failure = (job.output.strip().splitlines() or [""])[-1]
        return code

    def _carry_out(self, job: Job, environment: Mapping[str, str]) -> tuple[int, str]:
        """Run `pruneflow` for a job; its exit code and output."""

        def started(process: subprocess.Popen[str]) -> None:
            self._processes.append(process)
            if self._stopping.is_set():
                process.terminate()

        return commands.run_pruneflow(job.arguments, environment, started=started)

    def _patiently(self, call: Callable[[], object]) -> None:
        """Make a call to MLflow, again and again while MLflow does not answer.

        Raises:
            ExperimentError: it has not answered for too long, or the sweep is ended.
        """
        while not self._stopping.is_set():
            try:
                call()
            except Exception as error:  # whatever a store, a driver or a network has to say
                if is_refusal(error):
                    raise
                if self._silent_since is None:
                    self._silent_since = time.monotonic()
                    self._say(f"  MLflow does not answer ({in_short(error)}): waiting")
                if time.monotonic() - self._silent_since >= _OUTAGE_SECONDS:
                    silence = f"MLflow did not answer for {_OUTAGE_SECONDS:.0f} s"
                    raise ExperimentError(f"{silence}: {in_short(error)}") from error
                self._stopping.wait(_PAUSE_SECONDS)
            else:
                self._silent_since = None
                return
        raise ExperimentError("the sweep was ended")

    def adopt(self, jobs: Sequence[Job]) -> None:
        """Tag what was finished before as of this study, too."""
        for job in jobs:
            if job.state == "finished":
                self._patiently(functools.partial(finished.adopt, job.run_id, self._study))

    def send_rest(self, jobs: Sequence[Job]) -> None:
        """Send what the processes could not, or say where it is."""
        for job in jobs:
            try:
                _send(job)
            except Exception as error:  # whatever a store, a driver or a network has to say
                self._say(
                    f"{job.name} is finished, but MLflow has not all of it ({in_short(error)}): "
                    f"send it later with: pruneflow sync {journal.folder_of(job.run_id)}"
                )

    def close(self) -> None:
        """End all that are running."""
        self._stopping.set()
        commands.end(self._processes)


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


def planned_fingerprint(job: Job) -> str | None:
    """The fingerprint of the run that a job makes; None while what it needs is not there."""
    config = job.config
    if isinstance(config, BenchmarkConfig):
        if job.needs is None or job.needs.state != "finished":
            return None
        pruned = finished.fingerprint_of(job.needs.run_id)
        return benchmark_fingerprint(benchmark.settled(config), pruned)
    digest, texts = _data(config.dataset, **{name: getattr(config, name) for name in DATA})
    if texts:
        config = config.without_images()
    if isinstance(config, FinetuneConfig):
        return fingerprint(job.stage, config, digest, None)
    if isinstance(config, SensitivityConfig):
        pruning = finished.with_base(pruning_config(config))
        base = _base_fingerprint(pruning, digest)
        return sensitivity_fingerprint(pruning, config.fractions, digest, base)
    config = finished.with_base(config)
    of_base = _base_fingerprint(config, digest)
    if config.scope != "sensitivity":
        return fingerprint(job.stage, config, digest, of_base)
    of_scope = sensitivity_run.find(config, digest)
    if job.needs is not None and isinstance(job.needs.config, SensitivityConfig):
        of_scope = job.needs.run_id if job.needs.state == "finished" else None
    if of_scope is None:
        return None
    return fingerprint(job.stage, config, digest, of_base, finished.fingerprint_of(of_scope))


def _base_fingerprint(config: PruneConfig, digest: str) -> str:
    """Fingerprint of the base run that a pruning run starts from, there already or to be made."""
    base, run_id = base_config(config), config.named_base
    if config.base_run == NEWEST:
        wanted = {name: getattr(base, name) for name in given_for_base(config)}
        run_id = finished.newest_base(workload_fingerprint(config, digest), wanted)
    exact = fingerprint("finetune", base, digest, None)
    return exact if run_id is None else finished.fingerprint_of(run_id)


@functools.cache
def _data(dataset: str, **options: Any) -> tuple[str, bool]:
    """A data set's digest, and whether it holds texts."""
    data = datasets.load(dataset, **options)
    return data.digest, data.holds_texts
