"""Fingerprints tell results apart, and nothing else."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
import torch

import pruneflow
from pruneflow.config import BenchmarkConfig, FinetuneConfig, PruneConfig, Settings
from pruneflow.resolution import resolve
from pruneflow.tracking import environment, fingerprints


def test_fingerprint_follows_what_decides_the_result_and_nothing_else() -> None:
    def fingerprint(**given: object) -> str:
        return fingerprints.fingerprint("finetune", resolve(FinetuneConfig, given), "data", None)

    same = fingerprint()
    assert fingerprint(preset="quick") == same
    assert fingerprint(data_dir="elsewhere") == same
    assert fingerprint(resume="never") == same
    assert fingerprint(seed=1) != same
    assert fingerprint(learning_rate=0.1) != same
    config = resolve(FinetuneConfig, {})
    assert fingerprints.fingerprint("finetune", config, "other data", None) != same
    assert fingerprints.fingerprint("finetune", config, "data", "base") != same
    assert fingerprints.fingerprint("prune_direct", config, "data", None) != same


def test_a_benchmarks_fingerprint_is_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def both() -> list[str]:
        configs = (resolve(BenchmarkConfig, {"device": device}) for device in ("cpu", "cuda"))
        return [fingerprints.benchmark_fingerprint(config, "pruned") for config in configs]

    monkeypatch.setattr(environment, "cpu", lambda: "a processor")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    cpu, cuda = both()
    assert both() == [cpu, cuda]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert both()[0] == cpu
    assert both()[1] != cuda
    monkeypatch.setattr(environment, "cpu", lambda: "another")
    assert both()[0] != cpu


def test_a_run_is_described_with_the_gpus_that_it_computes_on_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device}")
    on_cpu, on_both = environment.describe(["cpu"]), environment.describe(["cpu", "cuda:1"])
    assert on_cpu["gpu"] is None
    assert "tf32" not in on_cpu
    assert on_both["gpu"] == "the GPU cuda:1"
    assert {"tf32", "deterministic"} <= on_both.keys()


def test_fingerprints_follow_the_content_of_a_weights_file(tmp_path: Path) -> None:
    def both() -> tuple[str, str]:
        config = resolve(FinetuneConfig, {"weights": str(tmp_path / "w.safetensors")})
        return (
            fingerprints.fingerprint("finetune", config, "data", None),
            fingerprints.workload_fingerprint(config, "data"),
        )

    (tmp_path / "w.safetensors").write_bytes(b"one")
    one = both()
    assert both() == one
    (tmp_path / "w.safetensors").write_bytes(b"two")
    assert both()[0] != one[0]
    assert both()[1] != one[1]


def digest(stage: str = "finetune", **given: object) -> str:
    kind: type[Settings] = FinetuneConfig if stage == "finetune" else PruneConfig
    return fingerprints.fingerprint(stage, resolve(kind, given), "data", None)


def test_threads_decide_on_a_cpu_alone() -> None:
    assert digest(device="cpu", threads=1) != digest(device="cpu", threads=2)
    assert digest(device="cuda", threads=1) == digest(device="cuda", threads=2)


def test_which_gpu_of_several_decides_nothing() -> None:
    assert digest(device="cuda:1") == digest(device="cuda") != digest(device="cpu")


def test_levels_count_however_they_are_asked_for() -> None:
    half = {"fraction": 0.5, "iterations": 1}
    target = {"target_sparsity": 0.5, "iterations": 1}
    assert digest("prune_iterative", **half) == digest("prune_iterative", **target)
    assert digest("prune_direct", **half) == digest("prune_direct", target_sparsity=0.5)
    assert digest("prune_direct", **half) != digest("prune_direct", fraction=0.5, iterations=2)


@pytest.mark.parametrize(
    ("stage", "model", "deciding"),
    [
        ("finetune", "alexnet", {"torch", "torchvision"}),
        ("prune_direct", "alexnet", {"torch", "torchvision", "torch-pruning"}),
        ("finetune", "bert", {"torch", "transformers"}),
        ("prune_iterative", "bert", {"torch", "transformers", "torch-pruning"}),
    ],
)
def test_versions_of_what_a_run_computes_with_decide(
    monkeypatch: pytest.MonkeyPatch, stage: str, model: str, deciding: set[str]
) -> None:
    before = digest(stage, model=model)
    version = fingerprints.metadata.version
    newer: dict[str, str] = {}
    monkeypatch.setattr(
        fingerprints.metadata, "version", lambda name: newer.get(name) or version(name)
    )
    changed = set()
    for library in ("torch", "torchvision", "transformers", "torch-pruning", "mlflow", "numpy"):
        newer = {library: "99.0"}
        if digest(stage, model=model) != before:
            changed.add(library)
    assert changed == deciding


def test_the_revision_of_hub_weights_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def at(repository: str, revision: str) -> list[str]:
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(revision, "utf-8")
        (folder / "snapshots" / revision).mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / revision / "config.json").write_text("{}", "utf-8")
        return [
            digest(model="hf:some/encoder"),
            digest(model="hf:some/encoder", weights="none"),
            digest(model="bert", weights="pretrained"),
        ]

    first, second = at("some/encoder", "a" * 40), at("some/encoder", "b" * 40)
    assert [one == other for one, other in zip(first, second, strict=True)] == [False, False, True]
    assert at("bert-base-uncased", "c" * 40)[2] != second[2]
    assert at("some/encoder", "a" * 40)[:2] == first[:2]


def test_published_weights_of_another_file_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    before, none = digest(weights="pretrained"), digest()
    other = torchvision.models.get_model_weights("vgg16")
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: other)
    assert digest(weights="pretrained") != before
    assert digest() == none


def test_a_folder_is_what_it_holds_wherever_it_lies(tmp_path: Path) -> None:
    def made(name: str, hidden: int) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(f'{{"hidden_size": {hidden}}}', "utf-8")
        (folder / "README.md").write_text(name, "utf-8")
        return digest(model=f"hf:{folder}", weights="none")

    assert made("a", 64) == made("b", 64)
    assert made("b", 128) != made("a", 64)


# --------------------------------------------------------------------------------- the code


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that the code's hash is taken of."""
    source = Path(pruneflow.__file__).parent
    copy = tmp_path / "pruneflow"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprints, "_PACKAGE", copy)
    monkeypatch.setattr(fingerprints, "code", fingerprints.code.__wrapped__)
    return copy


