"""The stories, instructions and the almanac: exact on a small world, measured on the whole one, re-made from a seed."""

import hashlib
import itertools
import json
import lzma
import math
import re
import sys
import tomllib
from collections import Counter

import pytest

from llmscratch.kit.packages import DataUnavailable
from llmscratch.kit.paths import checkout
from llmscratch.kit.stories import almanac, instructions, stories
from llmscratch.kit.templates import TemplateError, article, capitalised, read_list
from llmscratch.scientist import corpus, tasks
from llmscratch.scientist.stories import World

DATA = checkout() / "data"
PHRASES = tomllib.loads((DATA / "instructions.toml").read_text(encoding="utf-8"))
FILES = ["stories_train", "stories_validation", "instructions_train", "instructions_validation", "almanac"]
SEED_0 = "4907e8d7cefb3e5f3ba3a22b6f0f56b783a364ae3fbf6d5abeeb5ef7aaab6add"  # of 500 stories
LITERAL = (
    "who", "kind", "trait", "friend", "helper", "elder", "object", "place", "food", "town", "day", "wears", "likes",
)  # fmt: skip
SMALL = {
    "cast": {"hero": ["Ann", "Bo", "Cy"], "pal": "people", "third": "people - pal", "thing": ["cup", "axe"]},
    "lists": {"people": {"columns": "name | kind", "rows": "Dee | owl\nEli | fox\nFay | cat"}},
    "speech": {".": '"FIRST," said WHO.REST @3\nWHO said, "ALL"', "!": '"FIRST!" cried WHO.REST'},
    "facts": {"who": "{hero}", "what": "{thing.the}"},
    "plots": {
        "one": {
            "weight": 2, "story": "{Hero} had {thing.a}. {x} [{y} & {z}]{!ends=well}", "x": "It rained. @3\nIt snowed.",
            "y": "{pal says: I like {thing.the}. ~ Truly!}", "z": "[{Third} sang.|{Pal.kind.a} ran.|All slept.]",
        },
        "two": {"story": "{third says: Help!} {Pal} came[ with {thing.a}|]."},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return World.load()


@pytest.fixture(scope="module")
def told(world):
    """4,000 stories."""
    return list(world.stories(4000, 7))


@pytest.fixture(scope="module")
def total(world):
    return world.measure()


# Exact, on a small world


@pytest.fixture(scope="module")
def small():
    return World(SMALL)


@pytest.fixture(scope="module")
def every(small):
    """Every path of the small world."""
    return list(small.paths())


def test_the_probabilities_of_all_paths_add_up_to_one(every):
    assert abs(sum(math.exp(path.log_prob) for path in every) - 1) < 1e-12


def test_measure_is_the_sum_over_all_paths(small, every):
    total = small.measure()
    assert total.paths == len(every) == 594
    assert total.bits == pytest.approx(sum(math.exp(path.log_prob) * path.bits for path in every), abs=1e-9)
    assert total.length == pytest.approx(sum(math.exp(path.log_prob) * len(path.text) for path in every), abs=1e-9)


def test_sampling_follows_the_probabilities(small, every):
    """Chi-square of 30,000 stories against all texts, five standard deviations."""
    p = Counter()
    for path in every:
        p[path.text] += math.exp(path.log_prob)
    seen = Counter(story.text for story in small.stories(30_000, 1))
    chi = sum((seen[text] - 30_000 * q) ** 2 / (30_000 * q) for text, q in p.items())
    assert set(seen) <= set(p)
    assert abs(chi - len(p)) < 5 * math.sqrt(2 * len(p))


def test_a_text_is_as_probable_as_all_its_paths(small, every):
    for text in {path.text for path in every[::5]}:
        exact = sum(math.exp(path.log_prob) for path in every if path.text == text)
        assert small.log_prob(text) == pytest.approx(math.log(exact), abs=1e-9)
    twice = World({"plots": {"p": {"cast": {"a": ["x", "xx"], "b": ["x", "xx"]}, "story": "{a}{b}"}}})
    assert twice.log_prob("xxx") == pytest.approx(math.log(1 / 2))
    assert twice.log_prob("y") == -math.inf and list(twice.paths("y")) == []


def test_facts_are_those_that_were_drawn_or_noted(every):
    for path in every:
        assert ("who" in path.facts) == (path.facts["plot"] == "one") == (path.facts.get("ends") == "well")
        assert path.facts.get("who", "") in path.text
        assert ("what" in path.facts) == ("cup" in path.text or "axe" in path.text)


def test_the_words_of_a_story_are_single_small_ones_that_it_drew():
    cast = {"hero": ["Ann"], "pet": ["cat", "old dog", "red"], "shade": ["red", "blue"]}
    world = World({"plots": {"p": {"cast": cast, "story": "With a red bow, {hero} had {pet.a} and {shade.a} dog."}}})
    words = {path.text: path.facts["words"] for path in world.paths()}
    assert words == {
        "With a red bow, Ann had a cat and a red dog.": ["red", "cat"],
        "With a red bow, Ann had a cat and a blue dog.": ["cat", "blue"],
        "With a red bow, Ann had an old dog and a red dog.": ["red"],
        "With a red bow, Ann had an old dog and a blue dog.": ["blue"],
        "With a red bow, Ann had a red and a red dog.": ["red"],
        "With a red bow, Ann had a red and a blue dog.": ["red", "blue"],
    }


# Mistakes are said


@pytest.mark.parametrize(
    ("story", "message"),
    [
        ("{hero} [a|b", "never closed"), ("{heor}", "'hero'?"), ("{hero.hat}", "no form 'hat', only it, a, the"),
        ("[a|a]", "two equal alternatives 'a'"), ("[a]", r"write [a|b]"), ("a | b]", "outside any bracket"),
        ("{hero says: Hm}", "ends in . ? or !"), ("{Opt}", "may be empty"), ("{hero]", "'}' is due"),
        ("[a @0|b]", "whole number"), ("[a|b & c]", "nest the brackets"),
    ],
)  # fmt: skip
def test_a_broken_template_says_where_and_what_would_be_right(story, message):
    with pytest.raises(TemplateError, match=re.escape(message)) as caught:
        World({"cast": {"hero": ["Ann"]}, "plots": {"p": {"story": story, "opt": "[|very] old"}}})
    assert str(caught.value).startswith("plot p, rule ") and str(caught.value).endswith("^")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plots": {}}, "needs at least one plot"),
        ({"plots": {"p": {"x": "a"}}}, "plot p has no rule 'story'"),
        ({"plots": {"p": {"story": "{story}"}}}, "leads back to itself: story > story"),
        ({"plots": {"p": {"story": "a", "hero": "b"}}}, "'hero' is already the name of a common rule or of the cast"),
        ({"cast": {"pal": "peeple"}}, "plot one, cast pal: 'peeple' is not"),
        ({"lists": {"people": {"columns": "name | kind", "rows": "Dee"}}}, "'Dee' has 1 cells"),
        ({"lists": {"people": {"columns": "name", "rows": "Dee\nDee"}}}, "begin with words of its own"),
    ],
)
def test_a_broken_world_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        World(SMALL | changes)


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ({"story": 5}, "of the wrong type"), ("x", "of the wrong type"),
        ({"story": "{a}", "cast": {"a": []}}, "of the wrong type"), ({"story": "{a}", "cast": {"a": 5}}, "wrong type"),
        ({"story": "{c}", "cast": {"a": "l", "b": "l", "c": "l - a - b"}}, "those that c must differ from"),
        ({"story": "{b}", "cast": {"a": "one", "b": "one - a"}}, "too few to differ"),
        ({"story": "{h}", "cast": {"h": ["x"]}, "facts": {"f": "[{h}|she] it is"}}, "a fact holds no choice"),
        ({"story": "{h}", "cast": {"h": ["x"]}, "facts": {"f": "so {r}"}, "r": "a\nb"}, "a fact holds no choice"),
    ],
)  # fmt: skip
def test_what_would_crash_or_lie_later_is_refused_when_a_world_is_read(plot, message):
    lists = {"l": {"columns": "name", "rows": "x\ny\nz\nw"}, "one": {"columns": "name", "rows": "x"}}
    with pytest.raises(ValueError, match=message):
        World({"lists": lists, "plots": {"p": plot}})


