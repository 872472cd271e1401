"""llama.cpp's LoRA adapter: one GGUF file, for a GGUF of the same base in any quantisation.

What llama.cpp reads (src/llama-adapter.cpp): `general.type` = adapter, `adapter.type` = lora, the base's architecture,
`adapter.lora.alpha`, and for each adapted tensor `NAME.weight.lora_a` (r, in) and `.lora_b` (out, r). It adds
alpha / r · b · a, with the one alpha and each tensor's own r, and refuses a file with any other tensor in it.

A GGUF of the Llama architecture has the rows of q and k in another order: its rotary embedding turns neighbouring rows
together, transformers' the first half of a head's rows with the second. The rows of an adapter's B must follow.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lorakit.errors import MergeError
from lorakit.export.base import Exporter, Read
from lorakit.export.serving import folded_pairs
from lorakit.layers.adapted import Edit
from lorakit.layers.low_rank import low_rank_edit
from lorakit.merge_plan import adapted_layers

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened
    from lorakit.model import Prepared

ADAPTER = "adapter.gguf"


@dataclass(frozen=True)
class _Kind:
    """What llama.cpp makes of an architecture.

    Args:
        name: Its own name for it.
        reordered: Whether its converter puts the rows of q and k into another order.
    """

    name: str
    reordered: bool = False


KINDS = {
    "llama": _Kind("llama", reordered=True),  # SmolLM and SmolLM2 too
    "mistral": _Kind("llama", reordered=True),
    "smollm3": _Kind("smollm3", reordered=True),
    "qwen2": _Kind("qwen2"),
    "qwen3": _Kind("qwen3"),
    "gemma": _Kind("gemma"),
    "gemma2": _Kind("gemma2"),
    "gemma3_text": _Kind("gemma3"),
    "phi3": _Kind("phi3"),
}
"""transformers' model type → llama.cpp's."""


class Gguf(Exporter):
    """An adapter that `llama-cli --lora` loads."""

    name: Literal["gguf"] = "gguf"

    def write(self, opened: "Opened", out: Path) -> None:
        """See `Exporter`."""
        from gguf import GGUFType, GGUFWriter, Keys

        names = _Names(opened.prepared)
        pairs = folded_pairs(opened, "llama.cpp")
        alpha = max(pair.rank for pair in pairs.values())
        tensors: dict[str, Tensor] = {}
        for path, pair in pairs.items():
            name, order = names.tensor(path), names.order(path)
            b = pair.b * (pair.rank / alpha)  # which llama.cpp's alpha / rank undoes
            tensors[f"{name}.lora_a"] = pair.a
            tensors[f"{name}.lora_b"] = b if order is None else b[order]
        writer = GGUFWriter(out / ADAPTER, names.kind.name)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, float(alpha))
        writer.add_name(opened.recipe.name)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def read(self, opened: "Opened", out: Path) -> Read:
        """See `Exporter`."""
        from gguf import GGUFReader, Keys

        names = _Names(opened.prepared)
        reader = GGUFReader(out / ADAPTER)
        expected = {Keys.General.TYPE: "adapter", Keys.Adapter.TYPE: "lora", Keys.General.ARCHITECTURE: names.kind.name}
        for key, value in expected.items():
            if (found := _value(reader, key)) != value:
                raise MergeError(f"{key}: is {found}; llama.cpp takes {value} alone")
        alpha = float(_value(reader, Keys.Adapter.LORA_ALPHA))
        factors: dict[str, dict[str, Tensor]] = {}
        for tensor in reader.tensors:
            name, _, ending = tensor.name.rpartition(".")
            if ending not in {"lora_a", "lora_b"}:
                raise MergeError(f"{tensor.name}: llama.cpp takes no tensor of this name in an adapter")
            factors.setdefault(name, {})[ending] = torch.from_numpy(np.array(tensor.data))
        layers = adapted_layers(opened.prepared.model)
        paths = {names.tensor(path): path for path in layers}
        edits: dict[str, Edit] = {}
        for name, pair in factors.items():
            if name not in paths or len(pair) < 2:
                raise MergeError(f"{name}: is no adapted module, or has one factor only")
            path, b = paths[name], pair["lora_b"]
            if (order := names.order(path)) is not None:
                b = torch.empty_like(b).index_copy(0, order, b)
            edits[path] = low_rank_edit(layers[path].frozen, b * (alpha / b.shape[1]), pair["lora_a"])
        return Read(edits, {})

    def loading(self, opened: "Opened") -> str:
        """See `Exporter`."""
        return f"""The base is a GGUF of {opened.prepared.located.name}, in any quantisation.

```
llama-cli -m BASE.gguf --lora {ADAPTER}
llama-server -m BASE.gguf --lora {ADAPTER}
```

```python
from llama_cpp import Llama

model = Llama("BASE.gguf", lora_path="{ADAPTER}")
```

Ollama, with a `Modelfile` of two lines and `ollama create NAME -f Modelfile`:

```
FROM ./BASE.gguf
ADAPTER ./{ADAPTER}
```
"""


class _Names:
    """Where llama.cpp keeps an architecture's matrices, and in which order their rows are.

    Args:
        prepared: The model.

    Raises:
        MergeError: llama.cpp's adapters of this architecture are not known here.
    """

    def __init__(self, prepared: "Prepared") -> None:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        self.prepared, self.config = prepared, prepared.model.config
        if self.config.model_type not in KINDS:
            raise MergeError(
                f"{self.config.model_type}: no GGUF adapters are written for this architecture, but for: "
                f"{', '.join(KINDS)}; use lorakit merge, and llama.cpp's convert_hf_to_gguf.py on the result"
            )
        self.kind = KINDS[self.config.model_type]
        architecture = next(number for number, name in MODEL_ARCH_NAMES.items() if name == self.kind.name)
        self.map = get_tensor_name_map(architecture, self.config.num_hidden_layers)

    def tensor(self, path: str) -> str:
        """The base's tensor that a module's weight is in a GGUF."""
        name = self.map.get_name(path)
        if name is None:
            raise MergeError(f"{path}: has no name in llama.cpp; leave it out of method.targets, or use lorakit merge")
        return f"{name}.weight"

    def order(self, path: str) -> Tensor | None:
        """Of each row in the GGUF the row in transformers; None: they are in the same order.

        Of a head's rows 0 … d-1 the GGUF has 0, d/2, 1, d/2 + 1, …
        """
        last = path.rpartition(".")[2]
        if not self.kind.reordered or last not in {"q_proj", "k_proj"}:
            return None
        heads = self.config.num_attention_heads if last == "q_proj" else self.config.num_key_value_heads
        count = self.prepared.model.get_submodule(path).weight.shape[0]
        return torch.arange(count).view(heads, 2, count // heads // 2).transpose(1, 2).reshape(-1)


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
