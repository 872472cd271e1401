"""What a base is, without its weights: encoder or decoder, its positions, and its tokenizer where that is here."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lorakit.arch import architecture, max_tokens
from lorakit.bases import locate
from lorakit.configs import CONFIGS
from lorakit.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENCODER = "FacebookAI/roberta-base"
MULTILINGUAL_ENCODER = "FacebookAI/xlm-roberta-base"
DECODER = "HuggingFaceTB/SmolLM2-360M-Instruct"
_SECONDS = 5
"""That the hub has to answer in."""


@dataclass(frozen=True)
class Family:
    """A base as far as a recipe depends on it.

    Args:
        base: As the recipe names it.
        decoder: Whether it predicts next tokens.
        positions: The longest input; None where there is no limit, or it is unknown.
        tokenizer: Its `tokenizers.Tokenizer`; None where that is not on this machine.
        guessed: Whether `decoder` is only what the task needs, since the base cannot be looked at.
    """

    base: str
    decoder: bool
    positions: int | None = None
    tokenizer: "Tokenizer | None" = None
    guessed: bool = False


def family_of(base: str, wanted_decoder: bool) -> Family:
    """Look at a base: the table of known ones, its directory or package, else its config.json on the hub.

    Args:
        base: Hub id, directory, package: or .gguf.
        wanted_decoder: What the task needs, for a base that cannot be looked at.

    Raises:
        ModelError: A local base is missing, or the base is an encoder-decoder.
    """
    tokenizer = _tokenizer(base)
    config = CONFIGS.get(base) or _config(base)
    if config is None:
        return Family(base, base.endswith(".gguf") or wanted_decoder, None, tokenizer, not base.endswith(".gguf"))
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    shape = SimpleNamespace(**{**config, "max_position_embeddings": positions})
    return Family(base, architecture(shape).decoder, max_tokens(shape), tokenizer)


def _config(base: str) -> dict[str, Any] | None:
    if base.endswith(".gguf"):
        return None
    file = _local(base, "config.json") or _cached(base, "config.json")
    try:
        config = _from_hub(base, "config.json") if file is None else json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"--base {base}: its config.json cannot be read: {error}") from error
    if config is not None and (not isinstance(config, dict) or "model_type" not in config):
        raise ModelError(f"--base {base}: its config.json names no model_type")
    return config


def _tokenizer(base: str) -> "Tokenizer | None":
    if base.endswith(".gguf"):
        return None
    file = _local(base, "tokenizer.json") or _cached(base, "tokenizer.json")
    if file is None:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # nothing more special is raised
        raise ModelError(f"--base {base}: its tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _local(base: str, name: str) -> Path | None:
    """A file of a directory or a package; None for a hub id."""
    if not base.startswith("package:") and not Path(base).expanduser().exists():
        return None
    file = locate(base).directory / name
    return file if file.is_file() else None


def _cached(base: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(base, name)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _from_hub(base: str, name: str) -> dict[str, Any] | None:
    """A small JSON file of the hub; None where it cannot be had.

    One short request of our own: the hub's library tries again for half a minute where there is no network.

    Raises:
        ModelError: The hub says that there is no such model.
    """
    from huggingface_hub import get_session, get_token, hf_hub_url

    try:
        headers = {"authorization": f"Bearer {token}"} if (token := get_token()) else {}
        answer = get_session().get(hf_hub_url(base, name), headers=headers, timeout=_SECONDS)
    except Exception:  # no network, HF_HUB_OFFLINE, no hub id: of several libraries, and the same for us
        return None
    if answer.headers.get("x-error-code") == "RepoNotFound":
        raise ModelError(f"--base {base}: no such model on the hub, and no such directory here")
    if answer.status_code != 200:
        return None
    found: dict[str, Any] = answer.json()
    return found
