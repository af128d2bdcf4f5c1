"""Encoders: built, loaded from folders, rebuilt bit-equal, pruned of heads; and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, DistilBertConfig
from transformers import DistilBertForSequenceClassification as DistilBert

from pruneflow.errors import InputError
from pruneflow.pruning import compaction, tracing
from pruneflow.pruning.groups import expand
from pruneflow.pruning.prunable import prunable_parameters
from pruneflow.workloads import batches, encoders, models, training
from pruneflow.workloads.machine import Machine
from pruneflow.workloads.splits import Split, Tokens
from pruneflow.workloads.texts import reviews
from pruneflow.workloads.training import Recipe

MACHINE = Machine("cpu", "fp32", 1)
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def small_reviews(count: int = 400) -> Split:
    return reviews(None).train[np.arange(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return encoders.tokenizer_for("bert", "none", small_reviews())


def tiny_bert(vocabulary: int, seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(vocab_size=vocabulary, num_labels=2, **TINY)
    ).eval()


@pytest.fixture(scope="module")
def folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder in Hugging Face layout."""
    path = tmp_path_factory.mktemp("hf") / "tiny"
    tiny_bert(len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def batch(tokens: Tokens, index: list[int]) -> dict[str, torch.Tensor]:
    return batches.tokens_to_model(tokens, np.array(index), MACHINE)


# ----------------------------------------------------------------------------------- tokenizer


def test_the_vocabulary_made_from_texts_is_the_same_every_time_and_reads_them_whole(
    tokenizer: Any,
) -> None:
    again = encoders.tokenizer_for("bert", "none", small_reviews())
    assert again.get_vocab() == tokenizer.get_vocab()
    assert encoders.fingerprint(again) == encoders.fingerprint(tokenizer)
    tokens = encoders.encode(tokenizer, small_reviews(), longest=512)
    assert tokenizer.unk_token_id not in tokens.ids
    ids = tokens.ids[tokens.starts[0] : tokens.starts[1]].tolist()
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    words = tokenizer.convert_ids_to_tokens(ids[1:-1])
    assert words == small_reviews().samples[0].split()


def test_a_word_it_has_not_seen_is_spelled(tokenizer: Any) -> None:
    assert tokenizer.tokenize("dulls") == ["dull", "##s"]


def test_texts_are_cut_off(tokenizer: Any) -> None:
    tokens = encoders.encode(tokenizer, small_reviews(), longest=6)
    assert tokens.lengths.max() == 6


# ------------------------------------------------------------------------------------ building


def test_bert_from_scratch_is_drawn_by_torchs_generator(tokenizer: Any) -> None:
    def made() -> nn.Module:
        torch.manual_seed(3)
        return encoders.build("bert", 2, weights="none", tokenizer=tokenizer)

    one, two = made().state_dict(), made().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert models.head_name(made()) == "classifier"


@pytest.mark.parametrize("name", ["bert", "hf:"])
def test_a_folder_gives_weights_architecture_and_tokenizer(
    name: str, folder: Path, tokenizer: Any
) -> None:
    model_name = name if name == "bert" else f"hf:{folder}"
    weights = str(folder) if name == "bert" else "pretrained"
    loaded = encoders.build(model_name, 2, weights=weights)
    own = tiny_bert(len(tokenizer)).state_dict()
    assert all(torch.equal(own[key], value) for key, value in loaded.state_dict().items())
    read = encoders.tokenizer_for(model_name, weights, small_reviews())
    assert read.get_vocab() == tokenizer.get_vocab()


def test_without_load_the_architecture_is_the_folders_and_the_weights_are_new(
    folder: Path, tokenizer: Any
) -> None:
    fresh = encoders.build("bert", 3, weights=str(folder), load=False)
    assert fresh.get_parameter("classifier.weight").shape == (3, 32)
    name = "bert.pooler.dense.weight"
    assert not torch.equal(fresh.get_parameter(name), tiny_bert(len(tokenizer)).get_parameter(name))


def test_a_head_for_other_classes_is_new_and_the_rest_is_taken(
    folder: Path, tokenizer: Any
) -> None:
    loaded = encoders.build("bert", 5, weights=str(folder))
    assert loaded.get_parameter("classifier.weight").shape == (5, 32)
    name = "bert.pooler.dense.weight"
    assert torch.equal(loaded.get_parameter(name), tiny_bert(len(tokenizer)).get_parameter(name))


@pytest.mark.parametrize(
    ("name", "weights", "problem"),
    [
        ("bert", "pretrained", "bert-base-uncased cannot be used.*weights=<folder>"),
        ("hf:nobody/nothing", "pretrained", "nobody/nothing cannot be used"),
        ("hf:", "pretrained", "names nothing"),
        ("bert", "no/such/folder", "is not a folder"),
    ],
)
def test_what_cannot_be_had_is_one_line(name: str, weights: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as refused:
        encoders.tokenizer_for(name, weights, small_reviews())
    assert "\n" not in str(refused.value)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(InputError, match=r"pickled weights \(\.bin\) only"):
        encoders.build("bert", 2, weights=str(tmp_path))


# ------------------------------------------------------------------------ batches and training


def test_padding_does_not_change_logits(tokenizer: Any) -> None:
    model = tiny_bert(len(tokenizer))
    tokens = encoders.encode(tokenizer, small_reviews(), longest=512)
    order = np.argsort(tokens.lengths)
    short, long = int(order[0]), int(order[-1])
    with torch.no_grad():
        together = models.logits(model, batch(tokens, [short, long]))
        alone = models.logits(model, batch(tokens, [short]))
    assert tokens.lengths[short] < tokens.lengths[long]
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_batches_have_every_text_once_are_drawn_by_the_generator_and_alike_in_length(
    tokenizer: Any,
) -> None:
    tokens = encoders.encode(tokenizer, small_reviews(333), longest=512)

    def drawn(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [b.tolist() for b in batches.shuffled(tokens, 16, generator)]

    one = drawn(0)
    assert sorted(i for b in one for i in b) == list(range(333))
    assert one == drawn(0)
    assert one != drawn(1)
    padding = sum(int((tokens.lengths[b].max() - tokens.lengths[b]).sum()) for b in one)
    shuffled = np.random.default_rng(0).permutation(333)
    plain = [shuffled[i : i + 16] for i in range(0, 333, 16)]
    unsorted = sum(int((tokens.lengths[b].max() - tokens.lengths[b]).sum()) for b in plain)
    assert padding < unsorted / 5
    first = [int(tokens.lengths[b].max()) for b in one]
    assert first != sorted(first)
    assert first != sorted(first, reverse=True)


def test_accuracy_is_correct_texts_over_texts(tokenizer: Any) -> None:
    class Length(nn.Module):
        """Says 1 of texts of more than 9 tokens, whatever their padding."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            longer = (attention_mask.sum(1) > 9).float()
            return type("Output", (), {"logits": torch.stack([0.5 - longer, longer - 0.5], 1)})

    tokens = encoders.encode(tokenizer, small_reviews(301), longest=512)
    expected = float(((tokens.lengths > 9) == tokens.labels).mean())
    found = training.accuracy(Length(), tokens, MACHINE, image_size=None, batch_size=7)
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_tiny_bert_learns_the_reviews(tokenizer: Any) -> None:
    model = tiny_bert(len(tokenizer))
    tokens = encoders.encode(tokenizer, small_reviews(), longest=512)
    recipe = Recipe(
        epochs=25,
        batch_size=16,
        learning_rate=3e-3,
        lr_schedule="one_cycle",
        optimizer="adamw",
        weight_decay=0.0,
        image_size=None,
        seed=0,
    )
    epochs = list(training.fit(model, tokens, recipe, MACHINE))
    assert epochs[-1].accuracy > 0.9
    assert training.accuracy(model, tokens, MACHINE, image_size=None, batch_size=16) > 0.9


# -------------------------------------------------------------------------------------- pruning


def test_all_of_bert_is_prunable_and_parts_can_be_left_out(tokenizer: Any) -> None:
    model = tiny_bert(len(tokenizer))
    weights = prunable_parameters(model, include=(), exclude=(), biases=False)
    assert {
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.LayerNorm.weight",
        "bert.encoder.layer.0.attention.self.query.weight",
        "classifier.weight",
    } <= set(weights)
    assert not any(name.endswith("bias") for name in weights)
    everything = prunable_parameters(model, include=(), exclude=(), biases=True)
    assert set(everything) == {name for name, _ in model.named_parameters()}
    some = prunable_parameters(
        model, include=(), exclude=("*embeddings*", "*LayerNorm", "classifier"), biases=True
    )
    assert not any("embeddings" in n or "LayerNorm" in n or "classifier" in n for n in some)


def test_heads_and_hidden_units_go_and_the_model_runs_reloads_and_trains_on(
    tokenizer: Any, tmp_path: Path
) -> None:
    for model in (
        tiny_bert(len(tokenizer)),
        DistilBert(
            DistilBertConfig(
                vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=4, hidden_dim=48
            )
        ).eval(),
    ):
        tokens = encoders.encode(tokenizer, small_reviews(), longest=512)
        inputs = batch(tokens, [0, 1, 2])

        def forward(m: nn.Module, inputs: Any = inputs) -> torch.Tensor:
            return models.logits(m, inputs)

        found = tracing.find_groups(model, forward, outputs=[models.head_name(model)])
        targets = [g.target for g in found.groups]
        assert targets == ["heads", "ffn", "heads", "ffn", "linear"]
        assert [g.units for g in found.groups[:2]] == [4, 48]
        # other sizes in every layer
        left = {"heads": [3, 1], "ffn": [40, 7], "linear": [32]}
        kept = {g.name: torch.arange(g.units) < left[g.target].pop(0) for g in found.groups}
        expand(model, found.groups, kept).apply(model)
        smaller = compaction.compact(model, found.groups, kept)
        with torch.no_grad():
            torch.testing.assert_close(forward(smaller), forward(model), rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in smaller.parameters()) < sum(
            p.numel() for p in model.parameters()
        )
        forward(smaller.train()).sum().backward()  # type: ignore[no-untyped-call]


def test_a_compact_bert_is_rebuilt_bit_equal_in_a_fresh_process(
    tokenizer: Any, tmp_path: Path
) -> None:
    from pruneflow.tracking import checkpoints

    model = tiny_bert(len(tokenizer))
    tokens = encoders.encode(tokenizer, small_reviews(), longest=512)
    inputs = batch(tokens, [0, 1, 2])
    found = tracing.find_groups(model, lambda m: models.logits(m, inputs), outputs=["classifier"])
    kept = {g.name: torch.arange(g.units) % 2 == 0 for g in found.groups}
    smaller = compaction.compact(model, found.groups, kept)
    structure = {"model": "bert", "classes": 2, **encoders.describe(model, tokenizer)}
    structure["sizes"] = compaction.structure(smaller)
    saved = checkpoints.Checkpoint(structure, smaller.state_dict(), {})
    checkpoints.save(tmp_path, saved, tokenizer)
    code = """
import json, sys, pathlib, torch
from transformers import AutoTokenizer
from pruneflow.tracking import checkpoints
folder = pathlib.Path(sys.argv[1])
model = checkpoints.restore(checkpoints.load(folder))
texts = json.loads(sys.argv[2])
read = AutoTokenizer.from_pretrained(folder / "tokenizer")
inputs = read(texts, padding=True, return_tensors="pt")
inputs.pop("token_type_ids")
torch.set_num_threads(1)
with torch.no_grad():
    print(json.dumps(model(**inputs).logits.tolist()))
"""
    texts = json.dumps(small_reviews().samples[:3].tolist())
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), texts],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    with torch.no_grad():
        assert json.loads(done.stdout) == models.logits(smaller, inputs).tolist()
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".bin", ".pt", ".pkl")]


def test_the_tokenizer_class_is_the_librarys(tokenizer: Any) -> None:
    assert isinstance(tokenizer, BertTokenizer)


def test_weights_that_are_not_the_configs_are_refused(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    shutil.copytree(folder, tmp_path / "renamed")
    renamed = {f"other.{name}": value for name, value in state.items()}
    save_file(renamed, tmp_path / "renamed" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(folder, tmp_path / "wider")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "wider" / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    shutil.copytree(folder, tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    for name, said in {"renamed": "do not fit", "wider": "do not fit", "cut": "cannot be"}.items():
        with pytest.raises(InputError, match=said) as refused:
            encoders.build("bert", 2, weights=str(tmp_path / name))
        assert "\n" not in str(refused.value)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    with pytest.raises(InputError, match=r"has no tokenizer|cannot be used"):
        encoders.tokenizer_for("bert", str(tmp_path), small_reviews())


@pytest.mark.parametrize(
    ("kind", "given", "heads"),
    [
        ("roberta", TINY, True),
        ("electra", TINY | {"embedding_size": 16}, True),
        ("albert", TINY | {"embedding_size": 16}, None),
        ("mpnet", TINY, None),
        ("deberta-v2", TINY, None),
        ("modernbert", TINY, None),
        ("xlm", {"emb_dim": 32, "n_layers": 1, "n_heads": 4}, None),
    ],
)
def test_groups_of_other_encoders_are_found_or_left_out_and_what_is_removed_agrees(
    kind: str, given: dict[str, int], heads: bool | None
) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, vocab_size=60, num_labels=2, **given)
    config.pad_token_id = 0
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    tokens = {"input_ids": torch.randint(5, 60, (2, 9)), "attention_mask": torch.ones(2, 9).long()}

    def forward(one: nn.Module) -> torch.Tensor:
        return models.logits(one, tokens)

    groups = tracing.find_groups(model, forward, outputs=[models.head_name(model)]).groups
    targets = {group.target for group in groups}
    if heads is not None:
        assert targets >= {"heads", "ffn"}
    draw = torch.Generator().manual_seed(1)
    kept = {group.name: torch.rand(group.units, generator=draw) < 0.6 for group in groups}
    for mask in kept.values():
        mask[0] = True
    with torch.no_grad():
        expand(model, groups, kept).apply(model)
        smaller = compaction.compact(model, groups, kept)
        torch.testing.assert_close(forward(smaller), forward(model), rtol=1e-4, atol=1e-6)
