"""Where runs are kept: the tracking store, whether it answers, and how to look at it."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pruneflow.errors import InputError, first_line, unknown

UI_PORT = 5000
_HALF_MADE = re.compile("already exists|duplicate column|alembic_version")  # what SQLite says
_ANSWER_SECONDS = 5.0
NO_ANSWER = "does not answer"  # in what is said of an outage, and of nothing else
_LONGEST_NAME = 200
_NAME = re.compile(rf"(?! )[\w.\- ]{{1,{_LONGEST_NAME}}}(?<! )")


def uri() -> str:
    """The tracking URI in force."""
    import mlflow

    return str(mlflow.get_tracking_uri())


def without_credentials(address: str) -> str:
    """An address that can be shown: user, password and query taken out."""
    try:
        parts = urlsplit(address)
    except ValueError:  # not an address at all
        return address.rpartition("@")[2]
    if "@" not in parts.netloc and not parts.query:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def check() -> None:
    """See that the tracking store can be used, within seconds; MLflow itself would try for minutes.

    So is the experiment that runs are to go to, and the run that `mlflow run` has handed over.

    Raises:
        InputError: a server that does not answer, a store that MLflow refuses, an experiment or
            run that is not there.
    """
    from filelock import FileLock
    from mlflow.tracking import MlflowClient

    from pruneflow.tracking import journal, offline, writers

    if offline.wanted():
        offline.use()
    address = uri()
    shown = without_credentials(address)
    if address.startswith(("http://", "https://")):
        _check_server(address)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each table it creates
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    handed_over = os.environ.get("MLFLOW_RUN_ID")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    asked = "the store"
    try:
        with FileLock(journal.made_state_folder() / "store.lock"):  # two that make one spoil it
            client = MlflowClient()
            client.search_experiments(max_results=1)
        if handed_over:
            asked = f"MLFLOW_RUN_ID={handed_over}"
            writers.check_handed_over(client.get_run(handed_over))
        elif name:
            asked = f"MLFLOW_EXPERIMENT_NAME={name}"
            there = client.get_experiment_by_name(name)
            _check_experiment(f"MLFLOW_EXPERIMENT_NAME={name!r}", name, there)
        elif experiment:
            asked = f"MLFLOW_EXPERIMENT_ID={experiment}"
            there = client.get_experiment(experiment)
            _check_experiment(f"MLFLOW_EXPERIMENT_ID={experiment}", there.name, there)
    except InputError:
        raise
    except Exception as error:  # the store's own: a driver that is missing, a path, a locked file
        reason = first_line(error).replace(address, shown)
        if _HALF_MADE.search(reason):
            reason += " (two processes made it at once: if no runs are in it yet, delete it)"
        raise InputError(f"the tracking store {shown} cannot be used ({asked}): {reason}") from None


def _check_experiment(which: str, name: str, experiment: Any) -> None:
    if experiment is not None and experiment.lifecycle_stage != "active":
        raise InputError(f"{which} is deleted: restore it, or name another one")
    if experiment is None and len(name) > _LONGEST_NAME:
        raise InputError(f"{which[:80]}... has {len(name)} characters: {_LONGEST_NAME} are valid")


def experiment_named(wanted: str | None) -> str:
    """Id of an experiment by its name or id; without one, of MLflow's current experiment.

    Raises:
        InputError: it is not there, or deleted.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    wanted = wanted or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    by_id = wanted or os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
    found = client.get_experiment_by_name(wanted) if wanted else None
    if found is None:
        try:
            found = client.get_experiment(by_id)
        except MlflowException:
            known = [one.name for one in client.search_experiments()]
            raise unknown("experiment", by_id, known) from None
    if found.lifecycle_stage != "active":
        raise InputError(f"experiment {by_id!r} is deleted: restore it, or name another one")
    return str(found.experiment_id)


def current_experiment() -> str:
    """Id of MLflow's current experiment: MLFLOW_EXPERIMENT_ID or _NAME, else the default one."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if name:
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id if found else client.create_experiment(name))
    return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"


def check_name(parameter: str, name: str) -> None:
    """See that runs can be tagged with a name, and searched by it.

    Raises:
        InputError: it holds what MLflow's tags or filters cannot say, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{parameter}={name[:80]!r} is not a name that MLflow can take: letters, digits, blanks"
            f" and . _ - are valid, {_LONGEST_NAME} of them at most"
        )


def _check_server(address: str) -> None:
    import requests

    shown = without_credentials(address)
    instead = (
        "start it, set MLFLOW_TRACKING_URI to another one, or set PRUNEFLOW_OFFLINE=1 and send "
        "the runs later with: pruneflow sync"
    )
    try:
        answer = requests.get(address.rstrip("/") + "/health", timeout=_ANSWER_SECONDS)
    except requests.exceptions.SSLError:
        return  # MLflow has settings of its own for certificates
    except (requests.RequestException, ValueError) as error:
        raise InputError(
            f"the tracking server {shown} {NO_ANSWER} ({type(error).__name__}): {instead}"
        ) from None
    if answer.status_code >= 500:
        raise InputError(
            f"the tracking server {shown} answers with status {answer.status_code}: {instead}"
        )


def address_of(experiment_id: str, run_id: str) -> str:
    """Where a person finds a run in the UI."""
    page = f"#/experiments/{experiment_id}/runs/{run_id}"
    address = uri()
    if address.startswith(("http://", "https://")):
        return f"{without_credentials(address).rstrip('/')}/{page}"
    return f"http://127.0.0.1:{UI_PORT}/{page} (start it with: pruneflow ui)"


def serve_ui(port: int) -> None:
    """Turn this process into MLflow's UI on the current store, with one worker and no job runner.

    Raises:
        InputError: the store is a server, which has a UI of its own.
    """
    address = uri()
    if address.startswith(("http://", "https://")):
        raise InputError(f"the tracking server has its own UI: {without_credentials(address)}")
    check()  # creates a fresh store, with the artifact root that direct runs can write to
    print(f"MLflow UI: http://127.0.0.1:{port}/?workflowType=machine_learning  (Ctrl-C ends it)")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_BACKEND_STORE_URI"] = address  # not an argument: it may hold a password
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--no-serve-artifacts"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, command)


def shown(value: object) -> str:
    """A value of a configuration as its MLflow parameter shows it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
