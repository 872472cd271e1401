import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.metrics.wikisql import Query
from lorakit.tasks.wikisql_text import NoQuery, column_names, parse, render

HEADER = ["Name", "No.", "School/Club Team", "Length (m)"]
HARD = [
    "",
    " ",
    '"',
    '""',
    "'",
    "AND",
    '" AND "',
    "a  b",
    "A\nB",
    "x = 'y'",
    "WHERE",
    "select",
    "%s {0}",
    "İ",
    "ß",
    "ſ",
    "\x85",
]
HARD += [
    "a",
    "A",
    "a (2)",
    "(2)",
    "a (3)",
    ",",
    ";",
    "\\",
    "\\'",
    "--",
    "'' OR ''='",
    "FROM table",
    "日本",
    "\u2009",
    "\0",
]
names = st.one_of(st.sampled_from(HARD), st.text(max_size=8))
values = st.one_of(names, st.integers(), st.floats())


@st.composite
def queries(draw: st.DrawFn) -> tuple[Query, list[str]]:
    header = draw(st.lists(names, min_size=1, max_size=7))
    column = st.integers(0, len(header) - 1)
    conds = draw(st.lists(st.tuples(column, st.integers(0, 3), values), max_size=4))
    return Query(draw(column), draw(st.integers(0, 5)), tuple(conds)), header


def spelled(query: Query) -> list[str]:
    return [str(value) for _, _, value in query.conds]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (Query(0, 0), 'SELECT "Name" FROM table'),
        (Query(0, 3, ((1, 0, 3),)), """SELECT COUNT("Name") FROM table WHERE "No." = '3'"""),
        (
            Query(3, 5, ((0, 0, "O'Neal"), (2, 1, "x"), (3, 2, 856.0))),
            """SELECT AVG("Length (m)") FROM table WHERE "Name" = 'O''Neal' AND "School/Club Team" > 'x' """
            """AND "Length (m)" < '856.0'""",
        ),
        (Query(1, 1, ((1, 3, ""),)), """SELECT MAX("No.") FROM table WHERE "No." OP ''"""),
    ],
)
def test_the_text_of_a_query(query: Query, text: str) -> None:
    assert render(query, HEADER) == text
    assert parse(text, HEADER).same(query, ordered=True)


def test_a_quote_in_a_name_is_doubled() -> None:
    assert render(Query(0, 0), ['12" guns']) == 'SELECT "12"" guns" FROM table'
    assert parse('SELECT "12"" guns" FROM table', ['12" guns']) == Query(0, 0)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (["Player", "No."], ["Player", "No."]),
        ([" Date \n of  birth", "\u2009x"], ["Date of birth", "x"]),
        (["Power", "power", "POWER "], ["Power", "power (2)", "POWER (3)"]),
        (["a", "a", "A (2)", "a"], ["a", "a (3)", "A (2)", "a (4)"]),
        (["a (2)", "a", "a"], ["a (2)", "a", "a (3)"]),
        (["", " ", "(2)", "\t"], ["", "(3)", "(2)", "(4)"]),
    ],
)
def test_no_two_columns_are_alike(header: list[str], names: list[str]) -> None:
    assert column_names(header) == names


@settings(max_examples=300, deadline=None)
@given(queries())
def test_every_query_survives_as_text(made: tuple[Query, list[str]]) -> None:
    query, header = made
    back = parse(render(query, header), header)
    assert back.same(query, ordered=True)
    assert spelled(back) == spelled(query)
    assert (back.sel, back.agg) == (query.sel, query.agg)


@settings(max_examples=300, deadline=None)
@given(st.lists(names, max_size=9))
def test_column_names_are_distinct_and_on_one_line(header: list[str]) -> None:
    made = column_names(header)
    assert len({" ".join(name.split()).lower() for name in made}) == len(header)
    assert all(name == " ".join(name.split()) for name in made)
    assert column_names(made) == made


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=" \"'=<>;ANDandWHERselctfomb()x1.", max_size=60))
def test_any_text_is_a_query_or_none(text: str) -> None:
    for start in ("", 'SELECT "x" FROM table', """SELECT "x" FROM table WHERE "x" = '1'"""):
        try:
            query = parse(start + text, ["x"])
        except NoQuery:
            continue
        assert parse(render(query, ["x"]), ["x"]) == query


@pytest.mark.parametrize(
    "text",
    [
        """ SELECT COUNT("No.") FROM table WHERE "Name" = 'Ida' AND "No." > '3'""",
        """select count ( "no." ) from TABLE where "NAME"='Ida' and "No."  >\n'3' ;""",
        """SELECT\nCOUNT("  no. ")\tFROM table WHERE"name" = 'Ida'AND"No.">'3'\n""",
    ],
)
def test_case_and_space_outside_of_values_mean_nothing(text: str) -> None:
    assert parse(text, HEADER) == Query(1, 3, ((0, 0, "Ida"), (1, 1, "3")))


def test_values_are_kept_as_they_are() -> None:
    header = ["a"]
    for value in (" x ", "A  b", "it's", "''", "' AND \"a\" = '", "x\ny", ";", "Á\u2009b"):
        assert parse(render(Query(0, 0, ((0, 0, value),)), header), header).conds == ((0, 0, value),)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not start as SELECT"),
        ("I do not know.", "does not start as SELECT"),
        ("SELECT Name FROM table", "does not start as SELECT"),
        ("SELECT * FROM table", "does not start as SELECT"),
        ('SELECT MEDIAN("Name") FROM table', "does not start as SELECT"),
        ('SELECT COUNT "Name" FROM table', "does not start as SELECT"),
        ('SELECT "Name", "No." FROM table', "does not start as SELECT"),
        ('SELECT "Name" FROM tables', "does not start as SELECT"),
        ("""SELECT 'Name' FROM table""", "does not start as SELECT"),
        ('SELECT "Name FROM table', "does not start as SELECT"),
        ('SELECT "Nam" FROM table', 'there is no column "Nam"'),
        ("""SELECT "Name" FROM table WHERE "x" = '1'""", 'there is no column "x"'),
        ('SELECT "Name" FROM table WHERE', "no condition such as .* at character 31"),
        ('SELECT "Name" FROM table WHERE "No." = 3', "no condition such as"),
        ("""SELECT "Name" FROM table WHERE "No." = '3""", "no condition such as"),
        ("""SELECT "Name" FROM table WHERE "No." >= '3'""", "no condition such as"),
        ("""SELECT "Name" FROM table WHERE "No." = '3' AND""", "no condition such as .* at character 47"),
        ("""SELECT "Name" FROM table WHERE "No." = '3' OR "No." = '4'""", "more than a query, from character 43"),
        ("""SELECT "Name" FROM table "No." = '3'""", "more than a query, from character 25"),
        ("""SELECT "Name" FROM table WHERE "No." = '3' WHERE "No." = '4'""", "more than a query"),
        ('SELECT "Name" FROM table; DROP TABLE x', "more than a query, from character 25"),
    ],
)
def test_what_is_no_query(text: str, why: str) -> None:
    with pytest.raises(NoQuery, match=why):
        parse(text, HEADER)


def test_long_nonsense_is_refused_at_once() -> None:
    for text in (
        '"' * 100_000,
        'SELECT "' + '""' * 100_000,
        'SELECT "Name" FROM table WHERE ' + '"a" ' * 50_000,
        " " * 100_000,
    ):
        with pytest.raises(NoQuery):
            parse(text, HEADER)
