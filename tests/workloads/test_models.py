"""Models: heads of the asked-for size, and weights that are taken whole or refused in a line."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from pruneflow.errors import InputError
from pruneflow.workloads.models import (
    build,
    channels_last,
    check_image_size,
    describe,
    head_name,
    load_state,
    names,
    rebuild,
)

HEADS = {"alexnet": "classifier.6", "squeezenet1_1": "classifier.1", "resnet18": "fc"}


def write(state: Mapping[str, Tensor], path: Path) -> Path:
    save_file(dict(state), path)
    return path


def one_line(path: Path, *, name: str = "squeezenet1_1", classes: int = 4) -> str:
    with pytest.raises(InputError) as error:
        build(name, classes, weights=str(path))
    text = str(error.value)
    assert text == " ".join(text.splitlines())
    assert str(path) in text
    return text


def assert_equal_states(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# --------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("name", sorted(HEADS))
@pytest.mark.parametrize("classes", [2, 10])
def test_the_head_has_as_many_outputs_as_there_are_classes(name: str, classes: int) -> None:
    model = build(name, classes)
    assert model.get_parameter(f"{HEADS[name]}.weight").shape[0] == classes
    with torch.inference_mode():
        assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, classes)


def test_every_classifier_of_torchvision_has_its_name_here() -> None:
    assert {"alexnet", "vgg16", "squeezenet1_1", "resnet18", "vit_b_16"} <= set(names())
    assert not {"fcn_resnet50", "maskrcnn_resnet50_fpn", "quantized_resnet18"} & set(names())


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown model 'alexnett': did you mean alexnet"):
        build("alexnett", 10)


def test_initialisation_follows_torchs_seed() -> None:
    def state(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build("squeezenet1_1", 4).state_dict()

    first, other = state(1), state(2)
    assert_equal_states(first, state(1))
    assert not torch.equal(first["classifier.1.weight"], other["classifier.1.weight"])


@pytest.mark.parametrize("training", [True, False])
def test_an_image_size_that_works_returns_an_input_and_leaves_the_mode(training: bool) -> None:
    model = build("squeezenet1_1", 4).train(training)
    assert check_image_size(model, "squeezenet1_1", 32).shape == (1, 3, 32, 32)
    assert [module.training for module in model.modules()] == [training] * len(
        list(model.modules())
    )


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1"])
def test_an_image_size_that_is_too_small_is_one_line(name: str) -> None:
    model = build(name, 4)
    with pytest.raises(InputError) as error:
        check_image_size(model, name, 8)
    assert str(error.value).startswith(f"image_size=8 does not work with {name}: ")
    assert "\n" not in str(error.value)
    assert model.training


def test_a_vision_transformers_only_size_is_in_the_message() -> None:
    model = torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=3)
    with pytest.raises(InputError, match=r"image_size=24 does not work with vit: .*16"):
        check_image_size(model, "vit", 24)


# ---------------------------------------------------------------------------------- weights files


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_a_weights_file_is_loaded_bit_for_bit(tmp_path: Path, suffix: str, name: str) -> None:
    saved = build(name, 4).state_dict()
    path = write(saved, tmp_path / f"w.{suffix}")
    torch.manual_seed(99)
    assert_equal_states(build(name, 4, weights=str(path)).state_dict(), saved)


def test_a_path_that_begins_with_a_tilde_is_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved = build("squeezenet1_1", 4).state_dict()
    write(saved, tmp_path / "w.safetensors")
    loaded = build("squeezenet1_1", 4, weights="~/w.safetensors")
    assert_equal_states(loaded.state_dict(), saved)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_a_head_of_another_size_is_new_and_all_the_rest_is_taken(tmp_path: Path, name: str) -> None:
    saved = build(name, 7).state_dict()
    path = write(saved, tmp_path / "w.safetensors")
    torch.manual_seed(5)
    loaded = build(name, 3, weights=str(path)).state_dict()
    torch.manual_seed(5)
    fresh = build(name, 3).state_dict()
    head = {f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"}
    assert_equal_states(
        {n: v for n, v in loaded.items() if n not in head},
        {n: v for n, v in saved.items() if n not in head},
    )
    assert_equal_states({n: loaded[n] for n in head}, {n: fresh[n] for n in head})


def test_weights_of_a_body_without_a_head_are_taken(tmp_path: Path) -> None:
    saved = build("resnet18", 4).state_dict()
    body = {name: value for name, value in saved.items() if not name.startswith("fc.")}
    loaded = build("resnet18", 4, weights=str(write(body, tmp_path / "w.safetensors"))).state_dict()
    assert_equal_states({name: loaded[name] for name in body}, body)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    state = build("squeezenet1_1", 4).state_dict()
    state["features.3.squeeze.weight"] = torch.zeros(16, 64, 3, 3)
    text = one_line(write(state, tmp_path / "w.safetensors"))
    assert "features.3.squeeze.weight is of shape (16, 64, 3, 3)" in text
    assert "(16, 64, 1, 1)" in text


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = build("squeezenet1_1", 4).state_dict()
    del state["features.0.bias"]
    assert "features.0.bias is missing" in one_line(write(state, tmp_path / "w.safetensors"))


def test_a_tensor_that_the_model_has_not_is_named(tmp_path: Path) -> None:
    state = build("squeezenet1_1", 4).state_dict() | {"extra.weight": torch.zeros(2)}
    assert "it has no extra.weight" in one_line(write(state, tmp_path / "w.safetensors"))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = write(build("resnet18", 4).state_dict(), tmp_path / "w.safetensors")
    assert "do not fit the model: features.0.weight is missing" in one_line(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    state = build("squeezenet1_1", 4).state_dict()
    state["features.0.weight"][3, 1, 0, 0] = bad
    text = one_line(write(state, tmp_path / "w.safetensors"))
    assert "features.0.weight holds NaN or infinite values" in text


def test_a_file_that_does_not_exist_is_refused_with_what_is_valid(tmp_path: Path) -> None:
    text = one_line(tmp_path / "none.pt")
    assert "is not a file: pass none, pretrained, or" in text


def test_a_folder_is_not_a_weights_file(tmp_path: Path) -> None:
    assert "is not a file" in one_line(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
@pytest.mark.parametrize("content", [b"", b"these are no weights\n\n", bytes(200), b"\xff" * 9])
def test_a_file_of_other_bytes_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    assert "cannot be read" in one_line(path)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write(build("squeezenet1_1", 4).state_dict(), tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:-5000])
    assert "cannot be read" in one_line(path)


class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pt", "bin", "safetensors"])
@pytest.mark.parametrize("way", ["zipped", "old", "bare"])
def test_a_malicious_pickle_is_refused_and_does_not_run(
    tmp_path: Path, way: str, suffix: str
) -> None:
    marker, path = tmp_path / "it-ran", tmp_path / f"w.{suffix}"
    bomb = {"w": Payload(marker)}
    if way == "bare":
        path.write_bytes(pickle.dumps(bomb, protocol=2))
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=way == "zipped")
    said = one_line(path)
    assert "cannot be read" in said
    assert ("no pickles" in said) == (suffix != "safetensors")
    assert not marker.exists()
    if way != "bare" and suffix != "safetensors":
        torch.load(path, weights_only=False)
        assert marker.exists()  # it was loaded: the file did hold the payload


# ------------------------------------------------------------------------------------- pretrained


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no route to host"),
        urllib.error.HTTPError("https://x", 503, "Unavailable", {}, None),  # type: ignore[arg-type]
        ConnectionResetError("reset by peer"),
        RuntimeError("invalid hash value"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_download_that_fails_is_one_line_with_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise failure

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError) as error:
        build("squeezenet1_1", 10, weights="pretrained")
    text = str(error.value)
    assert "ImageNet weights of squeezenet1_1 could not be downloaded" in text
    assert "weights=none" in text
    assert str(tmp_path / "hub" / "checkpoints") in text
    assert "\n" not in text


def as_published(name: str) -> Mapping[str, Tensor]:
    """A state dict with random values, in the format of torchvision's files."""
    torch.manual_seed(0)
    given = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    size = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"][0]
    if name.startswith("vit_"):
        given["image_size"] = size
    state = torchvision.models.get_model(name, weights=None, **given).state_dict()
    if name.startswith("densenet"):  # of a time with dots in names, and with no counts of batches
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))(?=\d)")
        return {old.sub(r"\1.", k): v for k, v in state.items() if "num_batches" not in k}
    return state


