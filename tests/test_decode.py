"""Decoding: beam search gives what the LoRA authors' algorithm gives, on every architecture and in any batch."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorakit.arch import ARCHITECTURES
from lorakit.decode import Reader, Rules, beam_search
from lorakit.generate import generate
from lorakit.recipe import Generate
from lorakit.tiny import make_tiny_base

DECODERS = sorted(name for name, row in ARCHITECTURES.items() if row.decoder)
PROMPTS = [[5, 9, 200, 31, 7, 5, 9], [8], [44, 45, 46, 44, 45]]


def naive(model: Any, prompt: Sequence[int], rules: Rules, beams: int, penalty: float) -> list[int]:
    """The authors' search for one prompt, text by text, always to the last step, without a cache."""
    texts: list[tuple[float, list[int]]] = [(0.0, [])]
    best: tuple[float, list[int]] = (-float("inf"), [])
    for length in range(1, rules.new + 1):
        found = []
        for total, said in texts:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1].float()
            ngrams = list(zip(*(said[i:] for i in range(rules.ngram)), strict=False)) if rules.ngram else []
            for ngram in ngrams:
                if list(ngram[:-1]) == said[length - rules.ngram :]:
                    logits[ngram[-1]] = -torch.inf
            values, tokens = logits.log_softmax(-1).topk(beams)
            found += [(total + float(v), [*said, int(t)]) for v, t in zip(values, tokens, strict=True)]
        texts = sorted(found, key=lambda it: -it[0])[:beams]
        for total, said in [it for it in texts if it[1][-1] in rules.ends or length == rules.new]:
            if total / length**penalty > best[0]:
                best = (total / length**penalty, said)
        texts = [(-float("inf") if said[-1] in rules.ends else total, said) for total, said in texts]
    return best[1]


def read(model: Any, prompts: Sequence[Sequence[int]]) -> Reader:
    """Padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        return Reader(model, ids, mask)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Any:
    """A model with weights so large that its texts differ."""
    path = make_tiny_base("llama", tmp_path_factory.mktemp("loud") / "llama", initializer_range=0.3)
    return AutoModelForCausalLM.from_pretrained(path).eval()


@pytest.mark.parametrize(("beams", "penalty"), list(itertools.product((2, 4), (0.0, 0.8, 1.0, 2.0, -0.5))))
@pytest.mark.parametrize("ngram", [0, 2])
def test_equals_the_authors_search(loud: Any, beams: int, penalty: float, ngram: int) -> None:
    rules = Rules(new=7, ends=list(range(40, 90)), ngram=ngram)  # so many that texts of all lengths end
    with torch.no_grad():
        found = beam_search(read(loud, PROMPTS), rules, beams, penalty)
    expected = [naive(loud, prompt, rules, beams, penalty) for prompt in PROMPTS]
    assert found == expected
    if penalty == 0.0:
        assert len(set(map(len, found))) > 1, "no text ended early: nothing was tested"


def test_a_higher_length_penalty_gives_longer_texts(loud: Any) -> None:
    rules = Rules(new=9, ends=list(range(40, 90)))
    with torch.no_grad():
        total = [sum(map(len, beam_search(read(loud, PROMPTS), rules, 4, p))) for p in (0.0, 1.0, 3.0)]
    assert total[0] < total[2] and total == sorted(total)


def test_beams_find_likelier_texts_than_greedy(loud: Any) -> None:
    def log_p(prompt: list[int], said: list[int]) -> float:
        ids = torch.tensor([[*prompt, *said]])
        with torch.no_grad():
            every = loud(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(every.gather(1, torch.tensor(said)[:, None]).sum())

    rules = Rules(new=5, ends=[])
    with torch.no_grad():
        one, many = ([*beam_search(read(loud, PROMPTS), rules, beams, 1.0)] for beams in (1, 8))
    gains = [log_p(p, b) - log_p(p, a) for p, a, b in zip(PROMPTS, one, many, strict=True)]
    assert min(gains) > -1e-4 and max(gains) > 0.01


def test_stops_when_nothing_can_win_any_more(loud: Any) -> None:
    """An end that is nearly certain at once: the other texts are given up long before the last step."""
    steps: list[int] = []
    reader = read(loud, PROMPTS)
    sure = torch.full_like(reader.logits, -20.0)
    sure[:, 41] = 20.0
    reader.logits = sure
    hook = loud.register_forward_hook(lambda *_: steps.append(1))
    try:
        with torch.no_grad():
            assert beam_search(reader, Rules(new=50, ends=[41]), 3, 1.0) == [[41]] * 3
    finally:
        hook.remove()
    assert not steps


def test_the_head_sees_one_position_per_row_without_gaps(loud: Any) -> None:
    """With gaps, torch copies the head once per row."""
    seen: list[torch.Tensor] = []
    hook = loud.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    try:
        reader = read(loud, PROMPTS)
        with torch.no_grad():
            reader.read(torch.arange(3), torch.tensor([1, 2, 3]))
    finally:
        hook.remove()
    assert [tuple(given.shape[:2]) for given in seen] == [(3, 1)] * 2
    assert all(given.is_contiguous() for given in seen)


@pytest.mark.parametrize("model_type", DECODERS)
@pytest.mark.parametrize("beams", [1, 3])
def test_batch_equals_single_rows_on_every_architecture(
    model_type: str, beams: int, tmp_path: Path, one_thread: None
) -> None:
    base = make_tiny_base(model_type, tmp_path / model_type, initializer_range=0.3)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    prompts = [[5, 9, 200, 31, 7, 5, 9, 11, 12, 13, 14, 15], *PROMPTS]
    settings = Generate(max_new_tokens=8, beams=beams)
    together = generate(model, tokenizer, prompts, settings)
    assert together == [generate(model, tokenizer, [prompt], settings)[0] for prompt in prompts]
    assert len(set(together)) > 1
    if beams == 1:
        for prompt, text in zip(prompts, together, strict=True):
            ids = torch.tensor([prompt])
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=8,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            assert text == tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip()
