import re

import pytest

from lorakit.errors import RecipeError
from lorakit.sweep.axes import Axis, read_words
from lorakit.sweep.points import Point, draw, grid


def points(*words: str, methods: tuple[str, ...] = ()) -> list[Point]:
    axes = read_words(words, random=False)[1]
    if methods:
        axes.insert(0, Axis((), tuple((name,) for name in methods)))
    return grid(axes)


def drawn(*words: str, count: int, seed: int = 0) -> list[Point]:
    return draw(read_words(words, random=True)[1], count, seed)


def test_every_combination_the_last_axis_fastest() -> None:
    found = points("method.rank=1,2", "method.targets=[q],[q, v]", methods=("lora", "dora"))
    assert len(found) == 8
    assert [point.title for point in found[:3]] == [
        "method lora, rank 1, targets q",
        "method lora, rank 1, targets q, v",
        "method lora, rank 2, targets q",
    ]
    assert found[1].method == "lora"
    assert found[1].overrides == ["method.rank=1", 'method.targets=["q", "v"]']
    assert found[1].label == "lora_rank-1_targets-q-v"
    assert found[1].places == (0, 0, 1)


def test_labels_stay_when_values_are_added() -> None:
    few = {point.label for point in points("method.rank=1,8", "method.targets=[q],[q,v]", "train.lr=1e-4,3e-4")}
    more = {
        point.label for point in points("method.rank=4,8,1", "method.targets=[q,v],[v],[q]", "train.lr=1,0.0003,1e-4")
    }
    assert few < more
    assert "rank-8_targets-q-v_lr-0.0001" in few


AWKWARD = [
    "a/b",
    "a.b",
    "a-b",
    "[a, b]",
    "[a-b]",
    "{a: 1}",
    "{a: 2}",
    "ü",
    "'1'",
    "1",
    "1.5",
    "null",
    "false",
    "'false'",
    "''",
    "[]",
    "-1",
]
LONG = [f"[{', '.join(f'model.layers.{layer}.attention.q' for layer in range(6))}, x{index}]" for index in range(3)]


def test_labels_are_names_of_files_and_differ() -> None:
    found = [point.label for point in points(f"task.x={','.join([*AWKWARD, *LONG])}", "train.lr=1e-5,2e-5")]
    assert len({label.lower() for label in found}) == len(found)
    for label in found:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,63}", label), label


def test_linked_keys_have_readable_labels() -> None:
    (first, _) = points("task.limit.train+train.epochs=100+40,1000+4")
    assert first.label == "limit-train-100_epochs-40"
    assert first.title == "limit.train + epochs 100 + 40"


RANGES = ("train.lr=log(1e-5..1e-3)", "method.dropout=uniform(0..0.3)", "method.rank=1,2,4,8")


def test_draws_are_the_same_again_and_a_longer_sweep_keeps_them() -> None:
    twenty = drawn(*RANGES, count=20)
    assert twenty == drawn(*RANGES, count=20)
    assert drawn(*RANGES, count=50)[:20] == twenty
    assert drawn(*RANGES, count=20, seed=1) != twenty
    assert len({point.label for point in drawn(*RANGES, count=50)}) == 50
    for point in twenty:
        (lr,), (dropout,), (rank,) = point.values
        assert isinstance(lr, float) and 1e-5 <= lr <= 1e-3
        assert isinstance(dropout, float) and 0 <= dropout <= 0.3
        assert rank in (1, 2, 4, 8)


def test_a_log_range_is_even_in_its_factors() -> None:
    rates = [float(str(point.values[0][0])) for point in drawn("train.lr=log(1e-5..1e-3)", count=400)]
    assert 150 < sum(rate < 1e-4 for rate in rates) < 250


def test_all_points_of_a_grid_can_be_drawn_and_no_more() -> None:
    words = ("method.rank=1,2,4,8", "method.targets=[q],[v]")
    assert {p.label for p in drawn(*words, count=8)} == {p.label for p in points(*words)}
    with pytest.raises(RecipeError, match="these axes make 8 points"):
        drawn(*words, count=9)
    with pytest.raises(RecipeError, match="these axes make 6 points"):
        drawn("method.rank=uniform(1..3)", "train.lr=1,2", count=7)
    with pytest.raises(RecipeError, match="only 2 different points"):
        drawn("train.lr=uniform(1.0..1.001)", count=3)


def test_too_many_points_are_a_slip() -> None:
    many = ",".join(map(str, range(101)))
    with pytest.raises(RecipeError, match=r"10,201 points; draw some of them with --random"):
        points(f"method.rank={many}", f"method.alpha={many}")
    with pytest.raises(RecipeError, match="at most 10,000"):
        drawn("train.lr=uniform(0..0.5)", count=10_001)
