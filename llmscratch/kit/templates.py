"""The template language of the stories' world: from the text of a world file to trees of plain tuples.

A world (`data/world.toml`) holds lists of things, rules and plots. A plot is text in a small language:

    {hero}  {thing.the}   a member of the cast, drawn at its first use and then kept; `.the` is one of its forms
    {rule}  {Rule}        a rule of the plot or the world; a capital initial capitalises what comes out
    [a|b|]                one of the alternatives; an empty one makes the part optional; [a @2|b] is 2 to 1
    [a & b & c]           all the parts, in any order, with a space between
    {hero says: Look!}    direct speech; who says it where, and the punctuation, come from the table `speech`;
                          in {hero says: One. ~ Two.} the speaker may stand between
    {!ends=well}          notes a fact and says nothing

A rule holds one alternative a line; "@3" at the end of a line is its weight. What such a tree means is the lesson's:
`llmscratch.scientist.stories`.
"""

import difflib
import itertools
import re
from typing import NamedTuple


class TemplateError(ValueError):
    """A mistake in a template: where it stands, what is wrong and what would be right."""

    def __init__(self, where: str, source: str, at: int, message: str):
        start = max(0, at - 40)
        near, mark = source[start : at + 40], " " * (at - start) + "^"
        super().__init__(f"{where}, character {at + 1}: {message}\n  {near}\n  {mark}")


# The trees


class Words(NamedTuple):
    """Words as they stand."""

    words: str


class Fact(NamedTuple):
    """A fact that is noted and not said."""

    key: str
    words: str


class Form(NamedTuple):
    """A form, such as "the", of the cast's member `name`."""

    name: str
    form: str


class Parts(NamedTuple):
    """One part after the other."""

    parts: tuple


class OneOf(NamedTuple):
    """One of several options, with whole numbers as weights."""

    options: tuple
    weights: tuple[int, ...]


Tree = Words | Fact | Form | Parts | OneOf


class Member(NamedTuple):
    """A variable of the cast. pool: its entries, dicts from form to words; apart: members that it never equals."""

    pool: tuple[dict[str, str], ...]
    apart: tuple[str, ...]


class Plot(NamedTuple):
    """story: the whole plot; facts: from the name of a fact to the tree that words it; weight: against other plots."""

    cast: dict[str, Member]
    story: Tree
    facts: dict[str, Tree]
    weight: int


def capital(words: str) -> str:
    """The same words with the first letter in upper case (an opening quotation mark is passed over)."""
    return words[:1].upper() + words[1:] if words[:1] != '"' else '"' + words[1:2].upper() + words[2:]


def capitalised(tree: Tree) -> Tree:
    """The tree that says the same with a capital initial. ValueError when it may begin with nothing."""
    match tree:
        case Words(words) if words:
            return Words(capital(words))
        case Form(name, form):
            return Form(name, capital(form))
        case OneOf(options, weights):
            return OneOf(tuple(capitalised(option) for option in options), weights)
        case Parts(parts) if parts:
            return Parts((capitalised(parts[0]), *parts[1:]))
    raise ValueError("a capital is asked of a part that may be empty: put the optional part later")


# From templates to trees


