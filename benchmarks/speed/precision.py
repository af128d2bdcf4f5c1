"""Accuracy in bf16 against fp32: the same training, seed by seed."""

from __future__ import annotations

import os
import sys
import tempfile

import mlflow
import numpy as np
from measure import spread, tell

import pruneflow

# model, image size, training samples, epochs
CASES = (("alexnet", 64, 4_000, 4), ("resnet18", 32, 8_000, 3))
SEEDS = 3


def main(threads: int, data_dir: str | None) -> None:
    """Train each model with each seed in both precisions; accuracy is on all of the test set."""
    rows = []
    for model, size, train, epochs in CASES:
        found: dict[str, list[float]] = {"fp32": [], "bf16": []}
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
            os.environ["PRUNEFLOW_STATE"] = f"{folder}/state"
            os.chdir(folder)
            for seed in range(SEEDS):
                for precision, accuracies in found.items():
                    done = pruneflow.finetune(
                        model=model,
                        dataset="cifar10",
                        data_dir=data_dir,
                        image_size=size,
                        train_limit=train,
                        epochs=epochs,
                        seed=seed,
                        threads=threads,
                        precision=precision,
                    )
                    metrics = mlflow.MlflowClient().get_run(done.run_id).data.metrics
                    accuracies.append(metrics["accuracy/test"])
        difference = 100 * (np.array(found["bf16"]) - np.array(found["fp32"]))
        rows.append(
            {
                "model": f"{model} {size}x{size}",
                "trained on": f"{train} samples, {epochs} epochs",
                "test, fp32": spread(found["fp32"], 4),
                "test, bf16": spread(found["bf16"], 4),
                "mean difference, points": f"{difference.mean():+.2f}",
                "of each seed": ", ".join(f"{one:+.2f}" for one in difference),
            }
        )
    tell(
        "Accuracy in bf16",
        f"CIFAR-10 from scratch, {SEEDS} seeds, accuracy on its 10,000 test samples.",
        rows,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
