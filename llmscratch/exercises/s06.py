"""Exercises of 4S 06, pretraining data."""

import functools
import random
import re
import time
import tomllib

from llmscratch.exercises.lesson import Lesson, Wrong, expect
from llmscratch.kit.stories import stories
from llmscratch.scientist.programs import Choice, Sequence, Value
from llmscratch.scientist.stories import World

lesson = Lesson("4S06")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _check_bands(answer):
    for threshold, n, want in (
        (0.7, 128, 16),
        (0.5, 128, 32),
        (0.55, 128, 32),
        (0.9, 128, 8),
        (0.8, 100, 10),
        (0.5, 60, 15),
        (0.99, 7, 1),
    ):
        expect(answer(threshold, n), want, f"threshold {threshold} and n = {n}")


def bands_for(threshold, n=128):
    divisors = [b for b in range(1, n + 1) if n % b == 0]
    return min(divisors, key=lambda b: abs((1 / b) ** (b / n) - threshold))


def _rows_for(threshold, n=128):
    return n // bands_for(threshold, n)


def _any_number(threshold, n=128):
    return min(range(1, n + 1), key=lambda b: abs((1 / b) ** (b / n) - threshold))


def _where_half_collide(threshold, n=128):
    return min(
        (b for b in range(1, n + 1) if n % b == 0), key=lambda b: abs((1 - 0.5 ** (1 / b)) ** (b / n) - threshold)
    )


def _exponent_upside_down(threshold, n=128):
    return min((b for b in range(1, n + 1) if n % b == 0), key=lambda b: abs((1 / b) ** b - threshold))


lesson.add(
    1, 1, "Bands for a threshold", check=_check_bands,
    hints=["The divisors of n: [b for b in range(1, n + 1) if n % b == 0].",
           "min(divisors, key=...) with the distance of (1 / b) ** (b / n) from the threshold."],
    solution=bands_for,
    wrong={_rows_for: "expected 16 for threshold 0.7", _any_number: "threshold", _exponent_upside_down: "threshold",
           _where_half_collide: "threshold 0.55"},
)  # fmt: skip


@functools.cache
def _for_order():
    """(examples, good, shuffled): 300 example texts, 200 unseen ones, 200 unseen ones with their words shuffled.

    All are in small letters, and the punctuation stays where it is: it must not betray the shuffled ones.
    """
    texts = [story.text.lower() for story in stories("validation")[:700]]
    rng, shuffled = random.Random(0), []
    for text in texts[500:]:
        pieces = re.split(r"([a-z0-9'-]+)", text)  # at odd places the words
        pieces[1::2] = sorted(pieces[1::2], key=lambda word: rng.random())
        shuffled.append("".join(pieces))
    return texts[:300], texts[300:500], shuffled


def _check_order(answer):
    examples, good, shuffled = _for_order()
    start, thrown, caught = time.perf_counter(), 0, 0
    for kind in (good, shuffled):
        for i, text in enumerate(kind):
            verdict = answer(text, examples)
            if not isinstance(verdict, bool) and type(verdict).__name__ != "bool":
                raise Wrong(f"expected True or False for a text, got {verdict!r}")
            thrown += kind is good and bool(verdict)
            caught += kind is shuffled and bool(verdict)
            if time.perf_counter() - start > 180:
                raise Wrong(
                    f"expected 400 texts to be judged within three minutes, got to {i + 1}: keep what you learn from "
                    "the examples, for example with functools.cache on a tuple of them"
                )
    if caught < 0.95 * len(shuffled):
        raise Wrong(f"expected at least 95% of 200 shuffled stories to be caught, got {caught / len(shuffled):.1%}")
    if thrown > 0.02 * len(good):
        raise Wrong(f"expected at most 2% of 200 good stories to be thrown out, got {thrown / len(good):.1%}")


def looks_shuffled(text, examples):
    seen = _pairs_of(tuple(examples))
    words = text.lower().split()
    pairs = list(zip(words, words[1:], strict=False))
    return sum(pair in seen for pair in pairs) < 0.4 * len(pairs)


@functools.cache
def _pairs_of(examples):
    return {
        pair for text in examples for words in [text.lower().split()] for pair in zip(words, words[1:], strict=False)
    }


@functools.cache
def _words_of(examples):
    return {word for text in examples for word in text.lower().split()}


def _known_words(text, examples):
    known, words = _words_of(tuple(examples)), text.lower().split()
    return sum(word in known for word in words) < 0.9 * len(words)


def _only_the_ends(text, examples):
    return not (text[0] in '"ABCDEFGHIJKLMNOPQRSTUVWXYZ' and text[-1] in '.!?"')


