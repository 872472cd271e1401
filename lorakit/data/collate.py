"""Items to padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorakit.data.items import IGNORE, Item


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch, and what is known of its numbers where it was made.

    Without `lengths` and `learned` a GPU would have to be waited for whenever a shape depends on them.

    Args:
        inputs: What the model's forward takes: input_ids, attention_mask and, where the tokenizer makes them,
            token_type_ids, each (batch, seq).
        labels: (batch, seq) with IGNORE where nothing is learned, or (batch,) for text rows.
        lengths: Real tokens of each row; padding is behind them.
        learned: (targets,) where tokens stand, counted over the whole batch, whose next one is learned; None for text
            rows.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    lengths: list[int]
    learned: Tensor | None

    @classmethod
    def of(cls, inputs: dict[str, Tensor], labels: Tensor) -> "Batch":
        """A batch of tensors in the machine's memory, padded on the right."""
        learned = None
        if labels.ndim == 2:
            learned = F.pad(labels[:, 1:] != IGNORE, (0, 1)).flatten().nonzero()[:, 0]
        return cls(inputs, labels, inputs["attention_mask"].sum(1).tolist(), learned)

    def rows(self, chosen: list[int]) -> "Batch":
        """Some of its rows, as wide as before."""
        return Batch.of({name: tensor[chosen] for name, tensor in self.inputs.items()}, self.labels[chosen])

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        inputs = {name: send(tensor, device) for name, tensor in self.inputs.items()}
        learned = None if self.learned is None else send(self.learned, device)
        return Batch(inputs, send(self.labels, device), self.lengths, learned)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor from the machine's memory to a device; a GPU goes on computing meanwhile."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


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
        return Batch.of(inputs, torch.tensor([item.labels.item() for item in items]))
    return Batch.of(inputs, _padded([item.labels for item in items], length, IGNORE))


def _padded(rows: Sequence[object], length: int, value: int) -> Tensor:
    tensor = torch.full((len(rows), length), value, dtype=torch.long)
    for index, row in enumerate(rows):
        values = torch.as_tensor(row)
        tensor[index, : len(values)] = values
    return tensor
