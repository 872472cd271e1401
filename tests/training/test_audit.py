"""Audits: each finds what it is for, and is silent about sound runs."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import history, report, run, same_result, small_recipe
from torch import Tensor, nn

from lorakit.data.batches import StepRows
from lorakit.data.items import IGNORE, Encoded, Item
from lorakit.data.rows import ChatRow, CompletionRow, Message, Row, TextRow
from lorakit.errors import CheckpointError, DataError, LorakitError, ModelError
from lorakit.progress import Silent
from lorakit.splits import SplitData
from lorakit.training import audit, loop
from lorakit.training import run as run_module
from lorakit.training.audit import STEPS, TOO_MANY_SKIPPED, Watch, check_optimizer, check_rows, check_written
from lorakit.training.run import _watch
from lorakit.training.setup import set_up
from lorakit.training.state import REHEARSAL, newest_checkpoint

Tiny = Callable[[str], Path]
EOS = 9


class Tokenizer:
    eos_token_id = EOS


def split(labels: list[list[int] | int], rows: list[Row]) -> SplitData:
    """A training split of these labels."""
    items = [
        Item(np.zeros(len(one) if isinstance(one, list) else 3, dtype=np.int32), np.asarray(one), None, index)
        for index, one in enumerate(labels)
    ]
    return SplitData("train", rows, Encoded(items))


def completions(count: int) -> list[Row]:
    return [CompletionRow("a", "b")] * count


def test_rows_that_teach_something() -> None:
    check_rows(split([[IGNORE, 5, EOS], [IGNORE, IGNORE, EOS]], completions(2)), Tokenizer())
    check_rows(split([0, 1], [TextRow("a", label=0), TextRow("b", label=1)]), Tokenizer())


def test_rows_with_nothing_to_learn_are_named() -> None:
    empty = [IGNORE, IGNORE, IGNORE]
    with pytest.raises(DataError, match=r"^train: row 2: nothing to learn: no token is left"):
        check_rows(split([[IGNORE, 5, EOS], empty], completions(2)), Tokenizer())
    with pytest.raises(DataError, match=r"^train: rows 1, 2, 3 and 2 more: nothing to learn"):
        check_rows(split([empty] * 5, completions(5)), Tokenizer())
    first_only = [5, IGNORE, IGNORE]  # nothing stands before the first token that could predict it
    with pytest.raises(DataError, match="row 1: nothing to learn"):
        check_rows(split([first_only], completions(1)), Tokenizer())
    silent = ChatRow((Message(role="user", content="hello"),))
    with pytest.raises(DataError, match="the assistant says nothing"):
        check_rows(split([empty], [silent]), Tokenizer())
    with pytest.raises(DataError, match="row 2: nothing to learn: it has no label"):
        check_rows(split([0, IGNORE], [TextRow("a", label=0), TextRow("b")]), Tokenizer())


def test_an_end_that_is_not_learned_is_named() -> None:
    with pytest.raises(DataError, match=r"^train: row 2: the end of the text is not learned"):
        check_rows(split([[IGNORE, 5, EOS], [IGNORE, EOS, 5]], completions(2)), Tokenizer())


def test_the_rows_are_audited_in_every_run(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorakit.data import encode

    monkeypatch.setattr(encode, "_eos", lambda tokenizer: 5)  # as long as rows are encoded
    monkeypatch.setattr(audit, "end_ids", lambda row, tokenizer: [tokenizer.eos_token_id])
    with pytest.raises(DataError, match="train: rows 1, 2, 3 and 17 more: the end of the text is not learned"):
        set_up(small_recipe(tmp_path, tiny("gpt2"), "completion"), tmp_path / "run", Silent())


def test_every_target_must_match(tmp_path: Path, tiny: Tiny) -> None:
    for targets, named in ((["q", "*.nonesuch"], "nonesuch"), (["*.nonesuch", "q"], "nonesuch")):
        with pytest.raises(LorakitError, match=named):
            set_up(small_recipe(tmp_path, tiny("bert"), method={"targets": targets}), tmp_path / "run", Silent())


class Pair(nn.Module):
    """y = w x + b + frozen x, and a tensor that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
        self.idle = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x + self.b + self.frozen * x).pow(2).sum()