def _only_the_last(text, examples):
    return text[-1] not in '.!?"'


def _only_stops(text, examples):
    return bool(re.search(r"[.!?] [a-z]", text))


def _too_strict(text, examples):
    seen, words = _pairs_of(tuple(examples)), text.lower().split()
    return not all(pair in seen for pair in zip(words, words[1:], strict=False))


lesson.add(
    2, 2, "The filter that looks at order", check=_check_order,
    hints=["Every word is known, but most pairs of neighbours are not: count pairs that occur in the examples.",
           "Build the set of pairs of the examples once (functools.cache on tuple(examples)), then compare a share "
           "with a limit; print the share for good and for shuffled stories to choose it."],
    solution=looks_shuffled,
    wrong={
        _known_words: "shuffled stories to be caught", _too_strict: "good stories to be thrown out",
        _only_the_ends: "shuffled stories to be caught", _only_stops: "good stories to be thrown out",
        _only_the_last: "got 0.0%", (lambda text, examples: False): "got 0.0%",
        (lambda text, examples: 0.3): "True or False",
    },
)  # fmt: skip


def _check_world(answer):
    if not isinstance(answer, str):
        raise Wrong(f"expected the text of a TOML file, got {type(answer).__name__}")
    try:
        world = World(tomllib.loads(answer))
        total = world.measure()
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise Wrong(f"expected a world; reading it stopped with: {error}") from None
    if abs(total.bits - 10) > 1e-9:
        raise Wrong(f"expected an entropy of 10 bits for my_world, got {total.bits:.4g}")
    if total.paths > 100_000:
        raise Wrong(f"expected at most 100,000 paths, so that the check can list them, got {total.paths:,}")
    seen = {}
    for story in world.paths():
        if story.text in seen:
            raise Wrong(f"expected one path to each text, got two to {story.text!r}")
        seen[story.text] = story
    if all(_uses(world.root, variable) < 2 or len(variable.pool) < 2 for variable in world.root.uses):
        raise Wrong(
            "expected a variable of two or more values that is used twice in a story: the same name, say, in two "
            "sentences"
        )


def _uses(node, variable):
    """How often the program says a variable, at most, on one path."""
    if isinstance(node, Value):
        return int(node.variable is variable)
    if isinstance(node, Sequence):
        return sum(_uses(part, variable) for part in node.parts)
    return max(_uses(option, variable) for option in node.options) if isinstance(node, Choice) else 0


def my_world():
    return """
    [plots.walk]
    story = "{hero} found {thing}. [It was wet.|It was dry.] {hero} kept it [forever|a day|a week|until noon]."
    [plots.walk.cast]
    hero = ["Ada", "Ben", "Cleo", "Dan", "Emil", "Finn", "Gus", "Hana"]
    thing = ["a key", "a map", "a bell", "an egg", "a nut", "a shell", "a coin", "a kite",
             "a hat", "a boot", "a spoon", "a lamp", "a drum", "a rope", "a stamp", "a stone"]
    """


_MINE = my_world()
_TWO_PATHS = _MINE.replace("[It was wet.|It was dry.]", "[Wet.|Wet. It] [sank.|It sank.]").replace(
    "|a week|until noon", ""
)
_ONCE = f"""
[plots.once]
story = "{{thing}} fell. Mia ran."
cast = {{thing = {["a", *(f"w{i}" for i in range(1023))]}}}
"""
_ONE_VALUE = _ONCE.replace("Mia ran.", "{x} ran. {x} sat.").replace("cast = {", 'cast = {x = ["Mia"], ')

lesson.add(
    3, 2, "A world of exactly ten bits", check=lambda answer: _check_world(answer() if callable(answer) else answer),
    hints=["Bits add up: a variable with 8 entries is 3 bits, [a|b] is 1, however often the variable is used.",
           'A cast may stand in the plot: [plots.walk.cast], hero = ["Ada", "Ben"]; story = "{hero} ran. {hero} sat."'],
    solution=my_world,
    wrong={
        _MINE.replace("[It was wet.|It was dry.]", "It was wet."): "entropy of 10 bits for my_world, got 9",
        _TWO_PATHS: "got two to",
        _MINE.replace("{hero} kept it", "Nobody kept it"): "used twice",
        _MINE.replace("{thing}", "{think}"): "reading it stopped with", _ONCE: "used twice",
        _ONE_VALUE: "two or more values",
        "plots = {p = {story = 5}}": "of the wrong type", 'plots = {p = "x"}': "of the wrong type",
        "plots = {p = {story = '{a}', cast = {a = []}}}": "of the wrong type",
        "plots = {p = {story = '{a}', cast = {a = 5}}}": "of the wrong type",
        10: "text of a TOML file",
    },
)  # fmt: skip


