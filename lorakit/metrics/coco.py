"""METEOR 1.5, ROUGE-L and CIDEr as the official E2E script takes them from the MS-COCO caption tools.

The jars (Stanford's PTB tokenizer, METEOR) and the formulas are pycocoevalcap's. Its wrappers around the jars are not
used: they write into the package's folder, let a carriage return in a text shift all that follow, and leave Java
running. All three metrics compare the same tokens: lower-cased, without punctuation.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple

from lorakit.errors import DataError

_PTB = "tokenizer/stanford-corenlp-3.4.1.jar"
_METEOR = "meteor/meteor-1.5.jar"
_UNIFORM = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")  # whatever this machine's locale is
_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))
"""All that the tokenizer takes for the end of a line, and so of a text."""


class Tokenised(NamedTuple):
    """Tokens of a corpus, joined by spaces.

    Args:
        references: One or more per prediction.
        predictions: Empty where a text has no words.
    """

    references: list[list[str]]
    predictions: list[str]


def lacking() -> str | None:
    """What these metrics need and this machine has not, and what to do; None where all is there."""
    if _folder() is None:
        return "pip install 'lorakit[nlg]'"
    if shutil.which("java") is None:
        return "java not found: install a Java runtime (8 or newer)"
    return None


def meteor(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """METEOR 1.5 of the corpus, 0 to 1: English, `-norm`; statistics of all texts together, not a mean over texts.

    Args:
        references: One or more per prediction; the one that fits best counts.
        predictions: The generated texts.

    Raises:
        DataError: Java, or pycocoevalcap, is not here or fails.
    """
    corpus = tokenised(references, predictions)
    with open_meteor() as program:
        return program.score(corpus)[0]


def rouge_l(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """The mean over the texts of ROUGE-L, 0 to 1: beta 1.2, the best precision and the best recall of any reference.

    Args:
        references: One or more per prediction.
        predictions: The generated texts.

    Raises:
        DataError: Java, or pycocoevalcap, is not here or fails.
    """
    return rouge_l_of(tokenised(references, predictions))[0]


def cider(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """The mean over the texts of CIDEr (CIDEr-D), 0 to 10.

    N-grams count more the fewer texts have them in their references, so values of different sets of texts, or of a part
    of one, cannot be compared, and one text alone has 0.

    Args:
        references: One or more per prediction.
        predictions: The generated texts.

    Raises:
        DataError: Java, or pycocoevalcap, is not here or fails.
    """
    return cider_of(tokenised(references, predictions))[0]


def rouge_l_of(corpus: Tokenised) -> tuple[float, list[float]]:
    """ROUGE-L of tokens, and that of each text."""
    from pycocoevalcap.rouge.rouge import Rouge

    score, scores = Rouge().compute_score(*_by_number(corpus))
    return float(score), [float(value) for value in scores]


def cider_of(corpus: Tokenised) -> tuple[float, list[float]]:
    """CIDEr of tokens, and that of each text."""
    from pycocoevalcap.cider.cider import Cider

    if not any(text for several in corpus.references for text in several):  # where the package looks for a maximum
        return 0.0, [0.0] * len(corpus.predictions)
    score, scores = Cider().compute_score(*_by_number(corpus))
    return float(score), [float(value) for value in scores]


def _by_number(corpus: Tokenised) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """The package's form: number of the text → its references, and → its prediction as a list of one."""
    return dict(enumerate(corpus.references)), {n: [text] for n, text in enumerate(corpus.predictions)}


