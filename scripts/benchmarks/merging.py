"""Merging a model of some gigabytes, made up on the disk, beside `cp` of its files and PEFT's way.

Each turn has a process of its own, whose imports are not timed but whose whole resident memory counts.
"""

import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.made_up import Shape, make_recipe
from benchmarks.pages import Results
from benchmarks.ratios import Goal, Line, measured, ratio
from benchmarks.worker import Channel
from benchmarks.workers import once, rotated

WAYS = ("cp", "cp and sync", "lorakit", "lorakit, verified", "peft")
_SAME = 2**-7
"""Of the larger of two values in bfloat16, which has 8 bits: one unit in the last place."""


def shape_of(gigabytes: float) -> Shape:
    """A decoder whose bfloat16 weights have about that size."""
    hidden, inner, vocabulary = 2048, 8192, 49152
    layer = 2 * (4 * hidden**2 + 3 * hidden * inner)
    layers = max(1, round((gigabytes * 1e9 - 2 * hidden * vocabulary) / layer))
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    heads = {
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }
    return Shape("llama", "completion", 16, 12, 64, "bfloat16", {**sizes, **heads})


TINY = Shape("llama", "completion", 16, 12, 64, "bfloat16")


def run(shape: Shape, rounds: int, results: Results, scratch: Path) -> None:
    """Time it; adds its lines to `results`, and a failure where PEFT's merge has other weights.

    Args:
        shape: Of the model; see `shape_of`.
        rounds: To be counted.
        results: Of all benchmarks.
        scratch: A folder with room for the model four times.
    """
    recipe = make_recipe(shape, 8, scratch / "merge")
    once({"kind": "merge", "way": "make", "recipe": str(recipe), "folder": str(scratch)})
    told: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in rotated(WAYS, turn):
            out = scratch / "out" / way.replace(" ", "-")
            shutil.rmtree(out, ignore_errors=True)
            told[way].append(once({"kind": "merge", "way": way, "folder": str(scratch), "out": str(out)}))
            if way not in ("lorakit", "peft"):
                shutil.rmtree(out)
    size = sum(file.stat().st_size for file in (scratch / "merge" / "base").glob("*.safetensors"))
    compared = once({"kind": "merge", "way": "compare", "folder": str(scratch)})
    if compared["apart"] > _SAME:
        results.failures.append(f"merge: lorakit's and PEFT's weights differ by {compared['apart']:.1e} of their size")
    what = f"merge, {size / 1e9:.1f} GB, "
    seconds = {way: [one["seconds"] for one in rows] for way, rows in told.items()}
    peaks = {way: measured([one["peak_bytes"] for one in rows]) for way, rows in told.items()}
    for way in ("lorakit", "lorakit, verified"):
        title = what + ("every tensor proved" if way.endswith("verified") else "--verify none")
        goals = (Goal(most=2.0), Goal(least=3.0), Goal(most=1e9)) if way == "lorakit" else (None, None, None)
        against = (seconds["cp"], seconds["cp and sync"], seconds["peft"])
        results.lines.append(Line(f"{title}, time", "cp of its files", ratio(seconds[way], against[0]), "x", goals[0]))
        results.lines.append(Line(f"{title}, time", "cp and sync (merge syncs)", ratio(seconds[way], against[1])))
        results.lines.append(
            Line(f"{title}, speed", "PEFT's merge and save", ratio(against[2], seconds[way]), "x", goals[1])
        )
        results.lines.append(Line(f"{title}, peak memory", "", peaks[way], "GB", goals[2]))
    results.lines.append(Line(what + "PEFT's peak memory", "", peaks["peft"], "GB"))
    share = f"{compared['equal']} of {compared['tensors']} tensors are bit-equal to PEFT's"
    results.notes.append(
        f"merge: {share}; the largest difference is {compared['apart']:.1e} of a tensor's largest value"
    )


def work(job: dict[str, Any], channel: Channel) -> None:
    """Answers `seconds` and `peak_bytes` of a way; for `compare` what differs; for `make` nothing."""
    folder = Path(job["folder"])
    if job["way"] == "make":
        _make(Path(job["recipe"]), folder)
        channel.send()
    elif job["way"] == "compare":
        channel.send(**_compare(folder / "out/lorakit", folder / "out/peft"))
    else:
        go = _way(job["way"], folder, Path(job["out"]))
        subprocess.run(["sync"], check=True)  # what the last one has written
        began = time.perf_counter()
        go()
        seconds = time.perf_counter() - began
        channel.send(seconds=seconds, peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _make(recipe_file: Path, folder: Path) -> None:
    """A run whose adapter on all linear layers does something, and the same adapter as PEFT has it."""
    import torch

    from lorakit.checkpoint import ADAPTER, RECIPE, Provenance, head_of, open_run, save_adapter
    from lorakit.export import export
    from lorakit.model import prepare
    from lorakit.recipe import dump, load
    from lorakit.surgery import trainable_parameters

    recipe = load(recipe_file, ["method.targets=[all-linear]"])
    prepared = prepare(recipe.model, recipe.method, head_of(recipe), 0, skeleton=True)
    generator = torch.Generator().manual_seed(0)
    names = trainable_parameters(prepared.model)
    state = {name: torch.randn(meta.shape, generator=generator) * 0.02 for name, meta in names.items()}
    out = folder / "run"
    out.mkdir()
    (out / RECIPE).write_text(dump(recipe.model_copy(update={"method": prepared.methods})))
    save_adapter(out / ADAPTER, state, Provenance.of(prepared))
    export(open_run(out, skeleton=True), "peft", folder / "adapter")


def _way(way: str, folder: Path, out: Path) -> Callable[[], object]:
    """What is timed; all that it needs is imported."""
    base = folder / "merge/base"
    out.parent.mkdir(exist_ok=True)
    if way.startswith("cp"):

        def copy() -> None:
            subprocess.run(["cp", "-r", str(base), str(out)], check=True)
            if way == "cp and sync":
                subprocess.run(["sync", *map(str, out.iterdir())], check=True)

        return copy
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama  # noqa: F401

    if way == "peft":
        from peft import PeftModel

        def merge_peft() -> None:
            model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
            PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload().save_pretrained(out)

        return merge_peft
    from lorakit.checkpoint import open_run
    from lorakit.merge import merge

    verify: Any = "tensors" if way.endswith("verified") else "none"
    return lambda: merge(open_run(folder / "run", skeleton=True), out, verify=verify)


def _compare(one: Path, other: Path) -> dict[str, Any]:
    """Tensors that two directories share: how many there are and are equal, and the largest difference."""
    import torch
    from safetensors import safe_open

    from lorakit.weights import model_entries

    ours, theirs = model_entries(one), model_entries(other)
    shared = sorted(ours.keys() & theirs.keys())
    assert shared, "no tensor has the same name"
    equal, apart = 0, 0.0
    for name in shared:
        pair = []
        for entries in (ours, theirs):
            with safe_open(entries[name].file, framework="pt") as file:
                pair.append(file.get_tensor(name))
        equal += torch.equal(*pair)
        wide = [tensor.float() for tensor in pair]
        apart = max(apart, float((wide[0] - wide[1]).abs().max() / wide[1].abs().max().clamp(min=1e-12)))
    return {"tensors": len(shared), "equal": equal, "apart": apart}
