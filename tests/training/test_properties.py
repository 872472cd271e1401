"""What holds for any rows, any limit and any number of devices: order, micro-batches, and what a step's gradient is."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorakit.data.batches import Limit, epoch_order, micro_batches, step_rows, steps_per_epoch
from lorakit.data.collate import collate
from lorakit.data.items import IGNORE, Encoded, Item
from lorakit.objective import TokenLoss
from lorakit.schedule import Train
from lorakit.training import loop
from lorakit.training.loop import Trainee, optimise

FEW = settings(max_examples=60, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)


@FEW
@given(
    seed=SEEDS, count=st.integers(1, 200), batch=st.integers(1, 60), epochs=st.integers(1, 4), done=st.integers(0, 99)
)
def test_order(seed: int, count: int, batch: int, epochs: int, done: int) -> None:
    """Each epoch a permutation; a function of (seed, epoch), whatever was drawn, and done, before."""
    per_epoch = steps_per_epoch(count, batch)
    total = per_epoch * epochs
    whole = [step.rows.tolist() for step in step_rows(seed, count, batch, total)]
    np.random.seed(done)  # noqa: NPY002
    torch.manual_seed(done)
    for epoch in range(epochs):
        mine = [row for rows in whole[epoch * per_epoch : (epoch + 1) * per_epoch] for row in rows]
        assert sorted(mine) == list(range(count))
        assert mine == epoch_order(seed, epoch, count).tolist()
    rest = [step.rows.tolist() for step in step_rows(seed, count, batch, total, done)]
    assert rest == whole[done:]
    longer = [step.rows.tolist() for step in step_rows(seed, count, batch, total + per_epoch)]
    assert longer[:total] == whole, "more epochs do not change those before"


def test_other_seeds_and_epochs_have_other_orders() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@FEW
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    limit=st.builds(Limit, st.none() | st.integers(1, 16), st.none() | st.integers(1, 900)),
    world=st.integers(1, 8),
)
def test_micro_batches(lengths: list[int], limit: Limit, world: int) -> None:
    """Each row once, no limit broken, and every device in step with the others."""
    plans = micro_batches(range(len(lengths)), np.array(lengths), limit, world)
    assert sorted(row for plan in plans for group in plan for row in group) == list(range(len(lengths)))
    assert len(plans) == world
    assert len({len(plan) for plan in plans}) == 1
    for group in (group for plan in plans for group in plan if len(group) > 1):
        assert limit.rows is None or len(group) <= limit.rows
        assert limit.tokens is None or len(group) * max(lengths[row] for row in group) <= limit.tokens


@FEW
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60), rows=st.integers(2, 16), world=st.integers(1, 4))
def test_halving_the_limit_loses_no_row(lengths: list[int], rows: int, world: int) -> None:
    for size in (rows, rows // 2):
        plans = micro_batches(range(len(lengths)), np.array(lengths), Limit(rows=size), world)
        assert sorted(row for plan in plans for group in plan for row in group) == list(range(len(lengths)))
        assert max(len(group) for plan in plans for group in plan) <= size


class Tiny(torch.nn.Module):
    """A causal model of one layer, in float64: each position sees those before it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed, self.head = torch.nn.Embedding(50, 12), torch.nn.Linear(12, 50, bias=False)
        self.mix = torch.nn.Linear(12, 12)
        self.to(torch.float64)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, generator=generator)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> Any:
        hidden = self.embed(input_ids) * attention_mask[..., None]
        hidden = torch.tanh(self.mix(hidden.cumsum(1)))
        return type("Output", (), {"logits": self.head(hidden)})


class Alone:
    """What the loop uses of Accelerate, for one device of `size`: nothing is exchanged."""

    scaler = None
    device = torch.device("cpu")

    def __init__(self, rank: int, size: int) -> None:
        self.process_index, self.num_processes = rank, size

    def no_sync(self, model: Any) -> Any:
        return torch.enable_grad()

    def autocast(self) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def reduce(self, total: Tensor, reduction: str) -> Tensor:
        return total

    def clip_grad_norm_(self, parameters: Any, limit: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)


