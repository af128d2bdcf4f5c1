"""Bad input and bad files, each with the one line that a person gets for it.

A row is what is given and a part of the answer. Where a row names a file, `FILES` makes it.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.torch import save_file

from pruneflow import cli
from pruneflow.errors import first_line
from pruneflow.tracking import checkpoints
from pruneflow.workloads import models

# ------------------------------------------------------------------------------------ the files


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-ran",)


def _safetensors(header: object, body: bytes = b"", *, length: int | None = None) -> bytes:
    """A file in that format, its header as it is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _tensor(start: int, end: int, shape: Sequence[int] = (1,)) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


def _state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return models.build("squeezenet1_1", 10).state_dict() | {
        name.replace("__", "."): tensor for name, tensor in changes.items()
    }


def _png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is as large as that."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def _pictures(folder: Path, classes: int = 2, each: int = 3) -> Path:
    chance = np.random.default_rng(0)
    for label in range(classes):
        own = folder / f"class{label}"
        own.mkdir(parents=True)
        for number in range(each):
            pixels = chance.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(own / f"{number}.png")
    return folder


def _with_picture(folder: Path, content: bytes) -> None:
    (_pictures(folder) / "class1" / "odd.png").write_bytes(content)


def _write(content: bytes | str) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


def _table(content: bytes | str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        _write(content)(folder / "train.csv")

    return make


def _truncated(path: Path) -> None:
    save_file(_state(), path)
    path.write_bytes(path.read_bytes()[:100_000])


def _level(path: Path) -> None:
    mask = {"features.0.weight": torch.zeros(64, 3, 3, 3, dtype=torch.bool)}
    state = _state(features__0__weight=torch.zeros(64, 3, 3, 3))
    checkpoints.save(path.parent / "level", checkpoints.Checkpoint({}, state, mask))
    shutil.move(path.parent / "level" / "model.safetensors", path)


def _journal(entry: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        owner = dict.fromkeys(("experiment_id", "store", "name", "stage", "host"), "x")
        run_id = MlflowClient().create_run("0").info.run_id
        (folder / "run.json").write_text(json.dumps(owner | {"run_id": run_id}), "utf-8")
        (folder / "journal.jsonl").write_text(entry + "\n", "utf-8")

    return make


DEEP = "[" * 100_000
LAUGHS = "a0: &a0 [1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)

FILES: dict[str, Callable[[Path], object]] = {
    "bomb.pt": lambda path: torch.save({"w": Bomb()}, path),
    "old.pt": lambda p: torch.save({"w": Bomb()}, p, _use_new_zipfile_serialization=False),
    "bomb.bin": _write(pickle.dumps({"w": Bomb()})),
    "bomb.safetensors": _write(pickle.dumps({"w": Bomb()})),
    "plain.pt": lambda path: torch.save(_state(), path),
    "empty.safetensors": _write(b""),
    "long.safetensors": _write(_safetensors({}, length=2**62)),
    "header.safetensors": _write(_safetensors({"w": _tensor(0, 4)}, b"\0" * 4, length=99_999)),
    "nojson.safetensors": _write(_safetensors(b"{no json")),
    "deep.safetensors": _write(_safetensors(DEEP.encode())),
    "outside.safetensors": _write(_safetensors({"w": _tensor(0, 4_000_000)}, b"\0" * 4)),
    "negative.safetensors": _write(_safetensors({"w": _tensor(-4, 0)}, b"\0" * 4)),
    "overlap.safetensors": _write(
        _safetensors({"v": _tensor(0, 8, (2,)), "w": _tensor(4, 12, (2,))}, b"\0" * 12)
    ),
    "huge.safetensors": _write(_safetensors({"w": _tensor(0, 4, (2**40, 2**40))}, b"\0" * 4)),
    "half.safetensors": _truncated,
    "nan.safetensors": lambda path: save_file(
        _state(features__0__bias=torch.full((64,), torch.nan)), path
    ),
    "other.safetensors": lambda path: save_file({"w": torch.zeros(2)}, path),
    "shape.safetensors": lambda path: save_file(_state(features__0__bias=torch.zeros(7)), path),
    "more.safetensors": lambda path: save_file(_state(extra=torch.zeros(7)), path),
    "level.safetensors": _level,
    "a_folder": lambda path: path.mkdir(),
    "a_file": _write("x"),
    "one_class": lambda path: _pictures(path, classes=1),
    "one_sample": lambda path: _pictures(path, classes=1, each=1),
    "two_samples": lambda path: _pictures(path, classes=2, each=1),
    "no_pictures": lambda path: (path / "train" / "class0").mkdir(parents=True),
    "text_picture": lambda path: _with_picture(path, b"this is no picture"),
    "empty_picture": lambda path: _with_picture(path, b""),
    "cut_picture": lambda path: _with_picture(path, _png(8, 8)[:40]),
    "vast_picture": lambda path: _with_picture(path, _png(100_000, 100_000)),
    "float_picture": lambda path: Image.new("F", (8, 8)).save(_pictures(path) / "class1/x.tif"),
    "two_trains": lambda path: (_pictures(path / "train"), _pictures(path / "Train")),
    "other_classes": lambda path: (
        _pictures(path / "train"),
        _pictures(path / "test", classes=3),
    ),
    "bad_parquet": lambda path: (path.mkdir(), _write("PAR1 no")(path / "train.parquet")),
    "no_tables": lambda path: (path.mkdir(), _write("x")(path / "readme.txt")),
    "empty_csv": _table(""),
    "head_csv": _table("text,label\n"),
    "nolabel_csv": _table("text\nfine\nbad\n"),
    "oneclass_csv": _table("text,label\n" + "fine,1\n" * 50),
    "onerow_csv": _table("text,label\nfine,1\n"),
    "latin_csv": _table("text,label\nsch\u00f6n,1\n".encode("latin-1") * 20),
    "blank_csv": _table("text,label\n" + ",1\nbad,0\n" * 20),
    "comma_csv": _table("text,label\n" + "fine,1\n" * 7 + "well, bad,0\n"),
    "quote_csv": _table('text,label\nfine,1\n"bad,0\n'),
    "mixed_csv": lambda path: (
        path.mkdir(),
        *(_write("text,label\na,1\n")(path / name) for name in ("train_test.csv", "x.csv")),
    ),
    "copied_csv": lambda path: (
        path.mkdir(),
        *(_write("text,label\na,1\n")(path / name) for name in ("train.csv", "train (1).csv")),
    ),
    "test_csv": lambda path: (path.mkdir(), _write("text,label\na,1\n")(path / "test.csv")),
    "tag.yaml": _write("axes: !!python/object/apply:os.mkdir [it-ran]\n"),
    "object.yaml": _write("!!python/object/new:os.system [mkdir it-ran]\n"),
    "list.yaml": _write("- 1\n- 2\n"),
    "text.yaml": _write("no study"),
    "broken.yaml": _write("axes: [1, 2\n"),
    "binary.yaml": _write(b"\xff\xfe\x00\x01"),
    "deep.yaml": _write("axes: " + "[" * 5_000),
    "laughs.yaml": _write(LAUGHS),
    "vast.yaml": _write(
        "axes:\n"
        + "".join(
            f"  {n}: [{', '.join(map(str, range(1, 100)))}]\n"
            for n in ("seed", "batch_size", "iterations", "image_size")
        )
    ),
    "none.yaml": _write("description: nothing\n"),
    "key.yaml": _write("axis: {seed: [0]}\n"),
    "name.yaml": _write("name: x\naxes: {seed: [0]}\n"),
    "value.yaml": _write("axes: {fraction: [2]}\n"),
    "parameter.yaml": _write("axes: {fractoin: [0.5]}\n"),
    "stage.yaml": _write("axes: {stage: [prune_all]}\n"),
    "nested.yaml": _write("axes: {seed: [[0]]}\n"),
    "matches.yaml": _write("axes: {seed: [0]}\nexclude: [{seed: 5}]\n"),
    "notdb.db": _write("this is no database " * 100),
    "outside_journal": _journal('{"n": 1, "artifact": "../../../etc/passwd"}'),
}

# ------------------------------------------------------------------------------- what is refused

PRUNE: list[tuple[dict[str, object], str]] = [
    ({"fraction": "1.5"}, "fraction='1.5' is not valid"),
    ({"fraction": "-0.1"}, "fraction='-0.1' is not valid"),
    ({"fraction": "nan"}, "fraction='nan' is not valid"),
    ({"fraction": "inf"}, "fraction='inf' is not valid"),
    ({"fraction": "half"}, "fraction='half' is not valid"),
    ({"iterations": "0"}, "iterations='0' is not valid"),
    ({"iterations": "100"}, "iterations='100' is not valid"),
    ({"iterations": "2.5"}, "iterations='2.5' is not valid"),
    ({"target_sparsity": "1"}, "target_sparsity='1' is not valid"),
    ({"target_sparsity": "0"}, "target_sparsity='0' is not valid"),
    ({"target_sparsity": "0.5", "fraction": "0.5"}, "both say how far to prune"),
    ({"budget": "macs:0.5", "fraction": "0"}, "fraction=0 and budget=macs:0.5 both say how far"),
    ({"budget": "flops:0.5"}, "unknown currency of a budget 'flops'"),
    ({"budget": "macs:1"}, "budget='macs:1' is not valid: it should be a currency (params, macs"),
    ({"budget": "half"}, "budget='half' is not valid"),
    ({"budget": "bytes:0.01"}, "budget=bytes:0.01 cannot be met: with all pruned that may be"),
    ({"budget": "latency:0.5"}, "budget=latency:0.5 times the compact form: pass granularity"),
    (
        {"budget": "macs:0.5", "granularity": "channel", "coupling": "independent"},
        "budget=macs:0.5 does not go with coupling=independent",
    ),
    ({"criterion": "l3"}, "unknown criterion 'l3': did you mean l2 or l1?"),
    ({"criterion": "apoz"}, "criterion=apoz scores whole channels: pass granularity=channel"),
    ({"criterion": "fpgm"}, "criterion=fpgm scores whole channels"),
    (
        {"granularity": "channel", "criterion": "bn_scale"},
        "criterion=bn_scale needs a BatchNorm, and",
    ),
    (
        {"granularity": "channel", "criterion": "variance", "coupling": "independent"},
        "criterion=variance needs the layers that are tied to a filter",
    ),
    ({"calibration_samples": "10"}, "has no effect with criterion=l1, which sees no samples"),
    ({"calibration_samples": "0", "criterion": "taylor"}, "calibration_samples='0' is not valid"),
    ({"scope": "all"}, "unknown scope 'all'"),
    ({"scope": "row", "granularity": "channel"}, "scope=row spreads single weights"),
    ({"scope": "erk", "granularity": "channel"}, "scope=erk spreads single weights"),
    ({"scope": "sensitivity"}, "needs a finished sensitivity run of the same model, samples, seed"),
    ({"sensitivity_run": "newest"}, "sensitivity_run=newest has no effect with scope=global"),
    (
        {"scope": "sensitivity", "sensitivity_run": "0123"},
        "sensitivity_run='0123' does not exist in",
    ),
    ({"max_layer_sparsity": "0"}, "max_layer_sparsity='0' is not valid"),
    ({"max_layer_sparsity": "1.5"}, "max_layer_sparsity='1.5' is not valid"),
    (
        {"max_layer_sparsity": "0.5"},
        "max_layer_sparsity=0.5 keeps every layer from the sparsity of the last level, 0.9688",
    ),
    (
        {"max_layer_sparsity": "0.3", "target_sparsity": "0.31", "granularity": "channel"},
        "max_layer_sparsity=0.3 keeps every layer from the sparsity of the last level, 0.31",
    ),
    (
        {"max_layer_sparsity": "0.3", "budget": "params:0.5"},
        "budget=params:0.5 cannot be met",
    ),
    ({"granularity": "row"}, "granularity='row' is not valid"),
    ({"coupling": "group"}, "coupling=group has no effect with granularity=weight"),
    ({"targets": "conv"}, "targets=conv has no effect with granularity=weight"),
    ({"form": "compact"}, "form=compact has no effect with granularity=weight"),
    ({"granularity": "channel", "coupling": "loose"}, "coupling='loose' is not valid"),
    ({"granularity": "channel", "prune_bias": "true"}, "prune_bias=True has no effect"),
    ({"granularity": "channel", "targets": "convs"}, "unknown target 'convs': did you mean conv"),
    (
        {"granularity": "channel", "coupling": "independent", "scope": "global"},
        "scope=global does not go with coupling=independent",
    ),
    (
        {"granularity": "channel", "coupling": "independent", "targets": "heads"},
        "targets=heads does not go with coupling=independent",
    ),
    ({"model": "alexnt"}, "unknown model 'alexnt': did you mean alexnet"),
    ({"model": "hf:/no/where", "dataset": "reviews"}, "/no/where"),
    ({"model": "bert", "dataset": "digits"}, "model=bert reads texts, dataset=digits is none"),
    ({"model": "alexnet", "dataset": "reviews"}, "model=alexnet reads images"),
    ({"dataset": "cifar"}, "unknown data set 'cifar': did you mean cifar10"),
    ({"dataset": "reviews", "image_size": "32"}, "image_size=32 has no effect with"),
    ({"data_dir": "a_folder"}, "does not go with digits, which are bundled"),
    ({"preset": "fast"}, "unknown preset 'fast'"),
    ({"image_size": "0"}, "image_size='0' is not valid"),
    ({"image_size": "5000"}, "image_size='5000' is not valid"),
    ({"model": "alexnet", "image_size": "16"}, "image_size=16 does not work with alexnet"),
    ({"train_limit": "0"}, "train_limit='0' is not valid"),
    ({"train_limit": "5"}, "train_limit=5 is not valid for digits: it should be from 10"),
    ({"train_limit": "1000000"}, "train_limit=1000000 is not valid for digits"),
    ({"batch_size": "0"}, "batch_size='0' is not valid"),
    ({"model": "resnet18", "batch_size": "1"}, "BatchNorm needs 2"),
    ({"learning_rate": "0"}, "learning_rate='0' is not valid"),
    ({"learning_rate": "inf"}, "learning_rate='inf' is not valid"),
    ({"lr_schedule": "cosin"}, "unknown lr_schedule 'cosin': did you mean cosine"),
    ({"dataset": "nowhere:make"}, "dataset='nowhere:make': nowhere cannot be imported"),
    ({"dataset": "os:system"}, "it should be a function or a class"),
    ({"dataset": "hf:"}, "names nothing: pass hf:<hub id> or hf:<folder>"),
    ({"dataset": "hf:/nowhere"}, "could not be read"),
    ({"dataset": "hf:x", "data_dir": "x"}, "data_dir=x has no effect with dataset=hf:x"),
    ({"dataset": "hf:x", "columns": "img"}, "columns=img is not valid: it should be the column"),
    ({"columns": "img,label"}, "columns=img,label has no effect with dataset=digits"),
    ({"model": "nowhere:Net"}, "model='nowhere:Net': nowhere cannot be imported"),
    ({"model": "nowhere.py:Net"}, "there is no file nowhere.py"),
    ({"model": "net.py"}, "it should be a name, package.module:factory, path/to/file.py:factory"),
    ({"model": "timm:nothing_of_the_kind"}, "unknown timm model 'nothing_of_the_kind'"),
    ({"augment": "crop"}, "unknown augmentation 'crop': did you mean crop_flip"),
    (
        {"model": "bert", "augment": "crop_flip"},
        "augment=crop_flip has no effect with dataset=reviews, which holds texts",
    ),
    ({"label_smoothing": "1"}, "label_smoothing='1' is not valid"),
    ({"label_smoothing": "-0.1"}, "label_smoothing='-0.1' is not valid"),
    (
        {"model": "cifar_resnet20", "weights": "pretrained"},
        "weights=pretrained is not valid for cifar_resnet20",
    ),
    ({"warmup_epochs": "1"}, "warmup_epochs=1 has no effect with lr_schedule=one_cycle"),
    (
        {"warmup_epochs": "2", "lr_schedule": "cosine", "finetune_epochs": "2"},
        "warmup_epochs=2 leaves nothing of a training of 2 epochs",
    ),
    ({"distill": "1"}, "distill='1' is not valid"),
    ({"temperature": "2"}, "temperature=2.0 has no effect without distill"),
    (
        {"distill": "0.5", "finetune_epochs": "0"},
        "distill=0.5 has no effect with finetune_epochs=0",
    ),
    ({"finetune_epochs": "0", "learning_rate": "0.1"}, "learning_rate=0.1 has no effect with fine"),
    ({"finetune_epochs": "0", "lr_schedule": "step"}, "lr_schedule=step has no effect with finet"),
    ({"finetune_epochs": "0", "warmup_epochs": "1"}, "warmup_epochs=1 has no effect with finetune"),
    (
        {"finetune_epochs": "0", "base_epochs": "0", "optimizer": "sgd"},
        "optimizer=sgd has no effect with finetune_epochs=0, which trains nothing",
    ),
    (
        {"finetune_epochs": "0", "base_run": "0123", "weight_decay": "0.1"},
        "weight_decay=0.1 has no effect with finetune_epochs=0",
    ),
    ({"rewind": "epoch"}, "rewind='epoch' is not valid"),
    ({"rewind_epoch": "1"}, "rewind_epoch=1 has no effect without rewind"),
    ({"rewind": "weights", "rewind_epoch": "5"}, "rewind_epoch=5 leaves nothing to train again"),
    (
        {"rewind": "learning_rate", "base_epochs": "0"},
        "rewind_epoch=0 leaves nothing to train again of a base run of base_epochs=0",
    ),
    (
        {"rewind": "weights", "finetune_epochs": "2"},
        "finetune_epochs=2 has no effect with rewind=weights, which trains as the base was",
    ),
    (
        {"rewind": "weights", "granularity": "channel", "form": "compact"},
        "form=compact lacks what rewind=weights goes back to",
    ),
    (
        {"rewind": "learning_rate", "base_run": "newest"},
        "base_run=newest is not known to rewind=learning_rate",
    ),
    ({"optimizer": "adam"}, "optimizer='adam' is not valid"),
    ({"weight_decay": "-1"}, "weight_decay='-1' is not valid"),
    ({"seed": "-1"}, "seed='-1' is not valid"),
    ({"seed": "2147483648"}, "seed='2147483648' is not valid"),
    ({"device": "tpu"}, "device='tpu' is not valid"),
    ({"device": "cuda:x"}, "device='cuda:x' is not valid: it should be auto, cpu, cuda or cuda:N"),
    ({"device": "cuda:99"}, "device='cuda:99' is not available: PyTorch sees"),
    ({"precision": "fp16"}, "precision='fp16' is not valid"),
    ({"threads": "0"}, "threads='0' is not valid"),
    ({"threads": "9999"}, "threads=9999 is not valid: this process may use"),
    ({"pattern": "4:2"}, "pattern='4:2' is not valid: it should be N:M with 1 <= N < M"),
    ({"pattern": "2 of 4"}, "pattern='2 of 4' is not valid"),
    ({"pattern": "0:4"}, "pattern='0:4' is not valid"),
    ({"pattern": "2:4", "fraction": "0.5"}, "both say how far to prune"),
    ({"pattern": "2:4", "target_sparsity": "0.5"}, "both say how far to prune"),
    ({"pattern": "2:4", "scope": "row"}, "scope=row has no effect with pattern=2:4"),
    (
        {"scope": "layer", "max_layer_sparsity": "0.99"},
        "max_layer_sparsity=0.99 has no effect with",
    ),
    ({"scope": "row", "max_layer_sparsity": "0.99"}, "max_layer_sparsity=0.99 has no effect with"),
    ({"pattern": "2:4", "max_layer_sparsity": "0.9"}, "max_layer_sparsity=0.9 has no effect with"),
    ({"pattern": "2:4", "prune_bias": "true"}, "prune_bias=True has no effect with pattern=2:4"),
    (
        {"pattern": "2:4", "sensitivity_run": "newest"},
        "sensitivity_run=newest has no effect with p",
    ),
    ({"pattern": "2:4", "granularity": "channel"}, "pattern=2:4 is of single weights"),
    ({"schedule": "cubic", "iterations": "1"}, "schedule=cubic has no effect with iterations=1"),
    ({"schedule": "cubical"}, "unknown schedule 'cubical': did you mean cubic"),
    ({"finetune_epochs": "-1"}, "finetune_epochs='-1' is not valid"),
    ({"base_epochs": "-1"}, "base_epochs='-1' is not valid"),
    ({"include": "conv9"}, "pattern 'conv9' matches no prunable layer; there are: features.0"),
    ({"exclude": "*"}, "include and exclude leave nothing to prune"),
    ({"base_run": "0123"}, "base_run='0123' does not exist in sqlite:///"),
    ({"base_run": "x", "weights": "none"}, "weights=none has no effect with base_run"),
    ({"resume": "0123"}, "resume='0123' does not exist in sqlite:///"),
    ({"recalibrate_bn": "true"}, "recalibrate_bn=True has no effect on squeezenet1_1"),
    ({"recalibrate_bn": "perhaps"}, "recalibrate_bn='perhaps' is not valid"),
    ({"modle": "alexnet"}, "unknown parameter 'modle': did you mean model"),
    ({"weights": "nowhere.pt"}, "weights='nowhere.pt' is not a file"),
    ({"weights": "a_folder"}, "weights='a_folder' is not a file"),
    ({"weights": "~nosuchuser/w"}, "weights='~nosuchuser/w' is not a usable path"),
    ({"weights": "a\0b"}, "is not a file"),
    ({"weights": "bomb.pt"}, "only safetensors files are read, no pickles"),
    ({"weights": "old.pt"}, "only safetensors files are read, no pickles"),
    ({"weights": "bomb.bin"}, "only safetensors files are read, no pickles"),
    ({"weights": "plain.pt"}, "save_file(torch.load(<file>, weights_only=True), <new file>)"),
    ({"weights": "bomb.safetensors"}, "weights='bomb.safetensors' cannot be read"),
    ({"weights": "empty.safetensors"}, "weights='empty.safetensors' cannot be read"),
    ({"weights": "long.safetensors"}, "header too large"),
    ({"weights": "header.safetensors"}, "cannot be read"),
    ({"weights": "nojson.safetensors"}, "cannot be read"),
    ({"weights": "deep.safetensors"}, "cannot be read"),
    ({"weights": "outside.safetensors"}, "cannot be read"),
    ({"weights": "negative.safetensors"}, "cannot be read"),
    ({"weights": "overlap.safetensors"}, "cannot be read"),
    ({"weights": "huge.safetensors"}, "cannot be read"),
    ({"weights": "half.safetensors"}, "cannot be read"),
    ({"weights": "nan.safetensors"}, "features.0.bias holds NaN or infinite values"),
    ({"weights": "other.safetensors"}, "features.0.weight is missing"),
    ({"weights": "shape.safetensors"}, "features.0.bias is of shape (7,), it should be"),
    ({"weights": "more.safetensors"}, "it has no extra"),
    ({"weights": "level.safetensors"}, "is the checkpoint of a pruned level"),
    ({"dataset": "imagefolder"}, "dataset=imagefolder needs data_dir"),
    ({"dataset": "cifar10", "data_dir": "/nowhere"}, "data_dir='/nowhere' does not exist"),
    ({"dataset": "cifar10", "data_dir": "a_file"}, "data_dir='a_file' is a file, not a folder"),
    ({"dataset": "cifar10", "data_dir": "a_folder"}, "holds neither Parquet files nor images"),
    ({"dataset": "cifar10", "data_dir": "two_samples"}, "has 2 classes, CIFAR-10 has 10"),
    ({"dataset": "imagefolder", "data_dir": "one_class"}, "training samples of one class only"),
    ({"dataset": "imagefolder", "data_dir": "one_sample"}, "training samples of one class only"),
    ({"dataset": "imagefolder", "data_dir": "two_samples"}, "training samples of one class only"),
    ({"dataset": "imagefolder", "data_dir": "no_pictures"}, "holds neither Parquet files nor"),
    ({"dataset": "imagefolder", "data_dir": "text_picture"}, "cannot be decoded"),
    ({"dataset": "imagefolder", "data_dir": "empty_picture"}, "cannot be decoded"),
    ({"dataset": "imagefolder", "data_dir": "cut_picture"}, "cannot be decoded"),
    ({"dataset": "imagefolder", "data_dir": "vast_picture"}, "cannot be decoded"),
    ({"dataset": "imagefolder", "data_dir": "float_picture"}, "class1/x.tif cannot be decoded"),
    ({"dataset": "imagefolder", "data_dir": "two_trains"}, "cannot be told from Train, train"),
    ({"dataset": "imagefolder", "data_dir": "other_classes"}, "differ in their classes"),
    ({"dataset": "imagefolder", "data_dir": "bad_parquet"}, "could not be read as imagefolder"),
]
TEXTS: list[tuple[dict[str, object], str]] = [
    ({}, "dataset=textfolder needs data_dir"),
    ({"data_dir": "no_tables"}, "holds neither CSV nor Parquet files"),
    ({"data_dir": "empty_csv"}, "train.csv cannot be read: No columns"),
    ({"data_dir": "head_csv"}, "a training file is empty"),
    ({"data_dir": "nolabel_csv"}, "label"),
    ({"data_dir": "oneclass_csv"}, "class"),
    ({"data_dir": "onerow_csv"}, "class"),
    ({"data_dir": "latin_csv"}, "cannot be read"),
    ({"data_dir": "blank_csv"}, "train.csv: row 0 (of 40, from 0; line 2) has no text"),
    ({"data_dir": "comma_csv"}, "train.csv: row 7 (of 8, from 0; line 9) has 3 fields"),
    ({"data_dir": "quote_csv"}, "train.csv: the row that starts at line 3 cannot be read"),
    ({"data_dir": "mixed_csv"}, "more than one of train, validation and test: train_test.csv"),
    ({"data_dir": "copied_csv"}, "has the same table twice: train (1).csv, train.csv"),
    ({"data_dir": "test_csv"}, "has test files but no training file"),
    ({"data_dir": "bad_parquet"}, "cannot be read"),
]
DIRECT: list[tuple[dict[str, object], str]] = [
    ({"schedule": "cubic"}, "schedule=cubic has no effect on prune_direct, which has one level"),
    ({"pattern": "2:4", "iterations": "2"}, "no effect on prune_direct with pattern"),
    ({"pattern": "2:4000"}, "pattern=2:4000 prunes nothing of this model: no prunable layer has"),
]
GRADUAL: list[tuple[dict[str, object], str]] = [
    ({"finetune_epochs": "0"}, "finetune_epochs=0 is not valid: prune_gradual prunes within a"),
    (
        {"granularity": "channel", "form": "compact"},
        "form=compact is not valid: prune_gradual",
    ),
    ({"schedule": "linear", "iterations": "1"}, "schedule=linear has no effect with iterations=1"),
    ({"iterations": "9"}, "iterations=9 is too many: 9 prunings do not fit into 0 training steps"),
]
FINETUNE: list[tuple[dict[str, object], str]] = [
    ({"epochs": "-1"}, "epochs='-1' is not valid"),
    ({"epochs": "0", "optimizer": "sgd"}, "optimizer=sgd has no effect with epochs=0"),
    ({"epochs": "many"}, "epochs='many' is not valid"),
    ({"fraction": "0.5"}, "unknown parameter 'fraction'"),
    (
        {"epochs": "2", "rewind_epoch": "2"},
        "rewind_epoch=2 leaves nothing to train again of epochs",
    ),
]
SENSITIVITY: list[tuple[dict[str, object], str]] = [
    ({"fractions": "0,0.5"}, "fractions='0' is not valid: it should be greater than 0"),
    ({"fractions": "1.5"}, "fractions='1.5' is not valid: it should be less than 1"),
    ({"fractions": "half"}, "fractions='half' is not valid"),
    ({"fractions": ","}, "fractions"),
    ({"fraction": "0.5"}, "unknown parameter 'fraction': did you mean fractions"),
    ({"scope": "layer"}, "unknown parameter 'scope'"),
    ({"coupling": "group"}, "coupling=group has no effect with granularity=weight"),
    ({"criterion": "apoz"}, "criterion=apoz scores whole channels"),
    ({"base_run": "0123"}, "base_run='0123' does not exist"),
    ({"include": "conv9"}, "pattern 'conv9' matches no prunable layer"),
]
BENCHMARK: list[tuple[dict[str, object], str]] = [
    ({"run": "0123"}, "run='0123' does not exist"),
    ({"run": "x", "study": "y"}, "both say which runs to time"),
    ({"study": "nothing"}, "study='nothing' has no finished pruning runs"),
    ({"study": "it's"}, "has no finished pruning runs"),
    ({"model": "alexnt"}, "unknown model 'alexnt'"),
    ({"forms": "fast"}, "unknown form 'fast'"),
    ({"batch_sizes": "0"}, "batch_sizes"),
    ({"batch_sizes": "1,b"}, "batch_sizes"),
    ({"batch_sizes": ","}, "batch_sizes"),
    ({"threads": "99999"}, "threads=99999 is not valid"),
    ({"device": "tpu"}, "device='tpu' is not valid: it should be cpu, cuda or cuda:N"),
    ({"device": "cpu,cuda:99"}, "device='cuda:99' is not available: PyTorch sees"),
    ({"engines": "tensorrt"}, "unknown engine 'tensorrt'"),
    ({"levels": "-1"}, "levels"),
    ({"sequence_length": "600"}, "sequence_length='600' is not valid"),
    ({"rounds": "1"}, "rounds='1' is not valid"),
    ({"seconds": "0"}, "seconds='0' is not valid"),
]
REPORT: list[tuple[dict[str, object], str]] = [
    ({"experiment": "nothing"}, "unknown experiment 'nothing'"),
    ({"experiment": "gone"}, "is deleted"),
    ({"study": "nothing"}, "has no finished pruning runs whose levels can be read"),
    ({"output_dir": "a_file"}, "a_file is not a folder"),
]
SWEEP: list[tuple[dict[str, object], str]] = [
    ({"study": "smoky"}, "unknown study 'smoky': did you mean smoke"),
    ({"study": "nowhere.yaml"}, "study='nowhere.yaml' cannot be read"),
    ({"study": "tag.yaml"}, "study='tag.yaml' is not YAML: could not determine a constructor"),
    ({"study": "object.yaml"}, "study='object.yaml' is not YAML"),
    ({"study": "list.yaml"}, "is not a study: it should be a mapping"),
    ({"study": "text.yaml"}, "is not a study: it should be a mapping"),
    ({"study": "broken.yaml"}, "study='broken.yaml' is not YAML"),
    ({"study": "binary.yaml"}, "study='binary.yaml' cannot be read"),
    ({"study": "deep.yaml"}, "study='deep.yaml' is not YAML"),
    ({"study": "laughs.yaml"}, "laughs.yaml"),
    ({"study": "vast.yaml"}, "the study lists 96,059,601 combinations"),
    ({"study": "none.yaml"}, "has no configurations: give axes or include"),
    ({"study": "key.yaml"}, "axis"),
    ({"study": "name.yaml"}, "leave out name"),
    ({"study": "value.yaml"}, "fraction=2 is not valid"),
    ({"study": "parameter.yaml"}, "did you mean fraction"),
    ({"study": "stage.yaml"}, "unknown stage 'prune_all'"),
    ({"study": "nested.yaml"}, "nested.yaml"),
    ({"study": "matches.yaml"}, "matches none"),
    ({"workers": "0"}, "workers='0' is not valid"),
    ({"workers": "9999"}, "workers=9999 is not valid: this process may use"),
    ({"data_dir": "/nowhere"}, "data_dir='/nowhere' is not a folder"),
]
ENVIRONMENT: list[tuple[dict[str, str], str]] = [
    ({"MLFLOW_TRACKING_URI": "http://me:secret@127.0.0.1:9"}, "127.0.0.1:9 does not answer"),
    ({"MLFLOW_TRACKING_URI": "http://[bad"}, "does not answer"),
    ({"MLFLOW_TRACKING_URI": "sqlite:////proc/nowhere/x.db"}, "cannot be used"),
    ({"MLFLOW_TRACKING_URI": "sqlite:///notdb.db"}, "file is not a database"),
    ({"MLFLOW_TRACKING_URI": "nonsense://me:secret@here"}, "cannot be used"),
    ({"MLFLOW_TRACKING_URI": "postgresql+none://me:secret@127.0.0.1:9/x"}, "cannot be used"),
    ({"MLFLOW_RUN_ID": "0123"}, "MLFLOW_RUN_ID='0123'"),
    ({"MLFLOW_EXPERIMENT_ID": "999"}, "unknown experiment '999'"),
    ({"PRUNEFLOW_STATE": "a_file/x"}, "set PRUNEFLOW_STATE to a folder"),
]
COMMANDS: list[tuple[list[str], str]] = [
    (["sync", "/nowhere"], "'/nowhere' holds no journal"),
    (["sync", "a_folder"], "'a_folder' holds no journal"),
    (["prune"], "No such command 'prune'"),
    (["prune_iterative", "extra"], "unexpected extra argument"),
    (["prune_iterative", "--model"], "requires an argument"),
]


# ------------------------------------------------------------------------------------- the test


@pytest.fixture(scope="module")
def place(folder: Path) -> Iterator[Path]:
    """A folder with every file, and a store, in force for this module."""
    for name, make in FILES.items():
        make(folder / name)
    client = MlflowClient()
    client.delete_experiment(client.create_experiment("gone"))
    shutil.rmtree(folder / "it-ran", ignore_errors=True)
    yield folder
    assert not (folder / "it-ran").exists()
    assert [r.info.run_name for r in client.search_runs(["0"], "tags.pruneflow.stage != ''")] == []


def answer(
    arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and the one line that a command ends with."""
    monkeypatch.setattr(sys, "argv", ["pruneflow", *arguments])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("pruneflow: ")
    assert "secret" not in lines[0]
    return int(ended.value.code or 0), lines[0]


SMALL = {"model": "squeezenet1_1", "image_size": "32", "train_limit": "50"}
TEXT = {"dataset": "textfolder", "model": "bert"}
CASES = [
    (["prune_iterative"], SMALL, PRUNE),
    (["prune_direct"], TEXT, TEXTS),
    (["prune_direct"], SMALL, DIRECT),
    (["prune_gradual"], SMALL, GRADUAL),
    (["finetune"], {}, FINETUNE),
    (["sensitivity"], SMALL, SENSITIVITY),
    (["benchmark_latency"], {}, BENCHMARK),
    (["report"], {}, REPORT),
    (["sweep"], {"dry_run": "true"}, SWEEP),
]
ROWS = [(stage, {**base, **given}, said) for stage, base, rows in CASES for given, said in rows]


@pytest.mark.parametrize(
    ("stage", "given", "said"), ROWS, ids=[f"{s[0]}-{m[:40]}" for s, _, m in ROWS]
)
def test_bad_values_and_files_are_refused_in_one_line(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    stage: list[str],
    given: dict[str, object],
    said: str,
) -> None:
    if "dataset" in given and given["dataset"] not in ("digits",):
        given = {k: v for k, v in given.items() if k != "train_limit"}
    if given.get("dataset") == "reviews" or given.get("model") == "bert":
        given = {k: v for k, v in given.items() if k != "image_size" or "image_size" in said}
    options = [f"--{name}={value}" for name, value in given.items()]
    code, line = answer([*stage, *options], monkeypatch, capfd)
    assert code == 2
    assert said in line


@pytest.mark.parametrize(("variables", "said"), ENVIRONMENT, ids=lambda v: str(v)[:50])
def test_a_bad_environment_is_refused_in_one_line(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    variables: dict[str, str],
    said: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, line = answer(["finetune", "--epochs=1"], monkeypatch, capfd)
    assert code == 2
    assert said in line


@pytest.mark.parametrize(("arguments", "said"), COMMANDS, ids=lambda v: str(v)[:50])
def test_bad_commands_are_refused_in_one_line(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    code, line = answer(arguments, monkeypatch, capfd)
    assert code == 2
    assert said in line


def test_a_journal_that_names_a_file_outside_sends_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, line = answer(["sync", "outside_journal"], monkeypatch, capfd)
    assert code == 1
    assert "1 of 1 journals were not sent" in line
    for run in MlflowClient().search_runs(["0"]):
        assert MlflowClient().list_artifacts(run.info.run_id) == []


def test_there_are_many_of_them() -> None:
    assert len(ROWS) + len(ENVIRONMENT) + len(COMMANDS) >= 80


def test_a_first_line_that_announces_a_reason_goes_on_with_it() -> None:
    assert first_line(ValueError("field 'x':\n  not a number\nmore")) == "field 'x': not a number"
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("only:")) == "only:"
