"""What can be asked about the stories' world, with exact answers: instructions for stories, each with checks for any
answer, and the almanac, short articles about its people, places and things with questions.
"""

# Made from 02_for_scientist/06_pretraining_data.ipynb by `make export`: change the notebook, not this file.

import re
import tomllib
from random import Random

from llmscratch.kit.paths import data_file
from llmscratch.kit.stories import Almanac, Entry, Instruction, Question
from llmscratch.kit.templates import article, capital
from llmscratch.scientist.stories import World

__all__ = [
    "Dice",
    "almanac",
    "constraints",
    "draw_land",
    "draw_people",
    "draw_questions",
    "draw_works",
    "make_instructions",
    "prompt",
    "satisfied",
]


class Dice:
    """Drawing with `random.Random.random` alone, so that a seed means the same on every platform and Python version."""

    def __init__(self, seed):
        self.random = Random(seed).random

    def between(self, low, high):
        """A whole number from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def one(self, items):
        """One of the items."""
        if not items:
            raise ValueError("nothing to draw from: the list is empty")
        return items[int(self.random() * len(items))]

    def some(self, items, n):
        """n different items, in a drawn order."""
        left = list(items)
        if n > len(left):
            raise ValueError(f"cannot draw {n} different items from {len(left)}")
        return [left.pop(int(self.random() * len(left))) for _ in range(n)]


def satisfied(checks: dict, text: str) -> dict[str, bool]:
    """Which of an instruction's checks a text fulfils; the keys are those of `checks`.

    "who", "kind", "place", "town": this word or name stands in the text, capitals counting; "words": all of these words
    do, capital or small; "ends": the text ends with this sentence; "fewer", "more": its words, as `text.split()` counts
    them, are fewer or more than this number. ValueError for any other check.
    """
    found = {}
    for name, wanted in checks.items():
        if name in ("who", "kind", "place", "town"):
            found[name] = _stands(wanted, text)
        elif name == "words":
            found[name] = all(_stands(word.lower(), text.lower()) for word in wanted)
        elif name == "ends":
            found[name] = text.rstrip().endswith(wanted)
        elif name in ("fewer", "more"):
            n = len(text.split())
            found[name] = n < wanted if name == "fewer" else n > wanted
        else:
            raise ValueError(f"no check is called {name!r}: who, kind, place, town, words, ends, fewer, more")
    return found


def _stands(words, text):
    """Whether the words stand in the text, not as a part of longer ones."""
    return re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", text) is not None


def constraints(story, dice, apart=()):
    """What one could ask for so that this story is an answer: {constraint: checks}; drawn where there is a choice.

    story: anything with `text` and `facts`; apart: words that are not asked for as mere words.
    """
    facts, n = story.facts, len(story.text.split())
    can = {key: {key: facts[key]} for key in ("place", "town") if _stands(facts.get(key, "?"), story.text)}
    if _stands(facts["who"], story.text) and _stands(facts["kind"], story.text):
        can = {"who": {"who": facts["who"], "kind": facts["kind"]}} | can
    if words := [word for word in facts["words"] if word not in apart]:
        can["words"] = {"words": dice.some(words, dice.between(1, min(3, len(words))))}
    spare = 10 * dice.between(0, 3)
    short, long = {"fewer": 10 * (n // 10 + 1) + spare}, {"more": 10 * ((n - 1) // 10) - spare}
    can["length"] = short if dice.random() < 0.7 else long
    ends = re.split(r"(?<=[.!?]) ", story.text)[-1]
    if '"' not in ends and 3 <= len(ends.split()) <= 12:
        can["ends"] = {"ends": ends}
    return can


def prompt(checks, dice, phrases):
    """A request for a story that passes the checks: a list; or a question or wish, perhaps with a clause that names one
    or two of them, and a sentence for each of the rest. phrases: the tables of `data/instructions.toml`.
    """
    words = {key: value for key, value in checks.items() if key != "words"}
    words |= {f"a_{key}": article(checks[key]) for key in ("kind", "place") if key in checks}
    if "words" in checks:
        *others, last = checks["words"]
        listed = ", ".join(others) + " and " * bool(others) + last
        words |= {"list": listed, "the_words": f"the word{'s' * bool(others)} {listed}"}
    rest, style = [topic for topic in checks if topic in phrases["sentence"]], dice.random()
    if style < 0.15:
        lines = [dice.one(phrases["list"]), *("- " + phrases["item"][topic] for topic in rest)]
        return "\n".join(lines).format(**words)
    ask, fitting = (
        dice.one(phrases["ask"]),
        [key for key in phrases["clause"] if set(key.split("+")) <= set(rest)],
    )
    if style < 0.85 and fitting:
        chosen = dice.one(fitting)
        ask = f"{ask[:-1]} {dice.one(phrases['clause'][chosen])}{ask[-1]}"
        rest = [topic for topic in rest if topic not in chosen.split("+")]
    rest = [topic for topic in dice.some(rest, len(rest)) if topic != "ends"] + ["ends"] * ("ends" in rest)
    return " ".join([ask, *(dice.one(phrases["sentence"][topic]) for topic in rest)]).format(**words)


def make_instructions(stories, n, seed, *, held_out=False):
    """n instructions, at most one a story, each with one to four constraints drawn from its story's facts.

    Stories with a hero and a place that `data/instructions.toml` holds out are left alone; with held_out they come
    first, and their instructions ask for both. ValueError when the stories are too few.
    """
    phrases, dice = tomllib.loads(data_file("instructions.toml").read_text(encoding="utf-8")), Dice(seed)
    apart = {True: [], False: []}
    for story in stories:
        apart[all(story.facts.get(key) in phrases["held_out"][key] for key in ("who", "place"))].append(story)
    chosen = [(story, ["who", "place"]) for story in apart[True] if held_out] + [
        (story, []) for story in apart[False]
    ]
    if len(chosen) < n:
        raise ValueError(f"{n} instructions need {n} stories, at most one each; only {len(chosen)} may be used")
    made = []
    for story, asked in chosen[:n]:
        can = constraints(story, dice, phrases["held_out"]["place"])
        others = [key for key in can if key not in asked]
        more = dice.between(0, 2) if asked else dice.between(1, 4)
        asked = [*asked, *dice.some(others, min(more, len(others)))]
        checks = {key: value for name in can if name in asked for key, value in can[name].items()}
        made.append(Instruction(prompt(checks, dice, phrases), story.text, checks))
    return made


def draw_people(dice, world, names, n):
    """n people with facts, {name: {relation: answer}}, and their pronouns, {name: (it, its)}."""
    towns = [entry["town"] for entry in world.lists["towns"]]
    pets = [
        f"{pet['a']} called {name['petname']}"
        for pet in world.lists["pets"]
        for name in world.lists["petnames"]
    ]
    everyone = [(first, family) for first in world.lists["people"] for family in names["families"]]
    people, pronouns = {}, {}
    for first, family in dice.some(everyone, n):
        name = f"{first['name']} {family}"
        pronouns[name] = (first["he"], first["his"])
        people[name] = {
            "kind": article(first["kind"]), "job": article(dice.one(names["jobs"])), "born": dice.one(towns),
            "year": str(dice.between(500, 820)), "lived": dice.one(towns), "pet": dice.one(pets),
        }  # fmt: skip
    return people, pronouns


def draw_land(dice, world, names, people):
    """Towns, rivers and hills with facts. A mayor lived in the town; every town is older than all people."""
    towns = [entry["town"] for entry in world.lists["towns"]]
    hills, rivers, found = {}, {}, {}
    for hill in names["hills"]:
        height, near, top = str(dice.between(180, 990)), dice.one(towns), dice.one(names["tops"])
        hills[hill] = {"height": height, "near": near, "top": top}
    for river, hill in zip(names["rivers"], dice.some(hills, len(names["rivers"]))):
        rivers[river] = {"length": str(dice.between(20, 140)), "rises": hill, "fish": dice.one(names["fish"])}
    for town, dish in zip(towns, dice.some(names["dishes"], len(towns))):
        mayors = [name for name in people if people[name]["lived"] == town] or list(people)
        found[town] = {
            "river": dice.one(names["rivers"]), "founded": str(dice.between(200, 480)), "mayor": dice.one(mayors),
            "dish": dish, "size": str(dice.between(40, 900)),
        }  # fmt: skip
    return {"towns": found, "rivers": rivers, "hills": hills}


def draw_works(dice, world, names, people, n_buildings, n_things):
    """Buildings and things with facts. All are made by grown people; no thing is older than the house that keeps it."""
    towns = [entry["town"] for entry in world.lists["towns"]]
    buildings, things = {}, {}
    for name in dice.some(
        [f"the {a} {b}" for a in names["adjectives"] for b in names["buildings"]], n_buildings
    ):
        builder = dice.one(list(people))
        built = str(int(people[builder]["year"]) + dice.between(22, 60))
        town, stone = dice.one(towns), dice.one(names["stones"])
        buildings[name] = {"town": town, "built": built, "builder": builder, "stone": stone}
    last = max(int(person["year"]) for person in people.values()) + 18
    houses = [name for name in buildings if int(buildings[name]["built"]) <= last]
    for name in dice.some([f"the {a} {b}" for a in names["adjectives"] for b in names["things"]], n_things):
        kept = dice.one(houses)
        built = int(buildings[kept]["built"])
        maker = dice.one([person for person in people if int(people[person]["year"]) + 18 >= built])
        made = str(int(people[maker]["year"]) + dice.between(18, 60))
        things[name] = {"maker": maker, "made": made, "kept": kept, "stuff": dice.one(names["stuffs"])}
    return {"buildings": buildings, "things": things}


def draw_questions(dice, entries, relations, unknown):
    """Yield a question for every fact and every chain of two; one per entry that it cannot answer; unknown names."""
    for entry in entries.values():
        for name, relation in relations[entry.group].items():
            answer = entry.facts[name]
            yield Question(relation["ask"].format(name=entry.name), answer, "single", (entry.name,))
            if "phrase" in relation:
                middle, phrase = entries[answer], relation["phrase"].format(name=entry.name)
                for further, second in relations[middle.group].items():
                    text = second["ask"].format(name=phrase)
                    yield Question(text, middle.facts[further], "two-hop", (entry.name, answer))
        yield Question(
            dice.one(unknown[entry.group]).format(name=entry.name), None, "unknown fact", (entry.name,)
        )
    names = [entry.name for entry in entries.values() if entry.group == "people"]
    strangers = dict.fromkeys(f"{one.split()[0]} {other.split()[1]}" for one, other in zip(names, names[1:]))
    for stranger in strangers:
        if stranger not in entries:
            relation = dice.one(list(relations["people"].values()))
            yield Question(relation["ask"].format(name=stranger), None, "unknown name", ())


def almanac(seed: int = 0, world: World | None = None, *, people=150, buildings=36, things=60) -> Almanac:
    """The almanac of a seed: its entries and all questions. The towns and first names are those of the world's stories.

    people, buildings, things: how many of them, besides the towns, rivers and hills. Names and sentences stand in
    `data/almanac.toml`. ValueError when there are too few names for so many.
    """
    world, dice = world or World.load(), Dice(seed)
    book = tomllib.loads(data_file("almanac.toml").read_text(encoding="utf-8"))
    persons, pronouns = draw_people(dice, world, book["names"], people)
    groups = {"people": persons} | draw_land(dice, world, book["names"], persons)
    groups |= draw_works(dice, world, book["names"], persons, buildings, things)
    entries = {}
    for group, subjects in groups.items():
        for name, facts in subjects.items():
            it, its = pronouns.get(name, ("it", "its"))
            words = facts | {"name": name, "it": it, "its": its}
            words |= {capital(key): capital(words[key]) for key in ("name", "it", "its")}
            first, *rest = [
                dice.one(relation["say"]).format(**words) for relation in book["relations"][group].values()
            ]
            entries[name] = Entry(name, group, " ".join([first, *dice.some(rest, len(rest))]), facts)
    return Almanac(
        list(entries.values()), list(draw_questions(dice, entries, book["relations"], book["unknown"]))
    )
