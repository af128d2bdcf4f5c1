"""Accuracy in bf16 against fp32: the same training, seed by seed."""

from __future__ import annotations

import os
import sys
import tempfile

import mlflow
import numpy as np
from measure import spread, tell

import pruneflow
from pruneflow.config import FinetuneConfig
from pruneflow.resolution import resolve
from pruneflow.stages.experiment import prepare

SEEDS = 3
ALEXNET = {"model": "alexnet", "image_size": 64, "train_limit": 20_000, "epochs": 4}
RESNET18 = {"model": "resnet18", "image_size": 32, "train_limit": 20_000, "epochs": 4}
BERT = {"model": "bert", "train_limit": 8_000, "epochs": 2, "learning_rate": 5e-5}


def trained(settings: dict[str, object]) -> tuple[float, float]:
    """Test accuracy of a training in its own precision, and of its weights read in bf16."""
    done = pruneflow.finetune(**settings)
    own = mlflow.MlflowClient().get_run(done.run_id).data.metrics["accuracy/test"]
    in_bf16 = resolve(FinetuneConfig, settings | {"precision": "bf16"})
    experiment, _ = prepare(in_bf16, load=False)
    return own, experiment.accuracy(pruneflow.load_model(done.run_id), experiment.data.test)


def points(of: list[float], against: list[float]) -> str:
    """Differences in percentage points: their mean, and each."""
    found = 100 * (np.array(of) - np.array(against))
    return f"{found.mean():+.2f} ({', '.join(f'{one:+.2f}' for one in found)})"


def main(threads: int, data_dir: str, text_dir: str, encoder: str) -> None:
    """Train each model with each seed in both precisions; accuracy is on the whole test split."""
    images = {"dataset": "cifar10", "data_dir": data_dir or None}
    texts = {"dataset": "sst2", "data_dir": text_dir or None, "weights": encoder}
    rows = []
    for case in (RESNET18 | images, ALEXNET | images, BERT | texts):
        fp32, bf16, read = [], [], []
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
            os.environ["PRUNEFLOW_STATE"] = f"{folder}/state"
            os.chdir(folder)
            for seed in range(SEEDS):
                settings = case | {"seed": seed, "threads": threads}
                own, same_weights = trained(settings | {"precision": "fp32"})
                fp32.append(own)
                read.append(same_weights)
                bf16.append(trained(settings | {"precision": "bf16"})[0])
        size = case.get("image_size")
        rows.append(
            {
                "model": f"{case['model']} {size}x{size}" if size else case["model"],
                "trained on": f"{case['train_limit']} samples, {case['epochs']} epochs",
                "test, fp32": spread(fp32, 4),
                "test, bf16": spread(bf16, 4),
                "trained in bf16, points": points(bf16, fp32),
                "trained in fp32, evaluated in bf16, points": points(read, fp32),
            }
        )
    tell(
        "Accuracy in bf16",
        f"CIFAR-10 from new weights (10,000 test samples) and SST-2 from a pretrained encoder's "
        f"(its 872 sentences of validation), {SEEDS} seeds; of differences to fp32 the mean, and "
        "each seed's.",
        rows,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:5])
