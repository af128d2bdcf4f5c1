"""Ray tasks: what runs each job of a sweep on a node of a Ray cluster.

A node needs pruneflow and whatever files the study names; all else goes through MLflow. What a lost
node had begun goes on from its last published level.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pruneflow import commands
from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.stages.processes import LOST, Processes
from pruneflow.stages.study import Job
from pruneflow.tracking import store, writers
from pruneflow.workloads.machine import cores

_ANSWER_SECONDS = 5.0
_AUTO = "auto"
# of the environment; where a node keeps its own state is its own affair
_HANDED_ON = ("MLFLOW_", "HF_", "AWS_", "AZURE_", "GOOGLE_", "PYTHONPATH")


def connect(address: str | None) -> Any:
    """Ray, connected to a cluster (`auto`, `host:port`, `ray://host:port`) or one started here.

    Raises:
        InputError: Ray is not installed, no cluster answers there, or its nodes could not write
            to the tracking store.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    except ImportError:
        raise InputError("executor=ray needs Ray: pip install 'pruneflow[ray]'") from None
    if address is not None and not store.is_server():
        raise InputError(
            f"ray_address={address!r}: other nodes cannot write to {store.shown_uri()}: set "
            "MLFLOW_TRACKING_URI to an MLflow server (http://...) that proxies artifacts"
        )
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init("local", num_cpus=cores(), include_dashboard=False, **quiet)
        else:
            if address != _AUTO:
                _check_answers(address)
            ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        where = "Ray cannot be started here" if address is None else f"ray_address={address!r}"
        raise InputError(
            f"{where}: no cluster answers ({first_line(error)}): pass auto, host:port or "
            "ray://host:port of one (RAY_AUTH_MODE=token where it asks for a token), or leave it "
            "out to have one started here"
        ) from None
    return ray


def _check_answers(address: str) -> None:
    """See that something listens at an address: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()


def check(ray: Any, jobs: Sequence[Job]) -> None:
    """See that some node is large enough for each job; else it would wait for ever.

    Raises:
        InputError: none is.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for job in jobs:
        needs = {"CPU": _cpus(job), "GPU": _gpus(job)}
        if not any(all(node.get(k, 0) >= v for k, v in needs.items()) for node in nodes):
            raise InputError(
                f"{job.name} needs {needs['CPU']} CPUs and {needs['GPU']} GPUs on one node, and "
                f"none of {len(nodes)} has them: set threads or device in the study's settings"
            )


class RayTasks(Processes):
    """Runs jobs, each as a Ray task with the CPUs and the GPU that it asks for."""

    def __init__(
        self, study: str, experiment_id: str, say: Callable[[str], None], ray: Any
    ) -> None:
        super().__init__(study, experiment_id, say)
        self._ray, self._tasks = ray, set[Any]()
        self._run = ray.remote(max_retries=0)(_run_there)

    def _carry_out(self, job: Job, environment: Mapping[str, str]) -> tuple[int, str]:
        """Run a job's process on a node; if that is lost, its run is free to be gone on with."""
        handed_on = {k: v for k, v in os.environ.items() if k.startswith(_HANDED_ON)}
        handed_on |= {"MLFLOW_TRACKING_URI": store.uri(), **environment}
        options = {"num_cpus": _cpus(job), "num_gpus": _gpus(job), "name": job.name}
        task = self._run.options(**options).remote(job.arguments, handed_on, os.getcwd())
        self._tasks.add(task)
        try:
            code, output = self._ray.get(task)
            return int(code), str(output)
        except self._ray.exceptions.RayTaskError as error:
            raise ExperimentError(first_line(error.cause)) from None
        except self._ray.exceptions.RayError as error:
            if self._stopping.is_set():
                raise ExperimentError("the sweep was ended") from None
            reason = f"{LOST} ({first_line(error)})"
            self._say(f"  {job.name}: {LOST}, it goes on elsewhere")
            self._patiently(lambda: writers.end_deserted(job.run_id, reason))
            return 1, reason
        finally:
            self._tasks.discard(task)

    def close(self) -> None:
        """End all that are running, and leave the cluster."""
        self._stopping.set()
        tasks = list(self._tasks)
        for task in tasks:
            self._ray.cancel(task)
        if tasks:
            self._ray.wait(tasks, num_returns=len(tasks), timeout=commands.PATIENCE_SECONDS + 5)
        self._ray.shutdown()


def _run_there(
    arguments: list[str], environment: Mapping[str, str], folder: str
) -> tuple[int, str]:
    """On a node: run `pruneflow` in the folder that the sweep was started in, if there is one."""
    if os.path.isdir(folder):
        os.chdir(folder)
    return commands.run_pruneflow(arguments, environment, dies_with_parent=True)


def _cpus(job: Job) -> int:
    threads = job.config.threads or 1
    return max(threads) if isinstance(threads, tuple) else threads


def _gpus(job: Job) -> int:
    return int(any(device.startswith("cuda") for device in _devices(job)))


def _devices(job: Job) -> Sequence[str]:
    device = job.config.device
    return (device,) if isinstance(device, str) else device
