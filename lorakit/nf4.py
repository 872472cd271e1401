"""Bases in 4 bits, as in QLoRA (Dettmers et al. 2023, arXiv 2305.14314, section 3), through bitsandbytes.

A weight is cut into blocks of 64, each divided by its largest magnitude and rounded to the nearest of the 16 values of
NF4. Double quantisation then stores those magnitudes, less their mean, in 8 bits, in blocks of 256 with one float each:
4 + 8/64 + 32/(64·256) = 4.127 bits a parameter. A product takes the weight back to bfloat16 first.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import util
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorakit.errors import ModelError, RecipeError
from lorakit.surgery import canonical, replace

BLOCK = 64
"""Weights of a block."""
NESTED_BLOCK = 256
"""Blocks whose magnitudes are quantised together."""
LOAD_DTYPE = torch.bfloat16
"""What weights are rounded to before they are quantised, and what products are computed in."""
Onto = Literal["trained", "original"]
"""What a merge adds to: the base as it was in training, or as its files have it."""
EXTRA = "pip install 'lorakit[qlora]'"


@dataclass(frozen=True)
class Quantised:
    """How a base was quantised: with it and the base's files, its weights can be made again.

    Args:
        scheme: nf4, with double quantisation.
        load_dtype: That the files' weights were rounded to first.
        block: Weights of a block.
        nested_block: Blocks whose magnitudes are quantised together.
        modules: Paths of the quantised linear layers.
        bitsandbytes: Its version; empty where it is not installed (a plan needs none).
        device: cpu or cuda: where it was done, since the two may round a tie differently.
    """

    scheme: str
    load_dtype: str
    block: int
    nested_block: int
    modules: list[str]
    bitsandbytes: str
    device: str

    @classmethod
    def here(cls, modules: Sequence[str]) -> "Quantised":
        """As this machine does it."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = str(LOAD_DTYPE).removeprefix("torch.")
        return cls("nf4", dtype, BLOCK, NESTED_BLOCK, sorted(modules), installed(), device)

    def sentence(self) -> str:
        """In words, for model cards: "nf4 with double quantisation, from bfloat16 …"."""
        by = f" by bitsandbytes {self.bitsandbytes}" if self.bitsandbytes else ""
        return f"{self.scheme} with double quantisation, from {self.load_dtype}{by}: {len(self.modules)} linear layers"

    def differences(self, other: "Quantised") -> list[str]:
        """What makes another quantisation one of other weights; empty where they are the same."""
        shown = ("scheme", "load_dtype", "block", "nested_block")
        found = [
            f"{key} {getattr(self, key)} and {getattr(other, key)}"
            for key in shown
            if getattr(self, key) != getattr(other, key)
        ]
        if apart := set(self.modules) ^ set(other.modules):
            found.append(f"{min(apart)} is quantised in one of them alone ({len(apart)} such layers)")
        return found

    def doubts(self, other: "Quantised") -> list[str]:
        """What may make the last bits of another quantisation different."""
        pairs = ((key, getattr(self, key), getattr(other, key)) for key in ("bitsandbytes", "device"))
        return [
            f"the base was quantised with {key} {then} in training and with {now} here: single weights may differ"
            for key, then, now in pairs
            if then != now
        ]


def installed() -> str:
    """The version of bitsandbytes; empty where it is not there."""
    try:
        return version("bitsandbytes")
    except PackageNotFoundError:
        return ""


def require(key: str) -> None:
    """Whether bitsandbytes is here; imports nothing.

    Args:
        key: Of the recipe, that needs it.

    Raises:
        RecipeError: Says what to install.
    """
    if util.find_spec("bitsandbytes") is None:
        raise RecipeError(f"{key}: bitsandbytes is not installed: {EXTRA}")


def library() -> Any:
    """Bitsandbytes, imported without its call to the hub.

    On CPUs with AVX512-BF16 its import fetches a kernel, where the package `kernels` is installed, and complains where
    it is not: of a path that is turned off here (see `settle`).
    """
    if "bitsandbytes" not in sys.modules:
        with _no_kernels():
            import bitsandbytes  # noqa: F401
    return sys.modules["bitsandbytes"]


@contextmanager
def _no_kernels() -> Iterator[None]:
    there, before = "kernels" in sys.modules, sys.modules.get("kernels")
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # as Python marks what cannot be imported
    try:
        yield
    finally:
        logger.setLevel(level)
        if there and before is not None:
            sys.modules["kernels"] = before
        else:
            del sys.modules["kernels"]