PUBLISHED = [
    *("alexnet", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5"),
    *("mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"),
]


@pytest.mark.parametrize(
    "name",
    [
        *PUBLISHED,
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("maxvit_t", "swin_t", "vit_b_32")),
    ],
)
def test_pretrained_is_the_librarys_own_model_with_a_new_head_and_is_rebuilt_so(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    state = as_published(name)
    asked: list[dict[str, object]] = []

    def download(url: str, **options: object) -> Mapping[str, Tensor]:
        safe = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        asked.append({"url": url, "safe": safe, **options})
        return copy.copy(state)

    weights = torchvision.models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    model = build(name, 6, weights="pretrained").eval()
    assert asked == [{"url": weights.url, "safe": "1", "progress": True, "check_hash": True}]
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ

    library = torchvision.models.get_model(name, weights="DEFAULT").eval()
    head = head_name(model)
    size = max(64, *weights.meta["min_size"])
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected, found = features(library, head, images), features(model, head, images)
    assert torch.equal(expected, found)

    json_values = json.loads(json.dumps({"model": name, "classes": 6, **describe(name, model)}))
    again = rebuild(json_values).eval()
    load_state(again, model.state_dict())
    with torch.inference_mode():
        logits = model(images)
        assert logits.shape == (2, 6)
        assert torch.equal(again(images), logits)
    untrained = build(name, 6, weights="pretrained", load=False)
    assert describe(name, untrained) == describe(name, model)
    assert [n for n, _ in untrained.named_parameters()] == [n for n, _ in model.named_parameters()]


def features(model: torch.nn.Module, head: str, images: Tensor) -> Tensor:
    """What goes into the head."""
    seen: list[Tensor] = []
    layer = model.get_submodule(head)
    handle = layer.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with torch.inference_mode():
        model(images)
    handle.remove()
    return seen[0]


def test_a_pickle_in_the_place_of_published_weights_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "it-ran"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url
    file = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save({"w": Payload(marker)}, file)
    with pytest.raises(InputError, match="ImageNet weights of squeezenet1_1"):
        build("squeezenet1_1", 2, weights="pretrained")
    assert not marker.exists()


def test_weights_from_a_file_are_of_the_version_that_the_model_is(tmp_path: Path) -> None:
    saved = build("mnasnet0_5", 4).state_dict()
    loaded = build("mnasnet0_5", 4, weights=str(write(saved, tmp_path / "w.safetensors")))
    assert_equal_states(loaded.state_dict(), saved)


@pytest.mark.parametrize("channels", [1, 3, 5, 7, 8, 20])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (1, 3), (3, 2)])
def test_gradients_of_few_channels_are_right_and_inside_their_memory(
    channels: int, kernel: int, stride: int
) -> None:
    """oneDNN's AVX2 kernel for strided 1x1 convolutions wrote beyond it, and processes died."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 16, kernel, stride))
    exact = copy.deepcopy(model).double()
    channels_last(channels_last(model))
    for _ in range(10):
        images = torch.randn(50, 3, 8, 8).to(memory_format=torch.channels_last)
        model.zero_grad()
        model(images).square().mean().backward()
    exact(images.double()).square().mean().backward()
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5)
    endangered = kernel == 1 and stride > 1 and channels < 8
    assert len(model[1]._forward_pre_hooks) == endangered
