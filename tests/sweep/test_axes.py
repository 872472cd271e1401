import pytest

from lorakit.errors import RecipeError
from lorakit.sweep.axes import Axis, Range, read_words, said, titles


def axes_of(*words: str, random: bool = False) -> list[Axis]:
    return read_words(words, random)[1]


def test_axes_are_told_from_values_for_all() -> None:
    fixed, axes = read_words(
        [
            "method.rank=1,2,64", "train.epochs=2", "method.targets=[q],[q, v],all-linear",
            "task.limit={train: 5, test: 5}", 'task.template="a, b"', "train.lr=1e-4,3e-4",
            "generate.stop=['x'],['a,b', \"]\"]", "train.warmup=null,{ratio: 0.1}",
        ],
        random=False,
    )  # fmt: skip
    assert fixed == ["train.epochs=2", "task.limit={train: 5, test: 5}", 'task.template="a, b"']
    assert [(axis.name, [value[0] for value in axis.values]) for axis in axes] == [
        ("method.rank", [1, 2, 64]),
        ("method.targets", [["q"], ["q", "v"], "all-linear"]),
        ("train.lr", [1e-4, 3e-4]),
        ("generate.stop", [["x"], ["a,b", "]"]]),
        ("train.warmup", [None, {"ratio": 0.1}]),
    ]
    assert [axis.number for axis in axes] == [True, False, True, False, False]
    assert titles(axes) == ["rank", "targets", "lr", "stop", "warmup"]
    assert [said(value) for value in axes[1].values] == ["q", "q, v", "all-linear"]


def test_linked_keys_vary_together() -> None:
    (table_17,) = axes_of("task.limit.train+train.batch_size+train.epochs=100+20+40,1000+20+40,10000+100+4")
    assert table_17.keys == ("task.limit.train", "train.batch_size", "train.epochs")
    assert table_17.values == ((100, 20, 40), (1000, 20, 40), (10000, 100, 4))
    assert table_17.number
    assert titles([table_17]) == ["limit.train + batch_size + epochs"]
    (powers,) = axes_of("train.lr+method.targets=1e+5+[q],1E-5+[q, v]")
    assert powers.values == ((1e5, ["q"]), (1e-5, ["q", "v"]))
    (same,) = axes_of("method.targets+method.rank=[q]+8,[v]+8")
    assert not same.number


def test_titles_that_would_be_alike_are_told_in_full() -> None:
    axes = axes_of("method.0.rank=1,2", "task.seed=1,2", "generate.seed=1,2")
    assert titles(axes) == ["0.rank", "task.seed", "generate.seed"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("method.rank=1,1", "method.rank: 1 is given twice; keep one"),
        ("train.lr=1e-4,0.0001", "train.lr: 0.0001 is given twice; keep one"),
        ("method.rank=1,,2", "method.rank: an empty value; write null where that is meant"),
        ("method.rank=1,", "method.rank: an empty value; write null where that is meant"),
        ("method.targets=[q],[v", "command line: method.targets: not YAML"),
        ("method.rank+method.alpha=4+8", "method.rank+method.alpha: one value is no axis"),
        ("method.rank+method.alpha=4+8,8", '2 keys are linked, and "8" has 1 values for them'),
        ("method.rank+method.alpha=4+8,8+16+32", '2 keys are linked, and "8+16+32" has 3 values'),
        ("method.rank+method.alpha=4+8,+16", "an empty value"),
        ("train.lr=log(1e-5..1e-3)", "is a range; --random N draws from it"),
        ("train.seed=1,2", "train.seed: the seeds are no axis; --seeds N"),
        ("methods.full.lr=1e-4,1e-5", "methods.full.lr: the map is read by --methods"),
        ("paper.value=1,2", "paper.value: it changes nothing that is trained"),
        ("method.rank+method.rank=1+2,3+4", "method.rank: given twice; keep one"),
    ],
)
def test_what_is_no_axis(word: str, expected: str) -> None:
    with pytest.raises(RecipeError) as raised:
        axes_of(word)
    assert any(expected in problem for problem in raised.value.problems), raised.value.problems


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.lr=log(0..1)", "a logarithmic range begins above 0"),
        ("train.lr=log(1..1)", "is no range"),
        ("train.lr=uniform(2..1)", "is no range"),
        ("train.lr=uniform(a..1)", "is no range"),
        ("train.lr=uniform(true..2)", "is no range"),
        ("train.lr=log(1e-5..1e-3),1e-2", "a range stands alone"),
        ("train.lr+method.rank=log(1e-5..1e-3)", "a range stands alone"),
    ],
)
def test_what_is_no_range(word: str, expected: str) -> None:
    with pytest.raises(RecipeError, match="train.lr") as raised:
        axes_of(word, random=True)
    assert expected in raised.value.problems[0]


def test_all_problems_at_once_and_keys_that_clash() -> None:
    words = [
        "method.rank=1,1",
        "train.lr=1,",
        "task.limit=null,{train: 5}",
        "task.limit.train=5,6",
        "train.wd=1,2",
        "train.wd=3",
    ]
    with pytest.raises(RecipeError) as raised:
        axes_of(*words)
    told = "\n".join(raised.value.problems)
    for expected in (
        "method.rank: 1 is",
        "train.lr: an empty",
        "task.limit.train: clashes with task.limit",
        "train.wd: given twice",
    ):
        assert expected in told


def test_a_value_for_all_may_hold_the_key_of_an_axis() -> None:
    fixed, axes = read_words(["task.limit={train: 100, validation: 50}", "task.limit.train=10,20"], random=False)
    assert len(fixed) == len(axes) == 1


def test_ranges() -> None:
    lr, dropout, rank, some = axes_of(
        "train.lr=log(1e-5..1e-3)",
        "method.dropout=uniform(0..0.3)",
        "method.rank=log(1..64)",
        "method.alpha=8,16",
        random=True,
    )
    assert lr.range == Range(1e-5, 1e-3, log=True, whole=False)
    assert (lr.count, dropout.count, rank.count, some.count) == (None, None, 64, 2)
    assert lr.at(0.0)[0] == 1e-5
    assert lr.at(0.5)[0] == pytest.approx(1e-4)
    assert dropout.at(0.5)[0] == 0.15
    assert dropout.at(1 / 3)[0] == 0.1
    assert {type(rank.at(share / 100)[0]) for share in range(100)} == {int}
    assert {rank.at(share / 1000)[0] for share in range(1000)} >= {1, 2, 3, 63, 64}
    assert rank.at(0.9999999)[0] == 64
    assert [some.at(share)[0] for share in (0.0, 0.49, 0.5, 0.999)] == [8, 8, 16, 16]
