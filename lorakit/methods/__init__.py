"""The methods: one file each, one line here.

Recipes are read without torch, which takes seconds to import: a method imports what needs it where it is applied. The
layers that methods share or that are large are in `lorakit.layers`.
"""

from lorakit.methods.adapter import Adapter
from lorakit.methods.base import Method
from lorakit.methods.bitfit import BitFit
from lorakit.methods.full import Full
from lorakit.methods.lora import LoRA
from lorakit.methods.preembed import PreEmbed
from lorakit.methods.prefix_kv import PrefixKV
from lorakit.methods.prelayer import PreLayer
from lorakit.methods.top_layers import TopLayers

METHODS: dict[str, type[Method]] = {
    "lora": LoRA,
    "full": Full,
    "top_layers": TopLayers,
    "bitfit": BitFit,
    "adapter": Adapter,
    "preembed": PreEmbed,
    "prelayer": PreLayer,
    "prefix_kv": PrefixKV,
}
