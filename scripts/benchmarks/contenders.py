"""Who trains, for some steps at a time: lorakit's own loop, and what people use instead.

Same base, same initial tensors, same rows in each step, same rates; the caller's recipe has no dropout, so that the
losses must be the same. Another contender is a file with a `train(recipe, channel)`, and an entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.turns import Refused, Stop
from benchmarks.worker import Channel
from lorakit.recipe import Recipe, load

OURS = "lorakit"


@dataclass(frozen=True)
class Contender:
    """One of those who train.

    Args:
        title: For the table of goals.
        trains: `module:function` of this package; only imported where it runs, since each has heavy imports.
        package: That must be installed; None: none.
        decoders: Whether it trains decoders alone.
        cuda: Only where there is a GPU.
        note: What a reader of its numbers must know.
    """

    title: str
    trains: str
    package: str | None = None
    decoders: bool = False
    cuda: bool = False
    note: str | None = None

    def absent(self, decoder: bool, on_gpu: bool) -> str | None:
        """Why it does not take part; None where it does.

        Args:
            decoder: Whether the model is one.
            on_gpu: Whether this machine has a GPU.
        """
        if self.decoders and not decoder:
            return "for decoders alone"
        if self.cuda and not on_gpu:
            return "needs a GPU"
        if self.package is not None and find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return None


CONTENDERS = {
    OURS: Contender("lorakit", "lorakit_side:train"),
    "peft": Contender("PEFT + Trainer", "trainer:peft", "peft"),
    "peft-padded": Contender("PEFT + Trainer, padded to 512", "trainer:peft_padded", "peft"),
    "torchtune": Contender("torchtune", "torchtune_side:train", "torchtune", decoders=True),
    "litgpt": Contender("litgpt", "litgpt_side:train", "litgpt", decoders=True),
    "unsloth": Contender(
        "Unsloth",
        "unsloth_side:train",
        "unsloth",
        decoders=True,
        cuda=True,
        note="this contender is written by Unsloth's documentation and has never run: read its curve before its speed",
    ),
}
OTHERS = [name for name, one in CONTENDERS.items() if one.decoders]
"""Those that workloads with a decoder have beside the ones that they name goals for."""


def work(job: dict[str, Any], channel: Channel) -> None:
    """Train as a contender for as many steps as the parent orders at a time.

    Args:
        job: `contender`, and `recipe` with its `overrides`.
        channel: Orders `{"steps": n}`; answers `ready` once, then seconds, tokens, losses and peak_bytes per order. Or
            `refused` with the reason, and nothing more, where it cannot do this training or cannot be imported.
    """
    recipe = load(Path(job["recipe"]), job["overrides"])
    contender = CONTENDERS[job["contender"]]
    try:
        _function(contender)(recipe, channel)
    except Stop:
        return
    except Refused as error:
        channel.send(refused=str(error))
    except ImportError as error:  # installed, but beside versions that it does not fit
        if contender.package is None:
            raise
        channel.send(refused=f"{contender.package} cannot be imported: {error}")


def _function(contender: Contender) -> Callable[[Recipe, Channel], None]:
    module, _, name = contender.trains.partition(":")
    found: Callable[[Recipe, Channel], None] = getattr(import_module(f"benchmarks.{module}"), name)
    return found
