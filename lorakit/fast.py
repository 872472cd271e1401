"""What makes a model faster without changing what it computes: attention, norms, dropout, packing, the last block."""

from typing import Any

from lorakit.arch import Architecture
from lorakit.attention import install
from lorakit.dropout import quicken
from lorakit.last_block import reads_first, shorten
from lorakit.norms import lighten
from lorakit.packing import pack, packing_in
from lorakit.targets import blocks


def make_fast(model: Any, row: Architecture, packed: bool) -> None:
    """Install all of it.

    Args:
        model: Loaded, or a skeleton, with its methods applied.
        row: Its architecture; of one that is not known nobody can say what its blocks are, so they are not packed.
        packed: Whether blocks may be given rows without padding: not where a method counts places in padded rows.
    """
    install(model)
    lighten(model)
    quicken(model)
    if row.blocks and packed:
        every = list(blocks(model, row).values())
        pack(model, every, causal=row.decoder and _sees_no_later_token(model))
        if packing_in(model) and reads_first(model, row):
            shorten(every[-1], row)


def _sees_no_later_token(model: Any) -> bool:
    """Not of a decoder that was made an encoder: `is_causal: false`, or Gemma's `use_bidirectional_attention`."""
    return all(getattr(of, "is_causal", True) is not False for of in (model.config, *model.modules()))
