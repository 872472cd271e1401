import random
import re
from typing import Any

import pytest

from lorakit.report.blocks import Picture
from lorakit.sweep.axes import Axis, read_words
from lorakit.sweep.found import Row, Sweep
from lorakit.sweep.plots import pictures
from lorakit.sweep.points import draw, grid
from lorakit.sweep.prepare import Planned
from lorakit.sweep.table import grid_table, markdown_tables, points_table

RECIPE: Any = None
"""Nothing here looks at recipes."""
RANKS, TARGETS = "method.rank=1,2,4,8,64", "method.targets=[q],[q, v],[q, k, v, o]"


def made(
    *words: str, methods: tuple[str, ...] = (), count: int | None = None, metric: str = "pearson", failed: int = 0
) -> Sweep:
    """A sweep with made-up numbers; of the first points, all runs failed."""
    axes = read_words(words, count is not None)[1]
    if methods:
        axes.insert(0, Axis((), tuple((name,) for name in methods)))
    points = grid(axes) if count is None else draw(axes, count, 0)
    numbers = random.Random(0)
    rows = []
    for index, point in enumerate(points):
        mean = numbers.uniform(0.7, 0.9)
        planned = Planned(point, RECIPE, 1000 + index)
        if index < failed:
            rows.append(Row(planned, {}, None, (), ("seed 0: oh", "seed 1: no")))
        else:
            by_seed = {0: mean - 0.01, 1: mean + 0.01}
            rows.append(Row(planned, {metric: (mean, 0.01 * 2**0.5)}, 1.0, (3, 5), (), by_seed))
    return Sweep(axes, rows, [metric], "validation", 2, drawn=count is not None)


def texts(picture: Picture) -> dict[str, str]:
    """Text → its colour."""
    found = re.findall(r"<text ([^>]*)>([^<]*)</text>", picture.svg)
    colours = {text: re.search(r'fill: ([^;"]+)', style) for style, text in found}
    return {text: "#000000" if colour is None else colour[1] for text, colour in colours.items()}


def drawn(found: Sweep) -> dict[str, Picture]:
    return {picture.name: picture for picture in pictures(found)[0]}


def test_the_numbers_of_a_heatmap_are_the_means() -> None:
    found = made(RANKS, TARGETS, failed=1)
    assert set(drawn(found)) == {"curve", "heatmap"}
    written = texts(drawn(found)["heatmap"])
    for row in found.rows[1:]:
        assert written[f"{100 * row.metrics['pearson'][0]:.2f}"] in ("#000000", "#ffffff")
    assert {"pearson", "failed", "± 1.41", "q, k, v, o", "64", "rank", "targets"} <= set(written)
    best, worst = found.ranking()[0], found.ranking()[-1]
    assert written[found.value(best).split()[0]] == "#000000", "on yellow"
    assert written[found.value(worst).split()[0]] == "#ffffff", "on violet"
    assert "rank 1, targets q: failed; rank 1, targets q, v: " in drawn(found)["heatmap"].alt


def test_of_a_loss_less_is_brighter() -> None:
    found = made(RANKS, TARGETS, metric="loss")
    best, worst = found.ranking()[0], found.ranking()[-1]
    assert found.mean(best) < found.mean(worst)
    written = texts(drawn(found)["heatmap"])
    assert written[found.value(best).split()[0]] == "#000000"
    assert written[found.value(worst).split()[0]] == "#ffffff"


def test_a_line_for_every_method() -> None:
    found = made("task.limit.train+train.epochs=100+40,1000+20,10000+4", methods=("full", "lora", "prelayer"))
    curve = drawn(found)["curve"]
    written = texts(curve)
    assert {"full", "lora", "prelayer", "100", "1,000", "10,000", "pearson"} <= set(written)
    assert "limit.train, and with it epochs" in written
    values = ", ".join(f"{100 * found.mean(row):.4g}" for row in found.rows[3:6])
    assert f"lora {values}" in curve.alt


@pytest.mark.parametrize(
    ("words", "names", "note"),
    [
        (["train.lr=1e-5,1e-4,1e-3"], ["curve"], None),
        ([TARGETS], ["curve"], None),
        ([RANKS, "train.lr=1e-4,1e-3"], ["heatmap"], None),
        ([TARGETS, "train.schedule=linear,cosine"], ["heatmap"], None),
        ([RANKS, TARGETS, "train.lr=1e-4,1e-3"], ["heatmap"], None),
        ([RANKS, TARGETS, "train.lr=1,2,3", "method.alpha=1,2,3,4"], ["heatmap"], None),
        ([RANKS, TARGETS, "train.lr=1,2,3,4,5", "method.alpha=1,2,3,4,5"], [], "15 panels, more than 12"),
        (["train.lr=1,2", f"method.init={','.join('abcdefgh')}"], ["heatmap"], "more than 7 lines"),
    ],
)
def test_what_is_drawn(words: list[str], names: list[str], note: str | None) -> None:
    found, notes = pictures(made(*words))
    assert [picture.name for picture in found] == names
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]
    for picture in found:
        assert picture.png.startswith(b"\x89PNG")
        assert "mathdefault" not in picture.svg


