"""Predictor: what MLflow loads a logged model as.

It takes images of uint8 (N, H, W, 3), as files hold them and of any size, or texts, and gives
logits, or names of classes with `params={"output": "labels"}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pruneflow.errors import unknown
from pruneflow.tracking import checkpoints, finished
from pruneflow.tracking.logged_models import OUTPUTS
from pruneflow.workloads import batches, encoders, models
from pruneflow.workloads.machine import Machine, callers_state_kept
from pruneflow.workloads.splits import MEAN, STD, Samples, Split

_BATCH = 128


def _load_pyfunc(path: str) -> Predictor:
    """What MLflow's pyfunc flavor calls to load a logged model."""
    place = json.loads(Path(path).read_text("utf-8"))
    return Predictor(place["run"], int(place["level"]))


class Predictor:
    """A level of a run, from what people have to what they want to know.

    Raises:
        InputError: the run or its checkpoint is not there any more.
    """

    def __init__(self, run_id: str, level: int) -> None:
        with finished.checkpoint_folder(run_id, level) as folder, callers_state_kept():
            checkpoint = checkpoints.load(folder)
            self.model = checkpoints.restore(checkpoint)
            self._tokenizer = None
            if (folder / "tokenizer").is_dir():
                self._tokenizer = encoders.load_tokenizer(folder / "tokenizer")
        self._structure = checkpoint.structure
        self._machine = Machine("cpu", "fp32", torch.get_num_threads())
        count = range(self._structure["classes"])
        self.classes = list(self._structure.get("labels", map(str, count)))

    def predict(self, samples: Any, params: Mapping[str, Any] | None = None) -> NDArray[Any]:
        """Logits (N, classes) of float32, or with `output="labels"` names of classes (N,)."""
        output = str((params or {}).get("output", OUTPUTS[0]))
        if output not in OUTPUTS:
            raise unknown("output", output, OUTPUTS)
        read = self._read(samples)
        parts = []
        with callers_state_kept(), torch.inference_mode():
            for start in range(0, len(read), _BATCH):
                index = np.arange(start, min(start + _BATCH, len(read)))
                size = self._structure["input"].get("image_size")
                inputs, _ = batches.to_model(read, index, size, self._machine)
                parts.append(models.logits(self.model, inputs).numpy())
        logits = np.concatenate([np.empty((0, len(self.classes)), np.float32), *parts])
        return logits if output == "logits" else np.array(self.classes)[logits.argmax(1)]

    def _read(self, samples: Any) -> Samples:
        if self._tokenizer is None:
            pixels = np.asarray(samples)
            colours = (self._structure.get("mean", MEAN), self._structure.get("std", STD))
            mean, deviation = (tuple(colour) for colour in colours)
            return Split(pixels, np.zeros(len(pixels), np.int64), mean, deviation)
        texts = np.asarray(samples, dtype=object).reshape(-1)
        longest = encoders.longest(self.model, self._tokenizer)
        split = Split(texts, np.zeros(len(texts), np.int64))
        stated = getattr(self.model, "config", None)
        return encoders.encode(self._tokenizer, split, longest=longest, config=stated)