def _check_overlap(answer):
    cases = [
        (["a b c d e f"], ["x c d e y"], 3, [0.5]),
        (["a b c d e f", "a b"], ["b c d", "d e f", "a b"], 3, [5 / 6, 0.0]),
        (["a b c a b c"], ["b c a"], 3, [0.5]),
        (["A b C d"], ["a B c x"], 2, [0.75]),
        (["a b a c"], ["a b a"], 3, [0.75]),
        (["a b c"], ["x a b c"], 3, [1.0]),
        ([""], ["a b c"], 2, [0.0]),
        (["a b c"], ["x a", "b c"], 3, [0.0]),
        (["a b c"], ["xa b cd"], 3, [0.0]),
    ]
    for validation, training, n, want in cases:
        expect(answer(validation, training, n), want, f"validation {validation}, training {training}, n = {n}")
    words = [f"w{i}" for i in range(60_000)]
    long = [" ".join(words[i : i + 150]) for i in range(0, 60_000, 150)]
    start = time.perf_counter()
    expect(answer(long[:200], long[200:] + [long[3]], 13), [float(i == 3) for i in range(200)], "200 long texts")
    if (took := time.perf_counter() - start) > 30:
        raise Wrong(
            f"expected 400 texts of 150 words to take less than 30 s, got {took:.0f} s: keep all runs in one set"
        )


def overlap(validation, training, n=13):
    def runs(text):
        words = text.lower().split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)], len(words)

    seen = {run for text in training for run in runs(text)[0]}
    shares = []
    for text in validation:
        found, n_words = runs(text)
        inside = {j for i, run in enumerate(found) if run in seen for j in range(i, i + n)}
        shares.append(len(inside) / n_words if found else 0.0)
    return shares


def _share_of_runs(validation, training, n=13):
    def runs(text):
        words = text.lower().split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    seen = {run for text in training for run in runs(text)}
    return [sum(run in seen for run in runs(text)) / max(1, len(runs(text))) for text in validation]


def _counts_twice(validation, training, n=13):
    seen = {tuple(w[i : i + n]) for t in training for w in [t.lower().split()] for i in range(len(w) - n + 1)}
    shares = []
    for text in validation:
        words = text.lower().split()
        hits = sum(tuple(words[i : i + n]) in seen for i in range(len(words) - n + 1))
        shares.append(min(1.0, hits * n / max(1, len(words))))
    return shares


def _different_words(validation, training, n=13):
    seen = {tuple(w[i : i + n]) for t in training for w in [t.lower().split()] for i in range(len(w) - n + 1)}
    shares = []
    for text in validation:
        words = text.lower().split()
        inside = {w for i in range(len(words) - n + 1) if tuple(words[i : i + n]) in seen for w in words[i : i + n]}
        shares.append(len(inside) / max(1, len(words)))
    return shares


def _loses_the_last(validation, training, n=13):
    return [
        0.0 if len(t.split()) == n else s for t, s in zip(validation, overlap(validation, training, n), strict=True)
    ]


def _minds_capitals(validation, training, n=13):
    seen = {tuple(w[i : i + n]) for t in training for w in [t.split()] for i in range(len(w) - n + 1)}
    shares = []
    for text in validation:
        words = text.split()
        inside = {j for i in range(len(words) - n + 1) if tuple(words[i : i + n]) in seen for j in range(i, i + n)}
        shares.append(len(inside) / max(1, len(words)))
    return shares


def _joined(validation, training, n=13):
    return overlap(validation, [" ".join(training)], n)


def _substring(validation, training, n=13):
    body, shares = "\n".join(training).lower(), []
    for text in validation:
        words = text.lower().split()
        starts = [i for i in range(len(words) - n + 1) if " ".join(words[i : i + n]) in body]
        inside = {j for i in starts for j in range(i, i + n)}
        shares.append(len(inside) / max(1, len(words)))
    return shares


lesson.add(
    4, 3, "Is the validation set in the training set?", check=_check_overlap,
    hints=["Put every run of n words of the training texts into one set of tuples; looking up is then immediate.",
           "Runs overlap: collect the places of the words that lie in a found run in a set, and divide by the words."],
    solution=overlap,
    wrong={
        _share_of_runs: "expected [0.5]", _counts_twice: "expected [0.8333333333333334, 0.0]",
        _minds_capitals: "expected [0.75]", _different_words: "validation ['a b a c']",
        _loses_the_last: "expected [1.0]",
        _joined: "training ['x a', 'b c']", _substring: "training ['xa b cd']",
    },
)  # fmt: skip
