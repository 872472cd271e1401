"""Items to padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.data.items import IGNORE, Item


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch.

    Args:
        inputs: What the model's forward takes: input_ids, attention_mask and, where the tokenizer makes them,
            token_type_ids, each (batch, seq).
        labels: (batch, seq) with IGNORE where nothing is learned, or (batch,) for text rows.
    """

    inputs: dict[str, Tensor]
    labels: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return Batch(inputs, self.labels.to(device, non_blocking=True))


def collate(items: Sequence[Item], pad_id: int) -> Batch:
    """Pad on the right to the longest item; padding is masked and not learned."""
    length = max(len(item.input_ids) for item in items)
    ids = torch.full((len(items), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(items), length), dtype=torch.long)
    for index, item in enumerate(items):
        size = len(item.input_ids)
        ids[index, :size] = torch.from_numpy(item.input_ids)
        mask[index, :size] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if items[0].token_type_ids is not None:
        inputs["token_type_ids"] = _padded([item.token_type_ids for item in items], length, 0)
    if items[0].labels.ndim == 0:
        return Batch(inputs, torch.tensor([item.labels.item() for item in items]))
    return Batch(inputs, _padded([item.labels for item in items], length, IGNORE))


def _padded(rows: Sequence[object], length: int, value: int) -> Tensor:
    tensor = torch.full((len(rows), length), value, dtype=torch.long)
    for index, row in enumerate(rows):
        values = torch.as_tensor(row)
        tensor[index, : len(values)] = values
    return tensor
