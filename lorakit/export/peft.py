"""PEFT's LoRA format: `adapter_config.json` and `adapter_model.safetensors`, as PEFT 0.21 writes them."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from lorakit.checkpoint import head_of
from lorakit.errors import MergeError
from lorakit.export.base import BLOCK, Exporter, Read, whole_tensors
from lorakit.export.pairs import Pair, lora_layers, pair_of
from lorakit.layers.adapted import Edit
from lorakit.layers.dora import DoRALayer, dora_edit
from lorakit.layers.low_rank import LoRALayer, low_rank_edit
from lorakit.merge_plan import adapted_layers, stored_weight, tied_groups
from lorakit.methods.lora import LoRA
from lorakit.weights import read_header

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened
    from lorakit.model import Prepared

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
VERSION = "0.21.2"
"""Of PEFT, whose format this is."""

PREFIX = "base_model.model."
"""Of every key."""
SUFFIXES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "magnitude",
}
"""How the keys of an adapted module end → what they hold."""


class Peft(Exporter):
    """An adapter that `PeftModel.from_pretrained` loads."""

    name: Literal["peft"] = "peft"
    library: ClassVar[str | None] = "peft"

    def write(self, opened: "Opened", out: Path) -> None:
        """See `Exporter`."""
        layers = lora_layers(opened.prepared.model)
        write_files(opened, {path: pair_of(layer) for path, layer in layers.items()}, out, _rslora(opened))

    def read(self, opened: "Opened", out: Path) -> Read:
        """See `Exporter`."""
        return read_files(opened, out)

    def loading(self, opened: "Opened") -> str:
        """See `Exporter`."""
        return loading(opened)


def loading(opened: "Opened") -> str:
    """The Python that loads PEFT's files, as Markdown."""
    kind, labels = head_of(opened.recipe).kind, head_of(opened.recipe).labels
    auto = "AutoModelForCausalLM" if kind == "generation" else "AutoModelForSequenceClassification"
    located = opened.prepared.located
    revision = f', revision="{located.revision}"' if located.revision else ""
    count = "" if kind == "generation" else f", num_labels={len(labels) or 1}"
    base = located.name if located.revision else "BASE"
    where = "" if located.revision else f"  # where {located.name} lies"
    return f"""```python
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

base = {auto}.from_pretrained("{base}"{revision}{count}){where}
model = PeftModel.from_pretrained(base, "THIS_DIRECTORY").eval()
tokenizer = AutoTokenizer.from_pretrained("{base}"{revision})
```
"""


def write_files(opened: "Opened", pairs: Mapping[str, Pair], out: Path, rslora: bool) -> None:
    """Write PEFT's two files.

    Args:
        opened: The run.
        pairs: Adapted module → its update, in whatever form it is to have in the file.
        out: An empty directory.
        rslora: Whether the alphas are to be read as rsLoRA's, divided by √r.

    Raises:
        MergeError: A module is both adapted and trained whole, or trained in part.
    """
    layers = lora_layers(opened.prepared.model)
    tensors: dict[str, Tensor] = {}
    for path, pair in pairs.items():
        a, b = ("A", "B") if not isinstance(layers[path].frozen, nn.Embedding) else ("embedding_A", "embedding_B")
        ending = ".weight" if a == "A" else ""
        tensors[f"{PREFIX}{path}.lora_{a}{ending}"] = pair.a
        tensors[f"{PREFIX}{path}.lora_{b}{ending}"] = pair.b
        layer = layers[path]
        if isinstance(layer, DoRALayer):
            magnitude = layer.whole_magnitude(stored_weight(opened.prepared, path, BLOCK))
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = magnitude
    ties = _ties(opened.prepared.model)
    whole = whole_tensors(opened)
    whole |= {twin: whole[name].clone() for name, names in ties.items() if name in whole for twin in names[1:]}
    saved = _saved_modules(opened.prepared, whole, layers)
    biases = [name for name in whole if not _inside(name, saved)]
    tensors |= {_whole_key(name, layers): value for name, value in whole.items()}
    config = _config(opened, layers, pairs, rslora)
    config["modules_to_save"] = saved or None
    config["ensure_weight_tying"] = any(name in ties for name in whole)  # which older versions do not know, nor need
    config["bias"] = _bias_mode(biases, layers)
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    (out / WEIGHTS).write_bytes(save(contiguous, metadata={"format": "pt"}))


def read_files(opened: "Opened", out: Path) -> Read:
    """Read PEFT's two files as PEFT does.

    Args:
        opened: The run, for the kinds of its modules alone.
        out: Where they are.

    Raises:
        MergeError: PEFT would ignore or refuse a part of them.
    """
    config = json.loads((out / CONFIG).read_text())
    read_header(out / WEIGHTS)
    factors: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for key, value in load((out / WEIGHTS).read_bytes()).items():
        if not key.startswith(PREFIX):
            raise MergeError(f"{key}: PEFT would ignore it: it does not begin with {PREFIX}")
        name = key.removeprefix(PREFIX)
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
        if suffix is None:
            tensors[name.replace(".base_layer.", ".")] = value
        else:
            factors.setdefault(name.removesuffix(suffix), {})[SUFFIXES[suffix]] = value
    tensors = _tied(tensors, opened.prepared.model)
    layers = adapted_layers(opened.prepared.model)
    targets = config["target_modules"]
    edits: dict[str, Edit] = {}
    for path, pair in factors.items():
        if not any(path == target or path.endswith(f".{target}") for target in targets):
            raise MergeError(f"{path}: PEFT would ignore it: target_modules do not name it")
        left, right = pair["B"] * _scaling(config, path, pair["A"].shape[0]), pair["A"]
        if path not in layers:
            raise MergeError(f"{path}: is in the files, and is no adapted module")
        frozen = layers[path].frozen
        edits[path] = low_rank_edit(frozen, left, right)
        if config["use_dora"] != ("magnitude" in pair):
            raise MergeError(f"{path}: PEFT needs use_dora and a magnitude together")
        if "magnitude" in pair:
            stored = stored_weight(opened.prepared, path, BLOCK)
            edits[path] = dora_edit(frozen, edits[path], pair["magnitude"], stored)
    return Read(edits, tensors)


