"""Exercises of 4E 05, RAG."""

import math
import re

import numpy as np

from llmscratch.exercises.lesson import Lesson, Wrong, expect

lesson = Lesson("4E05")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _check_mean_reciprocal_rank(answer):
    for given, rankings, wanted in (
        ("one question whose right id is first", [[4, 2]], [{4}]),
        ("right ids at places 2 and 4", [[7, 1, 3], [5, 6, 7, 8]], [{1}, {8}]),
        ("two right ids for one question, at places 2 and 3", [[9, 1, 2, 4]], [{1, 2}]),
        ("a question whose right id is not in its list", [[1, 2], [3, 4]], [{1}, {9}]),
        ("an empty list for one of two questions", [[], [3]], [{1}, {3}]),
    ):
        want = 0.0
        for ranking, right in zip(rankings, wanted, strict=True):
            want += next((1 / place for place, i in enumerate(ranking, 1) if i in right), 0.0) / len(rankings)
        expect(answer([list(row) for row in rankings], [set(ids) for ids in wanted]), want, given)


def mean_reciprocal_rank(rankings, wanted):
    total = 0.0
    for ranking, right in zip(rankings, wanted, strict=True):
        for place, i in enumerate(ranking, start=1):
            if i in right:
                total += 1 / place
                break
    return total / len(rankings)


def _places_from_0(rankings, wanted):
    pairs = zip(rankings, wanted, strict=True)
    firsts = [next((n for n, i in enumerate(row) if i in right), None) for row, right in pairs]
    return sum(1 / max(n, 1) for n in firsts if n is not None) / len(rankings)


def _every_right_id(rankings, wanted):
    pairs = zip(rankings, wanted, strict=True)
    each = [sum(1 / n for n, i in enumerate(row, 1) if i in right) for row, right in pairs]
    return sum(each) / len(rankings)


def _mean_of_the_found(rankings, wanted):
    pairs = zip(rankings, wanted, strict=True)
    places = [next((n for n, i in enumerate(row, 1) if i in right), None) for row, right in pairs]
    found = [1 / n for n in places if n]
    return sum(found) / len(found)


lesson.add(
    1, 1, "Mean reciprocal rank", check=_check_mean_reciprocal_rank,
    hints=["For each question walk through its ranking with enumerate(ranking, start=1); stop at the first right id.",
           "A question without a right id adds nothing to the sum, and still counts in the number you divide by."],
    solution=mean_reciprocal_rank,
    wrong={
        _places_from_0: "places 2 and 4", _every_right_id: "two right ids",
        _mean_of_the_found: "not in its list",
    },
)  # fmt: skip


def _words(text):
    return [(match.group().lower(), match.start(), match.end()) for match in re.finditer(r"\w+", text)]


def _check_locate(answer):
    for given, reply, text, want in (
        ('"632" in "It was finished in 632."', "632", "It was finished in 632.", (19, 22)),
        ('"mimi bellwether" in "Its builder was Mimi Bellwether."', "mimi bellwether",
         "Its builder was Mimi Bellwether.", (16, 31)),
        ('"the Raven Mill." in "In the Raven-Mill, near Owlbury"', "the Raven Mill.", "In the Raven-Mill, near Owlbury",
         (3, 17)),
        ('"an oak" in "sand and an old oak, an oak"', "an oak", "sand and an old oak, an oak", (21, 27)),
        ('"63" in "It was finished in 632."', "63", "It was finished in 632.", None),
        ('"a.b" in "axb a b"', "a.b", "axb a b", (4, 7)), ('"oak" in ""', "oak", "", None),
        ('"?!" in "oak"', "?!", "oak", None), ('"two two" in "two two two"', "two two", "two two two", (0, 7)),
        ('"oak" in "a cloak, an oak"', "oak", "a cloak, an oak", (12, 15)),
        ('"red brick" in "redbrick"', "red brick", "redbrick", None), ('"a b" in "a_b"', "a b", "a_b", None),
    ):  # fmt: skip
        got = answer(reply, text)
        if want is None:
            if got is not None:
                raise Wrong(f"expected None for {given}, got {got!r}")
        elif got is None or not isinstance(got, tuple) or len(got) != 2:
            raise Wrong(f"expected {want} for {given}, got {got!r}")
        elif tuple(got) != want:
            raise Wrong(f"expected {want}, which is {text[slice(*want)]!r}, for {given}, got {tuple(got)}")


def locate(answer, text):
    words = re.findall(r"\w+", answer)
    if not words:
        return None
    pattern = r"(?<!\w)" + r"\W+".join(map(re.escape, words)) + r"(?!\w)"
    match = re.search(pattern, text, re.IGNORECASE)
    return match.span() if match else None


