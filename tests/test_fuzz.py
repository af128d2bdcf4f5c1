"""Anything at all as a value, a study or a checkpoint: it is taken, or refused in one line.

A few examples each; with `--hypothesis-profile=long` very many.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pruneflow.errors import InputError
from pruneflow.resolution import resolve
from pruneflow.stages import STAGES, study
from pruneflow.tracking import checkpoints, journal
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.journal import Entry, Journal, Owner
from pruneflow.workloads import models

WORDS = [
    *("0", "1", "-1", "2.5", "1e9", "1e400", "nan", "inf", "-0", "true", "None", "preset", ""),
    *("l1", "l2", "random", "global", "layer", "weight", "channel", "group", "independent"),
    *("alexnet", "bert", "hf:x", "hf:", "digits", "reviews", "cifar10", "quick", "paper"),
    *("conv,linear", ",", ",,a", "*", "[", "../..", "~", "\0", "é\u202e", "auto", "cpu", "0123"),
]
VALUES = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.integers(), max_size=3),
)


def one_line(error: InputError) -> None:
    text = str(error)
    assert text.strip()
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("stage", STAGES)
@given(data=st.data())
def test_any_parameters_make_a_configuration_or_one_line(stage: str, data: st.DataObject) -> None:
    kind = STAGES[stage].config
    names = st.one_of(st.sampled_from(list(kind.model_fields)), st.text(max_size=8))
    values = data.draw(st.dictionaries(names, VALUES, max_size=6))
    try:
        config = resolve(kind, values)
    except InputError as error:
        one_line(error)
    else:
        again = json.loads(json.dumps(config.model_dump(mode="json")))
        assert config.given <= set(kind.model_fields) >= set(again)


SCALARS = st.one_of(st.sampled_from(WORDS), st.integers(-3, 300), st.floats(0, 1), st.booleans())
PATTERNS = st.dictionaries(
    st.sampled_from(["seed", "fraction", "model", "criterion", "stage", "x", "batch_sizes", "of"]),
    st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.none()),
    max_size=3,
)
PARTS = ["settings", "axes", "exclude", "include", "benchmarks", "description", "name"]
STUDIES = st.one_of(
    st.text(max_size=200),
    st.dictionaries(
        st.sampled_from(PARTS), st.one_of(PATTERNS, st.lists(PATTERNS, max_size=2), SCALARS)
    ).map(json.dumps),
    st.lists(
        st.sampled_from(
            [
                "axes:",
                "- ",
                "  ",
                "!!python/name:os.system",
                "&a",
                "*a",
                ": ",
                "[",
                "{",
                "}",
                "seed",
                "1",
                "\n",
                "<<: ",
                "? ",
                "|",
                "%",
                "2001-99-99",
            ]
        ),
        max_size=25,
    ).map("".join),
)


@given(text=STUDIES)
@example(text="? 0:")
@example(text="? [a]\n: 1\n? [a]\n: 2")
def test_any_text_is_a_study_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(text, "utf-8", errors="ignore")
    try:
        study.jobs(study.read(str(path)))
    except InputError as error:
        one_line(error)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, small but of a real model: pruned by masks, with sizes."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    state = models.build("shufflenet_v2_x0_5", 3).state_dict()
    mask = torch.rand(state["fc.weight"].shape) < 0.5
    state["fc.weight"].mul_(mask)
    structure = {
        "builder": "torchvision",
        "model": "shufflenet_v2_x0_5",
        "classes": 3,
        "sizes": {"fc": {"in_features": 1024, "out_features": 3}},
    }
    checkpoints.save(folder, Checkpoint(structure, state, {"fc.weight": mask}))
    return folder


def mutated(draw: Any, content: bytes) -> bytes:
    """A file with a few bytes altered, cut out or put in, mostly at its beginning."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.one_of(st.integers(0, min(400, len(result))), st.integers(0, len(result))))
        way = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if way == "flip" and place < len(result):
            result[place] ^= 1 << draw(st.integers(0, 7))
        elif way == "cut":
            del result[place : place + draw(st.integers(1, 50))]
        elif way == "insert":
            result[place:place] = draw(
                st.one_of(st.binary(max_size=9), st.sampled_from([b"9" * 12, b"-1", b"[", b'"']))
            )
        elif way == "end":
            del result[max(place, 1) :]
    return bytes(result)


@given(data=st.data(), name=st.sampled_from(["structure.json", "model.safetensors"]))
def test_any_checkpoint_is_a_finite_model_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, saved: Path, data: st.DataObject, name: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(mutated(data.draw, (saved / name).read_bytes()))
    try:
        model = checkpoints.restore(checkpoints.load(folder))
    except InputError as error:
        one_line(error)
    else:
        assert all(bool(p.isfinite().all()) for p in model.parameters())
        assert sum(p.numel() for p in model.parameters()) < 2_000_000


@given(data=st.data())
def test_any_weights_file_is_taken_whole_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, saved: Path, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(mutated(data.draw, (saved / "model.safetensors").read_bytes()))
    try:
        models.build("shufflenet_v2_x0_5", 3, weights=str(path))
    except InputError as error:
        one_line(error)
    else:
        assert "fc.bias" in load_file(path)


@given(data=st.data())
def test_any_journal_is_read_as_far_as_it_is_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEFLOW_STATE", str(folder))
        own = Journal.make(Owner("r", "0", "s", "n", "finetune", "h"))
        for number in range(3):
            own.append(Entry(metrics=(("m", float(number), 1, number),), part=f"level {number}"))
        own.close(remove=False)
        for name in ("journal.jsonl", "run.json", "sent"):
            path = own.folder / name
            content = path.read_bytes() if path.exists() else b"2"
            if data.draw(st.booleans()):
                path.write_bytes(mutated(data.draw, content))
        try:
            again = Journal(own.folder)
            assert len(again.pending()) <= 4
            again.close(remove=False)
            journal.owner_of(own.folder)
        except InputError as error:
            one_line(error)
    shutil.rmtree(folder)
