"""The methods: one file each, one line here."""

from lorakit.methods.base import Method
from lorakit.methods.full import Full
from lorakit.methods.lora import LoRA

METHODS: dict[str, type[Method]] = {"lora": LoRA, "full": Full}