def is_nf4(module: nn.Module) -> bool:
    """Whether a layer holds its weight in 4 bits."""
    there = sys.modules.get("bitsandbytes")
    return isinstance(module, NF4Outline) or (there is not None and isinstance(module, there.nn.Linear4bit))


def kind_of(module: nn.Module) -> str:
    """The name of a layer's class, for people."""
    return "Linear4bit" if is_nf4(module) else type(module).__name__


def quantisable(model: nn.Module, left_out: Sequence[str]) -> list[str]:
    """Paths of the linear layers that are quantised: all but the output head and the task's new head.

    Args:
        model: Not yet quantised; the meta device will do.
        left_out: Module paths, below which nothing is quantised.

    Raises:
        ModelError: The model's matrices are of a kind that is not quantised (GPT-2's Conv1D).
    """
    from transformers.pytorch_utils import Conv1D

    find: Any = getattr(model, "get_output_embeddings", None)
    output = find() if find else None
    inside = tuple(f"{path}." for path in left_out)
    found = []
    for path, module in model.named_modules():
        name = canonical(f"{path}.").rstrip(".")
        if isinstance(module, Conv1D):
            raise ModelError(
                f"model.quantize: nf4 is of nn.Linear layers, and {name} is a Conv1D; set model.quantize to null"
            )
        if type(module) is nn.Linear and module is not output and not f"{name}.".startswith(inside):
            found.append(name)
    if not found:
        raise ModelError("model.quantize: nf4: this model has no nn.Linear layer beside its heads")
    return found


def loading_config(model: nn.Module, modules: Sequence[str]) -> Any:
    """What transformers needs to load exactly these layers of a model in 4 bits.

    Args:
        model: On the meta device, not quantised.
        modules: From `quantisable`.
    """
    import re

    from transformers import BitsAndBytesConfig

    library()
    chosen = set(modules)
    skipped = [path for path, module in model.named_modules() if type(module) is nn.Linear and path not in chosen]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=LOAD_DTYPE,
        llm_int8_skip_modules=[f"{re.escape(path)}$" for path in skipped],
    )


def settle(model: Any, modules: Sequence[str]) -> None:
    """Make a model that transformers has just loaded in 4 bits ready to be trained.

    - bitsandbytes 0.50.2 repacks a layer's weight for AVX512-BF16 in the first forward pass of an evaluation, and takes
      it for unpacked when it next computes gradients or dequantises: training goes on with gradients that are wrong by
      their own size. A flag of the layer turns that off.
    - Norms compute in float32, as in QLoRA.
    - Transformers' marks of a quantised model go: to everybody else it is a plain one, saved by its files.

    Raises:
        ModelError: Other layers are in 4 bits than were to be.
    """
    found = {path: module for path, module in model.named_modules() if is_nf4(module)}
    if odd := sorted(set(found) ^ set(modules)):
        raise ModelError(f"model.quantize: nf4: {odd[0]} was not loaded as it should be ({len(odd)} such layers)")
    for module in found.values():
        assert hasattr(module, "support_avx512bf16_for_cpu"), "this bitsandbytes repacks weights in another way"
        module.support_avx512bf16_for_cpu = False
    for module in model.modules():
        if is_norm(module):
            module.to(torch.float32)
    for mark in ("is_loaded_in_4bit", "is_quantized", "hf_quantizer", "quantization_method", "hf_device_map"):
        model.__dict__.pop(mark, None)
    model.config.__dict__.pop("quantization_config", None)


def is_norm(module: nn.Module) -> bool:
    """Whether a module holds vectors alone: a layer norm of any kind."""
    own = list(module.parameters(recurse=False))
    return bool(own) and all(parameter.ndim == 1 for parameter in own)


def weight_of(frozen: nn.Module) -> Tensor:
    """The weight that a frozen layer multiplies with; of a layer in 4 bits, (out, in) in `LOAD_DTYPE`."""
    if isinstance(frozen, NF4Outline):
        return frozen.dequantised()
    weight: Any = frozen.weight  # in a merge's proof a plain tensor
    if not is_nf4(frozen):
        return weight  # type: ignore[no-any-return]
    values: Tensor = library().functional.dequantize_4bit(weight.detach(), weight.quant_state)
    return values


