"""System metrics: use of processors, memory, disk, network and GPUs, as MLflow collects them.

MLflow's own loop would send them itself, wait for an answer in an outage and then stop. Here a
thread only collects them; the run takes them, and they go through its folder like all it logs.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from pruneflow.config import Config
from pruneflow.errors import InputError, first_line
from pruneflow.tracking.journal import Journal

PREFIX = "system/"
_STOP_SECONDS = 5.0  # that the end of a run waits for a collection that hangs


def are_wanted(config: Config) -> bool:
    """Whether the configuration, or MLflow's own variable, asks for a run's system metrics."""
    try:
        everywhere = bool(MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get())
    except ValueError as error:
        raise InputError(first_line(error)) from None
    return everywhere or bool(getattr(config, "system_metrics", False))


def next_step(journal: Journal, *, interrupted: bool) -> int:
    """The step after a run's last, by its folder, or by MLflow if that has been elsewhere."""
    entries = journal.entries.values()
    steps = [m[3] for entry in entries for m in entry.metrics if m[0].startswith(PREFIX)]
    if interrupted and not steps:
        client, run_id = MlflowClient(), journal.owner.run_id
        with suppress(Exception):  # an outage: these points lie beside the earlier ones
            names = [n for n in client.get_run(run_id).data.metrics if n.startswith(PREFIX)]
            steps = [m.step for n in names[:1] for m in client.get_metric_history(run_id, n)]
    return max(steps, default=-1) + 1


class SystemMetrics:
    """Collects the system metrics of a run from when it is made until it is stopped.

    How often: every 10 seconds, or as MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL and
    MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING say. What cannot be collected ends no run.
    """

    def __init__(self, run_id: str, step: int) -> None:
        self._step, self._stopped = step, threading.Event()
        self._points: list[tuple[str, float, int, int]] = []  # as in `Entry.metrics`
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self._collect, args=(run_id,), name="system metrics", daemon=True
        )
        self._thread.start()

    def take(self) -> tuple[tuple[str, float, int, int], ...]:
        """What was collected since the last time: names, values, ms since 1970, steps."""
        with self._lock:
            points, self._points = self._points, []
        return tuple(points)

    def stop(self) -> None:
        """Collect once more, so that a short run has some too, and end."""
        self._stopped.set()
        self._thread.join(_STOP_SECONDS)

    def _collect(self, run_id: str) -> None:
        try:
            monitor = SystemMetricsMonitor(run_id)
            monitor.collect_metrics()  # use of processors is since the time before
            self._forget(monitor)
            stopped = False
            while not stopped:
                for _ in range(monitor.samples_before_logging):
                    stopped = stopped or self._stopped.wait(monitor.sampling_interval)
                    monitor.collect_metrics()
                self._keep(monitor)
        except Exception as error:  # whatever a system or a driver has to say
            text = f"no system metrics are collected any more: {first_line(error)}"
            print(f"pruneflow: {text}", file=sys.stderr)

    def _keep(self, monitor: SystemMetricsMonitor) -> None:
        prefix = PREFIX + (f"{monitor.node_id}/" if monitor.node_id else "")
        values, now = monitor.aggregate_metrics(), int(time.time() * 1000)
        with self._lock:
            self._points += [(prefix + k, float(v), now, self._step) for k, v in values.items()]
        self._step += 1
        self._forget(monitor)

    @staticmethod
    def _forget(monitor: SystemMetricsMonitor) -> None:
        for part in monitor.monitors:
            part.clear_metrics()
