"""Training and evaluation throughput, and how far a training step is from the processor's bound."""

from __future__ import annotations

import sys
import time

import torch
from measure import WORDS, inputs_of, interleaved, model_of, settle, spread, tell
from torch.nn import functional

from pruneflow.pruning import cost
from pruneflow.workloads import models
from pruneflow.workloads.machine import Machine

CASES = (
    ("alexnet", 64, 128),
    ("alexnet", 224, 64),
    ("vgg16", 32, 64),
    ("resnet18", 32, 128),
    ("resnet50", 32, 64),
    ("minilm", 0, 64),
)
ROUNDS, SIDE = 5, 2_048


def product(precision: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of a few."""
    left, right = (torch.randn(SIDE, SIDE).to(precision) for _ in range(2))
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * SIDE**3 / (time.perf_counter() - start))
    return best


def main(threads: int) -> None:
    """Every model in both precisions, in turns; then with one thread."""
    settle(threads)
    precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
    bound = {name: product(dtype) for name, dtype in precisions.items()}
    rows = []
    for name, size, batch in CASES:
        model = model_of(name).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        inputs, labels = inputs_of(name, size, batch), torch.randint(0, 2, (batch,))
        sample = inputs_of(name, size, 1)
        macs, _ = cost.macs(model, cost.positions(model, sample))
        model.train()

        def step(
            precision: str,
            model: torch.nn.Module = model,
            inputs: object = inputs,
            labels: torch.Tensor = labels,
            optimizer: torch.optim.Optimizer = optimizer,
        ) -> None:
            with Machine("cpu", precision, threads).autocast():
                logits = models.logits(model, inputs)  # type: ignore[arg-type]
            functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

        def evaluate(
            precision: str, model: torch.nn.Module = model, inputs: object = inputs
        ) -> None:
            with torch.inference_mode(), Machine("cpu", precision, threads).autocast():
                models.logits(model, inputs)  # type: ignore[arg-type]

        ways = {
            "fp32 train": lambda step=step: step("fp32"),
            "bf16 train": lambda step=step: step("bf16"),
            "fp32 evaluate": lambda evaluate=evaluate: evaluate("fp32"),
            "bf16 evaluate": lambda evaluate=evaluate: evaluate("bf16"),
        }
        found = interleaved(ways, ROUNDS)
        torch.set_num_threads(1)
        alone = interleaved({"bf16 train": ways["bf16 train"]}, ROUNDS, warm_up=1)["bf16 train"]
        torch.set_num_threads(threads)
        for precision in precisions:
            train, test = found[f"{precision} train"], found[f"{precision} evaluate"]
            flops = sorted(6 * macs * batch / seconds for seconds in train)[len(train) // 2]
            row: dict[str, object] = {
                "model": f"{name} {f'{size}x{size}' if size else f'{WORDS} tokens'}",
                "batch": batch,
                "precision": precision,
                "trains, samples/s": spread([batch / s for s in train], 0),
                "evaluates, samples/s": spread([batch / s for s in test], 0),
                "GFLOP/s": round(flops / 1e9),
                "of a matrix product's": f"{100 * flops / bound[precision]:.0f} %",
            }
            if precision == "bf16":
                row[f"{threads} threads / 1"] = spread(
                    [a / b for a, b in zip(alone, train, strict=True)]
                )
            rows.append(row)
    tell(
        "Throughput",
        f"{threads} threads, {ROUNDS} rounds in turns. A step of training is counted as six "
        f"floating-point operations a multiply-accumulate of the forward pass. A product of "
        f"{SIDE}x{SIDE} matrices, measured first: {bound['fp32'] / 1e9:.0f} GFLOP/s in fp32, "
        f"{bound['bf16'] / 1e9:.0f} in bf16.",
        rows,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
