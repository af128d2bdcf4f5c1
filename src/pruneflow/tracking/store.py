"""Where runs are kept: the tracking store, whether it answers, and how to look at it."""

from __future__ import annotations

import logging
import os
import re
import sys
from urllib.parse import urlsplit, urlunsplit

from pruneflow.errors import ExperimentError, InputError, first_line, unknown

UI_PORT = 5000
NO_ANSWER = "does not answer"  # in what is said of an outage, and of nothing else
_ANSWER_SECONDS = 5.0
_LONGEST_NAME = 200
_NAME = re.compile(rf"(?! )[\w.\- ]{{1,{_LONGEST_NAME}}}(?<! )")


def uri() -> str:
    """The tracking URI in force."""
    import mlflow

    return str(mlflow.get_tracking_uri())


def shown_uri() -> str:
    """The tracking URI in force as it can be shown."""
    return without_credentials(uri())


def without_credentials(address: str) -> str:
    """An address that can be shown: user, password and query taken out."""
    try:
        parts = urlsplit(address)
    except ValueError:  # not an address at all
        return address.rpartition("@")[2]
    if "@" not in parts.netloc and not parts.query:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def is_server() -> bool:
    """Whether the store is a tracking server; else it is opened by this process."""
    return uri().startswith(("http://", "https://"))


def is_offline() -> bool:
    """Whether PRUNEFLOW_OFFLINE has this process make its runs in a store of this machine."""
    return os.environ.get("PRUNEFLOW_OFFLINE", "").lower() not in ("", "0", "false", "no")


def check() -> None:
    """See that the tracking store can be used, within seconds; MLflow itself would try for minutes.

    So is the experiment that runs are to go to, or the run that `mlflow run` has handed over.
    Raises InputError for a server that does not answer, a store, run or experiment that is refused.
    """
    from filelock import FileLock
    from mlflow.tracking import MlflowClient

    from pruneflow.tracking import journal, writers

    for logger in ("alembic", "mlflow.store.db.utils"):  # a line for each table that they create
        logging.getLogger(logger).setLevel(logging.WARNING)
    # requests give up after seconds, since what is not sent is sent later
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        if is_server() and not is_offline():
            _check_server()
        with FileLock(journal.made_state_folder() / "store.lock"):  # two that make one spoil it
            if is_offline():
                _use_offline()
            client = MlflowClient()
            client.search_experiments(max_results=1)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if handed_over := os.environ.get("MLFLOW_RUN_ID"):
            writers.check_handed_over(handed_over)
        elif name and client.get_experiment_by_name(name) is None:  # it is made by the first run
            if len(name) > _LONGEST_NAME:
                limit = f"has {len(name)} characters: {_LONGEST_NAME} are valid"
                raise InputError(f"MLFLOW_EXPERIMENT_NAME={name[:80]!r}... {limit}")
        elif name or os.environ.get("MLFLOW_EXPERIMENT_ID"):
            experiment_named(None)
    except (InputError, ExperimentError):
        raise
    except Exception as error:  # the store's own: a driver that is missing, a path, a locked file
        reason = first_line(error).replace(uri(), shown_uri())
        raise InputError(f"the tracking store {shown_uri()} cannot be used: {reason}") from None


def _use_offline() -> None:
    """Make this process, and those it starts, use the store for runs made offline."""
    import mlflow
    from mlflow.tracking import MlflowClient

    from pruneflow.tracking import journal

    folder = journal.state_folder() / "offline"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = journal.offline_uri()
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # of another store
    mlflow.set_tracking_uri(journal.offline_uri())
    name = os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", "offline")
    client = MlflowClient()
    if client.get_experiment_by_name(name) is None:
        client.create_experiment(name, artifact_location=(folder / "artifacts").as_uri())


def _check_server() -> None:
    import requests

    problem = ""
    try:
        answer = requests.get(uri().rstrip("/") + "/health", timeout=_ANSWER_SECONDS)
        if answer.status_code >= 500:
            problem = f"answers with status {answer.status_code}"
    except requests.exceptions.SSLError:
        pass  # MLflow has settings of its own for certificates
    except (requests.RequestException, ValueError) as error:
        problem = f"{NO_ANSWER} ({type(error).__name__})"
    if problem:
        raise InputError(
            f"the tracking server {shown_uri()} {problem}: start it, set MLFLOW_TRACKING_URI to "
            "another one, or set PRUNEFLOW_OFFLINE=1 and send the runs later with: pruneflow sync"
        )


def current_experiment() -> str:
    """Id of MLflow's current experiment: MLFLOW_EXPERIMENT_ID or _NAME, else the default one."""
    from mlflow.tracking import MlflowClient

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
    known = MlflowClient().get_experiment_by_name(name)
    return str(known.experiment_id if known else MlflowClient().create_experiment(name))


def experiment_named(wanted: str | None) -> str:
    """Id of an experiment by its name or id; without one, of MLflow's current experiment."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    name = wanted or os.environ.get("MLFLOW_EXPERIMENT_NAME") or ""
    name_or_id = name or os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
    try:
        experiment = client.get_experiment_by_name(name) if name else None
        experiment = experiment or client.get_experiment(name_or_id)
    except MlflowException:
        names = [known.name for known in client.search_experiments()]
        raise unknown("experiment", name_or_id, names) from None
    if experiment.lifecycle_stage != "active":
        raise InputError(f"experiment {name_or_id!r} is deleted: restore it, or name another one")
    return str(experiment.experiment_id)


def check_name(parameter: str, name: str) -> None:
    """See that runs can be tagged with a name, and searched by it; InputError: they cannot."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{parameter}={name[:80]!r} is not a name that MLflow can take: letters, digits, blanks"
            f" and . _ - are valid, {_LONGEST_NAME} of them at most"
        )


def address_of(experiment_id: str, run_id: str) -> str:
    """Where a person finds a run in the UI, and the table of its experiment."""
    runs = f"#/experiments/{experiment_id}/runs"
    here = shown_uri().rstrip("/") if is_server() else f"http://127.0.0.1:{UI_PORT}"
    start = "" if is_server() else " (start it with: pruneflow ui)"
    # without the workflow MLflow opens its pages for GenAI
    table = f"{here}/{runs}?workflowType=machine_learning"
    return f"{here}/{runs}/{run_id}{start}\n  all runs: {table}"


def serve_ui(port: int) -> None:
    """Turn this process into MLflow's UI on the current store, with one worker and no jobs."""
    if is_server():
        raise InputError(f"the tracking server has its own UI: {shown_uri()}")
    check()  # creates a fresh store, with the artifact root that direct runs can write to
    print(f"MLflow UI: http://127.0.0.1:{port}/?workflowType=machine_learning  (Ctrl-C ends it)")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri()  # not an argument: it may hold a password
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--no-serve-artifacts"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, command)


def shown(value: object) -> str:
    """A value of a configuration as its MLflow parameter shows it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
