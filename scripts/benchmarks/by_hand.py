"""Training with tools whose own loop cannot be handed rows in an order.

Their model, loss and backward pass; around them steps of AdamW at lorakit's rates.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.turns import Refused, Turns
from benchmarks.worker import Channel
from lorakit.recipe import Recipe

if TYPE_CHECKING:
    import torch

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PAD, IGNORED = 0, -100

Sites = dict[str, list[tuple["torch.Tensor", "torch.Tensor"]]]
"""Projection of the attention → A (rank, in) and B (out, rank) of each block."""


@dataclass(frozen=True)
class Start:
    """What a tool builds its model from.

    Args:
        config: transformers' own of the base.
        weights: Names as in transformers' files → the base's tensors, in the dtype of the frozen weights.
        sites: The initial tensors of LoRA, float32.
        rank: Of LoRA.
        alpha: Of LoRA.
        device: To train on.
        precision: To compute in: float32 or bfloat16.
        longest: Tokens of the longest row.
    """

    config: Any
    weights: "dict[str, torch.Tensor]"
    sites: Sites
    rank: int
    alpha: float
    device: "torch.device"
    precision: str
    longest: int


@dataclass(frozen=True)
class Tool:
    """What a tool makes of it.

    Args:
        model: Its trainable parameters are LoRA's.
        loss: Of input ids and labels, each (rows, tokens), labels in the place of their ids and -100 where none is:
            the mean over all targets.
        backward: Of that loss.
    """

    model: "torch.nn.Module"
    loss: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
    backward: "Callable[[torch.Tensor], Any]"


def train(recipe: Recipe, channel: Channel, build: Callable[[Start], Tool]) -> None:
    """Steps as in a recipe of the tool, on lorakit's rows, each batch padded to its longest row.

    LoRA's tensors are float32 as in lorakit and PEFT, under autocast where the base is in 16 bits: with the adapter in
    16 bits too, which these tools' recipes have, it would be another training.

    Args:
        recipe: Of a decoder with LoRA; counts its steps.
        channel: To the parent.
        build: The tool's.

    Raises:
        Refused: The tool cannot do this training.
    """
    import torch

    from benchmarks.same_start import features, let_go, read

    prepared, data = read(recipe)
    items, tokens = features(recipe, data)
    start = _start(recipe, prepared, max(tokens))
    del prepared
    tool, device = build(start), start.device
    del start
    let_go()
    parameters = [parameter for parameter in tool.model.parameters() if parameter.requires_grad]
    train, size = recipe.train, recipe.train.batch_size
    options = train.optimizer
    optimizer = torch.optim.AdamW(parameters, train.lr, options.betas, options.eps, train.weight_decay)
    tool.model.train()
    turns = Turns(channel, tool.model)
    for step, rate in enumerate(rates(recipe)):
        rows = slice(step * size, (step + 1) * size)
        inputs, labels = (_padded([one[key] for one in items[rows]], fill, device) for key, fill in _COLUMNS.items())
        loss = tool.loss(inputs, labels)
        tool.backward(loss)
        if train.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.done(loss.detach(), sum(tokens[rows]))


_COLUMNS = {"input_ids": PAD, "labels": IGNORED}


def _padded(rows: list[list[int]], fill: int, device: "torch.device") -> "torch.Tensor":
    import torch

    columns = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=fill).to(device)


def rates(recipe: Recipe) -> list[float]:
    """Lorakit's learning rate of each step."""
    import numpy as np

    from lorakit.training.optim import rate, warmup_steps

    train = recipe.train
    assert train.steps is not None, "benchmarks count steps"
    assert train.warmup is None or train.warmup.tokens is None, "give the warm-up in steps or as a ratio"
    warmup = warmup_steps(train, np.zeros(0, np.int64), train.steps)
    return [rate(train, step, warmup, train.steps) for step in range(train.steps)]


def _start(recipe: Recipe, prepared: Any, longest: int) -> Start:
    import torch
    from safetensors.torch import load_file

    from lorakit.evaluate import resolve_precision
    from lorakit.model import torch_dtype
    from lorakit.surgery import trainable_state
    from lorakit.weights import model_files

    config, method = prepared.model.config, prepared.methods[0]
    plain_llama(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(recipe, device)
    if precision == "float16":
        raise Refused("float16 needs a scaled loss, which is not written for it here")
    if recipe.train.gradient_checkpointing or recipe.train.optimizer.name != "adamw":
        raise Refused("it is trained by AdamW and without checkpointing here, and the recipe asks for another way")
    directory = prepared.located.directory
    dtype = torch_dtype(recipe.model, directory)
    weights = {name: one.to(dtype) for file in model_files(directory) for name, one in load_file(file).items()}
    sites = lora_sites(trainable_state(prepared.model), config.num_hidden_layers)
    return Start(config, weights, sites, method.rank, method.alpha, device, precision, longest)


def plain_llama(config: Any) -> None:
    """Nothing where a config is of Llama's architecture, whose weights are converted here.

    Raises:
        Refused: It is another one, or a Llama with what the tools' builders have no argument for.
    """
    if config.model_type != "llama":
        raise Refused(f"only Llama's architecture is converted for it, and this is {config.model_type}")
    if config.attention_bias or config.mlp_bias:
        raise Refused("its Llama has no biases")
    if (kind := config.rope_parameters["rope_type"]) != "default":
        raise Refused(f"rotary positions of the kind {kind} are not converted for it")
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raise Refused("its heads share the hidden size, and this model's do not")


def lora_sites(state: "Mapping[str, torch.Tensor]", blocks: int) -> Sites:
    """LoRA's tensors by projection.

    Args:
        state: Lorakit's, canonical names.
        blocks: Of the model.

    Raises:
        Refused: Other modules than projections of the attention are adapted, or not those of every block.
    """
    found: dict[str, dict[int, dict[str, torch.Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in state.items():
        match name.split("."):
            case ["model", "layers", block, "self_attn", projection, "update", "A" | "B" as matrix] if (
                projection in ATTENTION
            ):
                found[projection][int(block)][matrix] = tensor
            case _:
                raise Refused(f"{name} is trained; only projections of the attention are converted for it")
    if any(len(rows) != blocks for rows in found.values()):
        raise Refused("it adapts the same projections in every block")
    return {
        projection: [(rows[block]["A"], rows[block]["B"]) for block in range(blocks)]
        for projection, rows in ((name, found[name]) for name in ATTENTION if name in found)
    }
