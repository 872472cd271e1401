"""How long `lorakit merge` takes on a large model, and how much memory, beside `cp` and PEFT's merge.

python scripts/merge_speed.py /tmp/merge-speed --rounds 3

Makes a random bfloat16 model of Llama 3.2's 3B shapes with fewer layers (5 GB) and a LoRA run on it, in the folder that
is named, and removes what it wrote. Every contender is a process of its own; rounds are interleaved, since machines are
noisy. All end with their files on the disk (fsync), and begin with the base in the page cache where it fits. The table
has the seconds of the work alone (without imports; for `cp` the whole), and the peak of the process's memory.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WAYS = ("cp", "lorakit none", "lorakit tensors", "peft")
SHAPES = {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8}
SHAPES |= {"vocab_size": 128256, "head_dim": 128, "max_position_embeddings": 4096, "tie_word_embeddings": False}
SHARD_LAYERS = 4


def write_base(directory: Path, layers: int) -> None:
    """A base with random weights, written without ever being whole in memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lorakit.tiny import make_tiny_base
    from lorakit.weights import write_file

    make_tiny_base("llama", directory)
    (directory / "model.safetensors").unlink()
    file = directory / "config.json"
    fields = json.loads(file.read_text()) | SHAPES | {"num_hidden_layers": layers, "dtype": "bfloat16"}
    file.write_text(json.dumps(fields, indent=2))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    shards: dict[int, dict[str, tuple[str, tuple[int, ...], int]]] = {}
    for name, parameter in model.named_parameters():
        layer = f"{name}...".split(".")[2]
        which = 1 + int(layer) // SHARD_LAYERS if layer.isdigit() else 0
        shards.setdefault(which, {})[name] = ("BF16", tuple(parameter.shape), 2 * parameter.numel())
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for which, layout in shards.items():
        shard = f"model-{which + 1:05}-of-{len(shards):05}.safetensors"
        places |= dict.fromkeys(layout, shard)
        write_file(directory / shard, layout, _noise(layout, generator), {"format": "pt"})
    size = sum(item[2] for layout in shards.values() for item in layout.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _noise(layout: dict[str, tuple[str, tuple[int, ...], int]], generator: Any) -> Any:
    import torch

    for _, shape, size in layout.values():
        step = shape[-1] * max(1, 2**22 // shape[-1])
        for start in range(0, size // 2, step):
            rows = torch.randn(min(step, size // 2 - start), generator=generator) * 0.02
            yield rows.bfloat16().view(torch.uint8).numpy().tobytes()


def write_run(folder: Path, targets: list[str]) -> None:
    """A run whose LoRA's matrices are random."""
    import torch

    from lorakit.checkpoint import ADAPTER, Provenance, head_of, save_adapter
    from lorakit.model import prepare
    from lorakit.recipe import dump, load
    from lorakit.runtime import write_atomic
    from lorakit.surgery import trainable_parameters

    row = json.dumps({"prompt": "a b", "target": "c"}) + "\n"
    (folder / "rows.jsonl").write_text(row)
    rows = str(folder / "rows.jsonl")
    data = {
        "model": {"base": str(folder / "base")},
        "method": {"name": "lora", "rank": 8, "targets": targets},
        "task": {"name": "custom", "kind": "completion", "train": rows, "validation": rows},
        "train": {"steps": 1, "batch_size": 1, "lr": 1e-4},
    }
    (folder / "recipe.yaml").write_text(json.dumps(data))
    recipe = load(folder / "recipe.yaml")
    prepared = prepare(recipe.model, recipe.method, head_of(recipe), 0, skeleton=True)
    generator = torch.Generator().manual_seed(1)
    made = {name: p.shape for name, p in trainable_parameters(prepared.model).items()}
    state = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in made.items()}
    (folder / "run").mkdir(exist_ok=True)
    write_atomic(folder / "run/recipe.yaml", dump(recipe))
    save_adapter(folder / "run" / ADAPTER, state, Provenance.of(prepared))


def prepare_all(folder: Path, given: argparse.Namespace) -> None:
    """What the contenders start from."""
    if not (folder / "base").exists():
        write_base(folder / "base", given.layers)
    write_run(folder, given.targets)
    if "peft" in given.ways:
        from lorakit.checkpoint import open_run
        from lorakit.export import export

        shutil.rmtree(folder / "peft", ignore_errors=True)
        export(open_run(folder / "run", skeleton=True), "peft", folder / "peft")


def work(way: str, folder: Path) -> float:
    """Do it in this process; seconds."""
    out = folder / "out"
    if way.startswith("lorakit"):
        from lorakit.checkpoint import open_run
        from lorakit.merge import merge

        opened = open_run(folder / "run", skeleton=True)
        return merge(opened, out, None, "none" if way.endswith("none") else "tensors").seconds
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, folder / "peft").merge_and_unload().save_pretrained(out)
    _sync(out)
    return time.perf_counter() - began


def _sync(directory: Path) -> None:
    for file in directory.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def measure(way: str, folder: Path) -> tuple[float, float]:
    """Seconds, and the peak of resident memory in MiB, of a process of its own."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    os.sync()
    began = time.perf_counter()
    if way == "cp":
        command = ["cp", "-r", "--reflink=never", str(folder / "base"), str(folder / "out")]
    else:
        command = [sys.executable, __file__, str(folder), "--one", way]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert not status, f"{way} failed"
    if way == "cp":
        _sync(folder / "out")
    seconds = time.perf_counter() - began if way == "cp" else float(said.split()[-1])
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=17)
    parser.add_argument("--targets", nargs="+", default=["q", "v"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="leave the base for another call")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder: Path = given.folder
    if given.one == "prepare":
        prepare_all(folder, given)
        return
    if given.one:
        print(work(given.one, folder))
        return
    # In another process: a child's peak begins with what its parent has.
    subprocess.run([sys.executable, *sys.argv, "--one", "prepare"], check=True)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in given.ways}
    for _ in range(given.rounds):
        for way in given.ways:
            found[way].append(measure(way, folder))
    size = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
    print(f"{size / 1e9:.1f} GB, LoRA on {', '.join(given.targets)}")
    first = statistics.median(seconds for seconds, _ in found[given.ways[0]])
    for way, measured in found.items():
        times = [seconds for seconds, _ in measured]
        middle, peak = statistics.median(times), max(memory for _, memory in measured)
        spread = f"{min(times):.1f} to {max(times):.1f}"
        print(f"{way:16}  {middle:6.1f} s ({spread})  {middle / first:5.2f} x {given.ways[0]}  {peak:7.0f} MiB")
    shutil.rmtree(folder / "out", ignore_errors=True)
    if not given.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