DECIDING = [
    "pruning/criteria.py",
    "pruning/selection.py",
    "pruning/units.py",
    "workloads/training.py",
    "workloads/encoders.py",
    "stages/prune.py",
    "stages/base_run.py",
    "stages/finetune.py",
    "stages/experiment.py",
]


@pytest.mark.parametrize("name", DECIDING)
def test_code_that_decides_results_is_part_of_the_fingerprint(package: Path, name: str) -> None:
    before, path = digest(), package / name
    path.write_text(path.read_text("utf-8") + "\n_EDITED = 1\n", "utf-8")
    assert digest() != before


def test_other_code_is_not(package: Path) -> None:
    before = digest()
    for name in ("cli.py", "report/page.py", "tracking/run.py", "inference/latency.py"):
        path = package / name
        path.write_text(path.read_text("utf-8") + "\n_EDITED = 1\n", "utf-8")
    assert digest() == before


def test_comments_docstrings_and_layout_decide_nothing(package: Path) -> None:
    before = digest()
    for name in DECIDING:
        path = package / name
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                node.body[0] = ast.Expr(ast.Constant("Said otherwise."))
        # unparsed, comments are gone and every line is laid out anew
        path.write_text("# a comment\n" + ast.unparse(tree) + "\n\n\n# another\n", "utf-8")
    assert digest() == before


def test_fractions_of_a_sensitivity_run_count_whatever_their_order() -> None:
    config = resolve(PruneConfig, {"device": "cpu", "threads": 1})
    orders = [(0.1, 0.5), (0.5, 0.1), (0.1, 0.6)]
    of = fingerprints.sensitivity_fingerprint
    same, turned, other = (of(config, fractions, "data", "base") for fractions in orders)
    assert same == turned != other
