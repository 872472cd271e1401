"""Summed losses: equal to the references', and the same gradient however a step is cut."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.data.collate import Batch, collate
from lorakit.data.items import IGNORE, Item
from lorakit.objective import ClassLoss, NumberLoss, TokenLoss, objective, token_loss

Tiny = Callable[[str], Path]


def language_model(tiny: Tiny, model_type: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny(model_type), dtype=torch.float64).train()


def classifier(tiny: Tiny, labels: int) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        tiny("bert"), num_labels=labels, dtype=torch.float64
    ).eval()


def token_items(count: int = 8) -> list[Item]:
    """Rows of random lengths, each position after the first a target or not at random; at least one is."""
    rng = np.random.default_rng(0)
    items = []
    for row in range(count):
        length = int(rng.integers(3, 14))
        ids = rng.integers(2, 250, length).astype(np.int32)
        labels = np.where(rng.random(length) < 0.5, ids, IGNORE).astype(np.int64)
        labels[0], labels[-1] = IGNORE, ids[-1]
        items.append(Item(ids, labels, None, row))
    return items


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def no_dropout(model: Any) -> Any:
    """In train mode, since smoothing acts there, but with nothing drawn."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.0
    return model


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_token_loss_is_transformers_own(tiny: Tiny, model_type: str) -> None:
    """GPT-2's embeddings are tied to its head: their gradient has both parts."""
    model = no_dropout(language_model(tiny, model_type))
    batch = collate(token_items(4), pad_id=0)
    count = int((batch.labels != IGNORE).sum())
    reference = model(**batch.inputs, labels=batch.labels).loss
    expected = gradients(model, reference * count)
    loss, logits = TokenLoss(model)(model, batch)
    assert logits.shape == (count, model.config.vocab_size)
    torch.testing.assert_close(loss.float(), reference * count, rtol=1e-6, atol=0)  # theirs is cast to float32
    found = gradients(model, loss)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_label_smoothing_is_torchs_on_full_logits_and_off_in_evaluation(tiny: Tiny) -> None:
    model = no_dropout(language_model(tiny, "gpt2"))
    batch = collate(token_items(3), pad_id=0)
    full = model(**batch.inputs).logits[:, :-1].flatten(0, 1)
    targets = batch.labels[:, 1:].flatten()
    loss = TokenLoss(model, label_smoothing=0.1)
    for training, smoothing in ((True, 0.1), (False, 0.0)):
        model.train(training)
        expected = F.cross_entropy(full, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
        torch.testing.assert_close(loss(model, batch)[0], expected)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_head_sees_target_rows_only_and_is_whole_again_after(tiny: Tiny, model_type: str) -> None:
    model = language_model(tiny, model_type)
    loss = TokenLoss(model)
    seen: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    batch = collate(token_items(4), pad_id=0)
    loss(model, batch)
    assert seen == [(int((batch.labels != IGNORE).sum()), model.config.vocab_size)]
    assert model(**batch.inputs).logits.shape[:2] == batch.labels.shape

    with pytest.raises(RuntimeError):  # after a failed forward too
        loss(model, replace(batch, inputs={"input_ids": batch.inputs["input_ids"].float()}))
    assert model(**batch.inputs).logits.shape[:2] == batch.labels.shape


def test_nothing_to_learn_is_zero(tiny: Tiny) -> None:
    model = language_model(tiny, "llama")
    item = Item(np.array([5, 6, 7], dtype=np.int32), np.full(3, IGNORE), None, 0)
    loss, logits = TokenLoss(model, label_smoothing=0.1)(model, collate([item], 0))
    assert loss.item() == 0 and logits.shape[0] == 0
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients(model, loss))


def test_class_loss(tiny: Tiny) -> None:
    model = classifier(tiny, 3).train()
    no_dropout(model)
    inputs = collate(token_items(4), 0).inputs
    labels = torch.tensor([2, 0, IGNORE, 1])
    logits = model(**inputs).logits
    nll = -logits.log_softmax(-1)
    known = [(0, 2), (1, 0), (3, 1)]
    by_hand = sum(0.8 * nll[row, label] + 0.2 * nll[row].mean() for row, label in known)
    loss, found = ClassLoss(model, 0.2)(model, Batch.of(inputs, labels))
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(found, logits)
    model.eval()
    unsmoothed = ClassLoss(model, 0.2)(model, Batch.of(inputs, labels))[0]
    torch.testing.assert_close(unsmoothed, sum(nll[r, c] for r, c in known))


def test_number_loss(tiny: Tiny) -> None:
    model = classifier(tiny, 1)
    inputs = collate(token_items(3), 0).inputs
    labels = torch.tensor([2.5, -100.0, 0.0])  # a temperature may be -100
    loss, logits = NumberLoss(model)(model, Batch.of(inputs, labels))
    torch.testing.assert_close(loss, ((logits[:, 0] - labels) ** 2).sum())
    assert loss > 10_000


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_any_cut_of_a_step_gives_the_same_gradient(tiny: Tiny, model_type: str, smoothing: float) -> None:
    model = no_dropout(language_model(tiny, model_type))
    loss = TokenLoss(model, smoothing)
    items = token_items(8)
    found = []
    for size in (8, 4, 1):
        parts = [loss(model, collate(items[start : start + size], 0))[0] for start in range(0, 8, size)]
        found.append(gradients(model, sum(parts[1:], parts[0])))
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            assert float((ours - theirs).norm()) <= 1e-9 * max(float(theirs.norm()), 1e-6)


def test_of_kind(tiny: Tiny) -> None:
    model = language_model(tiny, "gpt2")
    assert isinstance(objective("classification", model), ClassLoss)
    assert isinstance(objective("regression", model), NumberLoss)
    assert isinstance(objective("generation", model), TokenLoss)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("block", [7, 40, 1000])
def test_the_loss_in_blocks_is_the_loss(monkeypatch: pytest.MonkeyPatch, smoothing: float, block: int) -> None:
    """Blocks of less than a row, of some rows, of all."""
    monkeypatch.setattr("lorakit.objective.CPU_BLOCK", block)
    make = torch.Generator().manual_seed(0)
    logits = (torch.randn(13, 11, generator=make, dtype=torch.float64) * 4).requires_grad_()
    labels = torch.randint(11, (13,), generator=make)
    before = logits.detach().clone()
    other = before.clone().requires_grad_()
    loss = token_loss(logits, labels, smoothing)
    expected = F.cross_entropy(other, labels, reduction="sum", label_smoothing=smoothing)
    (loss / 3).backward()
    (expected / 3).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits.grad, other.grad, rtol=1e-11, atol=1e-13)
    assert torch.equal(logits.detach(), before)  # a soft cap before it needs them for its own gradient
    assert torch.equal(token_loss(logits.detach(), labels, smoothing), loss.detach())


def test_the_loss_in_16_bits_is_computed_in_32() -> None:
    logits = (torch.randn(64, 5000, generator=torch.Generator().manual_seed(0)) * 3).bfloat16().requires_grad_()
    labels = torch.arange(64)
    other = logits.detach().float().requires_grad_()
    loss = token_loss(logits, labels)
    expected = F.cross_entropy(other, labels, reduction="sum")
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert logits.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(logits.grad, other.grad.bfloat16(), rtol=2**-7, atol=1e-8)


def test_a_loss_is_gone_back_through_once() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = token_loss(logits, torch.tensor([0, 1]))
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="a second backward pass"):
        loss.backward()


def test_no_targets_are_no_loss() -> None:
    logits = torch.randn(0, 3, requires_grad=True)
    loss = token_loss(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0