def elements(parameter: Tensor) -> int:
    """Numbers that a parameter stands for: of packed codes, two a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else torch.Size(state.shape).numel()


def round_trip(weight: Tensor, device: str = "cpu") -> Tensor:
    """What 4 bits leave of a weight: quantised as a base is when it is loaded, and dequantised.

    Args:
        weight: (out, in), as the files have it.
        device: Where it is quantised.

    Returns:
        In `LOAD_DTYPE`, on the CPU.
    """
    functional = library().functional
    rounded = weight.to(LOAD_DTYPE).to(device)
    codes, state = functional.quantize_4bit(
        rounded, blocksize=BLOCK, compress_statistics=True, quant_type="nf4", quant_storage=torch.uint8
    )
    del rounded
    values: Tensor = functional.dequantize_4bit(codes, state)
    return values.cpu()


def take_weights(model: nn.Module, live: nn.Module) -> None:
    """Give the layers of a plain model the weights that the quantised ones of another have.

    Args:
        model: Of the same base, loaded whole; adapted or not.
        live: Loaded in 4 bits, not adapted.
    """
    found = {canonical(f"{path}.").rstrip("."): module for path, module in model.named_modules()}
    for path, layer in live.named_modules():
        if is_nf4(layer):
            weight = found[path].get_parameter("weight")
            weight.data = weight_of(layer).to(weight)


@dataclass(frozen=True)
class Footprint:
    """What a frozen base takes, measured on its real tensors.

    The tables of 16 and of 256 values, the same for all layers, do not count.

    Args:
        modules: Layers in 4 bits.
        parameters: Their weights.
        bytes: Codes, magnitudes and means.
        base_parameters: All that is frozen.
        base_bytes: Likewise.
    """

    modules: int
    parameters: int
    bytes: int
    base_parameters: int
    base_bytes: int

    @property
    def bits(self) -> float:
        """Per quantised parameter; 4.127 for large layers."""
        return 8 * self.bytes / self.parameters

    @property
    def base_bits(self) -> float:
        """Per frozen parameter, embeddings and norms included."""
        return 8 * self.base_bytes / self.base_parameters


def footprint(model: nn.Module) -> Footprint:
    """What the frozen part of a quantised model takes."""
    layers = [module for module in model.modules() if is_nf4(module)]
    weights = [layer.get_parameter("weight") for layer in layers]
    size = sum(_bytes(tensor) for layer in layers for tensor in _state(layer))
    inside = {id(weight) for weight in weights}
    others = [p for p in model.parameters() if not p.requires_grad and id(p) not in inside]
    count = sum(map(elements, weights))
    every = count + sum(p.numel() for p in others)
    return Footprint(len(layers), count, size, every, size + sum(map(_bytes, others)))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _state(layer: nn.Module) -> list[Tensor]:
    """What belongs to one layer alone: codes, 8-bit magnitudes, their magnitudes, their mean."""
    weight: Any = layer.weight
    if isinstance(layer, NF4Outline):
        return [weight, layer.magnitudes, layer.nested]
    state = weight.quant_state
    return [weight, state.absmax, state.state2.absmax, state.offset]


class NF4Outline(nn.Module):
    """A layer in 4 bits without data, for plans: tensors of the real one's sizes, and products that make what its do.

    Args:
        linear: The layer that would be quantised, on the meta device.
    """

    magnitudes: Tensor
    nested: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        count = linear.weight.numel()
        blocks = -(-count // BLOCK)
        make = partial(torch.empty, dtype=torch.uint8, device=linear.weight.device)
        codes = nn.Parameter(make((count + 1) // 2, 1), requires_grad=False)
        codes.quant_state = SimpleNamespace(shape=tuple(linear.weight.shape))  # type: ignore[attr-defined]
        self.weight = codes
        self.register_buffer("magnitudes", make(blocks))
        self.register_buffer("nested", make(4 * (1 + -(-blocks // NESTED_BLOCK))))  # and the mean
        self.bias = linear.bias

    def dequantised(self) -> Tensor:
        """(out, in), without data."""
        return self.weight.new_empty(self.out_features, self.in_features, dtype=LOAD_DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), as bitsandbytes: the dequantised weight is there for a moment, and not kept."""
        with torch.autocast(x.device.type, enabled=False):
            product: Tensor = _Product.apply(x.to(LOAD_DTYPE), self)  # type: ignore[no-untyped-call]
            return (product if self.bias is None else product + self.bias).to(x.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Outline) -> Tensor:
        ctx.layer = layer
        return x @ layer.dequantised().T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantised(), None


def outlined(model: nn.Module, modules: Sequence[str]) -> None:
    """Give a meta-device model the layers in 4 bits that a loaded one has, and norms in float32."""
    chosen = set(modules)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and canonical(f"{path}.").rstrip(".") in chosen:
            replace(model, path, NF4Outline(module))
        elif is_norm(module):
            module.float()