def test_a_fact_through_a_rule_is_known_only_when_its_values_were_drawn():
    plot = {"story": "[{a} ran.|Nobody ran.]", "cast": {"a": ["Ann", "Bob"]}, "r": "{a} slept"}
    plot["facts"] = {"y": "so {r}"}
    world = World({"plots": {"p": plot}})
    assert [story.facts.get("y") for story in world.paths("Nobody ran.")] == [None]
    assert [story.facts.get("y") for story in world.paths("Bob ran.")] == ["so Bob slept"]


def test_a_damaged_world_file_is_named(tmp_path):
    file = tmp_path / "w.toml"
    file.write_text("plots = [")
    with pytest.raises(ValueError, match=r"w\.toml is not a world file, or is damaged"):
        World.load(file)


def test_bad_numbers_are_refused(small):
    with pytest.raises(ValueError, match="0 or more, got -1"):
        list(small.stories(-1))
    with pytest.raises(ValueError, match="weights must be positive"):
        World({"plots": {"p": {"story": "a", "weight": -1}}})


def test_articles():
    assert [article(words) for words in ("owl", "fox", "one-eyed cat", "old owl")] == [
        "an owl", "a fox", "a one-eyed cat", "an old owl",
    ]  # fmt: skip
    assert read_list("l", "it | a", ["mittens | a pair of mittens"], {})[0]["A"] == "A pair of mittens"
    with pytest.raises(ValueError, match="may be empty"):
        capitalised(())


