"""Refusals and outages: whether a store has said no, or nothing that counts."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import requests
import urllib3
from mlflow.exceptions import MlflowException

from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.tracking import store

_PASSING_STATUS = {408, 409, 425, 429, 499}  # the only ones of 4xx where trying again may help
_LASTING_STATUS = {501, 507}  # and of 5xx where it does not
_STATUS_IN_TEXT = re.compile(r"failed with error code (\d{3})")
_PASSING_ERRNO = "EAGAIN EBUSY EHOSTDOWN EHOSTUNREACH EINTR ENETDOWN ENETRESET ENETUNREACH ESTALE"
_LASTING_TEXT = re.compile(  # of databases and drivers that say it in words alone
    "readonly database|read-only|disk is full|disk full|no such table|malformed|"
    "(permission|access) ?denied|not authorized|credential|"
    "authentication failed|could not find a registered artifact repository",
    re.IGNORECASE,
)
_NETWORK = (
    *(requests.RequestException, urllib3.exceptions.HTTPError, ssl.SSLError),
    *(ConnectionError, TimeoutError, socket.gaierror),
)
_WRONG = (ImportError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)


class TakenOverError(Exception):
    """Another process has taken a run over; its text says which."""


def is_refusal(error: BaseException) -> bool:
    """Whether a store has said no, so that trying again does not help, rather than nothing.

    What a driver, a permission, a disk or a name lacks is a refusal; a network, a server or a lock
    that may be there again is an outage, and so is what cannot be told. An error that says nothing
    of this by itself is judged by its cause.
    """
    cause: BaseException | None = error
    while cause is not None:
        verdict = _verdict(cause)
        if verdict is not None:
            return verdict
        cause = cause.__cause__ or cause.__context__
    return False


def _verdict(error: BaseException) -> bool | None:
    """Whether one error is a refusal; None if it does not say."""
    code = _status(error)
    if code is not None and code < 500:
        return code >= 400 and code not in _PASSING_STATUS
    if code in _LASTING_STATUS:
        return True
    if isinstance(error, _NETWORK):
        return False
    if isinstance(error, MlflowException) and (error.__cause__ or error.__context__):
        return None  # its text is that of its cause, with addresses in it
    if _LASTING_TEXT.search(str(error)) or isinstance(error, TakenOverError | InputError):
        return True
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno or 0) not in _PASSING_ERRNO.split()
    if isinstance(error, _WRONG) and type(error).__module__ == "builtins":
        return True
    return None


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error of MLflow, requests or a cloud's driver."""
    if isinstance(error, MlflowException):
        if error.error_code == "INVALID_STATE":  # 500 for MLflow
            return 400
        match = _STATUS_IN_TEXT.search(str(error))
        return int(match[1]) if match else int(error.get_http_status_code())
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        numbers = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        holders = ((response, "status_code"), (error, "status_code"), (error, "code"))
        numbers = [getattr(holder, name, None) for holder, name in holders]
    return next((n for n in numbers if isinstance(n, int) and 100 <= n < 600), None)


@contextmanager
def in_a_line(before: str = "") -> Iterator[None]:
    """What a store raises outside of any run ends an experiment in one line, after `before`."""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        what = "refuses" if is_refusal(error) else store.NO_ANSWER
        raise ExperimentError(f"{before}MLflow {what} ({in_short(error)})") from error


def in_short(error: BaseException) -> str:
    """What MLflow says of a request that failed, without what the network said to it."""
    return first_line(error).partition(" with exception")[0][:200]
