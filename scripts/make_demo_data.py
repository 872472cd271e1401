"""Write a small data set in E2E's layout, for trying out recipes without a download.

    python scripts/make_demo_data.py --out demo/data

Restaurants, attribute values and sentences are our own; of E2E, only the attribute keys and the file layout are used:
trainset.csv, devset.csv and testset_w_refs.csv with the columns mr and ref, several references per meaning
representation. Every reference says all attributes. No meaning representation is in two files.
"""

import argparse
import csv
import random
from collections.abc import Sequence
from pathlib import Path

Meaning = tuple[tuple[str, str], ...]
"""(attribute, value), in E2E's order."""
Pairs = list[tuple[str, str]]
"""(meaning representation, reference)."""

FIRST = ("Copper", "Velvet", "Juniper", "Harbour", "Marigold", "Tin", "Lantern", "Walnut", "Saffron", "Pebble")
SECOND = ("Kettle", "Spoon", "Anchor", "Larder", "Sparrow", "Oven")
VALUES: dict[str, Sequence[str]] = {
    "eatType": ("bistro", "wine bar", "tea room", "canteen"),
    "food": ("Peruvian", "Lebanese", "Thai", "Polish", "Ethiopian", "Greek"),
    "priceRange": ("under £12", "£12-18", "over £40", "modest", "middling", "steep"),
    "customer rating": ("2 out of 10", "6 out of 10", "9 out of 10", "poor", "decent", "superb"),
    "area": ("old harbour", "market quarter", "university district"),
    "familyFriendly": ("yes", "no"),
    "near": ("Opal Cinema", "Linden Station", "the Glass Museum", "Fountain Square"),
}
SHARES = {"food": 0.75, "priceRange": 0.6, "customer rating": 0.6, "area": 0.6, "familyFriendly": 0.5, "near": 0.5}
"""How often an attribute is there; the name and the type always are."""


def generate(seed: int, train: int = 200, dev: int = 40, test: int = 40) -> dict[str, Pairs]:
    """Make the three files' rows.

    Args:
        seed: Same seed and counts, same rows.
        train: Meaning representations for training, three references each.
        dev: Held-out ones for validation, three or four references each.
        test: Held-out ones for the test, likewise.

    Returns:
        File name → rows, those of one meaning representation one after the other.
    """
    rng = random.Random(seed)
    meanings: dict[Meaning, None] = {}
    while len(meanings) < train + dev + test:
        meaning = _meaning(rng)
        if len(meaning) >= 3:  # fewer attributes cannot be said in four ways
            meanings[meaning] = None
    ordered = list(meanings)
    parts = {
        "trainset.csv": ordered[:train],
        "devset.csv": ordered[train : train + dev],
        "testset_w_refs.csv": ordered[train + dev :],
    }
    return {
        name: [pair for meaning in part for pair in _pairs(rng, meaning, 3 if name == "trainset.csv" else 4)]
        for name, part in parts.items()
    }


