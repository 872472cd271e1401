"""Generation: a batch gives what single rows give, and only the recipe decides how."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, NoRepeatNGramLogitsProcessor

from lorakit.decode import Rules
from lorakit.errors import RecipeError
from lorakit.generate import generate
from lorakit.recipe import Generate
from lorakit.tiny import make_tiny_base

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Any:
    """(model, tokenizer): weights so large that it does not repeat one token."""
    path = make_tiny_base(request.param, tmp_path_factory.mktemp("loud") / request.param, initializer_range=0.3)
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def prompts(count: int = 7) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 250, int(rng.integers(1, 30))).tolist() for _ in range(count)]


def own(model: Any, tokenizer: Any, prompt: list[int], new: int, **options: Any) -> list[int]:
    """What transformers' own generate adds to one prompt."""
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    return list(output[0, len(prompt) :].tolist())


def test_batch_equals_single_rows_and_transformers(decoder: Any) -> None:
    model, tokenizer = decoder
    settings = Generate(max_new_tokens=12)
    seen: list[int] = []
    together = generate(model, tokenizer, prompts(), settings, seen.append)
    alone = [generate(model, tokenizer, [prompt], settings)[0] for prompt in prompts()]
    reference = [
        tokenizer.decode(own(model, tokenizer, prompt, 12), skip_special_tokens=True).strip() for prompt in prompts()
    ]
    assert together == alone == reference
    assert len(set(together)) == len(together)
    assert sum(seen) == len(prompts())


def test_stops_at_any_of_the_ends(decoder: Any) -> None:
    model, tokenizer = decoder
    prompt = prompts()[1]
    said = own(model, tokenizer, prompt, 12)
    end = next(index for index in range(3, 12) if said[index] not in said[:index])
    ended = generate(model, tokenizer, [prompt], Generate(max_new_tokens=12), None, [said[end]])
    assert ended == [tokenizer.decode(said[:end]).strip()]


def reciter(tiny: Tiny, cycle: str) -> Any:
    """(model, tokenizer): a model that after each letter of the cycle says the next, whatever came before."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny("llama")), AutoTokenizer.from_pretrained(tiny("llama"))
    letters = tokenizer(cycle)["input_ids"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter.zero_()
        for letter, following in zip(letters, [*letters[1:], letters[0]], strict=True):
            model.lm_head.weight[following] = model.model.embed_tokens.weight[letter]
    return model.eval(), tokenizer


def test_a_stop_text_ends_the_computation_and_is_not_looked_for_in_the_prompt(tiny: Tiny) -> None:
    model, tokenizer = reciter(tiny, "abcdefghij")
    several = [tokenizer(text)["input_ids"] for text in ("cdef", "xyzzyh", "ab")]
    steps: list[int] = []
    model.register_forward_hook(lambda *_: steps.append(1))
    assert generate(model, tokenizer, several, Generate(max_new_tokens=9)) == ["ghijabcde", "ijabcdefg", "cdefghija"]
    assert len(steps) == 9
    assert generate(model, tokenizer, several, Generate(max_new_tokens=9, stop=["fg", "ab"])) == ["ghij", "ij", "cde"]
    assert len(steps) == 9 + 6
    assert generate(model, tokenizer, several[:1], Generate(max_new_tokens=9, stop=["fg"])) == ["ghijabcde"]


def test_stops_at_eos(tiny: Tiny) -> None:
    model, tokenizer = reciter(tiny, "abc")
    with torch.no_grad():  # after b comes the end
        model.lm_head.weight[tokenizer.eos_token_id] = (
            2 * model.model.embed_tokens.weight[tokenizer("b")["input_ids"][0]]
        )
    several = [tokenizer(text)["input_ids"] for text in ("c", "bca", "xb")]
    assert generate(model, tokenizer, several, Generate(max_new_tokens=9)) == ["ab", "b", ""]


def test_no_repeat_ngram_looks_at_what_was_generated() -> None:
    """As transformers' own processor does it, were there no prompt before it."""
    said = torch.tensor([[7, 8, 9, 7, 8], [5, 6, 4, 4, 4]])
    for size in (1, 2, 3, 4, 6):
        expected = NoRepeatNGramLogitsProcessor(size)(said, torch.zeros(2, 12))
        assert torch.equal(Rules(9, [], size).allowed(torch.zeros(2, 12), said), expected)
    found = Rules(9, [], 3).allowed(torch.zeros(2, 12), said)
    assert (found == -torch.inf).nonzero().tolist() == [[0, 9], [1, 4]]
    nothing = torch.zeros(2, 12)
    assert torch.equal(Rules(9, [], 3).allowed(nothing, said[:, :0]), nothing)


def test_no_repeat_ngram_in_a_batch(tiny: Tiny) -> None:
    model, tokenizer = reciter(tiny, "abc")
    several = [tokenizer(text)["input_ids"] for text in ("abcabc", "xyzzyabcb")]
    assert generate(model, tokenizer, several, Generate(max_new_tokens=7)) == ["abcabca", "cabcabc"]
    free = generate(model, tokenizer, several, Generate(max_new_tokens=7, no_repeat_ngram=4))
    assert [text[:6] for text in free] == ["abcabc", "cabcab"]  # copied from the prompt
    assert not free[0].startswith("abcabca") and not free[1].startswith("cabcabc")


def test_positions_are_respected(decoder: Any) -> None:
    model, tokenizer = decoder
    long = np.random.default_rng(1).integers(3, 250, 300).tolist()
    assert generate(model, tokenizer, [long], Generate(max_new_tokens=100)) == generate(
        model, tokenizer, [long[-28:]], Generate(max_new_tokens=100)
    )
    with pytest.raises(RecipeError, match="generate.max_new_tokens: 128 leaves no room .* the 128 positions"):
        generate(model, tokenizer, [long], Generate(max_new_tokens=128))


def test_the_bases_own_defaults_do_not_leak_in(decoder: Any) -> None:
    model, tokenizer = decoder
    expected = generate(model, tokenizer, prompts(), Generate(max_new_tokens=6))
    before = model.generation_config
    model.generation_config = type(before)(
        repetition_penalty=50.0, max_length=3, min_new_tokens=6, suppress_tokens=list(range(3, 200)), eos_token_id=40
    )
    leaky = model.generation_config
    try:
        assert generate(model, tokenizer, prompts(), Generate(max_new_tokens=6)) == expected
        assert model.generation_config is leaky
    finally:
        model.generation_config = before
