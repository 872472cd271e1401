"""The base model of a recipe: its config, tokenizer and weights, the task's head, and the methods applied to it."""

import difflib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationInfo, field_validator

from lorakit.arch import Architecture, architecture, max_tokens
from lorakit.bases import Located, locate
from lorakit.data.slots import Slots
from lorakit.errors import ModelError, RecipeError
from lorakit.file_names import absent, check_new, file_names_of, in_body
from lorakit.kept import current, own, stamps
from lorakit.section import Section
from lorakit.weights import fingerprint, model_entries

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorakit.methods.base import Coverage, Method
    from lorakit.nf4 import Quantised
    from lorakit.tasks.base import Kind

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Base(Section):
    """The frozen model that a method adapts."""

    base: str
    """Hub id, directory, path.gguf, package:MODULE/sub/dir or package:MODULE/file.gguf."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    dtype: Dtype = "auto"
    """Of the frozen weights; auto: the files' own on CUDA, float32 on CPU; with `quantize` bfloat16."""
    quantize: Literal["nf4"] | None = None
    """nf4: the linear layers of the body in 4 bits with double quantisation, as in QLoRA (arXiv 2305.14314); all that
    is computed with them is in bfloat16. Needs bitsandbytes: pip install 'lorakit[qlora]'."""
    overrides: dict[str, bool | int | float | str] = {}
    """Fields of the base's own config, e.g. {attn_pdrop: 0.0}; an unknown one is an error."""
    trust_remote_code: bool = False
    """Run Python code that comes with the base."""

    @field_validator("quantize")
    @classmethod
    def _loads_in_bfloat16(cls, quantize: str | None, info: ValidationInfo) -> str | None:
        if quantize and info.data.get("dtype") in ("float32", "float16"):
            raise ValueError(f"nf4 is made from bfloat16 weights: set model.dtype to auto, not {info.data['dtype']}")
        return quantize

    def locate(self) -> Located:
        """The base as a local directory; downloads or converts when needed."""
        return locate(self.base, self.revision, self.trust_remote_code)


@dataclass(frozen=True)
class Head:
    """What the task asks of the model.

    Args:
        kind: classification and regression put a head on the body, generation uses the language-model head.
        labels: Class names by index.
    """

    kind: "Kind"
    labels: tuple[str, ...] = ()


@dataclass
class Prepared:
    """A base with its head and methods, ready to train, evaluate or merge.

    Args:
        model: In eval mode; frozen but for the head and what the methods train.
        tokenizer: Of the base, with a padding token.
        row: The architecture.
        located: Where the base is.
        methods: Resolved for the architecture.
        coverage: What each method's targets matched.
        file_names: Canonical parameter name → its name in the base's files, for those that are there.
        quantised: How the base is quantised, if it is; a skeleton's layers are not, and are listed all the same.
    """

    model: Any
    tokenizer: Any
    row: Architecture
    located: Located
    methods: "list[Method]"
    coverage: "list[Coverage]"
    file_names: dict[str, str] = field(default_factory=dict)
    quantised: "Quantised | None" = None

    @property
    def max_tokens(self) -> int | None:
        """Longest input the model has positions for."""
        return max_tokens(self.model.config)

    @property
    def slots(self) -> Slots:
        """Places in every row of vectors that a method trains."""
        from lorakit.methods.base import slots_of

        return slots_of(self.methods)

    def in_head(self, name: str) -> bool:
        """Whether a parameter is of the task's head, and not of a method's update to it."""
        return name.startswith(tuple(f"{module}." for module in self.row.head)) and ".update." not in name

    def fingerprint(self) -> str:
        """Hash of the base's tensors that this adapter changes or replaces; of all, where it only adds new ones."""
        changed = [self.file_names[name] for name in adapted_names(self.model) if name in self.file_names]
        return fingerprint(model_entries(self.located.directory), changed or self.file_names.values())