@st.composite
def masked_rows(draw: st.DrawFn) -> list[Item]:
    """Eight rows of random lengths, each with targets at random positions, at least one."""
    items = []
    for row in range(8):
        rng = np.random.default_rng(draw(SEEDS))
        length = draw(st.integers(2, 40))
        ids = rng.integers(2, 50, length).astype(np.int32)
        labels = np.where(rng.random(length) < draw(st.floats(0, 1)), ids, IGNORE).astype(np.int64)
        labels[0], labels[-1] = IGNORE, ids[-1]
        items.append(Item(ids, labels, None, row))
    return items


def gradient(items: list[Item], limit: Limit, world: int = 1) -> tuple[float, Tensor]:
    """The loss and the flat gradient of a step over all rows, as the loop makes it; of devices, DDP's mean."""
    data, losses, gradients = Encoded(items), [], []
    for rank in range(world):
        model = Tiny().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        trainee = Trainee(Alone(rank, world), model, optimizer, TokenLoss(model), list(model.parameters()), 0, limit)
        plan = micro_batches(range(8), data.lengths, limit, world)[rank]
        losses.append(loop._accumulate(trainee, data, plan, int(data.targets.sum()), stand_in=0))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return sum(losses), torch.stack(gradients).mean(0)


def close(one: tuple[float, Tensor], other: tuple[float, Tensor]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-6)  # summed in float32 where it is logged
    assert float((one[1] - other[1]).norm()) <= 1e-6 * float(other[1].norm())


@settings(max_examples=10, deadline=None, derandomize=True)
@given(masked_rows())
def test_the_gradient_is_that_of_the_mean_over_all_targets(items: list[Item]) -> None:
    """1 x 8, 8 x 1, 2 x 4, by tokens, and over 2, 3 and 4 devices: the same, and what autograd makes of the mean."""
    whole = gradient(items, Limit(rows=8))
    model = Tiny().train()
    batch = collate(items, 0)
    logits = model(**batch.inputs).logits[:, :-1].reshape(-1, 50)
    mean = torch.nn.functional.cross_entropy(logits, batch.labels[:, 1:].reshape(-1), ignore_index=IGNORE)
    mean.backward()
    close(
        whole, (float(mean.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    )
    assert float(whole[1].norm()) > 1e-3
    for limit in (Limit(rows=1), Limit(rows=4), Limit(rows=3), Limit(tokens=60)):
        close(gradient(items, limit), whole)
    for world in (2, 3, 4):
        close(gradient(items, Limit(rows=2), world), whole)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(masked_rows(), st.integers(1, 7))
def test_memory_that_runs_out_does_not_change_the_gradient(items: list[Item], fits: int) -> None:
    """However often a step is done again, with smaller micro-batches, it makes the update of one that fitted."""
    updated = []
    train = Train(epochs=1, batch_size=8, lr=0.1, max_grad_norm=None)
    for most in (8, fits):
        model, tried = Tiny().train(), list[int]()

        def loss(of: Any, batch: Any, most: int = most, tried: list[int] = tried, model: Any = model) -> Any:
            tried.append(len(batch.labels))
            found = TokenLoss(of)(of, batch)
            model.head._forward_pre_hooks.clear()
            if len(batch.labels) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return found

        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_ratio": 1.0}], lr=0.1)
        trainee = Trainee(Alone(0, 1), model, optimizer, loss, list(model.parameters()), 0, Limit(rows=8))  # type: ignore[arg-type]
        (step,) = optimise(trainee, Encoded(items), step_rows(0, 8, 8, 1), train, [0.1])
        assert max(tried) == 8
        assert trainee.limit.rows is not None
        assert trainee.limit.rows <= most
        updated.append((step.loss, torch.cat([p.detach().flatten() for p in model.parameters()])))
    close(updated[1], updated[0])