def _as_characters(answer, text):
    at = text.lower().find(answer.lower())
    return (at, at + len(answer)) if at >= 0 and answer.strip("?!") else None


def _parts_of_words(answer, text):
    words = re.findall(r"\w+", answer)
    match = re.search(r"\W+".join(words), text, re.IGNORECASE) if words else None
    return match.span() if match else None


def _between(pattern, before=r"(?<!\w)"):
    """locate with another pattern between the words, or before the first."""

    def answer(answer, text):
        words = re.findall(r"\w+", answer)
        match = re.search(before + pattern.join(map(re.escape, words)) + r"(?!\w)", text, re.IGNORECASE)
        return match.span() if words and match else None

    return answer


def _capitals_count(answer, text):
    words = re.findall(r"\w+", answer)
    match = re.search(r"(?<!\w)" + r"\W+".join(words) + r"(?!\w)", text) if words else None
    return match.span() if match else None


lesson.add(
    2, 2, "Show the quotation", check=_check_locate,
    hints=['Take the words of the answer with re.findall(r"\\w+", answer); between two of them may stand \\W+.',
           "Whole words: before the first no word character may stand, (?<!\\w), and after the last none, (?!\\w). "
           "match.span() gives start and end."],
    solution=locate,
    wrong={
        _as_characters: "Raven-Mill", _parts_of_words: '"63"', _capitals_count: "mimi bellwether",
        _between(r"\W+", before=""): "a cloak", _between(r"\W*"): "redbrick", _between(r"[\W_]+"): "a_b",
    },
)  # fmt: skip


def _check_safe_threshold(answer):
    ten = [0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 1.0]
    for given, scores, most, want in (
        ("nine scores from 0.2 to 1, most = 0.1", ten, 0.1, 0.2), ("the same nine, most = 0.35", ten, 0.35, 0.4),
        ("the same nine, most = 0.3", ten, 0.3, 0.4), ("the same nine, most = 0.09", ten, 0.09, -math.inf),
        ("one score, 0.5, most = 0.5", [0.5], 0.5, 0.5), ("one score, 0.5, most = 0.4", [0.5], 0.4, -math.inf),
        ("the scores 0 to 98, most = 0.29", list(range(99)), 0.29, 28),
    ):  # fmt: skip
        expect(answer(list(scores), most), want, given)
    for given, scores, most in (("no scores, most = 0.1", [], 0.1), ("most = 0", ten, 0.0), ("most = 1", ten, 1.0)):
        try:
            got = answer(list(scores), most)
        except ValueError:
            continue
        raise Wrong(f"expected a ValueError for {given}, got {got!r}")
    draws = np.random.default_rng(0).standard_normal((4000, 20))
    broken = np.mean([row[-1] < answer(row[:-1].tolist(), 0.1) for row in draws])
    if not 0.08 < broken < 0.12:
        raise Wrong(f"expected about 10% of new scores under the threshold of 19 others, most = 0.1; got {broken:.1%}")


def safe_threshold(scores, most):
    if not scores or not 0 < most < 1:
        raise ValueError(f"needs scores, and `most` between 0 and 1; got {len(scores)} scores and {most}")
    m = math.floor(most * (len(scores) + 1) + 1e-9)
    return sorted(scores)[m - 1] if m >= 1 else -math.inf


def _quantile(scores, most):
    if not scores or not 0 < most < 1:
        raise ValueError("bad input")
    return float(np.quantile(scores, most))


def _rounded_off(scores, most):
    if not scores or not 0 < most < 1:
        raise ValueError("bad input")
    m = math.floor(most * (len(scores) + 1))
    return sorted(scores)[m - 1] if m >= 1 else -math.inf


def _one_too_far(scores, most):
    if not scores or not 0 < most < 1:
        raise ValueError("bad input")
    return sorted(scores)[min(math.floor(most * (len(scores) + 1) + 1e-9), len(scores) - 1)]


def _never_refuses_nothing(scores, most):
    if not scores or not 0 < most < 1:
        raise ValueError("bad input")
    return sorted(scores)[max(math.floor(most * (len(scores) + 1) + 1e-9), 1) - 1]


lesson.add(
    3, 3, "A threshold with a guarantee", check=_check_safe_threshold,
    hints=["The largest m with m / (n + 1) ≤ most is math.floor(most * (n + 1)); add 1e-9 inside: for a computer "
           "0.29 * 100 need not be 29.",
           "The m-th smallest stands at sorted(scores)[m - 1]. For m = 0 the answer is -math.inf."],
    solution=safe_threshold,
    wrong={
        _quantile: "nine scores", _one_too_far: "nine scores", _never_refuses_nothing: "most = 0.09",
        _rounded_off: "most = 0.29",
    },
)  # fmt: skip
