"""Encoders: BERT and other transformers that classify texts, with their tokenizers.

Parameters keep the names that transformers gives them; models are called as it calls them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

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
from pruneflow.workloads.factories import is_factory
from pruneflow.workloads.splits import Split, Tokens

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
_LONGEST = 512  # tokens of a text, whatever a model or a tokenizer says it can take
# What a configuration may ask for beside logits, or in pieces of some lengths only. None of it
# changes what the model computes.
_PLAIN = {
    "return_dict": True,
    "torchscript": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
    "problem_type": None,
}
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_for(name: str, weights: str, texts: Split) -> Any:
    """The tokenizer that belongs to a model; of `bert` from scratch and factories, of the texts."""
    if (name == "bert" and weights == "none") or is_factory(name):
        return BertTokenizer(vocab=_vocabulary(texts), do_lower_case=True, model_max_length=512)
    source = source_of(name, weights)
    with reading(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
    if len(tokenizer.get_vocab()) <= len(set(tokenizer.all_special_tokens)):
        raise InputError(f"{source!r} has no tokenizer: put tokenizer.json beside the weights")
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that a checkpoint keeps beside its model."""
    with reading(str(folder)):
        return AutoTokenizer.from_pretrained(str(folder))


def build(
    name: str, classes: int, *, weights: str, tokenizer: Any = None, load: bool = True
) -> nn.Module:
    """A classifier of texts: token numbers (N, L) and attention mask in, logits (N, classes) out.

    `name` is `bert` or `hf:<hub id or folder>`. `weights` is `none` (drawn by torch's global
    generator, for `bert` as large as the tokenizer asks), `pretrained` (of the hub, or of the
    folder in the name) or a folder in Hugging Face layout; the head is new unless they have one of
    this size. Without `load`, the architecture is the same and the weights are new.
    """
    scratch = name == "bert" and weights == "none"
    source = name if scratch else source_of(name, weights)
    with reading(source):
        if scratch:
            config: Any = BertConfig(vocab_size=len(tokenizer), num_labels=classes, **_MINI)
        else:
            config = AutoConfig.from_pretrained(source, num_labels=classes)
        _simplify(config, tokenizer)
        if weights == "none" or not load:
            return _new(config)
    return load_weights(AutoModelForSequenceClassification, source, config)


