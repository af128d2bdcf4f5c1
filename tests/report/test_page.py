"""The report: everything in it, everything escaped, and read by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from records import benchmark, latency, level, prune

import pruneflow
from pruneflow import query
from pruneflow.errors import InputError
from pruneflow.report import charts
from pruneflow.report.figures import FIGURES
from pruneflow.report.tables import TABLES

NASTY = "<img src=x onerror=alert(1)>|x"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "DPI", 40)


@pytest.fixture
def two_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(FIGURES) - {"accuracy_weights", "criteria"}:
        monkeypatch.delitem(FIGURES, name)


def runs() -> None:
    """Runs for every figure, one of them with a name that is markup."""
    six = [level(n, 0.5**n, 0.9 - 0.02 * n) for n in range(6)]
    channels = [level(n, 0.9**n, 0.9 - 0.02 * n, channels_left=0.9**n) for n in range(4)]
    for seed in (0, 1):
        given: dict[str, Any] = {"seed": seed, "base": f"b{seed}"}
        prune(six, name=NASTY, **given)
        prune([six[0], level(1, 1 / 16, 0.7)], stage="prune_direct", iterations=4, **given)
    for other in ({"criterion": "random"}, {"fraction": 0}, {"fraction": 0.3}, {"model": "vgg16"}):
        prune(six, **other)
    for recovered in ({"rewind": "learning_rate"}, {"distill": 0.5}):
        prune(six, **recovered)
    for selected in ({"schedule": "cubic"}, {"scope": "layer"}):
        prune(six, **selected)
    how = {"granularity": "channel", "coupling": "independent", "fraction": 0.1}
    rows = [
        latency(n, form, batch, 5.0 * batch, speedup=1.1, params_left=0.9**n)
        for n in range(3)
        for form in ("dense", "compact")
        for batch in (1, 4, 16)
    ]
    benchmark(prune(channels, **how), rows)


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    """A report with everything in it."""
    runs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "DPI", 40)
        pruneflow.write_report(output_dir=str(folder / "out"), reference=True)
    return folder / "out"


def test_a_report_holds_every_figure_table_and_verdict(report: Path) -> None:
    page, text = ((report / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    for name, figure in FIGURES.items():
        assert (report / "figures" / f"{name}.png").stat().st_size > 2_000, name
        drawn = (report / "figures" / f"{name}.svg").read_text("utf-8")
        assert drawn in page
        assert "<title>" in drawn
        assert f'id="figure-{name}"' in page
        assert f"](figures/{name}.png)" in text
        assert figure.title in page
    assert len(page) < 1_500_000
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for name, (title, _) in TABLES.items():
        assert len(pd.read_csv(report / "tables" / f"{name}.csv")), name
        assert f'id="table-{name}"' in page
        assert f"tables/{name}.csv" in text
        assert f"### {title}" in text
    assert len(re.findall(r"\| (confirmed|refuted|undecided|not enough data) \|", text)) == 11
    for number in range(2, 13):
        assert re.search(rf"the study's Figures? (\d+ and )?{number}\b", text), number
    assert NASTY not in page
    assert "<img" not in text
    assert "onerror=alert(1)&gt;" in page
    stored = query.runs(filter_string="tags.`pruneflow.stage` = 'report'")
    assert stored["status"].tolist() == ["FINISHED"]


def test_means_and_intervals_are_those_of_the_runs(report: Path) -> None:
    table = pd.read_csv(report / "tables" / "levels.csv")
    rows = table[(table["measure"] == "test_after") & (table["level"] == 5)]
    assert rows["mean"].tolist() == pytest.approx([0.8] * len(rows))
    assert set(rows["n"]) == {1, 2}
    two = pd.read_csv(report / "tables" / "iterative_against_direct.csv")
    after = two[two["measure"] == "test_after"].iloc[0]
    assert (after["iterative"], after["direct"]) == pytest.approx((0.82, 0.7))
    assert after["difference"] == pytest.approx(0.12)


def test_a_browser_draws_every_figure_without_errors_or_requests(
    report: Path, tmp_path: Path
) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    log = tmp_path / "net.json"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"]
    command += [f"--log-net-log={log}", "--dump-dom", (report / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    for name in FIGURES:
        assert re.search(
            rf'<figure id="figure-{name}">.*?<svg [^>]*class="chart"', done.stdout, re.S
        )
    asked = re.findall(r'"url":"(https?://[^"]+)"', log.read_text("utf-8", errors="replace"))
    of_browser = ("google", "gvt1", "chrome")  # what it asks for itself, at its start
    assert [url for url in asked if not any(name in url for name in of_browser)] == []


def test_a_report_of_ones_own_runs_says_nothing_of_others(store: str, tmp_path: Path) -> None:
    prune()
    pruneflow.write_report(output_dir=str(tmp_path / "out"))
    page, text = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    for word in ("the study", "2020 study", "paper", "laim"):
        assert word not in page
        assert word not in text
    for name in ("fractions", "criteria", "latency_by_batch_size"):  # no runs for them
        assert f"`{FIGURES[name].command}`" in text
        assert f"<code>{FIGURES[name].command}</code>" in page
        assert not (tmp_path / "out" / "figures" / f"{name}.png").exists()
    for name in TABLES:
        assert f'id="table-{name}"' in page


@pytest.mark.usefixtures("two_figures")
def test_a_run_whose_levels_cannot_be_read_is_named_and_the_others_reported(
    store: str, tmp_path: Path
) -> None:
    prune()
    torn = prune(seed=1, criterion="random")
    MlflowClient().set_tag(torn, "pruneflow.curves", '{"level": [0, 1')
    with pytest.warns(UserWarning, match=torn):
        pruneflow.write_report(output_dir=str(tmp_path / "out"))
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "1 finished without readable levels" in text
    assert "1 finished pruning runs of 1 configurations" in text
    assert torn in (tmp_path / "out" / "tables" / "runs.csv").read_text("utf-8")


@pytest.mark.usefixtures("two_figures")
def test_commands_can_be_copied_from_the_markdown(store: str, tmp_path: Path) -> None:
    prune(model="vgg16")
    pruneflow.write_report(output_dir=str(tmp_path / "out"), reference=True)
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    commands = re.findall(r"`(pruneflow [^`]*)`", text)
    assert [one for one in commands if " && " in one]
    assert not [one for one in commands if "&amp;" in one]


@pytest.mark.usefixtures("two_figures")
def test_a_report_that_cannot_be_made_leaves_the_earlier_one(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune()
    pruneflow.write_report(output_dir=str(tmp_path / "out"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    monkeypatch.setitem(TABLES, "runs", ("runs", lambda evidence: evidence.runs[["nothing"]]))
    with pytest.raises(KeyError):
        pruneflow.write_report(output_dir=str(tmp_path / "out"))
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"experiment": "Defalt"}, "did you mean Default?"),
        ({"study": "none"}, "has no finished pruning runs"),
        ({"output_dir": "mlflow.db"}, "is not a folder"),
    ],
)
def test_bad_input_is_refused_before_a_run_is_made(
    store: str, given: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError) as refused:
        pruneflow.write_report(**given)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert query.runs().empty
