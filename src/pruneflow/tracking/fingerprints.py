"""Fingerprints: hashes of what decides a result, by which runs that are the same are found."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from pruneflow.config import BenchmarkConfig, PruneConfig, Settings, reads_texts
from pruneflow.errors import user_path
from pruneflow.tracking import environment
from pruneflow.version import __version__
from pruneflow.workloads import factories

# What does not decide a run's result: the preset's values are there one by one, what a folder
# or a base run holds counts, not where it lies.
_NOT_DECIDING = {
    *("preset", "data_dir", "base_run", "base_epochs", "resume"),
    *("system_metrics", "energy"),
}
_PACKAGE = Path(__file__).parents[1]
_CODE = (  # the code that does, in the package
    "pruning/**/*.py",
    "workloads/**/*.py",
    "stages/base_run.py",
    "stages/budgets.py",
    "stages/experiment.py",
    "stages/finetune.py",
    "stages/prune.py",
    "stages/sensitivity.py",
    "stages/sensitivity_run.py",
)
_OF_MODELS = {".json", ".model", ".safetensors", ".txt"}  # files that a model's folder is read from
_BERT = "bert-base-uncased"  # of the hub, where `bert` has weights


def fingerprint(
    stage: str,
    config: Settings,
    data_digest: str,
    base: str | None,
    sensitivity: str | None = None,
) -> str:
    """Hash of everything that decides a run's result; the same for the same experiment.

    `config` has nothing left to `auto`, `base` and `sensitivity` are the fingerprints of the base
    run and of the sensitivity run, if there are such.
    """
    deciding = {k: v for k, v in config.model_dump().items() if k not in _NOT_DECIDING}
    deciding |= {"model": _model(config), "weights": _weights(config)}
    if config.device.startswith("cuda"):
        deciding["device"] = "cuda"  # whichever of them
        del deciding["threads"]  # they share out the CPU's sums alone
    if isinstance(config, PruneConfig):  # the levels, however they were asked for
        if stage == "prune_direct":
            deciding["fraction"], deciding["iterations"] = config.final_sparsity, 1
        del deciding["target_sparsity"]
        deciding["sensitivity_run"] = sensitivity
        if config.cost_budget is not None and config.cost_budget.measured:
            deciding["machine"] = environment.machine(config.device)
    libraries = ["torch", *_libraries(config)]
    libraries += ["torch-pruning"] if stage != "finetune" else []
    versions = {name: metadata.version(name) for name in libraries}
    return _hash(stage, deciding, data_digest, base, code(), versions)


def sensitivity_fingerprint(
    config: PruneConfig, fractions: Sequence[float], data_digest: str, base: str
) -> str:
    """Hash of what a sensitivity run measures: units of a base, scored, pruned by fractions."""
    return _hash(fingerprint("sensitivity", config, data_digest, base), sorted(fractions))


def benchmark_fingerprint(config: BenchmarkConfig, pruned: str) -> str:
    """Hash of what a benchmark times (`pruned`: fingerprint of that run), how and where."""
    machines = [environment.machine(device) for device in config.device]
    how = {k: v for k, v in config.model_dump().items() if k not in ("run", "study", "model")}
    if not config.energy:  # as before there was any
        del how["energy"]
    return _hash("benchmark_latency", __version__, how, pruned, machines)


def workload_fingerprint(config: Settings, data_digest: str) -> str:
    """Hash of model, data, weights, preset and seed: what a base run is found by."""
    names = ("model", "preset", "seed", "image_size")
    values = {name: getattr(config, name) for name in names} | {"weights": _weights(config)}
    return _hash(__version__, values, data_digest)


@functools.cache
def code() -> str:
    """Hash of the code that decides results, whatever its comments, docstrings and layout."""
    files = sorted(path for pattern in _CODE for path in _PACKAGE.glob(pattern))
    return _hash(*((str(path.relative_to(_PACKAGE)), _normal_source(path)) for path in files))


def _normal_source(path: Path) -> str:
    """Source without comments and docstrings, laid out as Python does it."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            docs = [
                s for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)
            ]
            code = [statement for statement in body if statement not in docs]
            node.body = code or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _libraries(config: Settings) -> list[str]:
    """What makes a model, and its tokenizer."""
    if config.model.startswith("timm:"):
        return ["timm"]
    if reads_texts(config.model):
        return ["transformers"]
    if factories.is_factory(config.model):
        return ["transformers"] if config.image_size is None else []
    return ["torchvision"]


def _model(config: Settings) -> str:
    """What tells models apart: their name, or the content of what the name stands for."""
    if factories.is_factory(config.model):
        name = config.model.rpartition(":")[2]
        return f"{name}@{factories.source_hash('model', config.model)}"
    name = config.model.removeprefix("hf:")
    return name if name == config.model else f"hf:{_content(name, 'model')}"


def _weights(config: Settings) -> str:
    """What tells weights apart: of what is published its revision, else the hash of the content."""
    if config.weights == "none":
        return "none"
    if config.weights != "pretrained":
        return _content(config.weights, "weights")
    if config.model.startswith("timm:"):
        return f"{config.model}@{metadata.version('timm')}"
    if reads_texts(config.model):
        return _content(_BERT, "weights") if config.model == "bert" else _model(config)
    import torchvision

    if config.model not in torchvision.models.list_models(module=torchvision.models):
        return config.weights  # refused where it is built
    return str(torchvision.models.get_model_weights(config.model).DEFAULT.url)


def _content(name: str, parameter: str) -> str:
    """What a file or folder holds, as a hash; of a hub id its revision in the cache."""
    path = user_path(parameter, name)
    if path.is_dir():
        files = (file for file in sorted(path.glob("*")) if file.suffix in _OF_MODELS)
        return _hash(*((file.name, _file_hash(file)) for file in files if file.is_file()))
    if path.is_file():
        return _file_hash(path)
    # what is no file is refused when it is read; a run that has its base never reads it
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return name
    return f"{name}@{Path(cached).parent.name}" if isinstance(cached, str) else name


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
