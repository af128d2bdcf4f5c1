"""What the benchmarks share: models, interleaved times, peak memory, processes of their own."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruneflow.pruning.prunable import prunable_parameters
from pruneflow.pruning.weights import Weights
from pruneflow.workloads import models
from pruneflow.workloads.machine import keep_large_buffers

BATCH = 128
WORDS = 32  # tokens of a text


def encoder(layers: int, hidden: int) -> nn.Module:
    """A classifier of texts with BERT's architecture and new weights."""
    from transformers import BertConfig, BertForSequenceClassification

    shape = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=4 * hidden,
    )
    return BertForSequenceClassification(shape)


def model_of(name: str) -> nn.Module:
    """A model of 10 classes, `bert-base` (110 M parameters) or `minilm` (23 M), new weights."""
    torch.manual_seed(0)
    if name == "bert-base":
        return encoder(12, 768)
    if name == "minilm":
        return encoder(6, 384)
    return models.build(name, 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def weights_of(model: nn.Module) -> Weights:
    """The single weights of a model, as a run prunes them by default."""
    parameters = prunable_parameters(model, include=(), exclude=(), biases=False)
    return Weights(model, parameters, list, lambda model: torch.empty(0))  # no compact form


def inputs_of(name: str, size: int, batch: int) -> Any:
    """A batch of random images (N, 3, size, size), or of texts of WORDS tokens."""
    if name in ("bert-base", "minilm"):
        ids = torch.randint(0, 30_000, (batch, WORDS))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)


def settle(threads: int) -> None:
    """Threads, and the allocator's way with large blocks as every run of pruneflow has it."""
    torch.set_num_threads(threads)
    keep_large_buffers()


def interleaved(
    ways: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each way in each round, one after the other within a round."""
    for _ in range(warm_up):
        for way in ways.values():
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(rounds):
        for name in order:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
        order.reverse()
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """ours / theirs of each round: median and quartiles."""
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    return spread(found, 3)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the quartiles in brackets (of three values or fewer: least and most)."""
    middle = statistics.median(values)
    low, high = min(values), max(values)
    if len(values) > 3:
        low, _, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def peak_mib() -> float:
    """The most memory this process has held, in MiB; of Linux alone."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None
    return int(found[1]) / 1024


def forget_peak() -> None:
    """Let the peak begin anew at what is held now."""
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


def in_process(script: str, *arguments: object) -> dict[str, Any]:
    """What a script says, as JSON on its last line, in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def tell(title: str, about: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Say a case's table, for `run.py` to read."""
    print(json.dumps({"title": title, "about": about, "rows": list(rows)}))


def distinct(parameters: Mapping[str, Tensor]) -> None:
    """Give every entry a magnitude of its own: among equals PyTorch's choice is undefined."""
    start = 0
    with torch.no_grad():
        for parameter in parameters.values():
            index = torch.arange(start, start + parameter.numel())
            start += parameter.numel()
            # an odd factor permutes the numbers below 2^28; as bits, floats in [2^-31, 2)
            bits = (index * 0x9E3779B1 & 0xFFFFFFF) + 0x30000000
            parameter.copy_(bits.to(torch.int32).view(torch.float32).view(parameter.shape))
