"""Encoders: BERT and other transformers that classify texts, with their tokenizers.

Parameters keep the names that transformers gives them; models are called as it calls them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
)

from pruneflow.errors import InputError, first_line, user_path
from pruneflow.workloads.texts import Texts, Tokens

BERT = "bert-base-uncased"
# Without weights, `bert` is BERT-mini of Turc et al. 2019 (https://arxiv.org/abs/1908.08962):
# bert-base learns nothing from scratch on sets of this size, nor in minutes.
_MINI: dict[str, int] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
_VOCABULARY = 8_000
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_for(name: str, weights: str, texts: Texts) -> Any:
    """The tokenizer that belongs to a model; of `bert` from scratch, one made from the texts.

    Raises:
        InputError: a hub or folder that has none that can be read.
    """
    if name == "bert" and weights == "none":
        return BertTokenizer(vocab=_vocabulary(texts), do_lower_case=True, model_max_length=512)
    source = _source(name, weights)
    with _quiet(), _refusing(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
    if len(tokenizer.get_vocab()) <= len(set(tokenizer.all_special_tokens)):
        raise InputError(
            f"{source!r} has no tokenizer: its vocabulary is empty; put tokenizer.json or "
            "vocab.txt beside the weights"
        )
    return tokenizer


def build(
    name: str, classes: int, *, weights: str, vocabulary: int, load: bool = True
) -> nn.Module:
    """A classifier of texts: token numbers (N, L) and attention mask in, logits (N, classes) out.

    Args:
        name: `bert`, or `hf:<hub id or folder>`.
        classes: outputs of the head, which is new unless the weights have one of this size.
        weights: `none` (initialised by torch's global generator), `pretrained` (of the hub, or of
            the folder in the name), or a folder in Hugging Face layout.
        vocabulary: tokens of the tokenizer; sizes the embeddings of `bert` without weights.
        load: False for the same architecture with new weights.

    Raises:
        InputError: what cannot be found, read or used.
    """
    if weights == "none" or not load:
        if name == "bert" and weights == "none":
            source = name
            config = BertConfig(vocab_size=vocabulary, num_labels=classes, **_MINI)
        else:
            source = _source(name, weights)
            with _quiet(), _refusing(source):
                config = AutoConfig.from_pretrained(source, num_labels=classes)
        with _refusing(source):
            model: nn.Module = AutoModelForSequenceClassification.from_config(config)
        return model.float()
    source = _source(name, weights)
    with _quiet(), _refusing(source):
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            source,
            num_labels=classes,
            ignore_mismatched_sizes=True,  # a head for other classes
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    _check_loaded(model, loaded, source)
    if any(not bool(p.isfinite().all()) for p in model.parameters()):
        raise InputError(f"weights of {source!r} hold NaN or infinite values")
    return model


def _check_loaded(model: Any, loaded: Mapping[str, Any], source: str) -> None:
    """See that all of the encoder came from the weights; the head (and pooler) may be new.

    Raises:
        InputError: a parameter that the weights lack, or have in another shape.
    """
    inside = f"{model.base_model_prefix}."
    strange = [*loaded["missing_keys"], *(key[0] for key in loaded["mismatched_keys"])]
    strange = sorted(k for k in strange if k.startswith(inside) and ".pooler." not in k)
    if strange:
        raise InputError(
            f"weights of {source!r} do not fit its config.json: {strange[0]} is missing or of "
            "another shape"
        )


def describe(model: nn.Module, tokenizer: Any) -> dict[str, object]:
    """What `rebuild` needs to make the model again, as JSON values."""
    made: Any = model.config
    config = json.loads(made.to_json_string(use_diff=False))
    config["dtype"] = "float32"  # as it runs here, whatever it was published in
    for name in ("_name_or_path", "transformers_version"):  # say nothing of the model
        config.pop(name, None)
    return {"builder": "transformers", "config": config, "tokenizer": fingerprint(tokenizer)}


def rebuild(structure: Mapping[str, Any]) -> nn.Module:
    """A model of the kind that `describe` wrote, not yet with its weights."""
    config = dict(structure["config"])
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    model: nn.Module = AutoModelForSequenceClassification.from_config(made)
    return model.float()


def fingerprint(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary, which decides what token numbers mean."""
    words = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def encode(tokenizer: Any, texts: Texts, *, longest: int) -> Tokens:
    """Tokens of every text, cut off after `longest`."""
    encoded = tokenizer(texts.texts.tolist(), truncation=True, max_length=longest)["input_ids"]
    lengths = np.fromiter((len(ids) for ids in encoded), dtype=np.int64, count=len(encoded))
    starts = np.concatenate([np.zeros(1, dtype=np.int64), lengths.cumsum()])
    ids = np.fromiter((i for ids in encoded for i in ids), dtype=np.int32, count=int(starts[-1]))
    return Tokens(ids, starts, texts.labels, int(tokenizer.pad_token_id or 0))


def longest(model: nn.Module, tokenizer: Any) -> int:
    """Tokens that a model can read at once."""
    config: Any = model.config
    positions = int(getattr(config, "max_position_embeddings", 512))
    if positions > 512:  # RoBERTa counts its positions from the padding's number on
        positions -= int(getattr(config, "pad_token_id", 0) or 0) + 1
    return min(positions, int(tokenizer.model_max_length), 512)


def _vocabulary(texts: Texts) -> dict[str, int]:
    """The commonest words, then every character, alone and within a word; the same every time."""
    words: Counter[str] = Counter()
    splitter = BertTokenizer(vocab={token: n for n, token in enumerate(_SPECIAL)})
    backend = splitter.backend_tokenizer
    for text in texts.texts:
        normal = backend.normalizer.normalize_str(str(text))
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    characters = sorted({character for word in words for character in word})
    common = sorted(words, key=lambda word: (-words[word], word))[:_VOCABULARY]
    tokens = [*_SPECIAL, *characters, *(f"##{c}" for c in characters), *sorted(common)]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _source(name: str, weights: str) -> str:
    """The hub id or folder that a model comes from."""
    if weights not in ("none", "pretrained"):
        folder = user_path("weights", weights)
        if not folder.is_dir():
            raise InputError(
                f"weights={weights!r} is not a folder: for {name} pass none, pretrained, or a "
                "folder in Hugging Face layout (config.json, model.safetensors, tokenizer)"
            )
        return str(folder)
    if name == "bert":
        return BERT
    given = name.removeprefix("hf:")
    if not given:
        raise InputError("model='hf:' names nothing: pass hf:<hub id> or hf:<folder>")
    folder = user_path("model", given)
    return str(folder) if folder.is_dir() else given


@contextmanager
def _refusing(source: str) -> Iterator[None]:
    """Turn what transformers raises for a source into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # config, tokenizer and weights are read by three libraries
        folder = Path(source)
        if folder.is_dir() and not (folder / "config.json").is_file():
            reason = "it has no config.json"
        elif (
            folder.is_dir() and any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors"))
        ):
            reason = (
                "it has pickled weights (.bin) only, which are not read: save it as safetensors"
            )
        else:
            reason = first_line(error)
        where = "the folder" if folder.is_dir() else "the Hugging Face hub's"
        instead = (
            "" if folder.is_dir() else "; pass weights=<folder>, or weights=none for model=bert"
        )
        raise InputError(
            f"{where} {source} cannot be used as a classifier of texts: {reason}{instead}"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and reports of new heads off the terminal."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
