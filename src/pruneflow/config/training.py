"""Configurations of what trains: which model and data, and how."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pruneflow.config.base import Config, as_text, workload_name
from pruneflow.errors import InputError, unknown
from pruneflow.parameters import (
    Count,
    Names,
    Pixels,
    Positive,
    Text,
    among,
    devices,
)
from pruneflow.workloads.augmentations import AUGMENTATIONS, NO_AUGMENTATION
from pruneflow.workloads.datasets import DATASETS, IMAGES, TEXTS
from pruneflow.workloads.learning_rates import LR_SCHEDULES, ONE_CYCLE
from pruneflow.workloads.other_datasets import is_other

# How fast a training learns; a pruning run's own, and never its base run's.
OF_RATE = frozenset({"learning_rate", "lr_schedule", "warmup_epochs"})
OF_TRAINING = OF_RATE | {"optimizer", "weight_decay", "augment", "label_smoothing"}
_AUGMENTS = (NO_AUGMENTATION, *AUGMENTATIONS)


def _check_dataset(name: str) -> str:
    if name not in DATASETS and not is_other(name):
        raise unknown("data set", name, DATASETS)
    return name


class Settings(Config):
    """What every training stage needs: the model, its data, how it is trained, and on what."""

    model: Text
    """alexnet, resnet18, any other torchvision classifier, cifar_resnet20 and others for images of
    32x32, bert, timm:<name>, hf:<hub id or folder>, module:factory or file.py:factory"""
    dataset: Annotated[str, AfterValidator(_check_dataset)] = Field(
        description=f"images: {', '.join(IMAGES)}; texts: {', '.join(TEXTS)} (reviews: synthetic); "
        "either: hf:<hub id or folder>, module:factory or file.py:factory"
    )
    columns: Names = ()
    """of dataset=hf:..., the columns of inputs and labels (img,fine_label); found by default"""
    data_dir: str | None = None
    """folder of the data set, instead of the Hugging Face hub"""
    weights: Text
    """none (new), pretrained (downloaded), a safetensors file or, of encoders, a folder of them"""
    preset: str = "quick"
    """named defaults: quick, paper or standard"""
    image_size: Pixels | None
    """side of the square images the model sees, in pixels; not for texts"""
    train_limit: Count | None = None
    """use only this many training samples, an equal share of each class"""
    train_eval_samples: Count | None
    """training samples that accuracy on the training set is taken of, drawn by the seed, or all"""
    batch_size: Count
    """samples in a training step"""
    learning_rate: Positive
    """learning rate of this stage's own training (the peak, under one_cycle)"""
    lr_schedule: Annotated[str, among("lr_schedule", LR_SCHEDULES)] = Field(
        description="learning rate over this stage's own training: one_cycle (up, then down), "
        "constant, step (a tenth after half and after three quarters) or cosine (down to 0)"
    )
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """epochs in which the learning rate first rises from 0; one_cycle has its own rise"""
    optimizer: Literal["adamw", "sgd", "nesterov"]
    """adamw, sgd with momentum 0.9, or nesterov (sgd with Nesterov's momentum 0.9)"""
    weight_decay: Annotated[float, Field(ge=0)]
    """of the optimizer"""
    augment: Annotated[str, among("augmentation", _AUGMENTS)] = Field(
        NO_AUGMENTATION,
        description="what training images are changed by: none, crop_flip (crops of an image with "
        "a border, mirrored or not) or randaugment (crop_flip and two random operations)",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of a training label that is spread over all classes, in [0, 1)"""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """decides initial weights, split, data order, dropout and random scores"""
    resume: Text = "auto"
    """auto (the same run goes on, or is shown if it is finished), never, or a run's id"""
    device: Annotated[str, devices("auto")] = "auto"
    """auto, cpu, cuda or cuda:N, a GPU by its number"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 (autocast; weights stay float32)"""
    threads: Count | None = None
    """CPU threads; all cores when not given"""
    system_metrics: bool = False
    """log use of processors, memory, disk, network and GPUs by the whole machine as system/*"""
    energy: bool = False
    """log joules by RAPL and, on a GPU, NVML: of packages and GPU, whatever else runs on them"""

    def without_images(self) -> Self:
        """The configuration for data that turned out to be texts."""
        reason = f"has no effect with dataset={self.dataset}, which holds texts: leave it out"
        self._refuse(["augment", "image_size"], reason)
        return self.resolved(image_size=None)

    def _refuse_warmup(self, epochs: int) -> None:
        """Refuse a rise of the learning rate that a training of so many epochs has no room for."""
        if self.lr_schedule == ONE_CYCLE:
            self._refuse(
                ["warmup_epochs"], "has no effect with lr_schedule=one_cycle: leave it out"
            )
        if self.warmup_epochs and self.warmup_epochs >= epochs:
            reason = f"leaves nothing of a training of {epochs} epochs: pass fewer"
            self._refuse(["warmup_epochs"], reason)

    @model_validator(mode="after")
    def _data_have_their_parameters(self) -> Self:
        if self.dataset in TEXTS:
            self.without_images()
        if self.columns and not is_other(self.dataset):
            reason = f"has no effect with dataset={self.dataset}, whose columns are known"
            self._refuse(["columns"], f"{reason}: leave it out")
        if len(self.columns) not in (0, 2):
            raise InputError(
                f"columns={as_text(self.columns)} is not valid: it should be the column of inputs "
                "and that of labels, as img,label"
            )
        if is_other(self.dataset):
            self._refuse(["data_dir"], f"has no effect with dataset={self.dataset}: leave it out")
        return self


class FinetuneConfig(Settings):
    """Configuration of `finetune`: train a model on a data set, to be a base run for pruning."""

    epochs: Annotated[int, Field(ge=0)]
    """passes over the training samples; with 0 the model is measured and kept as it is"""
    rewind_epoch: Annotated[int, Field(ge=0)] | None = None
    """keep the weights of after this epoch too (0: the first), for runs with rewind=weights"""

    @model_validator(mode="after")
    def _training_has_epochs(self) -> Self:
        if not self.epochs:
            reason = "has no effect with epochs=0, which trains nothing: leave it out"
            self._refuse(OF_TRAINING, reason)
        self._refuse_warmup(self.epochs)
        if self.rewind_epoch is not None and self.rewind_epoch >= self.epochs:
            reason = f"leaves nothing to train again of epochs={self.epochs}: it should be less"
            self._refuse(["rewind_epoch"], reason)
        return self

    @property
    def run_name(self) -> str:
        """What its run is called."""
        return f"base-{workload_name(self.model, self.dataset, self.seed)}"
