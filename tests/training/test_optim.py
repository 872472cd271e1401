import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bare_models import bare_model
from torch import nn

from lorakit.arch import ARCHITECTURES
from lorakit.data.batches import step_rows
from lorakit.methods.lora import LoRA
from lorakit.schedule import Optimizer, Train, Warmup
from lorakit.surgery import release, trainable_parameters
from lorakit.training.optim import build_optimizer, is_b, parameter_groups, rate, total_steps, warmup_steps


def section(**values: Any) -> Train:
    return Train(**{"epochs": 2, "batch_size": 4, "lr": 0.1, "warmup": None, **values})


def rates(train: Train, warmup: int, total: int) -> list[float]:
    return [rate(train, step, warmup, total) for step in range(total)]


@pytest.mark.parametrize("warmup", [0, 1, 6, 20])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_are_those_of_transformers(schedule: str, warmup: int) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    expected = []
    for _ in range(20):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert rates(section(schedule=schedule), warmup, 20) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_linear_known_values() -> None:
    assert rates(section(), 2, 6) == pytest.approx([0, 0.05, 0.1, 0.075, 0.05, 0.025])


def test_cosine_known_values() -> None:
    assert rates(section(schedule="cosine"), 0, 4) == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], abs=1e-7)


def test_total_steps_count_the_smaller_last_step_of_each_epoch() -> None:
    assert total_steps(section(epochs=3), rows=10) == 9
    assert total_steps(section(epochs=3), rows=8) == 6
    assert total_steps(section(epochs=None, steps=7), rows=10) == 7


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [(None, 0), ({"steps": 5}, 5), ({"ratio": 0.06}, 2), ({"ratio": 0.0}, 0), ({"ratio": 1.0}, 20)],
)
def test_warmup_in_steps_and_ratio(warmup: dict[str, Any] | None, expected: int) -> None:
    train = section(warmup=Warmup(**warmup) if warmup else None)
    assert warmup_steps(train, np.full(10, 3), 20) == expected


def test_warmup_in_tokens_counts_the_rows_that_the_steps_see() -> None:
    lengths = np.array([1, 100, 10, 1000, 5, 50, 2, 20, 7, 70])
    train = section(warmup=Warmup(tokens=1200), epochs=5)
    reached, seen = None, 0
    for step in step_rows(train.seed, 10, 4, 15):
        seen += lengths[step.rows].sum()
        if seen >= 1200:
            reached = step.number
            break
    assert reached is not None
    assert warmup_steps(train, lengths, 15) == reached


def test_warmup_in_tokens_of_equal_rows_has_a_known_answer() -> None:
    lengths = np.full(8, 10)  # 40 tokens a step
    assert warmup_steps(section(warmup=Warmup(tokens=80)), lengths, 4) == 2
    assert warmup_steps(section(warmup=Warmup(tokens=81)), lengths, 4) == 3
    assert warmup_steps(section(warmup=Warmup(tokens=100_000)), lengths, 4) == 4


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2", "llama"])
def test_decay_groups_are_those_of_the_trainer(tiny: Callable[[str], Path], model_type: str) -> None:
    from transformers import AutoModelForSequenceClassification, Trainer

    model = AutoModelForSequenceClassification.from_pretrained(tiny(model_type))
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    matrices, vectors = parameter_groups(dict(model.named_parameters()), 0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in matrices["params"]} == decayed
    assert len(matrices["params"]) + len(vectors["params"]) == len(names)


def test_no_empty_group() -> None:
    (group,) = parameter_groups({"w": nn.Parameter(torch.zeros(2, 2))}, 0.1)
    assert group["weight_decay"] == 0.1


def test_optimizer_has_the_recipe_s_values() -> None:
    train = section(optimizer=Optimizer(betas=(0.8, 0.95), eps=1e-6), weight_decay=0.03)
    optimizer = build_optimizer(train, {"w": nn.Parameter(torch.zeros(2, 2))})
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.1, (0.8, 0.95), 1e-6, 0.03)


def test_first_step_of_adamw_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = build_optimizer(section(weight_decay=0.5), {"w": parameter})
    parameter.grad = torch.tensor([[3.0]])
    optimizer.step()
    # decoupled decay first, 2 - 0.1 * 0.5 * 2, then a full step of lr, whatever the gradient's size
    assert parameter.item() == pytest.approx(1.9 - 0.1, abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT calls the old name
def test_loraplus_groups_are_those_of_peft() -> None:
    """Which parameter learns at which rate with which decay."""
    import peft
    from peft.optimizers import create_loraplus_optimizer

    model = bare_model("bert")
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], bias="lora_only", modules_to_save=["classifier"])
    theirs: Any = peft.get_peft_model(copy.deepcopy(model), config)
    reference = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=0.1, loraplus_lr_ratio=16, loraplus_weight_decay=0.03
    )
    for parameter in model.classifier.parameters():
        release(parameter)
    LoRA(rank=2, targets=["q", "v"], bias="lora_only").apply(model, ARCHITECTURES["bert"], 0)
    named = trainable_parameters(model)
    ours = build_optimizer(section(optimizer=Optimizer(lr_b_ratio=16), weight_decay=0.03), named)

    def table(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, tuple[float, float]]:
        return {
            names[id(parameter)]: (pytest.approx(group["lr"]), group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    renamed = {"base_model.model.": "", ".modules_to_save.default.": ".", ".base_layer.": "."}
    renamed |= {".lora_": ".update.", ".default.weight": ""}
    their_names = {}
    for name, parameter in theirs.named_parameters():
        own = name
        for old, new in renamed.items():
            own = own.replace(old, new)
        their_names[id(parameter)] = own
    found = table(ours, {id(parameter): name for name, parameter in named.items()})
    assert found == table(reference, their_names)
    assert found["bert.encoder.layer.0.attention.self.query.update.B"] == (1.6, 0.03)
    assert found["bert.encoder.layer.0.attention.self.query.update.A"] == (0.1, 0.03)
    assert found["bert.encoder.layer.0.attention.self.query.bias"] == (1.6, 0.0)
    assert found["classifier.weight"] == (0.1, 0.03)


def test_without_loraplus_all_learn_at_one_rate() -> None:
    named = {"m.update.A": nn.Parameter(torch.zeros(2, 2)), "m.update.B": nn.Parameter(torch.zeros(2, 2))}
    (group,) = parameter_groups(named, 0.1)
    assert group["lr_ratio"] == 1.0
    slow, fast = parameter_groups(named, 0.1, 4.0)
    assert (slow["lr_ratio"], fast["lr_ratio"]) == (1.0, 4.0)
    assert fast["params"] == [named["m.update.B"]]


def test_a_head_called_b_is_no_pair() -> None:
    assert is_b("model.q.update.B")
    assert is_b("model.c_attn.update.q.B")
    assert not is_b("model.q.update.A")
    assert not is_b("head.B")