# Measured, on the whole world


def test_the_world_is_large(world, total):
    assert len(world.facts) >= 30
    assert total.paths > 10**12


def test_the_law_of_large_numbers(total, told):
    """The mean of −log₂ p of 4,000 stories is the exact entropy, within four standard errors; so is the mean length."""
    for exact, seen in ((total.bits, [s.bits for s in told]), (total.length, [len(s.text) for s in told])):
        mean = sum(seen) / len(seen)
        error = math.sqrt(sum((x - mean) ** 2 for x in seen) / (len(seen) - 1) / len(seen))
        assert abs(mean - exact) < 4 * error < 0.02 * exact


def test_a_story_has_one_path_and_its_facts_can_be_read_back(world):
    for story in world.stories(100, 77):
        (only,) = world.paths(story.text)
        assert only.log_prob == pytest.approx(story.log_prob, abs=1e-9) and only.facts == story.facts
        assert list(world.paths(story.text.replace(story.facts["who"], "Zed"))) == []


def test_facts_stand_in_the_text(told):
    for story in told:
        for key in LITERAL:
            assert story.facts.get(key, "") in story.text, (key, story)
        assert 1 <= len(set(story.facts["words"])) == len(story.facts["words"]) <= 12
        assert all(re.search(rf"\b{word}\b", story.text) for word in story.facts["words"])
        assert {"plot", "who", "kind", "trait", "ends", "lesson"} <= set(story.facts)


def faults(text):
    """Faults of form: doubled words, a before a vowel, quotes, capitals, spaces, ends."""
    found = [m[0] for m in re.finditer(r"\b(\w+) \1\b", text.lower())]
    found += re.findall(r"\b[Aa] (?!one\b)[aeiouAEIOU]\w*|\b[Aa]n (?!hour)[^aeiouAEIOU\W]\w*", text)
    found += ["quotes"] * (text.count('"') % 2) + ["space"] * bool(re.search(r"  |^ | $| [.,!?](?!\.)", text))
    found += ["end"] * (not re.search(r'[.!?]"?$', text)) + ["ascii"] * (not text.isascii())
    found += ["bracket"] * bool(re.search(r"[{}\[\]|&@~_\n]", text))
    pieces = text.split('"')
    for before, piece in zip(pieces[::2], pieces[1::2], strict=False):
        found += [f"speech starts low: {piece}"] * (not piece[:1].isupper() and not before.endswith((", ", "under ")))
    found += re.findall(r"(?<!\.\.)[.] [a-z]\w*", text) + re.findall(r"^[a-z]\w*", text)
    return found + re.findall(r'[.]" [a-z]\w*|,[.]|[.],|[!?][.]', text)


def test_stories_have_no_fault_of_form(told):
    assert [(fault, story.text) for story in told for fault in faults(story.text)] == []


def test_lengths_and_vocabulary(told):
    """60 to 200 words; nothing is rejected, so a few in 100,000 pass 200, and here none by more than ten words."""
    words = [len(story.text.split()) for story in told]
    assert min(words) >= 60 and max(words) <= 210 and sum(n > 200 for n in words) <= 4
    vocabulary = {word for story in told for word in re.findall(r"[a-z]+(?:'[a-z]+)?", story.text.lower())}
    assert 1300 <= len(vocabulary) <= 2000
    assert len({story.text for story in told}) == len(told)


