"""PEFT's format in the one form that PEFT, vLLM and llama.cpp's converter read alike.

They differ in what they read of `adapter_config.json`: vLLM refuses DoRA, biases and heads, allows few ranks, and older
versions ignore `rank_pattern` and `alpha_pattern`; llama.cpp ignores rsLoRA and alphas of single modules. So nothing of
that is left to read: each B takes its scaling, in float32, and all pairs are padded with zeros to one rank that equals
alpha. In real arithmetic that changes nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from torch.nn.functional import pad

from lorakit.errors import MergeError
from lorakit.export.base import Exporter, Read
from lorakit.export.pairs import Pair
from lorakit.export.peft import loading, read_files, write_files
from lorakit.export.serving import folded_pairs

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for --max-lora-rank."""
SERVED = {
    *("llama", "smollm3", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"),
    *("gemma", "gemma2", "gemma3_text", "phi3", "opt"),
}
"""Model types for which vLLM's table of supported models (docs/models/supported_models.md) has LoRA."""


class Portable(Exporter):
    """An adapter for PEFT, vLLM and llama.cpp's converter alike."""

    name: Literal["portable"] = "portable"
    library: ClassVar[str | None] = "peft"

    def write(self, opened: "Opened", out: Path) -> None:
        """See `Exporter`."""
        pairs = padded(opened)
        write_files(opened, pairs, out, rslora=False)

    def read(self, opened: "Opened", out: Path) -> Read:
        """See `Exporter`."""
        return read_files(opened, out)

    def loading(self, opened: "Opened") -> str:
        """See `Exporter`."""
        rank = next(iter(padded(opened).values())).rank
        located = opened.prepared.located
        base = located.name if located.revision else "BASE"
        return f"""{loading(opened)}
vLLM, whose default `--max-lora-rank` is 16:

```
vllm serve {base} --enable-lora --max-lora-rank {max(rank, 8)} --lora-modules {opened.recipe.name}=THIS_DIRECTORY
```

llama.cpp: `python convert_lora_to_gguf.py THIS_DIRECTORY --base BASE_DIRECTORY --outfile adapter.gguf`; or let lorakit
write it, with `--to gguf`.
"""


def padded(opened: "Opened") -> dict[str, Pair]:
    """The folded pairs, with rows and columns of zeros up to the least rank that vLLM allows and all fit in.

    Raises:
        MergeError: vLLM serves no adapters of this architecture, or a part of this one cannot be expressed.
    """
    model_type = opened.prepared.model.config.model_type
    if model_type not in SERVED:
        raise MergeError(
            f"{model_type}: vLLM takes no adapters of this architecture; use lorakit merge, or --to peft for PEFT alone"
        )
    pairs = folded_pairs(opened, "vLLM or llama.cpp")
    path, largest = max(pairs.items(), key=lambda item: item[1].rank)
    if largest.rank > RANKS[-1]:
        raise MergeError(
            f"{path}: rank {largest.rank}, and vLLM takes at most {RANKS[-1]}; cut it with --rank {RANKS[-1]}, which "
            "says what that loses, or use lorakit merge"
        )
    rank = next(allowed for allowed in RANKS if allowed >= largest.rank)
    return {
        path: Pair(pad(pair.a, (0, 0, 0, rank - pair.rank)), pad(pair.b, (0, rank - pair.rank)), 1.0)
        for path, pair in pairs.items()
    }
