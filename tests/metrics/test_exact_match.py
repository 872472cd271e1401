from lorakit.metrics.exact_match import exact_match


def test_any_reference_counts() -> None:
    assert exact_match([["a", "b"], ["c"], ["d"], ["e"]], ["b", "C", "d", "x"]) == 0.5


def test_white_space_around_is_ignored_and_case_is_not() -> None:
    assert exact_match([[" yes\n"], ["Yes"]], ["yes", "yes"]) == 0.5
