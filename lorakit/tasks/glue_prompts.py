r"""GLUE as questions to a decoder: a prompt for every row, and a word for every class.

task: {name: glue, subset: mnli, format: prompt}
task: {name: glue, subset: rte, format: prompt, template: "{text}\nSo {pair} Yes or no?", words: [yes, no]}
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.data.readers import Record
from lorakit.data.rows import ChoiceRow
from lorakit.tasks.template import columns_of, render

_NAMES = ("text", "pair")


@dataclass(frozen=True)
class Wording:
    """How a subset is asked.

    Args:
        template: Names {text} and, where rows are pairs, {pair}.
        words: What answers, one per class in the order of the labels; a space is put before each.
    """

    template: str
    words: tuple[str, ...]

    def row(self, texts: Sequence[str], label: int | None = None) -> ChoiceRow:
        """The question about a text or a pair; white space around the texts is left out, so that lines stay lines."""
        cells = dict(zip(_NAMES, (text.strip() for text in texts), strict=False))
        return ChoiceRow(render(self.template, Record("row", cells)), tuple(f" {word}" for word in self.words), label)


WORDINGS = {
    # The form that the GPT-3 paper (Brown et al. 2020) gives its entailment tasks, and PROTOCOL 2.4 proposes for MNLI.
    "mnli": Wording("{text}\nQuestion: {pair} True, False, or Neither?\nAnswer:", ("True", "Neither", "False")),
    "rte": Wording("{text}\nQuestion: {pair} True or False?\nAnswer:", ("True", "False")),
    "wnli": Wording("{text}\nQuestion: {pair} True or False?\nAnswer:", ("False", "True")),
    "qnli": Wording(
        "Question: {text}\nText: {pair}\nDoes the text answer the question? Yes or No?\nAnswer:", ("Yes", "No")
    ),
    "mrpc": Wording("First: {text}\nSecond: {pair}\nDo both say the same? Yes or No?\nAnswer:", ("No", "Yes")),
    "qqp": Wording("First: {text}\nSecond: {pair}\nDo both ask the same? Yes or No?\nAnswer:", ("No", "Yes")),
    "cola": Wording("Sentence: {text}\nIs this sentence grammatical? Yes or No?\nAnswer:", ("No", "Yes")),
    "sst2": Wording("Review: {text}\nSentiment:", ("negative", "positive")),
}
"""Subset → how it is asked where the recipe does not say. STS-B's scores have no words."""


def check_template(template: str, pairs: bool) -> None:
    """Whether a template can ask about the rows of a subset.

    Args:
        template: The recipe's.
        pairs: Whether a row has two texts.

    Raises:
        ValueError: It is malformed, names something else, leaves a text out, or ends in white space.
    """
    wanted = _NAMES[: 1 + pairs]
    shown = " and ".join(f"{{{name}}}" for name in wanted)
    named = columns_of(template)
    strangers = [f"{{{name}}}" for name in named if name not in wanted]
    if strangers:
        raise ValueError(f"{', '.join(strangers)}: a template of this subset names {shown}, and nothing else")
    if set(named) != set(wanted):
        raise ValueError(f"the template must name {shown}: all that a row of this subset has")
    if template != template.rstrip():
        raise ValueError("the template ends in white space: leave it out; a space is put before every word")


def check_words(words: Sequence[str], labels: Sequence[str]) -> None:
    """Whether words can name the classes.

    Raises:
        ValueError: There are not as many, two are equal, or one is empty or has white space around it.
    """
    if len(words) != len(labels):
        raise ValueError(f"{len(words)} words for {len(labels)} classes; give one for each of {', '.join(labels)}")
    if not all(word and word == word.strip() for word in words):
        raise ValueError("a word is empty or has white space around it; a space is put before every word")
    if len(set(words)) < len(words):
        raise ValueError("a word stands there twice, so two classes could not be told apart")