def tokenised(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Tokenised:
    """Tokens as Stanford's PTB tokenizer makes them, lower-cased, without punctuation.

    The last corpus is kept, so that the three metrics tokenise once.

    Raises:
        DataError: Java, or pycocoevalcap, is not here or fails.
    """
    assert len(references) == len(predictions) and all(references), "every prediction needs a reference"
    return _tokenised(tuple(map(tuple, references)), tuple(predictions))


@lru_cache(maxsize=1)
def _tokenised(references: tuple[tuple[str, ...], ...], predictions: tuple[str, ...]) -> Tokenised:
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    texts = [text for several in references for text in several] + list(predictions)
    tokens = iter(" ".join(t for t in line.split(" ") if t not in PUNCTUATIONS) for line in _ptb_lines(texts))
    return Tokenised([[next(tokens) for _ in several] for several in references], list(tokens))


def _ptb_lines(texts: Sequence[str]) -> list[str]:
    """The tokens of each text, one line each; an empty one for a text without tokens."""
    words = ("-cp", str(_jar(_PTB)), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
    given = "".join(f"{text.translate(_BREAKS)}\n" for text in texts).encode(errors="replace")
    ran = subprocess.run(
        ["java", *_UNIFORM, *words], input=given, capture_output=True, check=False, start_new_session=True
    )
    lines = ran.stdout.decode().split("\n")[:-1]
    if ran.returncode or len(lines) != len(texts):
        raise DataError(_failed("the PTB tokenizer", f"{len(lines)} lines for {len(texts)} texts", ran.stderr))
    return [line.rstrip() for line in lines]


class Meteor:
    """A running METEOR, which answers line by line; `open_meteor` starts and ends it.

    Args:
        process: Its input and output are pipes.
        errors: Its standard error.
    """

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors

    def score(self, corpus: Tokenised) -> tuple[float, list[float]]:
        """METEOR of the corpus, and that of each text.

        Raises:
            DataError: The program fails.
        """
        pairs = zip(corpus.references, corpus.predictions, strict=True)
        parts = [self._ask("SCORE", *map(_without_bars, [*several, text])) for several, text in pairs]
        segments = [float(self._ask("EVAL", *parts))]
        segments += [float(self._line()) for _ in parts]  # one per text, then that of the corpus
        return segments[-1], segments[:-1]

    def _ask(self, *fields: str) -> str:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write((" ||| ".join(fields) + "\n").encode(errors="replace"))
            self._process.stdin.flush()
        except OSError as error:
            raise DataError(self._failure(str(error))) from error
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode().strip()
        if not line or line.startswith("Error"):
            raise DataError(self._failure(line or "it ended"))
        return line

    def _failure(self, what: str) -> str:
        self._errors.seek(0)
        return _failed("METEOR", what, self._errors.read())


@contextmanager
def open_meteor() -> Iterator[Meteor]:
    """Start METEOR, which takes some seconds to read its paraphrases, and end it.

    Raises:
        DataError: Java, or pycocoevalcap, is not here.
    """
    jar = _jar(_METEOR)
    words = ("-Xmx2G", *_UNIFORM, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm")
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as errors:
        # In a session of its own, as the tokenizer: Ctrl-C is for lorakit, which ends METEOR when it stops.
        process = subprocess.Popen(["java", *words], stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True)
        with process:
            try:
                yield Meteor(process, errors)
            except BaseException:
                process.kill()
                assert process.stdin is not None
                with suppress(OSError):  # it would try again to write what could not be written
                    process.stdin.close()
                raise


def _without_bars(text: str) -> str:
    """Without METEOR's own separator."""
    return text.replace("|||", "").replace("  ", " ")


def _folder() -> Path | None:
    """Where pycocoevalcap is."""
    spec = find_spec("pycocoevalcap")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    return next((place for place in places if (place / _METEOR).is_file() and (place / _PTB).is_file()), None)


def _jar(name: str) -> Path:
    """One of pycocoevalcap's programs.

    Raises:
        DataError: Java, or pycocoevalcap, is not here.
    """
    if (reason := lacking()) is not None:
        raise DataError(f"METEOR, ROUGE-L and CIDEr: {reason}")
    folder = _folder()
    assert folder is not None
    return folder / name


def _failed(program: str, what: str, errors: bytes) -> str:
    said = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return f"java: {program} failed: {what}" + (f"; it says: {' / '.join(said[-3:])}" if said else "")
