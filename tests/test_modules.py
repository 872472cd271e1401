from collections.abc import Callable
from pathlib import Path

from small_runs import small_recipe

from lorakit.modules import module_rows, parameter_groups
from lorakit.outline import outline

Tiny = Callable[[str], Path]


def test_every_parameter_stands_in_one_row(tiny: Tiny, tmp_path: Path) -> None:
    for model_type, kind in (("bert", "classification"), ("gpt2", "completion"), ("llama", "completion")):
        made = outline(small_recipe(tmp_path, tiny(model_type), kind), False)
        rows = module_rows(made.model, made.coverage)
        assert len({row.path for row in rows}) == len(rows)
        assert sum(row.frozen + row.trained for row in rows) == sum(p.numel() for p in made.model.parameters())
        assert sum(row.trained for row in rows) == sum(p.numel() for p in made.model.parameters() if p.requires_grad)


def test_what_is_adapted_and_what_stays_frozen(tiny: Tiny, tmp_path: Path) -> None:
    made = outline(small_recipe(tmp_path, tiny("bert")), False)
    rows = {row.path: row for row in module_rows(made.model, made.coverage)}
    query = rows["bert.encoder.layer.*.attention.self.query"]
    assert (query.kind, query.count, query.adapted, query.by) == ("Linear", 2, 2, ("q",))
    assert (query.frozen, query.trained) == (2 * (64 * 64 + 64), 2 * 2 * (64 + 64))
    key = rows["bert.encoder.layer.*.attention.self.key"]
    assert (key.adapted, key.by, key.trained) == (0, (), 0)
    assert rows["classifier"].frozen == 0


def test_a_target_may_match_some_of_the_blocks(tiny: Tiny, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), method={"targets": ["*.layer.1.attention.self.query", "v"]})
    made = outline(recipe, False)
    rows = {row.path: row for row in module_rows(made.model, made.coverage)}
    query = rows["bert.encoder.layer.*.attention.self.query"]
    assert (query.count, query.adapted, query.by) == (2, 1, ("*.layer.1.attention.self.query",))


def test_groups(tiny: Tiny, tmp_path: Path) -> None:
    made = outline(small_recipe(tmp_path, tiny("bert")), False)
    found = parameter_groups(made.model, made.row.head)
    assert found["method"] == 2 * 2 * 2 * (64 + 64)
    assert found["head"] == 64 * 2 + 2
    assert found["trainable"] == found["method"] + found["head"]
