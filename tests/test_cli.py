"""The commands, as a person at a terminal meets them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pruneflow import cli
from pruneflow.stages import STAGES


def run(
    *arguments: str, root: Path, uri: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """`python -m entrypoints.<name> ...` from the checkout, on the given store."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(root / "src")}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize("stage", STAGES)
def test_help_is_fast_and_imports_nothing_heavy(stage: str, root: Path, store: str) -> None:
    code = (
        "import sys\n"
        "from pruneflow.cli import command\n"
        f"command({stage!r}).main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'mlflow', 'matplotlib', 'pandas', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in STAGES[stage].config.model_fields:
        assert f"--{name}" in done.stdout


REFUSED = [
    (["--fraction", "1.5"], "fraction='1.5'"),
    (["--modle", "alexnet"], "did you mean model"),
    (["--criterion"], "requires an argument"),
    (["extra"], "unexpected extra argument"),
    (["--model", "alexnt"], "did you mean alexnet"),
    (["--image_size", "16"], "image_size=16 does not work with alexnet"),
    (["--include", "conv9"], "'conv9' matches no prunable layer"),
    (["--base_run", "0123"], "base_run='0123' does not exist"),
    (["--dataset", "cifar10", "--data_dir", "/nowhere"], "'/nowhere' does not exist"),
    (["--dataset", "cifar10", "--data_dir", "~nosuchuser/x"], "is not a usable path"),
    (["--threads", "9999"], "threads=9999"),
    (["--image_size", "10000000000"], "image_size='10000000000'"),
    (["--base_run", "x", "--weights", "y"], "no effect with base_run"),
]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a stage's command in this process, as its entry file does; gives the exit code."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run_here(stage: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [stage, *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.run_entrypoint(stage)
        return int(ended.value.code or 0)

    return run_here


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    command: Callable[..., int],
    store: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("prune_iterative", *arguments) == 2
    check_refusal(capsys.readouterr().err, said)


@pytest.mark.parametrize(("arguments", "said"), [REFUSED[0], REFUSED[4]])
def test_bad_input_ends_a_process_with_one_line(
    arguments: list[str], said: str, root: Path, store: str
) -> None:
    done = run("entrypoints.prune_iterative", *arguments, root=root, uri=store)
    assert done.returncode == 2
    check_refusal(done.stderr, said)


def check_refusal(errors: str, said: str) -> None:
    """One line on standard error, that says this."""
    (line,) = [line for line in errors.splitlines() if line.strip()]
    assert line.startswith("pruneflow: ")
    assert said in line


def test_bad_input_leaves_no_run(command: Callable[..., int], store: str) -> None:
    from mlflow.tracking import MlflowClient

    assert command("finetune", "--image_size", "16") == 2
    assert MlflowClient(store).search_runs(["0"]) == []


def test_bad_input_ends_the_run_that_mlflow_handed_over(
    root: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    handed = MlflowClient(store).create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", handed)
    done = run("entrypoints.finetune", "--epochs", "-1", root=root, uri=store)
    assert done.returncode == 2
    ended = MlflowClient(store).get_run(handed)
    assert ended.info.status == "FAILED"
    assert "epochs='-1'" in ended.data.tags["pruneflow.failure"]


def test_a_server_that_does_not_answer_is_refused_within_seconds(root: Path) -> None:
    uri = "http://user:secret@127.0.0.1:9"  # nothing listens on the discard port
    done = run("entrypoints.finetune", root=root, uri=uri)
    assert done.returncode == 2
    assert "tracking server http://127.0.0.1:9 does not answer" in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_a_terminated_run_says_so(root: Path, store: str) -> None:
    from mlflow.tracking import MlflowClient

    command = [sys.executable, "-m", "entrypoints.finetune", "--model", "squeezenet1_1"]
    command += ["--image_size", "32", "--epochs", "1000", "--train_limit", "40", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch 1/1000" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    (run_,) = MlflowClient(store).search_runs(["0"])
    assert run_.info.status == "KILLED"
    assert "terminated" in run_.data.tags["pruneflow.failure"]


def test_no_command_shows_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pruneflow"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "  prune_iterative " in capsys.readouterr().err


def test_a_password_in_an_address_is_in_no_record_of_a_run(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from pruneflow.config import FinetuneConfig
    from pruneflow.errors import ExperimentError
    from pruneflow.resolution import resolve
    from pruneflow.tracking.run import open_run

    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)

    def fail() -> None:
        with open_run("finetune", resolve(FinetuneConfig, {}), name="n", tags={}):
            raise MlflowException("API request to http://me:secret@host/api failed")

    with pytest.raises(ExperimentError) as refused:
        fail()
    assert "secret" not in str(refused.value)
    (run_,) = MlflowClient().search_runs(["0"])
    assert "http://host/api" in run_.data.tags["pruneflow.failure"]
    assert "secret" not in str(run_.to_dictionary())
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".db"]
    assert kept
    assert not any(b"secret" in path.read_bytes() for path in kept)


@pytest.mark.parametrize("output", ["| head -1", "| true", "> /dev/full", ">&-", "2>&1 | head -1"])
def test_work_goes_on_when_nobody_takes_its_output(output: str, root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import click; from pruneflow import cli\n"
        "def work():\n"
        "    for number in range(20_000):\n"
        "        print(number, flush=number % 100 == 0)\n"
        "        print(number, file=sys.stderr)\n"
        "    Path(sys.argv[1]).write_text('done')\n"
        "cli._exit(click.Command('work', callback=lambda rest: work(), "
        "params=[click.Argument(['rest'])]))\n"
    )
    script, mark = tmp_path / "work.py", tmp_path / "mark"
    script.write_text(code)
    shell = f'"{sys.executable}" "{script}" "{mark}" {output}; exit ${{PIPESTATUS[0]}}'
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True)
    assert mark.read_text() == "done"
    assert done.returncode == 0
    assert "Error" not in done.stderr
