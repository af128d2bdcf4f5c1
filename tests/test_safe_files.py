"""No file that is read can run anything, and none of the code could make one that does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for part in ("src", "entrypoints", "benchmarks") for path in (ROOT / part).rglob("*.py")
)
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "numpy.load",
    "np.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
}
OPTIONS = {"allow_pickle": False, "trust_remote_code": False, "weights_only": True, "shell": False}
# Its own arrays, written a moment before by the benchmark that reads them.
ALLOWED = {("plain_script.py", "np.load")}


def dangers(source: str, name: str = "") -> Iterator[str]:
    """What in a module could run what a file holds: imports, calls, options."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            yield from (n for n in names if n and n.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS and (name, called) not in ALLOWED:
                yield called
        if isinstance(node, ast.keyword) and node.arg in OPTIONS:
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            if value is not OPTIONS[node.arg]:
                yield f"{node.arg}={ast.unparse(node.value)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_can_run_what_a_file_holds(path: Path) -> None:
    assert list(dangers(path.read_text("utf-8"), path.name)) == []


def test_all_of_the_source_is_looked_at() -> None:
    assert len(SOURCES) > 60


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x')",
        "yaml.load(text)",
        "load_state_dict_from_url(url, weights_only=False)",
        "from_pretrained(x, trust_remote_code=flag)",
        "subprocess.run(line, shell=True)",
        "eval('1')",
    ],
)
def test_what_could_is_found(source: str) -> None:
    assert len(list(dangers(source))) == 1
