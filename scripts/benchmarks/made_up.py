"""Bases with random weights and rows of random letters: for machines without data, and for shapes too large to fetch.

What a step costs does not depend on what the numbers mean. Rows have lengths as real ones do: log-normal.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHARD = 2 * 2**30
"""Bytes of a weight file, about."""
_BLOCK = 2**22
_LETTERS = "abcdefghijklmnopqrstuvwxyz      "


@dataclass(frozen=True)
class Shape:
    """A model and its rows.

    Args:
        model_type: In lorakit's table of architectures.
        kind: completion or classification.
        prompt: Median tokens of a prompt, or of a text to classify.
        target: Median tokens of a completion.
        max_length: Longer rows are cut.
        dtype: Of the weights in the files: float32 or bfloat16.
        fields: Of the config, over the architecture's tiny ones.
    """

    model_type: str
    kind: str
    prompt: int
    target: int = 0
    max_length: int = 512
    dtype: str = "float32"
    fields: Mapping[str, Any] = field(default_factory=dict)


def make_base(shape: Shape, out: Path) -> Path:
    """Write a base as a published one would be: config, byte-level tokenizer, weights in shards; memory stays small.

    Matrices are one random block over and over, each beginning at another place; norms are one, biases zero.

    Args:
        shape: Of the model.
        out: The directory to make.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    from lorakit.arch import ARCHITECTURES
    from lorakit.tiny import tiny_tokenizer

    row = ARCHITECTURES[shape.model_type]
    tokenizer = tiny_tokenizer(row)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    fields = {**row.tiny, "vocab_size": len(tokenizer), **shape.fields, **ids, "dtype": shape.dtype}
    config = AutoConfig.for_model(shape.model_type, **fields)
    auto: Any = AutoModelForCausalLM if row.decoder else AutoModelForMaskedLM
    with torch.device("meta"):
        model = auto.from_config(config)
    config.architectures = [type(model).__name__]
    out.mkdir(parents=True)
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # a tied one stands once
    _write_weights(out, shapes, shape.dtype)
    return out


def _write_weights(out: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    import torch

    from lorakit.weights import write_file

    kind = getattr(torch, dtype)
    block = (torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).to(kind)
    size, short = block.element_size(), {"float32": "F32", "bfloat16": "BF16"}[dtype]
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        bytes_ = math.prod(shape) * size
        if shards[-1] and held + bytes_ > SHARD:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += bytes_
    where: dict[str, str] = {}
    for index, names in enumerate(shards, start=1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        layout = {name: (short, shapes[name], math.prod(shapes[name]) * size) for name in names}
        chunks = (chunk for name in names for chunk in _values(name, math.prod(shapes[name]), block))
        write_file(out / file, layout, chunks, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    total = sum(math.prod(shape) for shape in shapes.values()) * size
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": where})
    (out / "model.safetensors.index.json").write_text(index_text)


def _values(name: str, count: int, block: Any) -> Iterator[bytes]:
    import torch

    from lorakit.runtime import derive

    if name.endswith(".bias"):
        source = torch.zeros_like(block)
    elif "norm" in name.lower() or ".ln_" in name:
        source = torch.ones_like(block)
    else:
        source = block.roll(derive(0, name) % _BLOCK)
    while count:
        part = source[: min(count, _BLOCK)]
        yield part.view(torch.uint8).numpy().tobytes()
        count -= len(part)


def make_rows(shape: Shape, count: int, file: Path, seed: int) -> Path:
    """Rows as JSON lines: prompt and target, or text and label. A letter is a token of the byte-level tokenizer.

    Args:
        shape: Their kind and lengths.
        count: Rows.
        file: Where to.
        seed: Same seed, same rows.
    """
    rng = random.Random(seed)

    def text(median: int) -> str:
        size = max(4, round(median * math.exp(rng.gauss(0, 0.4))))
        return "".join(rng.choices(_LETTERS, k=size)).strip() or "a"

    with file.open("w") as out:
        for index in range(count):
            row = {"prompt": text(shape.prompt) + ":", "target": " " + text(shape.target)}
            if shape.kind == "classification":
                row = {"text": row["prompt"], "label": ("no", "yes", "maybe")[index % 3]}
            out.write(json.dumps(row) + "\n")
    return file


def make_recipe(shape: Shape, rows: int, scratch: Path) -> Path:
    """A recipe in a folder with its base and its rows; r = 8 on q and v.

    Args:
        shape: Of the model and the rows.
        rows: For training.
        scratch: The folder, which must not exist.
    """
    base = make_base(shape, scratch / "base")
    targets = ["*.attn.c_attn"] if shape.model_type == "gpt2" else ["q", "v"]  # PEFT takes GPT-2's q, k, v as one
    recipe: dict[str, Any] = {
        "model": {"base": str(base)},
        "method": {"name": "lora", "rank": 8, "alpha": 16, "targets": targets},
        "task": {
            "name": "custom",
            "kind": shape.kind,
            "train": str(make_rows(shape, rows, scratch / "train.jsonl", 1)),
            "validation": str(make_rows(shape, 8, scratch / "validation.jsonl", 2)),
            "max_length": shape.max_length,
        },
        "train": {"epochs": 1, "batch_size": 8, "lr": 1e-3, "warmup": None},
    }
    if shape.kind == "completion":
        recipe["generate"] = {"max_new_tokens": 32}
    file = scratch / "recipe.yaml"
    file.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    return file
