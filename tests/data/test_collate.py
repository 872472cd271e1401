"""Items to padded tensors."""

import numpy as np
import torch

from lorakit.data.collate import collate
from lorakit.data.items import IGNORE, Item


def item(ids: list[int], labels: object, types: list[int] | None = None) -> Item:
    segment = None if types is None else np.array(types, dtype=np.int32)
    return Item(np.array(ids, dtype=np.int32), np.asarray(labels), segment, 0)


def test_padding_is_masked_and_not_learned() -> None:
    batch = collate([item([5, 7, 6], [IGNORE, 7, 6]), item([7], [7])], pad_id=7)
    assert batch.inputs["input_ids"].tolist() == [[5, 7, 6], [7, 7, 7]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, 7, 6], [7, IGNORE, IGNORE]]
    assert list(batch.inputs) == ["input_ids", "attention_mask"]
    assert {tensor.dtype for tensor in (*batch.inputs.values(), batch.labels)} == {torch.long}


def test_token_types_and_classes() -> None:
    batch = collate([item([1, 2], 3, [0, 1]), item([1, 2, 3], IGNORE, [0, 1, 1])], pad_id=0)
    assert batch.inputs["token_type_ids"].tolist() == [[0, 1, 0], [0, 1, 1]]
    assert batch.labels.tolist() == [3, IGNORE] and batch.labels.dtype == torch.long


def test_numbers() -> None:
    labels = collate([item([1], 2.5), item([1], 3)], pad_id=0).labels
    assert labels.tolist() == [2.5, 3.0] and labels.dtype == torch.float32


def test_to_device() -> None:
    moved = collate([item([1], 2.5)], pad_id=0).to(torch.device("meta"))
    assert moved.labels.is_meta and all(tensor.is_meta for tensor in moved.inputs.values())