def test_a_seed_means_the_same_on_every_machine(world):
    told = "\n".join(story.text for story in world.stories(500))
    assert hashlib.sha256(told.encode()).hexdigest() == SEED_0


# Instructions


@pytest.fixture(scope="module")
def asked():
    return {split: instructions(split) for split in ("train", "validation")}


def test_instructions_are_fulfilled_by_their_stories(asked):
    assert {split: len(found) for split, found in asked.items()} == {"train": 6000, "validation": 500}
    for one in itertools.chain(*asked.values()):
        assert 1 <= len(one.checks.keys() - {"kind"}) <= 4
        assert all(tasks.satisfied(one.checks, one.story).values()), one
        assert one.prompt.isascii() and not re.search(r"[{}]|  |  $", one.prompt)
        assert all(str(value) in one.prompt for key, value in one.checks.items() if key != "words")
        assert all(word in one.prompt for word in one.checks.get("words", []))


def test_splits_share_no_story_and_hold_out_combinations(asked):
    told = {split: {story.text for story in stories(split)} for split in asked}
    assert not told["train"] & told["validation"]
    assert {len(found) for found in told.values()} == {20_000, 2_000}
    for split, found in asked.items():
        assert {one.story for one in found} <= told[split] and len({one.story for one in found}) == len(found)
    heroes, places = PHRASES["held_out"]["who"], PHRASES["held_out"]["place"]
    held = {
        split: sum(one.checks.get("who") in heroes and one.checks.get("place") in places for one in found)
        for split, found in asked.items()
    }
    assert held["train"] == 0 and held["validation"] >= 30
    assert not any(set(one.checks.get("words", ())) & set(places) for found in asked.values() for one in found)


def test_there_are_many_ways_to_ask(asked):
    assert set(PHRASES["sentence"]) == {"who", "place", "town", "words", "ends", "fewer", "more"}
    assert all(len(set(ways)) >= 8 for ways in PHRASES["sentence"].values())
    assert len({one.prompt for one in asked["train"]}) > 5800


@pytest.mark.parametrize(
    ("checks", "text", "right"),
    [
        ({"who": "Mia", "kind": "girl"}, "Mia was a girl.", {"who": True, "kind": True}),
        ({"who": "Mia", "kind": "girl"}, "Miaow, girls.", {"who": False, "kind": False}),
        ({"town": "Little Puddle"}, "In Little Puddle it rained.", {"town": True}),
        ({"place": "mill"}, "By the mill-pond, at the windmill.", {"place": False}),
        ({"words": ["ladder", "soup"]}, "Soup! A ladder's end.", {"words": True}),
        ({"words": ["ladder", "soup"]}, "Ladders and soup.", {"words": False}),
        ({"ends": "All slept."}, "They ate. All slept.\n", {"ends": True}),
        ({"ends": "All slept."}, "All slept. They ate.", {"ends": False}),
        ({"fewer": 3, "more": 1}, "One two", {"fewer": True, "more": True}),
        ({"fewer": 3, "more": 3}, "One two three", {"fewer": False, "more": False}),
        ({}, "", {}),
    ],
)
def test_checks_are_exact(checks, text, right):
    assert tasks.satisfied(checks, text) == right


def test_an_unknown_check_is_refused(told):
    with pytest.raises(ValueError, match="no check is called 'rhymes'"):
        tasks.satisfied({"rhymes": True}, "text")
    with pytest.raises(ValueError, match="30 instructions need 30 stories"):
        tasks.make_instructions(told[:20], 30, 0)


# The almanac


def test_the_almanac_agrees_with_itself():
    entries, questions = almanac()
    book = {entry.name: entry for entry in entries}
    assert len(book) == len(entries) == 272 and len({q.text for q in questions}) == len(questions)
    for entry in entries:
        facts = entry.facts
        assert 3 <= len(re.findall(r"[.](?: |$)", entry.text)) <= 6 and not faults(entry.text), entry
        assert all(answer in entry.text for answer in facts.values())
        if "built" in facts:
            assert int(book[facts["town"]].facts["founded"]) < int(facts["built"])
            assert int(book[facts["builder"]].facts["year"]) + 22 <= int(facts["built"])
        if "made" in facts:
            assert int(book[facts["maker"]].facts["year"]) + 18 <= int(facts["made"])
            assert int(book[facts["kept"]].facts["built"]) <= int(facts["made"])
        if "mayor" in facts:
            assert book[facts["mayor"]].facts["lived"] == entry.name
    for question in questions:
        assert question.answer is None or question.answer in book[question.sources[-1]].text
        assert (question.answer is None) == question.kind.startswith("unknown")
        assert len(question.sources) == {"two-hop": 2, "unknown name": 0}.get(question.kind, 1)
    kinds = Counter(question.kind for question in questions)
    assert kinds["single"] > 1000 and kinds["two-hop"] > 2000 and kinds["unknown fact"] == 272
    assert kinds["unknown name"] > 100


