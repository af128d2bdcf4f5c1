"""Stage `sweep`: runs every configuration of a study that has not been run yet.

Each is a process of its own that takes over a run made for it, tagged with the study. What is
finished already, by its fingerprint, is not run again, so a sweep that was interrupted goes on
where it is started again; so does each run that was interrupted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing

import pandas as pd
from rich.table import Table

from pruneflow.config import BenchmarkConfig, FinetuneConfig, SweepConfig
from pruneflow.errors import ExperimentError, InputError, first_line, user_path
from pruneflow.report import summaries
from pruneflow.resolution import resolve
from pruneflow.stages import ray_tasks, study
from pruneflow.stages.experiment import ALIVE_SECONDS
from pruneflow.stages.processes import Processes, planned_fingerprint
from pruneflow.stages.progress import Reporter
from pruneflow.stages.study import Job
from pruneflow.tracking import finished
from pruneflow.tracking.run import Ended, open_run
from pruneflow.workloads.machine import Machine, cores


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
    ray = None
    if config.executor == "ray":
        ray = ray_tasks.connect(config.ray_address)
        ray_tasks.check(ray, [job for job in jobs if job.state == "to do"])
    with open_run("sweep", config, name=f"sweep-{name}", tags={"pruneflow.study": name}) as run:
        reporter.say(f"sweep {name}: run {run.id}")
        processes = Processes(name, run.experiment_id, reporter.say)
        if ray is not None:
            processes = ray_tasks.RayTasks(name, run.experiment_id, reporter.say, ray)

        def record(ended: list[Job]) -> None:
            for job in ended:
                reporter.say(f"    {job.name}: {_outcome(job)}")
                if job.output:
                    run.log_text(f"logs/{job.name}-{job.run_id[:8]}.txt", job.output)
                run.log_text("plan.csv", _plan(jobs).to_csv(index=False))
            run.publish(every=ALIVE_SECONDS)

        run.log_text("plan.csv", _plan(jobs).to_csv(index=False))
        processes.adopt(jobs)
        try:
            _run_all(jobs, config.workers, processes, reporter.say, record)
        finally:
            run.log_text("plan.csv", _plan(jobs).to_csv(index=False))
        processes.send_rest(jobs)
        summaries.update(name, run.experiment_id, reporter.say)
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
    if workers > available and config.executor == "local":
        raise InputError(f"workers={workers} is not valid: this process may use {available} cores")
    folder = None if config.data_dir is None else user_path("data_dir", config.data_dir)
    if folder is not None and not folder.is_dir():
        raise InputError(f"data_dir={config.data_dir!r} is not a folder")
    # device and threads, chosen once, so that all runs of the study agree in them
    given = {k: v for k, v in listed.settings.items() if k in ("device", "threads")}
    settings = resolve(FinetuneConfig, given)
    threads = settings.threads or max(1, available // workers)
    machine = Machine.choose(settings.device, threads, available)
    jobs = study.jobs(listed, {"device": machine.device, "threads": machine.threads}, folder)
    known = finished.by_fingerprint(listed.name)
    for job in jobs:
        planned = planned_fingerprint(job)
        job.run_id = "" if planned is None else known.get(planned, "")
        job.state = "finished" if job.run_id else "to do"
    return listed.name, jobs


def _plan(jobs: Sequence[Job]) -> pd.DataFrame:
    """A row a job, as in `plan.csv`."""
    columns = ["number", "stage", "name", "parameters", "state", "run_id", "seconds", "failure"]
    rows = [
        vars(job) | {"number": number, "parameters": study.in_words(job.given)}
        for number, job in enumerate(jobs, 1)
    ]
    return pd.DataFrame(rows, columns=columns)


def _table(jobs: Sequence[Job]) -> Table:
    """The jobs as a person reads them."""
    counts = ", ".join(f"{n} {state}" for state, n in Counter(job.state for job in jobs).items())
    made = Table(title=f"{len(jobs)} runs: {counts}", title_justify="left")
    for heading in ("", "stage", "run and parameters", "state", "id"):
        made.add_column(heading, overflow="fold")
    for number, job in enumerate(jobs, 1):
        state = f"{job.state}: {job.failure}" if job.failure else job.state
        made.add_row(str(number), job.stage, _in_words(job), state, job.run_id[:8])
    return made


def _in_words(job: Job) -> str:
    """A job's name, and what tells it from others of that name."""
    shown = {"data_dir", "preset", "device", "precision", "threads", "model", "seed", "dataset"}
    return f"{job.name} {study.in_words({k: v for k, v in job.given.items() if k not in shown})}"


def _outcome(job: Job) -> str:
    """How a job ended, in a line."""
    if job.state != "finished" or job.seconds is None:
        return f"{job.state}: {job.failure or 'already'}"
    values = {name.rpartition("/")[2]: value for name, value in job.metrics.items()}
    shown = {"test": "test {:.4f}", "test_after": "test {:.4f}", "params_left": "{:.1%} left"}
    results = [text.format(values[name]) for name, text in shown.items() if name in values]
    return ", ".join([f"finished in {job.seconds:.0f} s", *results])


# ------------------------------------------------------------------------------------- running


def _run_all(
    jobs: Sequence[Job],
    workers: int,
    executor: Processes,
    say: Callable[[str], None],
    record: Callable[[list[Job]], None],
) -> None:
    """Run what is to do, `workers` at a time, each after what it needs; go on past failures.

    Benchmarks come last, each alone on the machine. `record` is called with the jobs that have
    ended, and with none once in a while.
    """
    waiting = [job for job in jobs if job.state == "to do"]
    total, running = len(waiting), dict[Future[None], Job]()
    with ThreadPoolExecutor(workers) as pool, closing(executor):
        while waiting or running:
            ready = [job for job in waiting if job.needs is None or job.needs.state != "to do"]
            shared = [job for job in ready if not isinstance(job.config, BenchmarkConfig)]
            start = shared[: workers - len(running)] if shared or running else ready[:1]
            for job in start:
                waiting.remove(job)
                say(f"  [{total - len(waiting)}/{total}] {job.stage} {_in_words(job)}")
                running[pool.submit(executor.run, job)] = job
            done, _ = wait(running, ALIVE_SECONDS, return_when=FIRST_COMPLETED)
            record([_concluded(running.pop(future), future) for future in done])


def _concluded(job: Job, future: Future[None]) -> Job:
    """A job that was run; failed if that has not said so itself, since others wait for it."""
    if job.state == "to do":
        error = future.exception()
        reason = "it was not carried out" if error is None else first_line(error)
        job.state, job.failure = "failed", reason
    return job
