"""NIST of generated texts (Doddington 2002), as the official E2E script (tuetschek/e2e-metrics) computes it.

Our own, since libraries differ from it: NLTK's gives 7.60 where the official value is 8.65.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from string import ascii_lowercase, ascii_uppercase

ORDER = 5
_BETA = -math.log(0.5) / math.log(1.5) ** 2
"""Chosen so that a text of two thirds of the references' length keeps half its score."""
_ASCII = str.maketrans(ascii_uppercase, ascii_lowercase)
Ngram = tuple[str, ...]


def nist(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Corpus NIST, 0 upwards, as `measure_scores.py -p` gives it: what the LoRA authors report.

    The reference length is the sum over the texts of the mean length of their references. As there, an empty text
    counts as one empty token, and a text of k < 5 tokens as k - 4 five-grams, which is 0 or fewer.

    Args:
        references: One or more per prediction; their number may differ.
        predictions: The generated texts.
    """
    answers = [_tokens(text) or [""] for text in predictions]
    several = [[_tokens(text) or [""] for text in texts] for texts in references]
    length = math.fsum(sum(map(len, texts)) / len(texts) for texts in several)
    totals = [sum(len(answer) - n + 1 for answer in answers) for n in range(1, ORDER + 1)]
    return _score(several, answers, totals, length)


def nist_perl(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Corpus NIST, 0 upwards, as the official script gives it by default, from mteval-v13a-sig.pl.

    It differs from `nist` in the reference length: all references' tokens, times the texts, divided by the references;
    and in details: only A to Z are lower-cased, an empty text has no tokens and no n-grams, an empty reference is none.

    Args:
        references: One or more per prediction; their number may differ.
        predictions: The generated texts.
    """
    answers = [_tokens(text, perl=True) for text in predictions]
    several = [[tokens for text in texts if (tokens := _tokens(text, perl=True))] for texts in references]
    total = sum(len(tokens) for texts in several for tokens in texts)
    count = sum(map(len, several))
    totals = [sum(max(0, len(answer) - n + 1) for answer in answers) for n in range(1, ORDER + 1)]
    return _score(several, answers, totals, total * len(several) / count if count else 0.0, perl=True)


def _score(
    references: list[list[list[str]]], answers: list[list[str]], totals: list[int], length: float, perl: bool = False
) -> float:
    """The information of all n-grams that are in a reference, per n-gram that was said, summed over n = 1 to 5.

    Args:
        references: Tokens, per answer.
        answers: Tokens.
        totals: n-grams that the answers count as, for each n.
        length: Of the references.
        perl: Take the context "0" for none, as Perl does, where this text is false.
    """
    assert len(references) == len(answers), "every prediction needs references"
    counts = Counter(ngram for several in references for tokens in several for ngram in _ngrams(tokens))
    words = sum(count for ngram, count in counts.items() if len(ngram) == 1)

    def information(ngram: Ngram) -> float:
        context = ngram[:-1]
        before = words if not context or (perl and context == ("0",)) else counts[context]
        return math.log2(before / counts[ngram])

    gained = [0.0] * ORDER
    for several, answer in zip(references, answers, strict=True):
        most: Counter[Ngram] = Counter()
        for tokens in several:
            most |= Counter(_ngrams(tokens))
        for ngram, hits in (Counter(_ngrams(answer)) & most).items():
            gained[len(ngram) - 1] += hits * information(ngram)
    said = sum(map(len, answers))
    return _penalty(said, length) * sum(gain / total for gain, total in zip(gained, totals, strict=True) if total)


def _penalty(said: int, length: float) -> float:
    """1 for texts at least as long as the references, towards 0 for shorter ones."""
    if said >= length:
        return 1.0
    return math.exp(-_BETA * math.log(said / length) ** 2) if said else 0.0


def _tokens(text: str, perl: bool = False) -> list[str]:
    """Tokens of mteval-v13a, lower-cased."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokens: list[str] = Tokenizer13a()(text).split()  # type: ignore[no-untyped-call]
    return [token.translate(_ASCII) if perl else token.lower() for token in tokens]


def _ngrams(tokens: list[str]) -> Iterator[Ngram]:
    for n in range(1, ORDER + 1):
        yield from zip(*(tokens[start:] for start in range(n)), strict=False)
