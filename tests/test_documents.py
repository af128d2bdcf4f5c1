"""README and docs/: entry points take what they say to type, and their links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

import pruneflow
from pruneflow.cli import group
from pruneflow.errors import InputError
from pruneflow.resolution import resolve
from pruneflow.stages import STAGES, study

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if path.name != "report.md"  # written by the entry point, with its own tests
)
GUIDES = [name for name in DOCUMENTS if re.fullmatch(r"README\.md|docs/[^/]+\.md", name)]
STARTS = ("pruneflow ", "mlflow run ", "python ", "MLFLOW_TRACKING_URI=", "PRUNEFLOW_OFFLINE=")


def _text(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def _blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _commands(text: str) -> list[list[str]]:
    """Words of every command in sh blocks and in code in a line, without variables before it."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    lines = [
        line for block in _blocks(text, "sh") for line in block.replace("\\\n", " ").split("\n")
    ]
    found = []
    for line in [*lines, *(span for span in spans if span.startswith(STARTS))]:
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            found.append(words)
    return [words for words in found if words]


def _given(words: list[str]) -> tuple[str, dict[str, str]] | None:
    """Stage and parameters of a command that starts one; None of a command that does not.

    Raises:
        click.UsageError: an entry point or option that is not there, an option without its value.
    """
    if words[:2] == ["uv", "run"]:
        words = words[words.index("mlflow") :]
    if words[:2] == ["mlflow", "run"]:
        options = dict(zip(words[3::2], words[4::2], strict=True))
        assert set(options) <= {"-e", "-P", "--env-manager"}, words
        pairs = [b for a, b in zip(words[3::2], words[4::2], strict=True) if a == "-P"]
        words = ["pruneflow", options["-e"]]
        words += [
            part
            for pair in pairs
            for part in ("--" + pair.partition("=")[0], pair.partition("=")[2])
        ]
    if words[:2] == ["python", "-m"] and words[2].startswith("entrypoints."):
        words = ["pruneflow", words[2].removeprefix("entrypoints."), *words[3:]]
    if words[0] != "pruneflow" or len(words) == 1:
        return None
    name, command, rest = group.resolve_command(click.Context(group), words[1:])
    assert command is not None
    parsed = command.make_context(name, [word for word in rest if word != "--help"]).params
    given = {key: value for key, value in parsed.items() if value is not None}
    return (str(name), given) if name in STAGES else None


def _check(words: list[str]) -> None:
    """Resolve what a command gives its entry point.

    Raises:
        click.UsageError, InputError: it would be refused.
    """
    stage, given = _given(words) or pytest.fail(f"{words} starts no entry point")
    assert resolve(STAGES[stage].config, given).given == set(given)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_is_one_that_its_entry_point_takes(document: str) -> None:
    for words in _commands(_text(document)):
        if _given(words) is not None:
            _check(words)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_script_that_a_command_starts_is_there(document: str) -> None:
    scripts = [
        w[1] for w in _commands(_text(document)) if w[0] == "python" and w[1].endswith(".py")
    ]
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_readme_and_the_guides_have_commands_of_every_entry_point() -> None:
    started = [_given(words) for document in GUIDES for words in _commands(_text(document))]
    assert {stage for stage, _ in filter(None, started)} == set(STAGES)


@pytest.mark.parametrize(
    "command",
    [
        "pruneflow prune --model alexnet",
        "pruneflow prune_iterative --modle alexnet",
        "mlflow run . -e prune_iterative -P scope=everywhere",
        "pruneflow export --best accuracy",
    ],
)
def test_a_command_that_no_entry_point_takes_is_noticed(command: str) -> None:
    (words,) = _commands(f"```sh\n{command}  # so\n```\n")
    with pytest.raises((click.UsageError, InputError)):
        _check(words)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_compiles_and_names_what_pruneflow_has(document: str) -> None:
    for block in _blocks(_text(document), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "pruneflow":
                assert all(hasattr(pruneflow, alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = {"pruneflow": pruneflow, "query": pruneflow.query}.get(node.value.id)
                assert owner is None or hasattr(owner, node.attr), node.attr
    calls = re.findall(r"`(?:pruneflow\.)?(query\.\w+|(?<=pruneflow\.)\w+)\(", _text(document))
    for call in calls:
        owner = pruneflow.query if call.startswith("query.") else pruneflow
        assert hasattr(owner, call.removeprefix("query.")), call


@pytest.mark.parametrize("document", GUIDES)
def test_every_study_lays_out_as_runs(document: str, tmp_path: Path) -> None:
    for block in _blocks(_text(document), "yaml"):
        (tmp_path / "mine.yaml").write_text(block, "utf-8")
        assert len(study.jobs(study.read(str(tmp_path / "mine.yaml")))) >= 9


def test_readme_and_the_studies_guide_show_a_study() -> None:
    shown = {name for name in GUIDES if _blocks(_text(name), "yaml")}
    assert shown >= {"README.md", "docs/studies.md"}
    assert all(yaml.safe_load(b) for name in shown for b in _blocks(_text(name), "yaml"))


def test_readme_is_a_front_door() -> None:
    assert len(_text("README.md")) <= 8_000


def test_readme_lists_the_entry_points() -> None:
    section = _text("README.md").partition("## Entry points")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(STAGES)


def _anchors(text: str) -> set[str]:
    """Anchors of a document's headings, as GitHub and GitLab make them."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    text, missing = _text(document), []
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        if not path.exists() or (anchor and anchor not in _anchors(path.read_text("utf-8"))):
            missing.append(link)
    assert missing == []


def test_readme_leads_to_every_guide() -> None:
    links = set(re.findall(r"\]\((docs/[^)#]+\.md)", _text("README.md")))
    assert {name for name in GUIDES if name.startswith("docs/")} <= links