def load_weights(kind: Any, source: str, config: Any, samples: str = "texts") -> nn.Module:
    """A model of an Auto class of transformers with the weights of a folder or the hub.

    Its head is new unless they have one of this size.

    Raises:
        InputError: weights that cannot be read, do not fit, or are not finite.
    """
    with reading(source, samples):
        model, loaded = kind.from_pretrained(
            source,
            config=config,
            ignore_mismatched_sizes=True,  # a head for other classes
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    body = f"{model.base_model_prefix}."
    lacking = [*loaded["missing_keys"], *(key[0] for key in loaded["mismatched_keys"])]
    lacking = sorted(k for k in lacking if k.startswith(body) and ".pooler." not in k)
    if lacking:  # all but the head and the pooler has to come from the weights
        problem = f"{lacking[0]} is missing or of another shape"
        raise InputError(f"weights of {source!r} do not fit its config.json: {problem}")
    if any(not bool(p.isfinite().all()) for p in model.parameters()):
        raise InputError(f"weights of {source!r} hold NaN or infinite values")
    return cast(nn.Module, model)


def describe(model: nn.Module, tokenizer: Any) -> dict[str, object]:
    """What `rebuild` needs to make the model again, as JSON values."""
    return {
        "builder": "transformers",
        "config": described(model),
        "positions": _positions(model),
        "tokenizer": fingerprint(tokenizer),
    }


def described(model: nn.Module) -> dict[str, Any]:
    """The configuration of a model of transformers as JSON values, from which it is made again."""
    made: Any = model.config
    config: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
    config["dtype"] = "float32"  # as it runs here, whatever it was published in
    for name in ("_name_or_path", "transformers_version"):  # say nothing of the model
        config.pop(name, None)
    return config


def config_of(structure: Mapping[str, Any]) -> Any:
    """The configuration that a checkpoint's structure holds as `described` wrote it."""
    entries = dict(structure["config"])
    return AutoConfig.for_model(entries.pop("model_type"), **entries)


def describe_tokenizer(tokenizer: Any) -> dict[str, object]:
    """What a checkpoint says of the tokenizer of a model that is no encoder of transformers."""
    return {"vocabulary": len(tokenizer), "tokenizer": fingerprint(tokenizer)}


def rebuild(structure: Mapping[str, Any]) -> nn.Module:
    """A model of the kind that `describe` wrote, not yet with its weights."""
    return _new(config_of(structure))


def fingerprint(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary, which decides what token numbers mean."""
    words = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def encode(tokenizer: Any, texts: Split, *, longest: int, config: Any = None) -> Tokens:
    """Tokens of every text, cut off after `longest`; filled up as a model's `config` says."""
    encoded = tokenizer(texts.samples.tolist(), truncation=True, max_length=longest)["input_ids"]
    starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    ids = np.fromiter((i for ids in encoded for i in ids), dtype=np.int32, count=int(starts[-1]))
    padding = getattr(config, "pad_token_id", None)
    if padding is None:
        padding = tokenizer.pad_token_id or 0
    return Tokens(ids, starts, texts.labels, int(padding), pads_at_start(config))


def pads_at_start(config: Any) -> bool:
    """Whether padding goes before a text: XLNet reads its summary at the last place."""
    return getattr(config, "summary_type", None) == "last"


def longest(model: nn.Module, tokenizer: Any) -> int:
    """Tokens that a model and its tokenizer can take at once, 512 at the most."""
    stated = (_stated(tokenizer, "model_max_length"), _positions(model), _LONGEST)
    most = min(number for number in stated if number is not None)
    around = tokenizer.num_special_tokens_to_add()
    if most <= around:
        raise InputError(
            f"the model or its tokenizer takes {most} tokens of a text, and {around} go around it: "
            "correct max_position_embeddings (config.json) or model_max_length (tokenizer_config)"
        )
    return most


def _stated(owner: Any, name: str) -> int | None:
    """A number above 0 that a configuration or tokenizer states; files state odd things, too."""
    try:
        number = int(getattr(owner, name))
    except (AttributeError, NotImplementedError, TypeError, ValueError, OverflowError):
        return None
    return number if number > 0 else None


def _positions(model: nn.Module) -> int | None:
    """Tokens that a model has positions for; None if any number, or it does not say."""
    stated = _stated(getattr(model, "config", None), "max_position_embeddings")
    for name, table in model.named_modules():
        # RoBERTa and its kin number positions from the padding's number on
        first = getattr(table, "padding_idx", None)
        if stated and name.endswith("position_embeddings") and first is not None:
            stated = min(stated, max(0, int(table.weight.shape[0]) - first - 1))
    return stated or None


def check_tokens(name: str, model: Any, part: str, texts: Split, tokens: Tokens) -> None:
    """See that every text of a split is made of tokens that the model has.

    There have to be tokens at all, none beyond the embedding, and as many ends in every text for an
    encoder-decoder, which reads its summary there.
    """
    shown = [str(text)[:40] for text in texts.samples]
    for number in np.flatnonzero(tokens.lengths == 0):
        raise InputError(
            f"the tokenizer of model={name} leaves nothing of {shown[number]!r} in the {part} set: "
            "take such texts out"
        )
    try:
        rows = int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):  # it has no such table
        rows = sys.maxsize
    largest = max(int(tokens.ids.max()), tokens.padding)
    if largest >= rows:
        raise InputError(
            f"the tokenizer of model={name} gives tokens up to number {largest} (in the {part} "
            f"set), and the model's embedding has {rows} rows: use the tokenizer that it was "
            "trained with, or call resize_token_embeddings(len(tokenizer)) and save it again"
        )
    config = getattr(model, "config", None)
    end = getattr(config, "eos_token_id", None)
    if getattr(config, "is_encoder_decoder", False) and isinstance(end, int):
        ends = np.add.reduceat(tokens.ids == end, tokens.starts[:-1])
        for number in np.flatnonzero(ends != ends[0]):
            raise InputError(
                f"model={name} needs as many ends of text in one text as in another: "
                f"{shown[number]!r} (in the {part} set) has {ends[number]}, {shown[0]!r} {ends[0]}"
            )


def _simplify(config: Any, tokenizer: Any) -> None:
    """Make a configuration one of a classifier that gives logits, of any batch, and no more.

    Decoders read their summary at the last token that is no padding, so that there has to be one.
    """
    for name, value in _PLAIN.items():
        if getattr(config, name, value) != value:
            setattr(config, name, value)
    if getattr(config, "attention_type", None) == "block_sparse":
        # BigBird gives it up for good, and makes its modules anew, at the first short batch that
        # it meets: what a checkpoint holds would hang on the order of batches
        config.attention_type = "original_full"
    vocabulary = getattr(config, "vocab_size", None)
    spare = [getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos")]
    for number in (getattr(config, "pad_token_id", None), *spare):
        if isinstance(number, int) and (vocabulary is None or 0 <= number < vocabulary):
            config.pad_token_id = number
            return


def _new(config: Any) -> nn.Module:
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    return cast(nn.Module, model.float())


def _vocabulary(texts: Split) -> dict[str, int]:
    """The commonest words, then every character, alone and within a word; the same every time."""
    words: Counter[str] = Counter()
    backend = BertTokenizer(vocab={t: n for n, t in enumerate(_SPECIAL)}).backend_tokenizer
    for text in texts.samples:
        normal = backend.normalizer.normalize_str(str(text))
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    characters = sorted({character for word in words for character in word})
    common = sorted(words, key=lambda word: (-words[word], word))[:_VOCABULARY]
    tokens = [*_SPECIAL, *characters, *(f"##{c}" for c in characters), *sorted(common)]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def source_of(name: str, weights: str) -> str:
    """The hub id or folder that a model comes from."""
    if weights not in ("none", "pretrained"):
        folder = user_path("weights", weights)
        if not folder.is_dir():
            valid = "none, pretrained, or a folder in Hugging Face layout"
            raise InputError(f"weights={weights!r} is not a folder: for {name} pass {valid}")
        return str(folder)
    if name == "bert":
        return BERT
    given = name.removeprefix("hf:")
    if not given:
        raise InputError("model='hf:' names nothing: pass hf:<hub id> or hf:<folder>")
    folder = user_path("model", given)
    return str(folder) if folder.is_dir() else given


@contextmanager
def reading(source: str, samples: str = "texts") -> Iterator[None]:
    """Turn what transformers raises for a source into one line, and show none of its own."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # config, tokenizer and weights are read by three libraries
        folder, reason = Path(source), first_line(error)
        where, way_out = "the folder", ""
        if not folder.is_dir():
            where = "the Hugging Face hub's"
            way_out = "; pass weights=<folder>, or weights=none for model=bert"
            way_out = way_out if samples == "texts" else "; pass model=hf:<folder>"
        elif not (folder / "config.json").is_file():
            reason = "it has no config.json"
        elif any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            reason = "it has pickled weights (.bin) only, which are not read: save safetensors"
        raise InputError(
            f"{where} {source} cannot be used as a classifier of {samples}: {reason}{way_out}"
        ) from None
    finally:
        transformers.logging.set_verbosity(verbosity)