def prepare(base: Base, methods: "Sequence[Method]", head: Head, seed: int, *, skeleton: bool = False) -> Prepared:
    """Load a base, give it the task's head, freeze it and apply the methods.

    Args:
        base: The recipe's model section.
        methods: Applied in order; none leaves the bare base.
        head: What the task needs.
        seed: For the head and the adapters.
        skeleton: Build on the meta device: structure and names without weights.

    Raises:
        ModelError: The base is missing or does not fit the task.
        RecipeError: A target or an option does not fit the model.
    """
    from lorakit.methods.whole import check_quantised

    if base.quantize and not skeleton:
        from lorakit.nf4 import require

        require("model.quantize")
    located = base.locate()
    entries = model_entries(located.directory)
    config = load_config(base, located, head)
    row = architecture(config)
    if head.kind == "generation" and not row.decoder:
        raise ModelError(f"model.base: {base.base}: a {row.model_type} model cannot generate; the task needs a decoder")
    tokenizer = load_tokenizer(located, base.trust_remote_code)
    if head.kind != "generation" and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id  # a decoder's head reads the last token that is no padding
    quantised = None
    if base.quantize:  # before weights are read: what cannot be trained is told at once
        outline = build_skeleton(base, config, head)
        quantised = _quantised(outline, row, head)
        attach(outline, row, methods, head, (), seed)
        check_quantised(outline, quantised.modules)
    if skeleton:
        model = build_skeleton(base, config, head)
        file_names = file_names_of(model, entries)
        new = {name for name in absent(model, file_names) if not in_body(model, name)}  # renamed, if in the body
    else:
        model, new = _load(base, config, located, head, quantised)
        file_names = file_names_of(model, entries)
        check_new(model, located, head.kind == "generation", new)
    unknown = absent(model, file_names) - new
    coverage = attach(model, row, methods, head, new, seed)
    own(model)
    _check_names(model, located, unknown)
    return Prepared(model, tokenizer, row, located, [m.resolve(row) for m in methods], coverage, file_names, quantised)


def _quantised(model: "nn.Module", row: Architecture, head: Head) -> "Quantised":
    """How a base is to be quantised, from its skeleton: all linear layers but the output head and the task's own."""
    from lorakit.nf4 import Quantised, quantisable

    heads = () if head.kind == "generation" else row.head
    return Quantised.here(quantisable(model, heads))


def attach(
    model: "nn.Module", row: Architecture, methods: "Sequence[Method]", head: Head, new: Collection[str], seed: int
) -> "list[Coverage]":
    """Freeze a model, release the task's head, apply the methods, and make it fast; leaves it in eval mode.

    Args:
        model: With the base's weights, or on the meta device.
        row: Its architecture.
        methods: Applied in order.
        head: What the task needs.
        new: Parameters that the base's files lack.
        seed: For the head and the adapters.

    Raises:
        RecipeError: A target or an option does not fit the model.
    """
    from lorakit.fast import make_fast
    from lorakit.methods.base import slots_of
    from lorakit.surgery import even_norms, freeze
    from lorakit.task_head import prepare_head

    freeze(model)
    if head.kind != "generation":
        prepare_head(model, row, new, seed)
    coverage = [method.apply(model, row, seed) for method in methods]
    even_norms(model)
    make_fast(model, row, packed=not slots_of(methods).count)
    model.eval()
    return coverage


def load_config(base: Base, located: Located, head: Head) -> Any:
    """The base's config with the recipe's overrides and the task's labels.

    Raises:
        ModelError: There is no readable config.
        RecipeError: An override names a field that the config does not have.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(located.directory, trust_remote_code=base.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(f"model.base: {base.base}: unreadable config: {_one_line(error)}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model.base: {base.base}: its weights are quantised already; name the base that they were made from, "
            "and set model.quantize to nf4 to train on it in 4 bits"
        )
    suit(config, base, head)
    return config


def suit(config: Any, base: Base, head: Head) -> None:
    """Put the recipe's overrides and the task's labels into a base's config.

    Raises:
        RecipeError: An override names a field that the config does not have.
    """
    _override(config, base.overrides)
    if head.kind != "generation":
        config.num_labels = len(head.labels)
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: index for index, label in enumerate(head.labels)}
        config.problem_type = "regression" if head.kind == "regression" else "single_label_classification"


def _override(config: Any, overrides: Mapping[str, bool | int | float | str]) -> None:
    from huggingface_hub.errors import StrictDataclassError

    own = (name for name in config.to_dict() if not name.startswith("_"))
    fields = [*own, *config.attribute_map, *architecture(config).optional]
    problems = []
    for name, value in overrides.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            problems.append(f"model.overrides.{name}: this {config.model_type} model's config has no such field{hint}")
            continue
        try:
            setattr(config, name, value)
        except StrictDataclassError as error:
            problems.append(f"model.overrides.{name}: {_one_line(error)}")
    if problems:
        raise RecipeError(*problems)


def load_tokenizer(located: Located, trust_remote_code: bool = False) -> Any:
    """The base's tokenizer; one without a padding token pads with its end-of-sequence token (masked anyway).

    Raises:
        ModelError: There is none that can be read, or it has neither of the two tokens.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(located.directory, trust_remote_code=trust_remote_code)
        tokenizer("a b c", verbose=False)  # some damage shows only at work
    except Exception as error:  # the Rust library behind it raises nothing more special
        raise ModelError(f"model.base: {located.name}: no readable tokenizer: {_one_line(error)}") from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ModelError(f"model.base: {located.name}: its tokenizer has no padding and no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def torch_dtype(base: Base, directory: Path) -> "torch.dtype":
    """The dtype that weights are loaded in: the recipe's, or the files' own on CUDA and float32 on CPU."""
    import torch

    if base.quantize:
        from lorakit.nf4 import LOAD_DTYPE

        return LOAD_DTYPE
    if base.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[base.dtype]
    if not torch.cuda.is_available():
        return torch.float32
    sizes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    found = {sizes[entry.dtype] for entry in model_entries(directory).values() if entry.dtype in sizes}
    return found.pop() if len(found) == 1 else torch.float32


def adapted_names(model: "nn.Module") -> list[str]:
    """Canonical names of the base's tensors that training changes: adapted weights, and released parameters."""
    from lorakit.layers.adapted import Adapted
    from lorakit.surgery import trainable_parameters

    layers = [f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Adapted)]
    return [*layers, *trainable_parameters(model)]