def _rslora(opened: "Opened") -> bool:
    return any(isinstance(method, LoRA) and method.rslora for method in opened.prepared.methods)


def _config(
    opened: "Opened", layers: Mapping[str, LoRALayer], pairs: Mapping[str, Pair], rslora: bool
) -> dict[str, Any]:
    prepared = opened.prepared
    alphas = {path: _alpha(pair, rslora) for path, pair in pairs.items()}
    (rank, alpha), _ = Counter((pair.rank, alphas[path]) for path, pair in pairs.items()).most_common(1)[0]
    dropouts = {module.p for layer in layers.values() for module in [layer.dropout] if isinstance(module, nn.Dropout)}
    return {
        "peft_type": "LORA",
        "peft_version": VERSION,
        "task_type": "CAUSAL_LM" if head_of(opened.recipe).kind == "generation" else "SEQ_CLS",
        "base_model_name_or_path": prepared.located.name,
        "revision": prepared.located.revision,
        "inference_mode": True,
        "init_lora_weights": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": max(dropouts, default=0.0),
        "rank_pattern": {re.escape(path): pair.rank for path, pair in pairs.items() if pair.rank != rank},
        "alpha_pattern": {re.escape(path): value for path, value in alphas.items() if value != alpha},
        "target_modules": _targets(prepared.model, layers),
        "fan_in_fan_out": any(type(layer.frozen).__name__ == "Conv1D" for layer in layers.values()),
        "use_rslora": rslora,
        "use_dora": any(isinstance(layer, DoRALayer) for layer in layers.values()),
    }


def _alpha(pair: Pair, rslora: bool) -> int | float:
    """The alpha that gives the pair's scaling; whole where it is whole but for the division's last digits."""
    alpha = round(pair.scaling * (math.sqrt(pair.rank) if rslora else pair.rank), 12)
    return int(alpha) if alpha == int(alpha) else alpha


def _scaling(config: Mapping[str, Any], path: str, rank: int) -> float:
    """The scaling that PEFT gives a module: the first pattern that matches the end of its path counts."""

    def of(patterns: Mapping[str, Any], default: Any) -> Any:
        return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)

    r = of(config["rank_pattern"], config["r"])
    alpha = of(config["alpha_pattern"], config["lora_alpha"])
    if r != rank:
        raise MergeError(f"{path}: the configuration says rank {r}, the file holds {rank}")
    return float(alpha / math.sqrt(r) if config["use_rslora"] else alpha / r)


def _targets(model: nn.Module, layers: Mapping[str, LoRALayer]) -> list[str]:
    """The adapted modules' last names where these hit them and nothing else, as people write them; else full paths."""
    inner = tuple(f"{path}." for path in layers)
    paths = [path for path, _ in model.named_modules() if path and not path.startswith(inner)]
    tails = {path.rpartition(".")[2] for path in layers}
    hit = {path for path in paths if path.rpartition(".")[2] in tails}
    return sorted(tails if hit == layers.keys() else layers)


def _saved_modules(prepared: "Prepared", whole: Mapping[str, Tensor], layers: Mapping[str, LoRALayer]) -> list[str]:
    """The modules that are trained whole: those of which more than a bias of the base was trained."""
    row = prepared.row
    found = []
    for name in whole:
        owner, _, last = name.rpartition(".")
        if last == "bias" and name in prepared.file_names and owner.split(".")[0] not in row.head:
            continue
        top = owner.split(".")[0]
        found.append(top if top in row.head else owner)
    saved = sorted(set(found))
    problems = []
    for path in saved:
        parts = [f"{path}.{name}" for name, _ in prepared.model.get_submodule(path).named_parameters()]
        if any(layer == path or layer.startswith(f"{path}.") for layer in layers):
            problems.append(f"{path}: is both adapted and trained whole, which PEFT cannot express; use lorakit merge")
        elif missing := [part for part in parts if part not in whole]:
            problems.append(
                f"{missing[0]}: is frozen beside trained ones, which PEFT cannot express; use lorakit merge"
            )
    if problems:
        raise MergeError(*problems)
    return saved


def _ties(model: nn.Module) -> dict[str, list[str]]:
    """Names of each tied weight, by the first of them, under which the model knows it."""
    return {names[0]: names for names in tied_groups(model) if len(names) > 1}


def _tied(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The whole tensors of a file, a tied weight's by its first name: PEFT takes modules that it saves for single."""
    found = dict(tensors)
    for first, names in _ties(model).items():
        there = [found.pop(name) for name in names if name in found]
        if not there:
            continue
        if len(there) < len(names) or not all(torch.equal(there[0], other) for other in there):
            raise MergeError(f"{first}: PEFT would part it from {', '.join(names[1:])}, to which it is tied")
        found[first] = there[0]
    return found


def _inside(name: str, saved: list[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in saved)


def _bias_mode(biases: list[str], layers: Mapping[str, LoRALayer]) -> str:
    if not biases:
        return "none"
    return "lora_only" if all(name.removesuffix(".bias") in layers for name in biases) else "all"


def _whole_key(name: str, layers: Mapping[str, LoRALayer]) -> str:
    """PEFT wraps an adapted module, and its bias moves one level down."""
    path, _, last = name.rpartition(".")
    return f"{PREFIX}{path}.base_layer.{last}" if path in layers else f"{PREFIX}{name}"
