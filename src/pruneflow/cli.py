"""Commands: one click option for every field of a stage's configuration, and nothing else.

The same command stands behind `mlflow run`, `python -m entrypoints.<name>` and
`pruneflow <name>`. Bad input ends as one line on standard error and exit code 2, a failed
experiment as one line and exit code 1.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from pruneflow import __version__
from pruneflow.config import Config, resolve
from pruneflow.errors import ExperimentError, InputError, unknown
from pruneflow.stages import STAGES, run
from pruneflow.tracking.store import UI_PORT


def command(stage: str) -> click.Command:
    """The command of a stage."""
    kind = STAGES[stage].config

    def callback(**given: str | None) -> None:
        run(stage, {name: value for name, value in given.items() if value is not None})

    quick = resolve(kind, {})
    options: list[click.Parameter] = [
        click.Option([f"--{name}"], metavar="VALUE", help=_help(quick, name))
        for name in kind.model_fields
    ]
    return click.Command(stage, callback=callback, params=options, help=STAGES[stage].help)


def _help(quick: Config, name: str) -> str:
    field = type(quick).model_fields[name]
    value = getattr(quick, name)
    if value in (None, ()):
        return str(field.description)
    origin = "preset quick" if field.is_required() else "default"
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f"{field.description} [{origin}: {shown}]"


@click.command()
@click.option("--port", default=UI_PORT, show_default=True, help="port to serve on")
def ui(port: int) -> None:
    """Open MLflow's UI on the current tracking store, with light settings."""
    from pruneflow.tracking.store import serve_ui

    serve_ui(port)


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
def sync(folders: tuple[Path, ...]) -> None:
    """Send what runs recorded while MLflow did not answer.

    FOLDERS are those of runs, of another machine say; by default this machine's are sent, and runs
    that were made with PRUNEFLOW_OFFLINE=1.
    """
    from pruneflow.tracking.sync import send

    send(folders)


@click.command()
def doctor() -> None:
    """See whether store, disk and versions are fine, and mark runs that died without a word."""
    from pruneflow.tracking.doctor import report

    report()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pruneflow")
def group() -> None:
    """How far can a model be pruned, what is lost, and does it get faster?"""


for _stage in STAGES:
    group.add_command(command(_stage))
for _command in (ui, sync, doctor):
    group.add_command(_command)


def main() -> NoReturn:
    """The command `pruneflow`."""
    _exit(group)


def run_entrypoint(stage: str) -> NoReturn:
    """The whole of an entry file: the command of one stage."""
    _exit(command(stage))


class _Output(io.FileIO):
    """Standard output or error: what its reader no longer takes, or has no room for, is dropped."""

    def write(self, text: Any) -> int:
        try:
            return super().write(text) or 0
        except OSError:
            return len(text)


def _outlive_readers() -> None:
    """Let no reader that goes away (`| head -1`) and no full device end what is being done."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
            lines = stream.line_buffering or name == "stderr"
            lasting = io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=lines)
            setattr(sys, name, lasting)


def _exit(target: click.Command) -> NoReturn:
    _outlive_readers()
    signal.signal(signal.SIGTERM, _terminated)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, _terminated)
    try:
        target.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help() if error.ctx else "", file=sys.stderr)
        sys.exit(2)
    except click.NoSuchOption as error:
        known = [p.name or "" for p in (error.ctx.command.params if error.ctx else [])]
        problem = unknown("parameter", error.option_name.lstrip("-"), known, listed=40)
        _refuse(str(problem))
    except (InputError, click.UsageError) as error:
        _refuse(error.format_message() if isinstance(error, click.UsageError) else str(error))
    except ExperimentError as error:
        print(f"pruneflow: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        print("pruneflow: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _refuse(reason: str) -> NoReturn:
    line = " ".join(reason.split())
    print(f"pruneflow: {line}", file=sys.stderr)
    if "MLFLOW_RUN_ID" in os.environ:  # started by `mlflow run`, and not taken over yet
        from pruneflow.tracking.writers import refuse_handed_over

        refuse_handed_over(line)
    sys.exit(2)


def _terminated(number: int, frame: FrameType | None) -> Any:
    sys.exit(128 + number)
