"""A tiny model with a tokenizer of letters, a corpus of nonsense for it, and runs on them that take a second."""

from __future__ import annotations

import gzip
import json
import random
import string
from pathlib import Path
from typing import Any

import torch
from tests.support.tiny_models import VOCABULARY, make
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from saeclamp_saes.lm.documents import data_files
from saeclamp_saes.lm.harvest import ActivationReader, ActivationStream, Cursor
from saeclamp_saes.sites import Site
from saeclamp_saes.training.config import TrainingConfig
from saeclamp_saes.training.harvest_config import HarvestConfig
from saeclamp_saes.training.run import train
from saeclamp_saes.training.run_settings import RunSettings

TEMPLATE = "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] }}{% endfor %}"
LETTERS = (string.ascii_letters + string.digits + string.punctuation + " ")[: VOCABULARY - 2]
LAYER = 1


def tokenizer(chat_template: str | None = TEMPLATE) -> Any:
    """One token a character; <s> is 0 and </s> is 1, and no BOS is added."""
    ids = {"<s>": 0, "</s>": 1} | {letter: 2 + index for index, letter in enumerate(LETTERS)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = chat_template
    return wrapped


def texts(num: int = 60, seed: int = 0) -> list[str]:
    """Random letters: 20 to 90 a text."""
    generator = random.Random(seed)
    return ["".join(generator.choices(LETTERS, k=generator.randint(20, 90))) for _ in range(num)]


def corpus(folder: Path, num: int = 60) -> Path:
    """Texts and conversations, in two files, one of them packed."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        {"messages": [{"role": "user", "content": text}], "source": "x"} if index % 3 == 0 else {"text": text}
        for index, text in enumerate(texts(num))
    ]
    half = num // 2
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, records[:half])) + "\n\n")
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, records[half:])))
    (folder / "README.md").write_text("Not data.")
    return folder


def reader(model: nn.Module | None = None, **options: Any) -> ActivationReader:
    return ActivationReader(
        model or make("llama"),
        tokenizer(),
        (Site("resid_post", LAYER),),
        # groups of documents, and the text on which lengths are measured, are as many times smaller as the corpus is
        **{"context": 40, "batch_tokens": 64, "group_tokens": 300, "median_tokens": 300, **options},
    )


def recipe(**options: Any) -> TrainingConfig:
    return TrainingConfig(**{"d_sae": 24, "k": 4, "tokens": 32 * 90, "batch": 32, "lr": 1e-3, **options})


def settings(out: Path, **options: Any) -> RunSettings:
    return RunSettings(out=out, **{"pool_tokens": 32 * 20, "log_every": 7, "save_every": 5, **options})


def wanted(data: Path, tokens: int = 32 * 90, **options: Any) -> HarvestConfig:
    return HarvestConfig(
        data=(data,),
        model_name="tiny",
        model_sha256={"model.safetensors": "0" * 64},
        tokens=tokens,
        **{"held_out_share": 0.2, **options},
    )


SHARE = 0.2


START = Cursor()


def harvest(reader: ActivationReader, data: Path, held_out: bool = False, **options: Any) -> ActivationStream:
    how: dict[str, Any] = {
        "held_out_share": SHARE,
        "norm_limits": torch.tensor([float("inf")]),
        "dtype": "bfloat16",
        **options,
    }
    return ActivationStream(reader, data_files([data]), held_out=held_out, **how)


def take_all(harvest: ActivationStream, cursor: Cursor = START, most: int = 10**9) -> list[Tensor]:
    parts = []
    while len((part := harvest.take(cursor, most))[0]):
        parts.append(part[0])
        cursor = part[1]
    return parts


def everything(harvest: ActivationStream, cursor: Cursor = START, most: int = 10**9) -> Tensor:
    return torch.cat(take_all(harvest, cursor, most))[:, 0]


def training(folder: Path, what: HarvestConfig, reading: ActivationReader, *report: Any) -> Any:
    return train(settings(folder), recipe(), what, reading, *report)