class Parser:
    """Reads the templates of one plot.

    rules: their sources by name; cast: the members; speech: the patterns of direct speech by final mark.
    """

    def __init__(self, plot: str, rules: dict[str, str], cast: dict[str, Member], speech: dict[str, str]):
        self.plot, self.rules, self.cast, self.speech, self.done, self.open = plot, rules, cast, speech, {}, []

    def rule(self, name: str) -> Tree:
        """The tree of a rule: one alternative a line."""
        if name in self.open:
            raise ValueError(f"plot {self.plot}: a rule leads back to itself: {' > '.join([*self.open, name])}")
        if name not in self.rules:
            raise ValueError(f"plot {self.plot} has no rule {name!r}")
        if name not in self.done:
            self.open.append(name)
            lines = [line.strip() for line in self.rules[name].strip().split("\n")]
            self.done[name] = self._choice(lines, f"plot {self.plot}, rule {name}", " | ".join(lines), 0)
            self.open.pop()
        return self.done[name]

    def parse(self, source: str, where: str) -> Tree:
        """The tree of a template; `where` names it in messages. TemplateError says what is wrong at which character."""
        parts, at = [], 0
        while at < len(source):
            if source[at] in "{[":
                end = self._closing(source, at, where)
                piece = source[at : end + 1]
                if piece not in self.done:
                    read = self._reference if source[at] == "{" else self._bracket
                    self.done[piece] = read(piece[1:-1], source, at, where)
                parts.append(self.done[piece])
                at = end + 1
            elif plain := re.compile(r"[^][{}|&@]+").match(source, at):
                parts.append(Words(plain[0]))
                at = plain.end()
            else:
                raise TemplateError(where, source, at, f"{source[at]!r} outside any bracket: write {{name}} or [a|b]")
        return parts[0] if len(parts) == 1 else Parts(tuple(parts))

    def _choice(self, sources: list[str], where: str, source: str, at: int) -> Tree:
        weights = tuple(int(m[1]) if (m := re.search(r"@(\d+)$", s)) else 1 for s in sources)
        plain = [re.sub(r" *@\d+$", "", s) for s in sources]
        for s in plain:
            if plain.count(s) > 1:
                raise TemplateError(where, source, at, f"two equal alternatives {s!r}: keep one, with weight @2")
        if 0 in weights:
            raise TemplateError(where, source, at, "a weight is a whole number from 1, as in @2")
        options = tuple(self.parse(s, where) for s in plain)
        return OneOf(options, weights) if len(options) > 1 else options[0]

    def _closing(self, source: str, at: int, where: str) -> int:
        """The place of the bracket that closes the one at `at`."""
        due = []
        for i in range(at, len(source)):
            if source[i] in "{[":
                due.append("}" if source[i] == "{" else "]")
            elif source[i] in "}]" and source[i] != (expected := due.pop()):
                raise TemplateError(where, source, i, f"{source[i]!r} stands where {expected!r} is due")
            if not due:
                return i
        raise TemplateError(where, source, at, f"this {source[at]!r} is never closed")

    def _bracket(self, inside: str, source: str, at: int, where: str) -> Tree:
        depth = list(itertools.accumulate((c in "{[") - (c in "}]") for c in inside))
        cuts = [i for i, c in enumerate(inside) if depth[i] == 0 and c in "|&"]
        if len(marks := {inside[i] for i in cuts}) != 1:
            raise TemplateError(where, source, at, "write [a|b], [a|] or [a & b]; to mix | and &, nest the brackets")
        pieces = [inside[a + 1 : b] for a, b in zip([-1, *cuts], [*cuts, len(inside)], strict=True)]
        if marks == {"|"}:
            return self._choice(pieces, where, source, at)
        orders = itertools.permutations([self.parse(piece.strip(), where) for piece in pieces])
        spaced = tuple(Parts(tuple(tree for part in order for tree in (Words(" "), part))[1:]) for order in orders)
        return OneOf(spaced, (1,) * len(spaced))

    def _reference(self, inside: str, source: str, at: int, where: str) -> Tree:
        if m := re.fullmatch(r"!(\w+)=(.*)", inside):
            return Fact(m[1], m[2])
        if m := re.fullmatch(r"([\w.]+) says: (.*)", inside):
            return self._says(m[1], m[2], source, at, where)
        name, _, form = inside.partition(".")
        low = name[:1].lower() + name[1:]
        if low in self.cast:
            entry = self.cast[low].pool[0]
            if form and form not in entry:
                forms = ", ".join(form for form in entry if form == form.lower())
                raise TemplateError(where, source, at, f"{low} has no form {form!r}, only {forms}")
            tree = Form(low, form or next(iter(entry)))
        elif low in self.rules and not form:
            tree = self.rule(low)
        else:
            near = difflib.get_close_matches(low, [*self.cast, *self.rules], 1)
            raise TemplateError(where, source, at, f"nothing is called {low!r}" + (f"; {near[0]!r}?" if near else ""))
        try:
            return capitalised(tree) if name[:1].isupper() else tree
        except ValueError as error:
            raise TemplateError(where, source, at, str(error)) from None

    def _says(self, who: str, words: str, source: str, at: int, where: str) -> Tree:
        """Direct speech: the patterns of the world for its first mark, as a bracket of plain templates."""
        first, _, rest = words.partition(" ~ ")
        if first[-1:] not in self.speech:
            raise TemplateError(where, source, at, "speech ends in . ? or !, for example {hero says: Look!}")
        fill, lines = {"FIRST": first[:-1], "REST": rest and f' "{rest}"', "ALL": f"{first} {rest}".strip()}, []
        for line in self.speech[first[-1]].strip().split("\n"):
            fill["WHO"] = "{" + (capital(who) if line.startswith("WHO") else who) + "}"
            lines.append(re.sub("FIRST|REST|ALL|WHO", lambda m: fill[m[0]], line))
        return self._choice(lines, where, source, at)


