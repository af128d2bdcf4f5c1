"""Commands: one click option for every field of a stage's configuration, and nothing else.

The same command stands behind `mlflow run`, `python -m entrypoints.<name>` and
`pruneflow <name>`. Bad input ends as one line on standard error and exit code 2, a failed
experiment as one line and exit code 1.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from pruneflow import __version__
from pruneflow.config import as_text
from pruneflow.errors import ExperimentError, InputError, unknown
from pruneflow.resolution import resolve
from pruneflow.stages import STAGES, run
from pruneflow.tracking.store import UI_PORT


def command(stage: str) -> click.Command:
    """The command of a stage."""
    kind, options = STAGES[stage].config, []
    quick = resolve(kind, {})
    for name, field in kind.model_fields.items():
        value, origin = getattr(quick, name), "preset quick" if field.is_required() else "default"
        default = "" if value in (None, ()) else f" [{origin}: {as_text(value)}]"
        help_text = f"{field.description}{default}"
        options.append(click.Option([f"--{name}"], metavar="VALUE", help=help_text))

    def callback(**given: str | None) -> None:
        run(stage, given)

    return click.Command(stage, callback=callback, params=[*options], help=STAGES[stage].help)


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


@click.group(
    commands=[*(command(stage) for stage in STAGES), ui, sync, doctor],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="pruneflow")
def group() -> None:
    """How far can a model be pruned, what is lost, and does it get faster?"""


def main() -> NoReturn:
    """The command `pruneflow`."""
    _exit(group)


def run_entrypoint(stage: str) -> NoReturn:
    """The whole of an entry file: the command of one stage."""
    _exit(command(stage))


def _exit(target: click.Command) -> NoReturn:
    """Run a command to its end: the one place where an error becomes a line and an exit code."""
    # Half a million objects are made as PyTorch, torchvision and MLflow are imported: that takes a
    # third longer where Python's collector looks through them again and again, and at the end
    gc.set_threshold(200_000, 50, 100)
    atexit.register(gc.freeze)
    _outlive_readers()
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
        signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    try:
        target.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.NoSuchOption as error:
        known = [p.name or "" for p in error.ctx.command.params] if error.ctx else []
        _end(2, str(unknown("parameter", error.option_name.lstrip("-"), known, listed=40)))
    except click.UsageError as error:
        _end(2, error.format_message())
    except InputError as error:
        _end(2, str(error))
    except ExperimentError as error:
        _end(1, str(error))
    except (KeyboardInterrupt, click.Abort):
        _end(130, "interrupted")
    sys.exit(0)


def _end(code: int, reason: str) -> NoReturn:
    line = " ".join(reason.split())
    print(f"pruneflow: {line}", file=sys.stderr)
    if code == 2 and "MLFLOW_RUN_ID" in os.environ:  # of `mlflow run`, and not taken over yet
        from pruneflow.tracking.writers import refuse_handed_over

        refuse_handed_over(line)
    sys.exit(code)


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
