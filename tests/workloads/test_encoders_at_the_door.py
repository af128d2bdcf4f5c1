"""Encoders whose files say odd things: they run, or are refused in a line before any run opens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file
from torch import nn

import pruneflow
from pruneflow.config import FinetuneConfig
from pruneflow.errors import InputError
from pruneflow.resolution import resolve
from pruneflow.stages.experiment import Experiment, prepare
from pruneflow.workloads import batches, encoders, models
from pruneflow.workloads.machine import Machine
from tests.test_every_model import ENCODERS, END, SOME_ENCODERS, encoder, tokenizer

LONG = "film " * 100
# Fourier transforms over all places, and landmarks that are means of neighbours.
MIX_PADDING_IN = {"fnet", "nystromformer"}


def written(folder: Path, kind: str, change: dict[str, Any], special: dict[str, Any]) -> None:
    """An encoder in Hugging Face layout, its files then changed by hand."""
    encoder(kind).save_pretrained(folder)  # type: ignore[operator]
    tokenizer().save_pretrained(folder)
    for name, values in (("config.json", change), ("tokenizer_config.json", special)):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))


def prepared(
    folder: Path, *, train: str = "good film", test: str = "bad film"
) -> tuple[Experiment[FinetuneConfig], nn.Module]:
    """What a run would start from, on texts of which one is given."""
    for part, text, count in (("train", train, 20), ("test", test, 6)):
        rows = [f"{'good' if n % 2 else 'bad'}{' film' * (n % 4)},{n % 2}\n" for n in range(count)]
        rows[1] = f"{text},1\n"
        (folder / f"{part}.csv").write_text("text,label\n" + "".join(rows))
    given = {"model": f"hf:{folder}", "dataset": "textfolder", "data_dir": str(folder)}
    given |= {"threads": "1", "precision": "fp32", "device": "cpu"}
    return prepare(resolve(FinetuneConfig, given), load=True)


def refusal(folder: Path, **texts: str) -> str:
    with pytest.raises(InputError) as refused:
        prepared(folder, **texts)
    text = str(refused.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize(
    ("kind", "change", "special"),
    [
        ("bert", {"return_dict": False}, {}),
        ("gpt2", {"return_dict": False}, {}),
        ("bert", {"torchscript": True}, {}),
        ("bert", {"output_attentions": True}, {}),
        ("bert", {"output_hidden_states": True}, {}),
        ("bert", {"chunk_size_feed_forward": 7}, {}),
        ("big_bird", {"attention_type": "block_sparse"}, {}),
        ("funnel", {"attention_type": "factorized"}, {}),
        ("bert", {"problem_type": "regression", "num_labels": 1}, {}),
        ("roberta", {"problem_type": "multi_label_classification"}, {}),
        ("bert", {"id2label": {str(n): str(n) for n in range(7)}}, {}),
        ("bert", {"dtype": "bfloat16"}, {}),
        ("bert", {"pad_token_id": None}, {}),
        ("bert", {"pad_token_id": 1_000}, {}),
        ("gpt2", {"pad_token_id": None}, {}),
        ("gpt2", {"pad_token_id": -1}, {}),
        ("gpt2", {"pad_token_id": 50_257}, {}),
        ("gpt2", {"pad_token_id": None}, {"pad_token": None}),
        ("llama", {"pad_token_id": -1}, {}),
        ("bert", {}, {"model_max_length": -1}),
        ("bert", {}, {"model_max_length": int(1e30)}),
        ("bert", {}, {"model_max_length": 1e30}),
        ("bert", {}, {"model_max_length": 5}),
        ("xlnet", {}, {}),
        ("t5", {}, {}),
        *((kind, {}, {}) for kind in ("roberta", "camembert", "xlm-roberta", "mpnet")),
        *(
            (kind, {}, {})
            for kind in ("longformer", "data2vec-text", "esm", "ibert", "bart", "opt")
        ),
    ],
)
def test_it_runs_and_is_the_same_when_it_is_rebuilt(
    tmp_path: Path, kind: str, change: dict[str, Any], special: dict[str, Any]
) -> None:
    written(tmp_path, kind, change, special)
    experiment, model = prepared(tmp_path, train=LONG, test=LONG)
    tokens = experiment.data.test
    longest = int(tokens.lengths.max())  # type: ignore[union-attr]
    if special.get("model_max_length") == 5:
        assert longest == 5
    elif kind in ("bert", "bart", "opt"):
        assert longest == 64
    elif kind in ("xlnet", "t5"):
        assert longest == 102  # all of it
    elif kind in ("roberta", "camembert", "xlm-roberta"):
        assert longest == 64 - 0 - 1  # positions begin after that of the padding
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.eval()
    with torch.no_grad():
        logits = experiment.probe(model)
        again = models.rebuild(json.loads(json.dumps(experiment.structure)))
        models.load_state(again, model.state_dict())
        assert torch.equal(experiment.probe(again.eval()), logits)
    assert logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("kind", "change", "special", "texts", "said"),
    [
        ("bert", {"max_position_embeddings": 0}, {}, {}, "cannot|fit"),
        ("bert", {"max_position_embeddings": -5}, {}, {}, "cannot"),
        ("bert", {"max_position_embeddings": 10**30}, {}, {}, "cannot"),
        ("bert", {"max_position_embeddings": "many"}, {}, {}, "cannot"),
        ("roberta", {"max_position_embeddings": 2}, {}, {}, "cannot|fit|takes"),
        ("bert", {"num_attention_heads": 5}, {}, {}, "cannot"),
        ("bert", {"vocab_size": 7}, {}, {}, "do not fit"),
        ("bert", {"layer_norm_eps": float("nan")}, {}, {}, "not finite"),
        ("bert", {}, {"model_max_length": 2}, {}, "takes 2 tokens .* 2 go around"),
        ("bart", {}, {}, {"test": "good </s> film"}, "ends of text.*in the test set"),
        ("nystromformer", {"segment_means_seq_len": 20}, {}, {}, "cannot classify"),
    ],
)
def test_it_is_refused_in_a_line(
    tmp_path: Path,
    kind: str,
    change: dict[str, Any],
    special: dict[str, Any],
    texts: dict[str, str],
    said: str,
) -> None:
    written(tmp_path, kind, change, special)
    found = refusal(tmp_path, **texts)
    assert re.search(said, found), found


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta", "bart"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_token_beyond_the_embedding_is_refused_wherever_it_stands(
    tmp_path: Path, kind: str, split: str
) -> None:
    encoder(kind).save_pretrained(tmp_path)  # type: ignore[operator]
    reads = tokenizer()
    reads.add_tokens(["wonderful"])
    reads.save_pretrained(tmp_path)
    prepared(tmp_path)  # a vocabulary that is larger than the embedding is no fault by itself
    found = refusal(tmp_path, **{split: "a wonderful film"})
    assert f"number {len(reads) - 1}" in found
    assert f"{len(reads) - 1} rows" in found


def test_what_is_refused_opens_no_run(tmp_path: Path, store: str) -> None:
    written(tmp_path, "bert", {}, {"model_max_length": 2})
    refusal(tmp_path)
    given = {"model": f"hf:{tmp_path}", "dataset": "textfolder", "data_dir": str(tmp_path)}
    with pytest.raises(InputError, match="takes 2 tokens"):
        pruneflow.prune_iterative(**given)
    assert MlflowClient().search_runs(["0"]) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_loaded_as_float32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    written(tmp_path, "llama", {"dtype": str(dtype).removeprefix("torch.")}, {})
    file = tmp_path / "model.safetensors"
    halves = {name: value.to(dtype) for name, value in load_file(file).items()}
    save_file(halves, file, metadata={"format": "pt"})
    _, model = prepared(tmp_path)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, halves[name].float())


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in SOME_ENCODERS else pytest.mark.slow)
        for kind in sorted({*ENCODERS} - MIX_PADDING_IN)
    ],
)
def test_padding_does_not_change_logits_of_any_encoder(kind: str) -> None:
    model, reads = encoder(kind).eval(), tokenizer()
    ids = [reads(text)["input_ids"] for text in ("good film", "a bad film was a bad story")]
    lengths = np.array([0, *map(len, ids)]).cumsum()
    texts = encoders.Tokens(
        np.concatenate(ids).astype(np.int32),
        lengths,
        np.array([0, 1]),
        reads.pad_token_id,
        encoders.pads_at_start(model.config),
    )
    machine = Machine("cpu", "fp32", 1)
    with torch.no_grad():
        both = models.logits(model, batches.tokens_to_model(texts, np.array([0, 1]), machine))
        one = models.logits(model, batches.tokens_to_model(texts, np.array([0]), machine))
    torch.testing.assert_close(both[:1], one, rtol=1e-4, atol=1e-5)
    assert ids[0][-1] == END