# The world file


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" and not words.startswith("one") else "a ") + words


def read_list(name: str, columns: str, rows: list[str], forms: dict[str, dict[str, str]]) -> tuple[dict[str, str], ...]:
    """Rows with cells divided by | as dicts from form to words; Form, with a capital, gives capitalised words."""
    columns, entries = [c.strip() for c in columns.split("|")], []
    for row in rows:
        cells = [c.strip() for c in row.split("|")]
        if len(cells) != len(columns):
            raise ValueError(f"list {name}: {row!r} has {len(cells)} cells, but the columns are {columns}")
        word, given = cells[0], {column: cell for column, cell in zip(columns, cells, strict=True) if cell}
        if not word:
            raise ValueError(f"list {name}: {row!r} begins with an empty cell")
        entry = {columns[0]: word, "a": article(word), "the": "the " + word}
        entry |= given | forms.get(given.get("forms"), {}) | {f"{c}.a": article(cell) for c, cell in given.items()}
        entries.append(entry | {capital(form): capital(words) for form, words in entry.items()})
    if len({entry[columns[0]] for entry in entries}) < len(entries):
        raise ValueError(f"list {name}: every entry must begin with words of its own")
    return tuple(entries)


def _read_cast(plot: str, table: dict, lists: dict) -> dict[str, Member]:
    """Members from "things", "things with small" (a tag), "people - hero" (never the same) or ["here", "there"]."""
    cast = {}
    for name, what in table.items():
        if isinstance(what, list):
            columns = " | ".join(("it", "more", "most")[: 1 + what[0].count("|")])
            cast[name] = Member(read_list(f"{plot}.{name}", columns, what, {}), ())
            continue
        m = re.fullmatch(r"(\w+)(?: with (\w+))?((?: - \w+)*)", what)
        apart = tuple(m[3].split(" - ")[1:]) if m else ()
        if not m or m[1] not in lists or not all(other in cast for other in apart):
            raise ValueError(f'plot {plot}, cast {name}: {what!r} is not "list", "list with tag" or "list - other"')
        pool = tuple(entry for entry in lists[m[1]] if not m[2] or m[2] in entry["tags"].split())
        if not pool:
            raise ValueError(f"plot {plot}, cast {name}: nothing in {m[1]!r} has the tag {m[2]!r}")
        if any(cast[other].pool != pool for other in apart):
            raise ValueError(f"plot {plot}, cast {name}: {what!r} keeps apart from another list")
        cast[name] = Member(pool, apart)
    return cast


def read_world(data: dict) -> tuple[dict[str, tuple[dict[str, str], ...]], dict[str, Plot]]:
    """The lists and the plots of a world file; `data` is its parsed TOML. ValueError says what is wrong where."""
    if not data.get("plots"):
        raise ValueError("a world needs at least one plot: a table [plots.NAME] with a rule `story`")
    forms, common, speech = data.get("forms", {}), data.get("rules", {}), data.get("speech", {})
    lists = {
        name: read_list(name, what["columns"], what["rows"].strip().split("\n"), forms)
        for name, what in data.get("lists", {}).items()
    }
    plots = {}
    for name, plot in data["plots"].items():
        cast = _read_cast(name, data.get("cast", {}) | plot.get("cast", {}), lists)
        own = {key: value for key, value in plot.items() if key not in ("cast", "facts", "weight")}
        if twice := [key for key in own if key in common or key in cast] + [key for key in common if key in cast]:
            raise ValueError(f"plot {name}: {twice[0]!r} is already the name of a common rule or of the cast")
        parser = Parser(name, common | own, cast, speech)
        sources = data.get("facts", {}) | plot.get("facts", {})
        facts = {k: parser.parse(v, f"plot {name}, fact {k}") for k, v in sources.items()}
        plots[name] = Plot(cast, parser.rule("story"), facts, plot.get("weight", 1))
    return lists, plots
