"""What can be trained can be saved, loaded in a fresh process bit-equal, resumed and benchmarked.

By default one model of each of torchvision's constructors and some encoders are saved and loaded;
the slow tests take every classifier and encoder through whole runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import transformers
from mlflow.tracking import MlflowClient
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from torch import Tensor, nn

import pruneflow
from pruneflow.errors import InputError
from pruneflow.pruning import compaction, tracing
from pruneflow.pruning.groups import expand
from pruneflow.pruning.prunable import prunable_parameters
from pruneflow.tracking import checkpoints
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.run import Run
from pruneflow.workloads import encoders, models

# ------------------------------------------------------------------------------------ the models

# The smallest of each constructor; the large ones, VGG and VisionTransformer, are in slow tests.
FAMILIES = [
    *(
        "cifar_resnet20",
        "cifar_vgg16_bn",
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
    ),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"),
]
# With these it would take twice as long; the slow tests have them.
LARGER = ("cifar_vgg16_bn", "convnext_tiny", "densenet121", "inception_v3", "maxvit_t")
# With their optimizer's state these take 3 to 13 GB. The families above have their constructors:
# vit_h_14 vit_l_16 vit_l_32 (vit_b_32), regnet_y_128gf (regnet_y_400mf), convnext_large.
TOO_LARGE = 150_000_000  # parameters

BERT_LIKE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GPT_LIKE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BART_LIKE = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
T5_LIKE = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 1}
T5_LIKE |= {"num_heads": 4, "decoder_start_token_id": 0}
LLAMA_LIKE = BERT_LIKE | {"num_key_value_heads": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "albert": BERT_LIKE | {"embedding_size": 16},
    "bart": BART_LIKE,
    "bert": BERT_LIKE,
    "big_bird": BERT_LIKE | {"block_size": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "camembert": BERT_LIKE,
    "convbert": BERT_LIKE | {"embedding_size": 16},
    "data2vec-text": BERT_LIKE,
    "deberta": BERT_LIKE,
    "deberta-v2": BERT_LIKE,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "electra": BERT_LIKE | {"embedding_size": 16},
    "ernie": BERT_LIKE,
    "esm": BERT_LIKE | {"position_embedding_type": "absolute"},
    "fnet": BERT_LIKE,
    "funnel": {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
    "gemma": LLAMA_LIKE | {"head_dim": 8},
    "gpt2": GPT_LIKE,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
    },
    "gptj": GPT_LIKE | {"rotary_dim": 8},
    "ibert": BERT_LIKE,
    "layoutlm": BERT_LIKE,
    "llama": LLAMA_LIKE,
    "longformer": BERT_LIKE | {"attention_window": 8},
    "luke": BERT_LIKE | {"entity_vocab_size": 10, "entity_emb_size": 16},
    "mbart": BART_LIKE,
    "megatron-bert": BERT_LIKE,
    "mistral": LLAMA_LIKE,
    "mobilebert": BERT_LIKE
    | {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16},
    "modernbert": BERT_LIKE,
    "mpnet": BERT_LIKE,
    "mt5": T5_LIKE,
    "nystromformer": BERT_LIKE | {"num_landmarks": 16, "segment_means_seq_len": 16},
    "openai-gpt": GPT_LIKE,
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
    "phi3": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "rembert": BERT_LIKE | {"input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": BERT_LIKE,
    "roformer": BERT_LIKE | {"embedding_size": 32},
    "squeezebert": BERT_LIKE | {"embedding_size": 32},
    "t5": T5_LIKE,
    "xlm": {"emb_dim": 32, "n_layers": 1, "n_heads": 4},
    "xlm-roberta": BERT_LIKE,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
}
SOME_ENCODERS = ["bart", "bert", "deberta-v2", "gpt2", "llama", "t5", "xlm-roberta", "xlnet"]

PAD, START, END, UNKNOWN = range(4)
WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    *["the", "a", "film", "story", "is", "was", "good", "bad", "fine", "dull"],
]


def tokenizer() -> Any:
    """Of a few words, with a start and an end around every text."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    made = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def encoder(kind: str) -> nn.Module:
    """A tiny one with random weights."""
    special = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    given = {"vocab_size": len(WORDS), "num_labels": 2} | special | ENCODERS[kind]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **given)
    model: nn.Module = transformers.AutoModelForSequenceClassification.from_config(config)
    return model