def write(folder: Path, files: dict[str, Pairs]) -> None:
    """Write the rows as CSV files with a header, in UTF-8."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in files.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("mr", "ref"), *pairs])


def _meaning(rng: random.Random) -> Meaning:
    chosen = [("name", f"The {rng.choice(FIRST)} {rng.choice(SECOND)}")]
    for attribute, values in VALUES.items():
        if rng.random() < SHARES.get(attribute, 1.0):
            chosen.append((attribute, rng.choice(values)))
    return tuple(chosen)


def _pairs(rng: random.Random, meaning: Meaning, most: int) -> Pairs:
    text = ", ".join(f"{attribute}[{value}]" for attribute, value in meaning)
    count = rng.randint(3, most)
    references: dict[str, None] = {}
    while len(references) < count:
        references[_reference(rng, dict(meaning))] = None
    return [(text, reference) for reference in references]


def _reference(rng: random.Random, values: dict[str, str]) -> str:
    """A first sentence that says the name, the type and perhaps where and what; then sentences for the rest."""
    opening: dict[str, str] = {
        key: values[key] for key in ("food", "area", "near") if key in values and rng.random() < 0.6
    }
    sentences = [_opening(rng, values["name"], values["eatType"], opening)]
    rest = [_predicate(rng, key, values[key]) for key in values if key not in ("name", "eatType", *opening)]
    rng.shuffle(rest)
    subject = values["name"]
    while rest:
        size = rng.randint(1, min(3, len(rest)))
        group, rest = rest[:size], rest[size:]
        others = ("It", "The place", f"This {values['eatType']}", values["name"])
        subject = rng.choice([other for other in others if other != subject])
        sentences.append(f"{subject} {_joined(group)}.")
    return " ".join(sentences)


def _opening(rng: random.Random, name: str, kind: str, said: dict[str, str]) -> str:
    food, area, near = said.get("food"), said.get("area"), said.get("near")
    places = [f"in the {area}"] if area else []
    places += [rng.choice((f"near {near}", f"close to {near}", f"next to {near}"))] if near else []
    rng.shuffle(places)
    where = " ".join(places)
    cuisine = f"{food} " if food else ""
    serving = rng.choice((f" serving {food} food", f" with {food} dishes", f" that cooks {food} meals")) if food else ""
    forms = [
        f"{name} is {_article(cuisine + kind)} {cuisine}{kind} {where}",
        f"{name} is {_article(kind)} {kind}{serving} {where}",
        f"There is {_article(cuisine + kind)} {cuisine}{kind} called {name} {where}",
    ]
    if where:
        start = where[0].upper() + where[1:]
        forms.append(f"{start}, you will find {name}, {_article(kind)} {kind}{serving}")
        said_apart = f"{name}, {_article(kind)} {kind} {where}, {rng.choice(('serves', 'cooks'))} {food} food"
        forms.append(said_apart if food else f"The {kind} called {name} is {where}")
        forms.append(f"{start} there is {_article(cuisine + kind)} {cuisine}{kind} named {name}")
    return rng.choice(forms).strip() + "."


def _predicate(rng: random.Random, attribute: str, value: str) -> str:
    """A verb phrase that says one attribute."""
    if attribute == "familyFriendly":
        return rng.choice(
            ("welcomes children", "is a good place for families", "is family-friendly")
            if value == "yes"
            else ("does not welcome children", "is not meant for families", "is not family-friendly")
        )
    if attribute == "priceRange":
        money = "£" in value
        return rng.choice(
            (f"charges {value}", f"has meals for {value}", f"costs {value} a head")
            if money
            else (f"has {value} prices", f"keeps its prices {value}", f"is in the {value} price range")
        )
    if attribute == "customer rating":
        marks = "out of" in value
        return rng.choice(
            (f"is rated {value}", f"has a customer rating of {value}", f"was given {value} by its guests")
            if marks
            else (f"has {value} customer ratings", f"gets {value} reviews from its guests", f"is rated {value}")
        )
    phrases = {
        "food": (f"serves {value} food", f"offers {value} dishes", f"has {_article(value)} {value} menu"),
        "area": (f"is in the {value}", f"lies in the {value}", f"can be found in the {value}"),
        "near": (f"is near {value}", f"stands close to {value}", f"is a short walk from {value}"),
    }
    return rng.choice(phrases[attribute])


def _joined(phrases: Sequence[str]) -> str:
    """Several verb phrases as one."""
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last


def _article(noun: str) -> str:
    return "an" if noun[0] in "AEIOUaeiou" else "a"


def main() -> None:
    """Read the arguments, make the rows, write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the three CSV files go")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    parser.add_argument(
        "--train", type=int, default=200, metavar="N", help="meaning representations, 3 references each"
    )
    parser.add_argument("--dev", type=int, default=40, metavar="N", help="held-out ones, 3 or 4 references each")
    parser.add_argument("--test", type=int, default=40, metavar="N", help="likewise")
    arguments = parser.parse_args()
    write(arguments.out, generate(arguments.seed, arguments.train, arguments.dev, arguments.test))


if __name__ == "__main__":
    main()
