"""Encoders: BERT and other transformers that classify texts, with their tokenizers.

Parameters keep the names that transformers gives them; models are called as it calls them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    name: str,
    classes: int,
    *,
    weights: str,
    vocabulary: int,
    padding: Iterable[int] = (),
    load: bool = True,
) -> nn.Module:
    """A classifier of texts: token numbers (N, L) and attention mask in, logits (N, classes) out.

    Args:
        name: `bert`, or `hf:<hub id or folder>`.
        classes: outputs of the head, which is new unless the weights have one of this size.
        weights: `none` (initialised by torch's global generator), `pretrained` (of the hub, or of
            the folder in the name), or a folder in Hugging Face layout.
        vocabulary: tokens of the tokenizer; sizes the embeddings of `bert` without weights.
        padding: token numbers to pad with where the configuration names none, best first.
        load: False for the same architecture with new weights.

    Raises:
        InputError: what cannot be found, read or used.
    """
    scratch = name == "bert" and weights == "none"
    source = name if scratch else _source(name, weights)
    with _quiet(), _refusing(source):
        if scratch:
            config: Any = BertConfig(vocab_size=vocabulary, num_labels=classes, **_MINI)
        else:
            config = AutoConfig.from_pretrained(source, num_labels=classes)
        _settle(config, padding)
        if weights == "none" or not load:
            model: nn.Module = AutoModelForSequenceClassification.from_config(
                config, dtype=torch.float32
            )
            return model.float()
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            source,
            config=config,
            ignore_mismatched_sizes=True,  # a head for other classes
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    _check_loaded(model, loaded, source)
    if any(not bool(p.isfinite().all()) for p in model.parameters()):
        raise InputError(f"weights of {source!r} hold NaN or infinite values")
    return model


def _settle(config: Any, padding: Iterable[int]) -> None:
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
    for number in (getattr(config, "pad_token_id", None), *padding):
        if isinstance(number, int) and (vocabulary is None or 0 <= number < vocabulary):
            config.pad_token_id = number
            return


def padding(tokenizer: Any) -> list[int]:
    """Token numbers that a tokenizer has for filling up texts, or has to spare for it."""
    numbers = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return [number for number in numbers if number is not None]


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
    return {
        "builder": "transformers",
        "config": config,
        "positions": positions(model),
        "tokenizer": fingerprint(tokenizer),
    }


def rebuild(structure: Mapping[str, Any]) -> nn.Module:
    """A model of the kind that `describe` wrote, not yet with its weights."""
    config = dict(structure["config"])
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    model: nn.Module = AutoModelForSequenceClassification.from_config(made, dtype=torch.float32)
    return model.float()


def fingerprint(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary, which decides what token numbers mean."""
    words = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def encode(tokenizer: Any, texts: Texts, *, longest: int, config: Any = None) -> Tokens:
    """Tokens of every text, cut off after `longest`; filled up as a model's `config` says."""
    encoded = tokenizer(texts.texts.tolist(), truncation=True, max_length=longest)["input_ids"]
    lengths = np.fromiter((len(ids) for ids in encoded), dtype=np.int64, count=len(encoded))
    starts = np.concatenate([np.zeros(1, dtype=np.int64), lengths.cumsum()])
    ids = np.fromiter((i for ids in encoded for i in ids), dtype=np.int32, count=int(starts[-1]))
    padding = getattr(config, "pad_token_id", None)
    if padding is None:
        padding = tokenizer.pad_token_id or 0
    return Tokens(ids, starts, texts.labels, int(padding), pads_at_start(config))


def pads_at_start(config: Any) -> bool:
    """Whether padding goes before a text: XLNet reads its summary at the last place."""
    return getattr(config, "summary_type", None) == "last"