def image_size(name: str) -> int:
    """The smallest that a classifier takes, or nearly so."""
    if name.startswith("vit_"):
        return 224
    if name.startswith("cifar_"):
        return 32
    return max(32, *torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"])


# --------------------------------------------------------------------- saved and loaded, in short


def classifier(name: str) -> tuple[nn.Module, dict[str, Any], int]:
    torch.manual_seed(0)
    model = models.build(name, 2)
    return model, {"model": name, "classes": 2, **models.describe(name, model)}, image_size(name)


def small_encoder(kind: str) -> tuple[nn.Module, dict[str, Any], int]:
    model = encoder(kind)
    return model, {"model": "hf:x", "classes": 2, **encoders.describe(model, tokenizer())}, 16


def noise(structure: dict[str, Any], size: int) -> Any:
    return models.random_inputs(structure, 2, size=size, device="cpu")


def as_precise(inputs: Any, model: nn.Module) -> Any:
    """Images in the model's own float type."""
    return inputs.to(next(model.parameters()).dtype) if isinstance(inputs, Tensor) else inputs


def logits_of(model: nn.Module, inputs: Any) -> Tensor:
    torch.manual_seed(0)  # hashed attention draws
    with torch.no_grad():
        return models.logits(model.eval(), inputs)


def digest(tensors: dict[str, Tensor]) -> str:
    """Hash of tensors by name, bit for bit."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def step(model: nn.Module, inputs: Any) -> None:
    """One of training: statistics of normalisation change, and every weight."""
    model.train()
    models.logits(model, inputs).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad.sign()
                parameter.grad = None


def saved(
    folder: Path, made: tuple[nn.Module, dict[str, Any], int], *, compact: bool = False
) -> str:
    """Train, prune and save a model; hash of its state and its logits."""
    model, structure, size = made
    inputs = noise(structure, size)
    step(model, inputs)
    masks: dict[str, Tensor] = {}
    if compact:
        model.eval()
        head = models.head_name(model)
        found = tracing.find_groups(
            model, lambda m: models.logits(m, as_precise(inputs, m)), outputs=[head]
        )
        kept = {g.name: torch.arange(g.units) % 3 > 0 for g in found.groups}
        assert kept
        expand(model, found.groups, kept).apply(model)
        model = compaction.compact(model, found.groups, kept)
    else:
        weights = prunable_parameters(model, include=(), exclude=(), biases=False)
        for name, weight in weights.items():
            masks[name] = weight.detach().abs() > weight.detach().abs().mean()
            weight.data[~masks[name]] = 0  # and not -0
    structure |= {"sizes": compaction.structure(model)}
    checkpoint = Checkpoint(structure, model.state_dict(), masks)
    checkpoints.save(folder, checkpoint)
    (folder / "size").write_text(str(size))
    return digest({**model.state_dict(), "logits": logits_of(model, inputs)})


FRESH = """
import sys
from pathlib import Path
import torch
from pruneflow.tracking import checkpoints
from tests import test_every_model as these
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    checkpoint = checkpoints.load(folder)
    model = checkpoints.restore(checkpoint)
    inputs = these.noise(checkpoint.structure, int((folder / "size").read_text()))
    logits = these.logits_of(model, inputs)
    print("digest", these.digest({**model.state_dict(), "logits": logits}))
"""


def fresh(root: Path, folders: list[Path]) -> list[str]:
    """What a fresh process makes of checkpoints: a hash for each."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *map(str, folders)],
        env=os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    return re.findall("digest (.*)", done.stdout)


def case(name: str) -> tuple[nn.Module, dict[str, Any], int]:
    return small_encoder(name) if name in ENCODERS else classifier(name)


def check(root: Path, folder: Path, names: list[str], compact: list[str]) -> None:
    """See that models are in a fresh process what they were when they were saved."""
    cases = [(name, False) for name in names] + [(name, True) for name in compact]
    folders = [folder / f"{name}-{smaller}" for name, smaller in cases]
    made = [
        saved(place, case(name), compact=smaller)
        for place, (name, smaller) in zip(folders, cases, strict=True)
    ]
    assert dict(zip(cases, fresh(root, folders), strict=True)) == dict(
        zip(cases, made, strict=True)
    )


def test_one_of_each_family_is_bit_equal_in_a_fresh_process(root: Path, tmp_path: Path) -> None:
    families = [name for name in FAMILIES if name not in LARGER]
    check(root, tmp_path, families + SOME_ENCODERS, ["squeezenet1_1", "bart"])


def classifiers() -> list[str]:
    """Those that can be trained in the memory of an ordinary machine."""
    cifar = [name for name in models.names() if name.startswith("cifar_")]
    others = [name for name in models.names() if name not in cifar]
    weights = {name: torchvision.models.get_model_weights(name).DEFAULT for name in others}
    return cifar + [name for name, of in weights.items() if of.meta["num_params"] <= TOO_LARGE]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*classifiers(), *ENCODERS])
