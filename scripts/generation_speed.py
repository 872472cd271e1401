"""How fast a finished run generates, beside transformers' own `generate` on the same model, in one interleaved process.

python scripts/generation_speed.py runs/e2e --split test --prompts 96

Three ways: lorakit (batches of similar length, rows that are done leave, the prompt read once for all beams);
transformers row by row; transformers in batches of lorakit's size in the order of the file. Rounds are interleaved,
since machines are noisy; the table has medians and ratios, and how many texts are equal to lorakit's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lorakit.data.encode import end_ids, prompt_ids
from lorakit.data.rows import distinct_prompts
from lorakit.generate import batch_limit, generate
from lorakit.progress import Silent
from lorakit.recipe import Generate
from lorakit.session import open_session

Way = Callable[[], list[str]]


def plain(model: Any, tokenizer: Any, prompts: list[list[int]], settings: Generate, ends: list[int]) -> list[str]:
    """What transformers generates for one left-padded batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options: dict[str, Any] = {"num_beams": settings.beams}
    if settings.beams > 1:
        options |= {"length_penalty": settings.length_penalty, "early_stopping": "never"}
    with torch.no_grad():
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )
    texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


def ways(run: Path, split: str, count: int, settings: Generate) -> dict[str, Way]:
    """The three, each giving all texts in the order of the prompts."""
    session = open_session(run)
    model, tokenizer = session.opened.prepared.model.eval(), session.opened.prepared.tokenizer
    rows = [row for row, _ in distinct_prompts(session.read(split, Silent()).rows)][:count]
    prompts, ends = [prompt_ids(row, tokenizer) for row in rows], end_ids(rows[0], tokenizer)
    limit = batch_limit(settings)
    longest = max(map(len, prompts)) + settings.max_new_tokens
    size = max(1, min(limit.rows or count, (limit.tokens or longest) // longest))
    batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]

    def batched(several: list[list[list[int]]]) -> list[str]:
        return [text for some in several for text in plain(model, tokenizer, some, settings, ends)]

    return {
        "lorakit": lambda: generate(model, tokenizer, prompts, settings, None, ends),
        "transformers, row by row": lambda: batched([[prompt] for prompt in prompts]),
        f"transformers, {size} rows as they come": lambda: batched(batches),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found = ways(given.run, given.split, given.prompts, Generate(beams=given.beams, max_new_tokens=given.new))
    seconds: dict[str, list[float]] = {name: [] for name in found}
    texts: dict[str, list[str]] = {}
    for _ in range(given.rounds):
        for name, way in found.items():
            began = time.monotonic()
            texts[name] = way()
            seconds[name].append(time.monotonic() - began)
    own = statistics.median(seconds["lorakit"])
    for name, times in seconds.items():
        equal = sum(a == b for a, b in zip(texts[name], texts["lorakit"], strict=True))
        middle = statistics.median(times)
        spread = f"{min(times):.1f} to {max(times):.1f}"
        print(f"{name:36}  {middle:7.1f} s ({spread})  {middle / own:5.2f} x  {equal}/{len(texts[name])} texts equal")


if __name__ == "__main__":
    main()