def _auto_class(head: Head) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if head.kind == "generation" else AutoModelForSequenceClassification


@contextmanager
def _loading(base: Base, head: Head) -> Iterator[None]:
    """Without transformers' bars and its report of a new head, and with its refusals in one line."""
    from transformers.utils import logging as reports

    verbosity = reports.get_verbosity()
    reports.set_verbosity(logging.ERROR)
    reports.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"model.base: {base.base}: cannot be loaded for {head.kind}: {_one_line(error)}") from error
    finally:
        reports.set_verbosity(verbosity)
        reports.enable_progress_bar()


def _load(
    base: Base, config: Any, located: Located, head: Head, quantised: "Quantised | None"
) -> "tuple[nn.Module, set[str]]":
    """The model with its weights, and the parameters that the files lack."""
    read = partial(_read, base, config, located, head, quantised)
    kept = current()
    if kept is None or quantised is not None:  # 4-bit weights carry what a copy of their module would not
        return read()
    dtype, files = torch_dtype(base, located.directory), stamps(located.directory)
    config_text = config.to_json_string(use_diff=False)
    key = (located.directory, files, config_text, _auto_class(head), dtype, base.trust_remote_code)
    return kept.take(key, read)


def _read(
    base: Base, config: Any, located: Located, head: Head, quantised: "Quantised | None"
) -> "tuple[nn.Module, set[str]]":
    from lorakit.nf4 import loading_config, settle

    options = {}
    if quantised is not None:
        options["quantization_config"] = loading_config(build_skeleton(base, config, head), quantised.modules)
    with _loading(base, head):
        model, info = _auto_class(head).from_pretrained(
            located.directory,
            config=config,
            dtype=torch_dtype(base, located.directory),
            trust_remote_code=base.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    if mismatched := [f"{name}: {tuple(a)} in the files, {tuple(b)} needed" for name, a, b in info["mismatched_keys"]]:
        raise ModelError(
            f"model.base: {base.base}: its weights do not fit the task's head or the overrides: "
            f"{'; '.join(sorted(mismatched))}. Name the pre-trained base, or a base with the task's number of classes"
        )
    if quantised is not None:
        settle(model, quantised.modules)
    return model, set(info["missing_keys"])


def build_skeleton(base: Base, config: Any, head: Head) -> "nn.Module":
    """The model of a config on the meta device: structure and names without weights."""
    import torch

    with _loading(base, head), torch.device("meta"):
        model: nn.Module = _auto_class(head).from_config(config, trust_remote_code=base.trust_remote_code)
    return model


def _check_names(model: "nn.Module", located: Located, unknown: set[str]) -> None:
    """A tensor that transformers found in the files under a name unknown here can be used, but not changed."""
    lost = sorted(unknown & set(adapted_names(model)))
    if lost:
        raise ModelError(
            f"model.base: {located.name}: cannot tell which tensors of its files are {', '.join(lost[:3])} "
            f"({len(lost)} in all), so they could not be merged; leave them out of method.targets and method.also_train"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
