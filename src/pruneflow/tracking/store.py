"""Where runs are kept: the tracking store, whether it answers, and how to look at it."""

from __future__ import annotations

import logging
import os
import sys
from urllib.parse import urlsplit, urlunsplit

from pruneflow.errors import InputError

UI_PORT = 5000
_ANSWER_SECONDS = 5.0


def uri() -> str:
    """The tracking URI in force."""
    import mlflow

    return str(mlflow.get_tracking_uri())


def without_credentials(address: str) -> str:
    """An address that can be shown: user and password taken out."""
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def check() -> None:
    """See that the tracking store answers, within seconds; MLflow itself would try for minutes.

    Raises:
        InputError: a server that does not answer, or a store that MLflow refuses.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    address = uri()
    if address.startswith(("http://", "https://")):
        try:
            requests.get(address.rstrip("/") + "/health", timeout=_ANSWER_SECONDS)
        except requests.RequestException as error:
            raise InputError(
                f"the tracking server {without_credentials(address)} does not answer "
                f"({type(error).__name__}): start it, or set MLFLOW_TRACKING_URI to another one"
            ) from None
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each table it creates
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    try:
        MlflowClient().search_experiments(max_results=1)
    except Exception as error:  # the store's own: a driver that is missing, a path, a locked file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not isinstance(error, MlflowException):
            reason = f"{type(error).__name__}: {reason}"
        raise InputError(
            f"the tracking store {without_credentials(address)} cannot be used: {reason}"
        ) from None


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
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--backend-store-uri", address, "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, command)