def test_every_model_is_bit_equal_in_a_fresh_process(root: Path, tmp_path: Path, name: str) -> None:
    check(root, tmp_path, [name], [])


@pytest.mark.parametrize("name", SOME_ENCODERS)
def test_the_head_of_an_encoder_is_the_layer_that_makes_the_logits(name: str) -> None:
    model = encoder(name)
    assert model.get_submodule(models.head_name(model)).weight.shape[0] == 2  # type: ignore[union-attr,index]


# ------------------------------------------------------------------------------------ whole runs


class Stop(KeyboardInterrupt):
    """What a test interrupts a run with."""


TRAINING: dict[str, Any] = {
    "iterations": 2,
    "fraction": 0.5,
    "base_epochs": 1,
    "finetune_epochs": 1,
    "batch_size": 4,
    "threads": 1,
    "precision": "fp32",
}
QUICK: dict[str, Any] = {"device": "cpu", "threads": 1, "rounds": 3, "seconds": 0.2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few and small, of two classes."""
    folder = tmp_path_factory.mktemp("images")
    for part, count in (("train", 9), ("test", 2)):
        for name, colour in (("a", 60), ("b", 200)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (32, 32), (colour, 5 * number, number))
                image.save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short ones, of two classes and several lengths."""
    folder = tmp_path_factory.mktemp("texts")
    for part, count in (("train", 24), ("test", 6)):
        rows = [f"{'good' if n % 2 else 'bad'}{' film' * (n % 4)},{n % 2}\n" for n in range(count)]
        (folder / f"{part}.csv").write_text("text,label\n" + "".join(rows))
    return folder


LOADED = """
import sys, torch, pruneflow
from tests.test_every_model import digest
for one in sys.argv[1:]:
    run, level = one.split(":")
    print("digest", digest(pruneflow.load_model(run, int(level)).state_dict()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*classifiers(), *ENCODERS])
def test_whole_runs_of_every_model(
    root: Path, folder: Path, images: Path, texts: Path, tmp_path: Path, name: str
) -> None:
    if name in ENCODERS:
        encoder(name).save_pretrained(tmp_path)  # type: ignore[operator]
        tokenizer().save_pretrained(tmp_path)
        given = {"model": f"hf:{tmp_path}", "dataset": "textfolder", "data_dir": str(texts)}
    else:
        given = {"model": name, "dataset": "imagefolder", "data_dir": str(images)}
        given["image_size"] = image_size(name)
    recorded: dict[str, str] = {}
    stop_after = 1
    record = Run.record

    def recording(run: Run, level: Any, layers: Any, checkpoint: Checkpoint, *rest: Any) -> None:
        recorded[f"{run.id}:{level.level}"] = digest(dict(checkpoint.state))
        record(run, level, layers, checkpoint, *rest)
        if level.level == stop_after:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "record", recording)
        with pytest.raises(Stop):
            pruneflow.prune_iterative(**TRAINING, **given)
        stop_after = -1
        done = [pruneflow.prune_iterative(**TRAINING, **given)]
        tags = MlflowClient().get_run(done[0].run_id).data.tags
        assert tags["pruneflow.resumed_from"] == "level 1"
        direct = {k: v for k, v in TRAINING.items() if k not in ("iterations", "fraction")}
        compact = {"granularity": "channel", "form": "compact", "target_sparsity": 0.3}
        try:
            done.append(pruneflow.prune_direct(**direct, **compact, **given))
        except InputError as error:
            assert "no channels can be removed" in str(error)  # noqa: PT017

    found = subprocess.run(
        [sys.executable, "-c", LOADED, *recorded],
        env=os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert re.findall("digest (.*)", found.stdout) == list(recorded.values())
    for one in done:
        timed = pruneflow.benchmark_latency(run=[one.run_id], batch_sizes=[1, 2], **QUICK)
        rows = timed.latencies
        assert set(rows["level"]) == set(one.levels["level"])
        assert (rows["difference"].dropna() < 1e-3).all()