def positions(model: nn.Module) -> int | None:
    """Tokens that a model has positions for; None if any number, or it does not say."""
    config: Any = model.config
    try:
        stated = int(config.max_position_embeddings)
    except (AttributeError, NotImplementedError, TypeError, ValueError, OverflowError):
        return None
    for name, table in model.named_modules():
        # RoBERTa and its kin number positions from the padding's number on
        first = getattr(table, "padding_idx", None)
        if name.endswith("position_embeddings") and first is not None:
            stated = min(stated, int(table.weight.shape[0]) - first - 1)
    return stated if stated > 0 else None


def longest(model: nn.Module, tokenizer: Any) -> int:
    """Tokens that a model and its tokenizer can take at once, 512 at the most.

    Raises:
        InputError: they have room for no text beside the tokens that go around it.
    """
    try:
        limit = int(tokenizer.model_max_length)
    except (TypeError, ValueError, OverflowError):
        limit = 0
    if limit <= 0:  # none is stated
        limit = _LONGEST
    most = min(limit, positions(model) or _LONGEST, _LONGEST)
    around = tokenizer.num_special_tokens_to_add()
    if most <= around:
        raise InputError(
            f"the model or its tokenizer takes {most} tokens of a text, and {around} go around "
            "every text: correct max_position_embeddings (config.json) or model_max_length "
            "(tokenizer_config.json)"
        )
    return most


def check_tokens(name: str, model: nn.Module, splits: Mapping[str, tuple[Texts, Tokens]]) -> None:
    """See that every text of every split is made of tokens that the model has.

    Raises:
        InputError: a text without tokens, a token beyond the embedding, or ends of texts that an
            encoder-decoder, which reads its summary there, cannot find.
    """
    rows = _rows(model)
    config: Any = model.config
    for split, (texts, tokens) in splits.items():
        empty = np.flatnonzero(tokens.lengths == 0)
        if len(empty):
            text = str(texts.texts[empty[0]])[:40]
            raise InputError(
                f"the tokenizer of model={name} leaves nothing of {len(empty)} texts of the "
                f"{split} set, {text!r} for one: take them out"
            )
        largest = max(int(tokens.ids.max()), tokens.padding)
        if rows is not None and largest >= rows:
            raise InputError(
                f"the tokenizer of model={name} gives tokens up to number {largest} (in the "
                f"{split} set), and the model's embedding has {rows} rows: call "
                "resize_token_embeddings(len(tokenizer)) on the model and save it again, or use "
                "the tokenizer it was trained with"
            )
        if config.is_encoder_decoder and isinstance(config.eos_token_id, int):
            ends = np.add.reduceat(tokens.ids == config.eos_token_id, tokens.starts[:-1])
            odd = np.flatnonzero(ends != ends[0])
            if len(odd):
                raise InputError(
                    f"model={name} needs as many ends of text in one text as in another: "
                    f"{str(texts.texts[odd[0]])[:40]!r} (in the {split} set) has {ends[odd[0]]}, "
                    f"{str(texts.texts[0])[:40]!r} {ends[0]}"
                )


def _rows(model: Any) -> int | None:
    """Rows of the embedding of tokens; None of a model that has none."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None


def check_runs(
    name: str, model: nn.Module, batches: Sequence[Mapping[str, torch.Tensor]], classes: int
) -> None:
    """See that a model gives logits for some batches, in training and in evaluation.

    Raises:
        InputError: it does not.
    """
    training = model.training
    buffers = [buffer.clone() for buffer in model.buffers()]  # statistics that a batch may change
    try:
        with torch.no_grad(), torch.random.fork_rng():
            for batch in batches:
                for mode in (True, False):
                    logits = model.train(mode)(**batch).logits
                    wanted = (len(batch["input_ids"]), classes)
                    if logits.shape != wanted:
                        raise ValueError(f"logits of shape {tuple(logits.shape)}, not {wanted}")
                    if not bool(logits.isfinite().all()):
                        raise ValueError("its logits are not finite")
    except Exception as error:  # whatever an encoder of the hub does with tokens it cannot take
        raise InputError(f"model={name} cannot classify these texts: {first_line(error)}") from None
    finally:
        model.train(training)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)


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
