"""Configuration: what comes from where, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pruneflow.config import FinetuneConfig, PruneConfig
from pruneflow.errors import InputError
from pruneflow.pruning import schedule
from pruneflow.resolution import base_config, presets, resolve


def test_caller_goes_before_model_goes_before_stage_goes_before_all() -> None:
    of_stage = resolve(PruneConfig, {"model": "alexnet"})
    of_model = resolve(PruneConfig, {"model": "resnet18"})
    of_caller = resolve(PruneConfig, {"model": "resnet18", "learning_rate": "0.5"})
    assert of_stage.learning_rate == 3e-4
    assert of_model.learning_rate == 1e-3
    assert of_caller.learning_rate == 0.5
    assert (of_stage.image_size, of_model.image_size) == (64, 32)


@pytest.mark.parametrize("value", ["preset", "", None])
def test_not_given_means_the_preset_decides(value: str | None) -> None:
    config = resolve(PruneConfig, {"criterion": value, "seed": "3"})
    assert config.criterion == "l1"
    assert config.given == {"seed"}


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_complete_for_every_stage(name: str) -> None:
    assert resolve(FinetuneConfig, {"preset": name}).preset == name
    assert resolve(PruneConfig, {"preset": name}).preset == name


def test_paper_preset_is_the_study() -> None:
    config = resolve(PruneConfig, {"preset": "paper"})
    assert (config.dataset, config.weights, config.image_size) == ("cifar10", "pretrained", 224)
    assert (config.optimizer, config.batch_size, config.base_epochs) == ("sgd", 128, 20)
    assert (config.finetune_epochs, config.learning_rate) == (10, 1e-4)
    assert (config.fraction, config.iterations, config.prune_bias) == (0.5, 6, True)


def test_configurations_are_frozen() -> None:
    config = resolve(FinetuneConfig, {})
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


def test_text_becomes_typed_values() -> None:
    config = resolve(
        PruneConfig, {"include": "features.*, classifier.6", "prune_bias": "false", "threads": "2"}
    )
    assert config.include == ("features.*", "classifier.6")
    assert config.prune_bias is False
    assert config.threads == 2


def test_target_sparsity_decides_the_fraction_of_each_level() -> None:
    config = resolve(PruneConfig, {"target_sparsity": "0.9375", "iterations": "4"})
    assert config.fraction == pytest.approx(0.5, abs=1e-12)
    steps = schedule.iterative(config.fraction, config.iterations)
    assert steps[-1].target_sparsity == pytest.approx(0.9375, abs=1e-12)
    assert config.final_sparsity == 0.9375


@settings(max_examples=200, deadline=None)
@given(fraction=st.floats(0.001, 0.999), left=st.integers(1, 10_000_000))
def test_one_iterative_level_is_direct_to_the_last_entry(fraction: float, left: int) -> None:
    for given_as in ("fraction", "target_sparsity"):
        config = resolve(PruneConfig, {given_as: fraction, "iterations": 1})
        (one,) = schedule.iterative(config.fraction, config.iterations)
        (direct,) = schedule.direct(config.final_sparsity)
        assert one == direct
        assert round(one.fraction * left) == round(fraction * left)


def test_direct_goes_where_the_iterative_levels_would_end() -> None:
    assert resolve(PruneConfig, {"fraction": "0.5", "iterations": "4"}).final_sparsity == 0.9375


@pytest.mark.parametrize("pattern", ["1:4", "2:4", "4:8", "1:3"])
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_a_pattern_decides_where_the_levels_end(pattern: str, iterations: int) -> None:
    kept, block = map(int, pattern.split(":"))
    config = resolve(PruneConfig, {"pattern": pattern, "iterations": iterations})
    assert (config.block, config.final_sparsity) == ((kept, block), 1 - kept / block)
    assert config.prune_bias is False
    steps = schedule.iterative(config.fraction, config.iterations)
    assert steps[-1].target_sparsity == pytest.approx(1 - kept / block, abs=1e-12)


def test_base_takes_what_was_given_but_the_learning_rate() -> None:
    config = resolve(
        PruneConfig,
        {"batch_size": 16, "learning_rate": 0.1, "base_epochs": 2, "model": "resnet18", "seed": 7},
    )
    base = base_config(config)
    assert (base.batch_size, base.epochs, base.model, base.seed) == (16, 2, "resnet18", 7)
    assert base.learning_rate == resolve(FinetuneConfig, {"model": "resnet18"}).learning_rate


def test_a_base_that_is_not_trained_is_the_same_whatever_the_pruning_run_trains_with() -> None:
    given = {"base_epochs": 0, "optimizer": "sgd", "weight_decay": 0.5, "batch_size": 16}
    base = base_config(resolve(PruneConfig, given))
    assert base.given == {"epochs", "batch_size", "preset", "device", "precision"}
    assert (base.epochs, base.optimizer) == (0, "adamw")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"criterion": "l3"}, ["criterion", "'l3'", "l1"]),
        ({"dataset": "cifar"}, ["data set", "'cifar'", "cifar10"]),
        ({"preset": "qiuck"}, ["preset", "'qiuck'", "quick"]),
        ({"modle": "alexnet"}, ["parameter", "'modle'", "model"]),
        ({"fraction": "1"}, ["fraction", "'1'", "less than 1"]),
        ({"fraction": "-0.5"}, ["fraction", "'-0.5'"]),
        ({"fraction": "nan"}, ["fraction", "nan", "finite"]),
        ({"fraction": "half"}, ["fraction", "'half'"]),
        ({"target_sparsity": "1.5"}, ["target_sparsity", "'1.5'"]),
        ({"target_sparsity": "nan"}, ["target_sparsity", "nan"]),
        ({"target_sparsity": "0.5", "fraction": "0.5"}, ["target_sparsity", "fraction", "one"]),
        ({"iterations": "0"}, ["iterations", "'0'"]),
        ({"iterations": "2.5"}, ["iterations", "'2.5'"]),
        ({"iterations": "100"}, ["iterations", "'100'"]),
        ({"finetune_epochs": "-1"}, ["finetune_epochs", "'-1'"]),
        ({"base_epochs": "-1"}, ["base_epochs", "'-1'"]),
        ({"batch_size": "-8"}, ["batch_size", "'-8'"]),
        ({"image_size": "0"}, ["image_size", "'0'"]),
        ({"train_limit": "0"}, ["train_limit", "'0'"]),
        ({"learning_rate": "inf"}, ["learning_rate", "inf"]),
        ({"learning_rate": "0"}, ["learning_rate", "'0'"]),
        ({"weight_decay": "-1"}, ["weight_decay", "'-1'"]),
        ({"seed": "-1"}, ["seed", "'-1'"]),
        ({"seed": "one"}, ["seed", "'one'"]),
        ({"threads": "0"}, ["threads", "'0'"]),
        ({"device": "tpu"}, ["device", "'tpu'", "cpu"]),
        ({"precision": "fp8"}, ["precision", "'fp8'", "bf16"]),
        ({"scope": "filter"}, ["scope", "'filter'", "layer"]),
        ({"granularity": "neuron"}, ["granularity", "'neuron'", "weight"]),
        ({"optimizer": "adam"}, ["optimizer", "'adam'", "adamw"]),
        ({"lr_schedule": "linear"}, ["lr_schedule", "'linear'", "one_cycle"]),
        ({"prune_bias": "perhaps"}, ["prune_bias", "'perhaps'"]),
        ({"image_size": "4097"}, ["image_size", "'4097'"]),
        ({"base_run": "x", "weights": "none"}, ["weights=none", "base_run"]),
        ({"base_run": "x", "base_epochs": "3"}, ["base_epochs=3", "base_run"]),
        ({"epochs": "3"}, ["parameter", "'epochs'", "base_epochs"]),
    ],
)
def test_bad_values_are_refused_in_one_line(values: dict[str, str], said: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        resolve(PruneConfig, values)
    text = str(refused.value)
    assert "\n" not in text
    for part in said:
        assert part in text


# ------------------------------------------------------------------------------------ channels


def test_channels_have_their_own_defaults() -> None:
    weights = resolve(PruneConfig, {})
    channels = resolve(PruneConfig, {"granularity": "channel"})
    assert (weights.criterion, weights.coupling, weights.fraction) == ("l1", None, 0.5)
    assert (channels.criterion, channels.coupling, channels.fraction) == ("l2", "group", 0.2)
    assert channels.scope == "global"
    study = resolve(PruneConfig, {"granularity": "channel", "preset": "paper"})
    assert (study.coupling, study.scope, study.fraction) == ("independent", "layer", 0.1)
    assert (study.iterations, study.finetune_epochs, study.learning_rate) == (10, 5, 3e-4)
    assert study.recalibrate_bn is False


def test_independent_filters_are_pruned_layer_by_layer() -> None:
    given = {"granularity": "channel", "coupling": "independent"}
    assert resolve(PruneConfig, given).scope == "layer"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"coupling": "group"}, "coupling=group has no effect with granularity=weight"),
        ({"targets": "conv"}, "targets=conv has no effect with granularity=weight"),
        ({"form": "compact"}, "form=compact has no effect with granularity=weight"),
        ({"granularity": "channel", "prune_bias": "true"}, "prune_bias=True has no effect"),
        ({"granularity": "channel", "targets": "conv,filters"}, "unknown target 'filters'"),
        (
            {"granularity": "channel", "coupling": "independent", "scope": "global"},
            "scope=global does not go with coupling=independent",
        ),
        (
            {"granularity": "channel", "coupling": "independent", "targets": "conv,linear"},
            "targets=conv,linear does not go with coupling=independent",
        ),
        ({"granularity": "filter"}, "granularity='filter' is not valid"),
        ({"dataset": "reviews", "image_size": "32"}, "image_size=32 has no effect"),
    ],
)
def test_what_would_be_ignored_is_refused(given: dict[str, str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        resolve(PruneConfig, given)


# --------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("given", [{"model": "bert"}, {"dataset": "reviews"}])
def test_bert_and_a_text_data_set_bring_each_other(given: dict[str, str]) -> None:
    config = resolve(FinetuneConfig, given)
    assert (config.model, config.dataset, config.image_size) == ("bert", "reviews", None)
    assert config.weights == "none"


def test_the_study_s_bert() -> None:
    base = resolve(FinetuneConfig, {"model": "bert", "preset": "paper"})
    assert (base.dataset, base.weights, base.batch_size) == ("sst2", "pretrained", 16)
    assert (base.optimizer, base.learning_rate, base.epochs) == ("adamw", 2e-5, 3)
    pruned = resolve(PruneConfig, {"model": "bert", "preset": "paper"})
    assert (pruned.learning_rate, pruned.finetune_epochs, pruned.base_epochs) == (1e-4, 1, 3)
    heads = resolve(PruneConfig, {"model": "bert", "preset": "paper", "granularity": "channel"})
    assert (heads.coupling, heads.scope) == ("group", "global")


def test_other_encoders_have_the_settings_of_one() -> None:
    config = resolve(FinetuneConfig, {"model": "hf:some/encoder"})
    assert (config.dataset, config.weights, config.image_size) == ("reviews", "pretrained", None)