def test_the_almanac_cannot_be_larger_than_its_names(world):
    with pytest.raises(ValueError, match="cannot draw 9000 different items from"):
        tasks.almanac(0, world, people=9000)


# The files of data/


def lines(name):
    return lzma.decompress((DATA / f"{name}.jsonl.xz").read_bytes()).decode().splitlines(keepends=True)


def test_a_part_of_the_files_is_re_made_byte_for_byte(world):
    for split, (_, seed) in corpus.STORIES.items():
        remade = [corpus.story_line(story) for story in world.stories(300, seed)]
        assert remade == lines(f"stories_{split}")[:300]
    made = tasks.make_instructions(list(world.stories(260, 1)), 200, 1)
    remade = [corpus.json_line(one._asdict()) for one in made]
    assert remade == lines("instructions_train")[:200]
    book = tasks.almanac(0, world)
    assert [corpus.json_line(one._asdict()) for one in [*book.entries, *book.questions]] == lines("almanac")


@pytest.mark.parametrize("name", FILES)
def test_the_card_has_the_checksum(name):
    card = (DATA / f"{name}.md").read_text(encoding="utf-8")
    assert hashlib.sha256(lzma.decompress((DATA / f"{name}.jsonl.xz").read_bytes())).hexdigest() in card
    assert f"| `{name}.jsonl.xz` |" in (DATA / "README.md").read_text(encoding="utf-8")


def test_the_data_are_small():
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 8e6


@pytest.fixture
def few(world, monkeypatch):
    """A corpus of a few records, for tests of the command."""
    monkeypatch.setattr(corpus, "STORIES", {"train": (30, 1), "validation": (10, 2)})
    monkeypatch.setattr(corpus, "INSTRUCTIONS", {"train": (20, 1), "validation": (5, 2)})
    monkeypatch.setattr(corpus.World, "load", lambda: world)


def test_the_command_makes_the_files_and_checks_them(few, tmp_path, capsys):
    assert corpus.main([str(tmp_path), "--check"]) == 1 and list(tmp_path.iterdir()) == []
    assert corpus.main([str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.jsonl.xz" for name in FILES)
    raw = lzma.decompress((tmp_path / "stories_train.jsonl.xz").read_bytes())
    assert len(raw.splitlines()) == 30 and all(json.loads(line)["facts"]["words"] for line in raw.splitlines())
    assert corpus.main([str(tmp_path), "--check"]) == 0
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert corpus.main([str(tmp_path)]) == 0 and {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == times
    damaged = tmp_path / "almanac.jsonl.xz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    capsys.readouterr()
    assert corpus.main([str(tmp_path), "--check"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if line.endswith("differs")] == [damaged.name]
    assert corpus.main([str(tmp_path)]) == 0 and corpus.main([str(tmp_path), "--check"]) == 0


def test_the_command_says_when_there_is_no_folder(tmp_path, capsys):
    assert corpus.main([str(tmp_path / "none")]) == 2
    assert "none is no folder" in capsys.readouterr().err


def test_a_write_that_fails_leaves_the_old_file(few, tmp_path, monkeypatch):
    old = tmp_path / "stories_train.jsonl.xz"
    old.write_bytes(lzma.compress(b"old"))
    monkeypatch.setattr(corpus.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        corpus.make_data(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [old.name] and lzma.decompress(old.read_bytes()) == b"old"


def test_a_damaged_file_gives_a_clear_error(tmp_path, monkeypatch):
    whole = (DATA / "almanac.jsonl.xz").read_bytes()
    monkeypatch.setattr(sys.modules["llmscratch.kit.stories"], "data_file", lambda name: tmp_path / name)
    for broken in (whole[:-50], b"not xz", whole[:999] + b"\0" + whole[1000:], lzma.compress(b'{"name": ')):
        (tmp_path / "almanac.jsonl.xz").write_bytes(broken)
        with pytest.raises(DataUnavailable, match="almanac.jsonl.xz is damaged"):
            almanac()
