"""Prefix-tuning (Li & Liang 2021, arXiv 2101.00190): trained keys and values in front of the text, in every layer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from lorakit.arch import Architecture
from lorakit.data.slots import Slots
from lorakit.errors import RecipeError
from lorakit.methods.base import Coverage, Method
from lorakit.methods.prefix import MODULE, PrefixMethod
from lorakit.surgery import WRAPPED
from lorakit.targets import Site, blocks, out_features

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.layers.places import Places


class PrefixKV(PrefixMethod):
    """`prefix` trained keys and values per layer: 2 L d `prefix` parameters once published (fewer with shared heads).

    While training they are what a network makes of trained embeddings (d → hidden → 2 L d, tanh), which Li & Liang
    found necessary for stable training; publishing folds it away. Keys pass the model's own norm and rotation, so that
    the places count as positions, as in the paper's GPT-2. To expect: it needs a higher learning rate and more epochs
    than LoRA.
    """

    name: Literal["prefix_kv"] = "prefix_kv"
    prefix: PositiveInt = 10
    """Vectors in front of the text."""
    hidden: PositiveInt | None = 512
    """Width of the network that is folded away when published; null: train keys and values as they are."""

    title: ClassVar[str] = "keys and values"
    usual_lr: ClassVar[tuple[float, float]] = (1e-3, 5e-4)

    @property
    def slots(self) -> Slots:
        """See `Method`."""
        return Slots(self.prefix)

    def shrunk(self) -> "PrefixKV":
        """See `Method`."""
        return self.model_copy(update={"prefix": min(2, self.prefix), "hidden": self.hidden and min(8, self.hidden)})

    def build(self, model: "nn.Module", row: Architecture, places: "Places", seed: int) -> "tuple[nn.Module, Coverage]":
        """See `PrefixMethod`."""
        import torch

        from lorakit.layers.keys_values import KeysAndValues, Layer, Projected
        from lorakit.layers.places import reader

        sites = {name: locate_projections(model, row, name) for name in ("k", "v")}
        found = blocks(model, row)
        widths = [_width(model, sites[name][path]) for path in found for name in ("k", "v")]
        dim = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        module = KeysAndValues(self.prefix, sum(widths), places, self.hidden, dim)
        module.initialise(torch.Generator().manual_seed(seed))
        reader(model).register_forward_pre_hook(module.begin)
        start = 0
        for index, path in enumerate(found):
            layer = Layer(module)
            for attention in {sites[name][path].path.rpartition(".")[0] for name in ("k", "v")}:
                model.get_submodule(attention).register_forward_pre_hook(layer.begin)
            for name, width in zip(("k", "v"), widths[2 * index : 2 * index + 2], strict=True):
                site = sites[name][path]
                hook = Projected(layer, name, slice(start, start + width), site.rows)
                model.get_submodule(site.path).register_forward_hook(hook)
                start += width
        return module, {name: [site.path for site in there.values()] for name, there in sites.items()}

    def publish(self, state: "Mapping[str, Tensor]") -> "tuple[Method, Mapping[str, Tensor]]":
        """Fold the network away: what is published are keys and values."""
        import torch

        from lorakit.layers.keys_values import fold

        method = self.model_copy(update={"hidden": None})
        own = {name: value for name, value in state.items() if name.startswith(f"{MODULE}.")}
        names = [f"{MODULE}.{name}" for name in ("embedding", "down.weight", "down.bias", "up.weight", "up.bias")]
        if self.hidden is None or not own:
            return method, state
        with torch.no_grad():
            vectors = fold(*(own[name] for name in names))
        return method, {f"{MODULE}.vectors": vectors, **{n: v for n, v in state.items() if n not in own}}


def locate_projections(model: "nn.Module", row: Architecture, name: str) -> dict[str, Site]:
    """Block path → where its keys ("k") or values ("v") are computed.

    Raises:
        RecipeError: They are not computed by a module of every block.
    """
    modules = dict(model.named_modules())
    of_block: dict[str, Site] = {}
    place = row.places.get(name)
    for path in blocks(model, row):
        if place is None or f"{path}.{place.path}" not in modules:
            raise RecipeError(f"method: prefix_kv: this {row.model_type} model computes no {name} of its own in {path}")
        rows = place.rows(model.config, _size(model, f"{path}.{place.path}")) if place.rows else None
        of_block[path] = Site(f"{path}.{place.path}", name, rows)
    return of_block


def _width(model: "nn.Module", site: Site) -> int:
    """Columns of the keys or values that a site computes."""
    size = _size(model, site.path)
    if site.rows is None:
        return size
    return len(range(size)[site.rows]) if isinstance(site.rows, slice) else len(site.rows)


def _size(model: "nn.Module", path: str) -> int:
    """Columns that a projection computes, be it adapted or not."""
    module = model.get_submodule(path)
    size = out_features(getattr(module, WRAPPED, module))
    assert size is not None
    return size