def test_the_optimiser_has_each_trained_tensor_once() -> None:
    model = Pair()
    everything = [model.w, model.b, model.idle]
    check_optimizer(model, torch.optim.AdamW([{"params": everything[:1]}, {"params": everything[1:]}]))
    with pytest.raises(LorakitError, match="^idle is not in the optimiser"):
        check_optimizer(model, torch.optim.AdamW(everything[:2]))
    with pytest.raises(LorakitError, match="^frozen is in the optimiser"):
        check_optimizer(model, torch.optim.AdamW([*everything, model.frozen]))
    with pytest.raises(LorakitError, match="a tensor that the model does not have"):
        check_optimizer(model, torch.optim.AdamW([*everything, nn.Parameter(torch.ones(1))]))
    twice = torch.optim.SGD(everything)
    twice.param_groups.append({**twice.param_groups[0], "params": [model.b]})
    with pytest.raises(LorakitError, match="^b is more than once"):
        check_optimizer(model, twice)


def watched(
    model: Pair,
    *,
    added: tuple[str, ...] = ("w", "b"),
    of_base: tuple[str, ...] = (),
    lr: float = 0.1,
    x: float = 1.0,
    meddle: Callable[[Pair], None] | None = None,
    parameters: list[nn.Parameter] | None = None,
) -> list[str]:
    """Steps until the watch has judged; returns its warnings."""
    said: list[str] = []
    watch = Watch(model, added, of_base, said.append)
    optimizer = torch.optim.AdamW(parameters or [p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(STEPS + 2):
        model(torch.full((3,), x)).backward()  # type: ignore[no-untyped-call]
        if meddle is not None:
            meddle(model)
        watch.before()
        optimizer.step()
        watch.after()
        optimizer.zero_grad()
    return said


def without_idle() -> Pair:
    model = Pair()
    del model.idle
    return model


def test_a_sound_model_is_passed_in_silence() -> None:
    assert watched(without_idle()) == []


def test_a_tensor_that_takes_no_part() -> None:
    with pytest.raises(LorakitError, match=rf"^idle took no part in the loss in the first {STEPS} steps"):
        watched(Pair(), added=("w", "b", "idle"))
    with pytest.raises(LorakitError, match="^idle took no part"):  # the head's: neither
        watched(Pair())
    assert watched(Pair(), of_base=("idle",)) == [f"warning: no gradient in the first {STEPS} steps: idle"]


def test_a_gradient_of_zero() -> None:
    assert watched(without_idle(), x=0.0, meddle=lambda m: nn.init.ones_(m.b)) == [
        f"warning: no gradient in the first {STEPS} steps: w"
    ]
    with pytest.raises(LorakitError, match="all gradients of the method's tensors were zero"):
        watched(without_idle(), x=0.0, added=("w",), meddle=lambda m: nn.init.ones_(m.b))


def test_nothing_moves() -> None:
    model = without_idle()
    nn.init.ones_(model.b)
    with pytest.raises(LorakitError, match="none of the 2 trained tensors moved in 5 steps: train.lr is so small"):
        watched(model, lr=1e-30)
    with pytest.raises(LorakitError, match="none of the 2 trained tensors moved .* got no gradient"):
        watched(without_idle(), x=0.0)


def test_a_tensor_that_does_not_move_is_a_warning() -> None:
    model = without_idle()
    assert watched(model, parameters=[model.b]) == [
        f"warning: not moved in the first {STEPS} steps, the rate being so small: w"
    ]


def test_a_frozen_tensor_that_is_written_to() -> None:
    def write(model: Pair) -> None:
        with torch.no_grad():
            model.frozen.add_(1)

    with pytest.raises(LorakitError, match="^frozen is frozen, and was changed"):
        watched(without_idle(), meddle=write)

    def give(model: Pair) -> None:
        model.frozen.grad = torch.ones(3)

    with pytest.raises(LorakitError, match="^frozen is frozen, and got a gradient"):
        watched(without_idle(), meddle=give)


METHODS: list[dict[str, Any]] = [
    {"name": "lora"},
    {"name": "lora", "dora": True},
    {"name": "lora", "init": "pissa"},
    {"name": "full", "rank": "absent", "alpha": "absent"},
    {"name": "bitfit", "rank": "absent", "alpha": "absent"},
    {"name": "prefix_kv", "prefix": 2, "hidden": 8, "rank": "absent", "alpha": "absent"},
    {"name": "adapter", "bottleneck": 8, "rank": "absent", "alpha": "absent"},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(str(v) for v in method.values()))
@pytest.mark.parametrize(("base", "kind"), [("bert", "classification"), ("gpt2", "completion")])
def test_sound_runs_pass(
    tmp_path: Path, tiny: Tiny, method: dict[str, Any], base: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor is judged, with nothing to say; and a full comparison agrees with the cheap one."""
    prepared = set_up(small_recipe(tmp_path, tiny(base), kind, method=method), tmp_path / "run", Silent())
    said: list[str] = []
    monkeypatch.setattr(prepared.progress, "say", said.append, raising=False)
    before = {name: p.detach().clone() for name, p in prepared.prepared.model.named_parameters()}
    watch = prepared.trainee.watch = _watch(prepared)
    rows = [StepRows(n + 1, 0, False, np.arange(8)) for n in range(STEPS)]
    prepared.trainee.model.train()
    list(loop.optimise(prepared.trainee, prepared.train.encoded, rows, prepared.recipe.train, [0.01] * STEPS))
    assert watch._left == 0
    assert said == []
    for name, parameter in prepared.prepared.model.named_parameters():
        assert torch.equal(before[name], parameter) != parameter.requires_grad, name


def test_the_watch_waits_for_a_rate(tmp_path: Path, tiny: Tiny) -> None:
    prepared = set_up(small_recipe(tmp_path, tiny("bert")), tmp_path / "run", Silent())
    watch = prepared.trainee.watch = _watch(prepared)
    rows = [StepRows(n + 1, 0, False, np.arange(8)) for n in range(3)]
    list(loop.optimise(prepared.trainee, prepared.train.encoded, rows, prepared.recipe.train, [0.0, 0.0, 0.01]))
    assert watch._left == STEPS - 1


def test_what_was_written_is_compared(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor(3, dtype=torch.int64)}
    file = tmp_path / "x.safetensors"
    save_file(tensors, file)
    check_written(file, tensors)
    for other in (
        {**tensors, "a": torch.tensor([1.0, 2.0])},
        {**tensors, "a": torch.tensor([1.0, float("nan")], dtype=torch.float64)},
        {**tensors, "a": torch.tensor([[1.0, float("nan")]])},
        {"b": tensors["b"]},
        {**tensors, "c": tensors["a"]},
    ):
        with pytest.raises(CheckpointError, match=r"x.safetensors: [ac], read back, is not what was written"):
            check_written(file, other)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cannot be read back"):
        check_written(file, tensors)


@pytest.mark.parametrize("what", ["optimizer.safetensors", "adapter.safetensors"])
def test_a_save_that_went_wrong_ends_the_run_and_is_not_left(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from lorakit.training import state

    def flips(file: Path, tensors: Any) -> None:
        if file.name == what and REHEARSAL not in file.parts:  # the rehearsal's save comes before
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
        check_written(file, tensors)

    monkeypatch.setattr(state, "check_written", flips)
    with pytest.raises(CheckpointError, match=f"{what}: .*read back, is not what was written"):
        run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def bad_steps(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool]) -> None:
    """Let the loss of some steps be no number."""
    real = loop._gradient_with_room

    def spoiled(trainee: Any, data: Any, rows: StepRows, *rest: Any) -> float:
        loss = real(trainee, data, rows, *rest)
        return math.nan if bad(rows.number) else loss

    monkeypatch.setattr(loop, "_gradient_with_room", spoiled)


def test_skipped_steps_are_counted_and_told(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_steps(monkeypatch, lambda step: step in (2, 3))
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    assert report(tmp_path / "run")["skipped_steps"] == 2
    assert "| skipped steps | 2, whose loss" in (tmp_path / "run/report.md").read_text()
    lines = history(tmp_path / "run", "skip")
    assert [line["step"] for line in lines] == [2, 3]
    assert all(1 <= row <= 20 for line in lines for row in line["rows"])
    assert [len(line["rows"]) for line in lines] == [8, 4]
    assert [line["loss"] is None for line in history(tmp_path / "run", "log")] == [False, True, True] + [False] * 3


class Died(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("died", [1, 4, 5, 8])
def test_skipped_steps_resume_exactly(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, died: int) -> None:
    bad_steps(monkeypatch, lambda step: step in (1, 4, 5, 8))
    wet: dict[str, Any] = {"method": {"dropout": 0.1}, "train": {"epochs": 3, "save_every": 1}}
    recipe = small_recipe(tmp_path, tiny("bert"), **wet)
    run(recipe, tmp_path / "whole")

    def dying(*args: Any) -> Any:
        for step in loop.optimise(*args):
            yield step
            if step.number == died:
                raise Died

    monkeypatch.setattr(run_module, "optimise", dying)
    with pytest.raises(Died):
        run(recipe, tmp_path / "run")
    monkeypatch.setattr(run_module, "optimise", loop.optimise)
    run(recipe, tmp_path / "run", resume=True)
    same_result(tmp_path / "whole", tmp_path / "run")
    assert report(tmp_path / "run")["skipped_steps"] == 4


def test_too_many_skipped_steps_end_the_run(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_steps(monkeypatch, lambda step: step == 2 or step > 7)
    train = {"epochs": 20, "save_every": 10, "eval_every": 100}
    recipe = small_recipe(tmp_path, tiny("bert"), train=train)
    with pytest.raises(LorakitError) as raised:
        run(recipe, tmp_path / "run")
    stopped = 7 + TOO_MANY_SKIPPED
    message = str(raised.value)
    assert message.startswith(f"step {stopped}: the loss is nan, and {TOO_MANY_SKIPPED} steps in a row")
    found = newest_checkpoint(tmp_path / "run")
    assert found is not None
    assert f"What is good so far (for eval and merge, with --checkpoint): {found[0].name}. " in message
    assert found[1].skipped_in_a_row == found[1].step - 7 > 0
    assert all(torch.isfinite(tensor).all() for tensor in found[2].values())
    (last,) = [line for line in history(tmp_path / "run", "skip") if line["step"] == stopped]
    assert f"rows {', '.join(map(str, last['rows'][:3]))}" in message
    with pytest.raises(LorakitError, match=f"step {stopped}: .* {TOO_MANY_SKIPPED} steps in a row"):
        run(recipe, tmp_path / "run", resume=True)  # counts go on where the checkpoint was


def test_a_tokenizer_of_another_model_is_an_error(tmp_path: Path, tiny: Tiny) -> None:
    """Its ids lie beyond the embedding: on a GPU that would end in "device-side assert triggered"."""
    base = shutil.copytree(tiny("bert"), tmp_path / "base")
    file = base / "tokenizer.json"
    fields = json.loads(file.read_text())
    fields["model"]["vocab"]["z"] = 99_999
    file.write_text(json.dumps(fields))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "z", "label": "x"}) + "\n" + json.dumps({"text": "z", "label": "y"}) + "\n")
    recipe = small_recipe(tmp_path / "recipe", base, task={"train": str(rows), "validation": str(rows)})
    with pytest.raises(ModelError, match="its tokenizer gives 'z' the id 99999, and its embedding has"):
        run(recipe, tmp_path / "run")