def test_the_axes_of_a_curve_hold_its_points() -> None:
    curve = drawn(made("train.lr=1e-5,1e-4,1e-3", TARGETS))["curve"]
    percents = [float(text) for text in texts(curve) if re.fullmatch(r"[0-9]+(\.[0-9])?", text)]
    assert 60 < min(percents) < max(percents) < 100
    assert {"1e-05", "0.0001", "0.001"} <= set(texts(curve))


def test_a_panel_for_each_combination_of_the_other_axes() -> None:
    found = made(RANKS, TARGETS, "train.lr=1e-4,1e-3")
    written = texts(drawn(found)["heatmap"])
    assert {"lr 0.0001", "lr 0.001"} <= set(written)
    assert all(f"{100 * found.mean(row):.2f}" in written for row in found.rows)


def test_drawn_points_are_scattered_over_every_axis() -> None:
    found = made("train.lr=log(1e-5..1e-3)", "method.dropout=uniform(0..0.3)", TARGETS, count=12)
    (scatter,) = drawn(found).values()
    assert {"lr", "dropout", "targets", "0.0001", "q, k, v, o"} <= set(texts(scatter))
    assert f"12 points over lr, dropout, targets; ringed: {found.ranking()[0].title}" in scatter.alt


def test_nothing_to_draw() -> None:
    assert pictures(made("method.rank=1,2", failed=2)) == ([], [])


def test_tables() -> None:
    found = made(RANKS, TARGETS, failed=1)
    header, rows = grid_table(found)
    assert header == ["targets \\ rank", "1", "2", "4", "8", "64"]
    assert [row[0] for row in rows] == ["q", "q, v", "q, k, v, o"]
    assert rows[0][1] == "failed"
    assert rows[1][2] == found.value(found.rows[4])
    header, rows = points_table(found)
    assert header == ["rank", "targets", "trained", "pearson", "training", "best step"]
    assert rows[0] == ["1", "q", "1,000", "failed", "–", "–"]
    assert rows[4] == ["2", "q, v", "1,004", found.value(found.rows[4]), "1.0 s", "3 to 5"]
    for table in markdown_tables(found)[1:]:
        assert table.count("**") == 2
        assert f"**{found.value(found.ranking()[0])}**" in table


def verdict(*points: tuple[float, float | None, dict[int, float]], metric: str = "accuracy") -> str:
    axes = read_words([f"train.lr={','.join(str(index + 1) for index in range(len(points)))}"], random=False)[1]
    rows = [
        Row(Planned(point, RECIPE, 1), {metric: (mean, std)}, 1.0, (1,), (), by_seed)
        for point, (mean, std, by_seed) in zip(grid(axes), points, strict=False)
    ]
    return Sweep(axes, rows, [metric], "validation", 2).verdict()


def test_what_the_best_is_worth() -> None:
    clear = verdict((0.70, 0.01, {0: 0.69, 1: 0.71}), (0.80, 0.02, {0: 0.78, 1: 0.82}))
    assert clear == (
        "best: lr 2: accuracy 80.00 ± 2.00; second: lr 1: 70.00 ± 1.00; 10.00 apart, ahead with 2 of 2 seeds; "
        "more than the seeds' spread"
    )
    close = verdict(
        (0.80, 0.02, {0: 0.79, 1: 0.81}), (0.81, 0.02, {0: 0.83, 1: 0.79}), (0.795, 0.0, {}), (0.2, 0.0, {})
    )
    assert close.endswith(
        "1.00 apart, ahead with 1 of 2 seeds; no more than the seeds' spread: 2 other points are as near to the best"
    )
    assert verdict((0.8, None, {0: 0.8}), (0.7, None, {0: 0.7})).endswith("does not tell how much of that is chance")
    less = verdict((1.5, 0.1, {0: 1.5, 1: 1.5}), (1.2, 0.1, {0: 1.2, 1: 1.2}), metric="loss")
    assert less.startswith("best: lr 2: loss 1.2000 ± 0.1000; second: lr 1")
    assert "ahead with 2 of 2 seeds" in less
    nan = float("nan")
    assert verdict((nan, None, {}), (0.5, None, {0: 0.5})) == "best: lr 2: accuracy 50.00"
    assert verdict((nan, None, {}), (nan, None, {})) == "accuracy is undefined at every point"


def test_a_point_with_failed_runs_had_fewer_tries() -> None:
    found = made("method.rank=1,2")
    lucky = Row(found.rows[0].planned, {"pearson": (0.99, None)}, 1.0, (1,), ("seed 1: oh",))
    ranking = Sweep(found.axes, [lucky, found.rows[1]], ["pearson"], "validation", 2).ranking()
    assert [row.title for row in ranking] == ["rank 2", "rank 1"]
