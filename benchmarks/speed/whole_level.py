"""One level (prune, evaluate, fine-tune, evaluate): pruneflow against a plain script."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
from measure import in_process, spread, tell
from PIL import Image

import pruneflow
from pruneflow.workloads import datasets

# model, image size, training and test samples, epochs of the base run
CASES = (("resnet18", 32, 8_000, 10_000, 3), ("alexnet", 224, 1_000, 1_000, 4))
SEEDS = 3
RECIPE = {"learning_rate": 3e-4, "lr_schedule": "constant", "weight_decay": 0.01}
RECIPE |= {"optimizer": "adamw", "batch_size": 128}


def some_pictures(data_dir: str | None, train: int, test: int, folder: Path) -> None:
    """Write the first samples of CIFAR-10's training and test set as class folders."""
    raw = datasets.IMAGES["cifar10"](data_dir, 32)
    assert raw.test is not None
    parts = {
        "train": (raw.train, round(train / (1 - datasets.VALIDATION))),
        "test": (raw.test, test),
    }
    for name, (split, count) in parts.items():
        for number, (image, label) in enumerate(
            zip(split.samples[:count], split.labels[:count], strict=True)
        ):
            own = folder / name / str(label)
            own.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(own / f"{number}.png")


def ours(settings: dict[str, object]) -> None:
    """The level's own seconds, as its run records them: pruning, fine-tuning, evaluating."""
    level = pruneflow.prune_iterative(**settings).levels.iloc[1]
    parts = ("score_seconds", "finetune_seconds", "evaluate_seconds")
    seconds = sum(float(level[part]) for part in parts)
    print(json.dumps({"seconds": seconds, "test": float(level["test_after"])}))


def main(threads: int, data_dir: str | None) -> None:
    """Every case, a base run a seed, each level in a process of its own, in turns."""
    rows = []
    for model, size, train, test, epochs in CASES:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work}/mlflow.db"
            os.environ["PRUNEFLOW_STATE"] = f"{work}/state"
            os.chdir(work)
            some_pictures(data_dir, train, test, folder / "pictures")
            found: dict[str, list[dict[str, float]]] = {"plain": [], "pruneflow": []}
            for seed in range(SEEDS):
                same = {"model": model, "dataset": "imagefolder", "image_size": size}
                same |= {"data_dir": str(folder / "pictures"), "seed": seed, "threads": threads}
                base = pruneflow.finetune(
                    **same, **RECIPE | {"lr_schedule": "one_cycle"}, epochs=epochs
                )
                data = datasets.load(
                    "imagefolder",
                    data_dir=str(folder / "pictures"),
                    image_size=size,
                    train_limit=None,
                    seed=seed,
                )
                np.savez(
                    folder / "arrays.npz",
                    train_images=data.train.samples,  # type: ignore[union-attr]
                    train_labels=data.train.labels,
                    test_images=data.test.samples,  # type: ignore[union-attr]
                    test_labels=data.test.labels,
                )
                weights = mlflow.artifacts.download_artifacts(
                    run_id=base.run_id,
                    artifact_path="checkpoints/level_00/model.safetensors",
                    dst_path=str(folder / f"base{seed}"),
                )
                level = same | RECIPE | {"base_run": base.run_id, "iterations": 1}
                level |= {"fraction": 0.5, "finetune_epochs": 1, "prune_bias": False}
                if model != "alexnet":  # the plain script does not either
                    level["recalibrate_bn"] = False
                script = str(Path(__file__).with_name("plain_script.py"))
                arrays = folder / "arrays.npz"
                found["plain"].append(
                    in_process(script, arrays, weights, model, size, seed, threads)
                )
                found["pruneflow"].append(in_process(__file__, json.dumps(level)))
        plain, own = found["plain"], found["pruneflow"]
        rows.append(
            {
                "model": f"{model} {size}x{size}",
                "samples": f"{train} + {test}",
                "plain script s": spread([run["seconds"] for run in plain]),
                "pruneflow s": spread([run["seconds"] for run in own]),
                "times faster": spread(
                    [p["seconds"] / o["seconds"] for p, o in zip(plain, own, strict=True)]
                ),
                "test, plain": spread([run["test"] for run in plain], 3),
                "test, pruneflow": spread([run["test"] for run in own], 3),
                "mean difference, points": round(
                    100
                    * float(
                        np.mean([o["test"] - p["test"] for p, o in zip(plain, own, strict=True)])
                    ),
                    2,
                ),
            }
        )
    tell(
        "One whole level",
        f"Half of the weights pruned by L1, evaluated on test and training samples, fine-tuned an "
        f"epoch in batches of 128, evaluated again; {threads} threads, {SEEDS} seeds with a base "
        "run each, both from the same weights and samples, in turns. The plain script: a "
        "DataLoader with two workers that resizes and normalises a picture at a time, "
        "`prune.global_unstructured`, fp32. pruneflow's seconds include evaluating validation "
        "samples.",
        rows,
    )


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        ours(json.loads(sys.argv[1]))
    else:
        main(int(sys.argv[1]), sys.argv[2] or None)
