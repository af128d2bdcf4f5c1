"""A training step with 90 % of the weights pruned: dense, masked, and reparametrised by PyTorch."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch
from measure import BATCH, inputs_of, interleaved, model_of, ratio, settle, spread, tell, weights_of
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.keeper import Keeper
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.selection import select
from pruneflow.workloads import models

CASES = (("alexnet", 64), ("resnet18", 32), ("minilm", 0))
ROUNDS = 21
SPARSITY = 0.9


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """As the runs have them."""
    if name == "sgd":
        return torch.optim.SGD(
            model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4, fused=True
        )
    return torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-2, fused=True)


def pruned(model: nn.Module) -> Masks:
    """Masks of SPARSITY by L1; the model's pruned weights are zero."""
    units = weights_of(model)
    scores = units.scores(CRITERIA["l1"])
    units.apply(select(units.masks, scores, fraction=SPARSITY, scope="global"))
    return units.parameter_masks()


def reparametrised(model: nn.Module, masks: Masks) -> nn.Module:
    """The model as `torch.nn.utils.prune` keeps weights at zero: weight = original x mask."""
    for name, mask in masks.items():
        layer, _, attribute = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(layer), attribute, mask)  # type: ignore[no-untyped-call]
    return model


def main(threads: int) -> None:
    """Every model with both optimizers, in turns."""
    settle(threads)
    rows = []
    for name, size in CASES:
        inputs, labels = inputs_of(name, size, BATCH), torch.randint(0, 2, (BATCH,))
        for kind in ("adamw", "sgd"):
            base = model_of(name)
            masks = pruned(base)
            ways: dict[str, Callable[[], object]] = {}

            def add(
                way: str,
                model: nn.Module,
                keep: Callable[[torch.optim.Optimizer], None] | None = None,
                kind: str = kind,
                ways: dict[str, Callable[[], object]] = ways,
                inputs: object = inputs,
                labels: torch.Tensor = labels,
            ) -> None:
                optimizer = optimizer_of(kind, model.train())

                def step() -> None:
                    with torch.autocast("cpu", torch.bfloat16):
                        logits = models.logits(model, inputs)  # type: ignore[arg-type]
                    functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    if keep is not None:
                        keep(optimizer)
                    optimizer.zero_grad()

                ways[way] = step

            add("dense", copy.deepcopy(base))
            masked = copy.deepcopy(base)
            add("masked", masked, Keeper(masked, masks))
            add("torch", reparametrised(copy.deepcopy(base), masks))
            seconds = interleaved(ways, ROUNDS)
            rows.append(
                {
                    "model": f"{name}{f' {size}x{size}' * bool(size)}",
                    "optimizer": kind,
                    "dense ms": spread([1e3 * s for s in seconds["dense"]], 1),
                    "masked / dense": ratio(seconds["masked"], seconds["dense"]),
                    "torch.nn.utils.prune / dense": ratio(seconds["torch"], seconds["dense"]),
                }
            )
    tell(
        "Masked training step",
        f"{100 * SPARSITY:g} % of the weights pruned, batches of {BATCH}, bf16, {threads} threads, "
        f"{ROUNDS} rounds in turns; ratios are taken within a round.",
        rows,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
