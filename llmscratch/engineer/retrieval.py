"""Texts cut into passages, and found again: by their words (BM25), by their meaning (MiniLM), and by both."""

# Made from 03_for_engineer/05_rag.ipynb by `make export`: change the notebook, not this file.

__all__ = [
    "BM25",
    "CHAPTERS",
    "CUTS",
    "Found",
    "Passage",
    "PythonQuestion",
    "Retriever",
    "STOP",
    "chunks",
    "cut",
    "fuse",
    "python_docs",
    "python_questions",
    "sections",
    "terms",
]


import re
import tomllib
from collections import Counter
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np

from llmscratch.engineer.embedding import Embedder
from llmscratch.engineer.vector import ExactIndex
from llmscratch.kit import data_file


class Passage(NamedTuple):
    """A text that can be found and cited; source: the name of the article or chapter that it stands in."""

    source: str
    text: str


def sections(text):
    """(heading, text) of a text whose headings are underlined, as in `pydoc`: "Chapter: section" for an inner one.

    The heading of what stands before the first one is "".
    """
    start, *rest = re.split(r"^(.+)\n([*=\-~^]){3,}\n", text, flags=re.MULTILINE)
    found, path = [("", start)], []
    for heading, mark, body in zip(rest[::3], rest[1::3], rest[2::3]):
        marks = [other for other, _ in path]
        path = path[: marks.index(mark)] if mark in marks else path
        path = [*path, (mark, heading.replace('"', ""))]
        found.append((": ".join(name for _, name in path), body))
    return [(heading, body.strip("\n")) for heading, body in found if body.strip()]


# Where a text may be cut, best first, and what joins the pieces again: a blank line above a line without indent, any
# blank line, the end of a line, a space.
CUTS = ((r"\n\s*\n(?! )", "\n\n"), (r"\n\s*\n", "\n\n"), (r"\n", "\n"), (r"\s+", " "))


def cut(text, most, cuts=CUTS):
    """A text in pieces of at most `most` words, as long as can be, cut at the best places there are."""
    if len(text.split()) <= most:
        return [text]
    (mark, glue), *others = cuts
    pieces, found = [piece for part in re.split(mark, text) for piece in cut(part, most, others)], []
    for piece in pieces:
        if found and len(found[-1].split()) + len(piece.split()) <= most:
            found[-1] += glue + piece
        else:
            found.append(piece)
    return found


def chunks(source, text, most=150):
    """A text as passages of at most `most` words and the heading of their section, which stands above each."""
    if most < 1:
        raise ValueError(f"a passage needs room for at least one word, got most = {most}")
    pieces = [(heading or source, piece) for heading, body in sections(text) for piece in cut(body, most)]
    return [Passage(source, f"{heading}\n\n{piece}") for heading, piece in pieces]


# Chapters of the language reference and the library reference that pydoc brings along.
CHAPTERS = ("assert", "augassign", "binary", "bitwise", "booleans", "break", "class", "comparisons",
            "context-managers", "continue", "debugger", "del", "dict", "exceptions", "exprlists", "for", "function",
            "global", "if", "import", "integers", "lambda", "lists", "nonlocal", "numbers", "pass", "power", "raise",
            "return", "shifting", "slicings", "string-methods", "subscriptions", "truth", "try", "typesmapping",
            "typesseq-mutable", "unary", "while", "with", "yield")  # fmt: skip


def python_docs(most=150, chapters=CHAPTERS):
    """Chapters of the documentation of this Python, as `help("for")` shows them, as passages."""
    return [passage for name in chapters for passage in chunks(name, topics[name], most)]


class PythonQuestion(NamedTuple):
    """A question about Python; kind: "own words", or "name" when it has the name that the documentation uses.

    answers: pairs (chapter, words); a passage of the chapter that has the words in a row answers it.
    """

    split: str
    kind: str
    text: str
    answers: list

    def answered_by(self, passage):
        """Whether the passage is such a one; quotes, marks and capitals do not count."""
        given = " ".join(["", *re.findall(r"\w+", passage.text.lower()), ""])
        runs = [" ".join(["", *re.findall(r"\w+", words.lower()), ""]) for chapter, words in self.answers
                if chapter == passage.source]  # fmt: skip
        return any(run in given for run in runs)


def python_questions(split):
    """The questions of data/python_questions.toml whose split is "development" (twenty) or "test" (sixty)."""
    with open(data_file("python_questions.toml"), "rb") as file:
        asked = [PythonQuestion(**question) for question in tomllib.load(file)["questions"]]
    if split not in {question.split for question in asked}:
        raise ValueError(f'split must be "development" or "test", got {split!r}')
    return [question for question in asked if question.split == split]


STOP = frozenset(re.findall(r"\w+", """
    a an the i you he she it we they my your his her its our their this that there to of do does did is are was were be
    been can could may must should will would how what which who whom whose when where why
"""))  # fmt: skip


def terms(text):
    """The words that BM25 counts: small letters, no stop words, and the s of a plural cut off."""
    found = re.findall(r"\w+", text.lower())
    return [re.sub(r"(?<=\w\w[^su])s$", "", word) for word in found if word not in STOP]


class BM25:
    """Scores texts by the words that they share with a question (Robertson and Zaragoza 2009), as Lucene does.

    k1: how slowly more of the same word stops counting; b: how much a text pays for its length, from 0 to 1.
    """

    def __init__(self, texts, k1=1.2, b=0.75):
        if isinstance(texts, str) or not len(texts):
            raise ValueError("texts must be a list of at least one string")
        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"k1 must be at least 0 and b from 0 to 1, got {k1} and {b}")
        counts = [Counter(terms(text)) for text in texts]
        lengths, self.n, where = np.array([sum(c.values()) for c in counts]), len(texts), {}
        for row, count in enumerate(counts):
            for word, n in count.items():
                where.setdefault(word, []).append((row, n))
        room = k1 * (1 - b + b * lengths / (lengths.mean() or 1))  # (n,)
        self.weights = {}  # word → the rows that have it, and what it adds to their scores
        for word, pairs in where.items():
            rows, tf = np.array(pairs).T
            idf = np.log1p((self.n - len(rows) + 0.5) / (len(rows) + 0.5))
            self.weights[word] = rows, idf * tf / (tf + room[rows])

    def scores(self, question):
        """The score of every text, (n,)."""
        scores = np.zeros(self.n)
        for word in terms(question):
            if word in self.weights:
                rows, weight = self.weights[word]
                scores[rows] += weight
        return scores

    def ranking(self, question):
        """The rows of the texts that share a word with the question, best first."""
        scores = self.scores(question)
        order = np.argsort(-scores, kind="stable")
        return order[: np.count_nonzero(scores)].tolist()


def fuse(rankings, k=60):
    """One ranking from several: by the sum of 1 / (k + place), places from 1 (Cormack, Clarke and Büttcher 2009)."""
    total = Counter()
    for ranking in rankings:
        for place, row in enumerate(ranking, start=1):
            total[row] += 1 / (k + place)
    return [row for row, _ in total.most_common()]


class Found(NamedTuple):
    """A passage, and the cosine of its vector and the question's."""

    passage: Passage
    cosine: float


class Retriever:
    """Passages, found by BM25 ("words"), by MiniLM ("meaning"), or by "both", their rankings fused.

    by: what a search does unless it is told otherwise.
    """

    def __init__(self, passages, embed=None, by="both"):
        self.passages, self.embed, self.by = list(passages), embed or Embedder(), by
        texts = [passage.text for passage in self.passages]
        self.bm25, self.index = BM25(texts), ExactIndex(self.embed.dim)
        self.index.add(np.arange(len(texts)), self.embed(texts))

    def search(self, questions, k=5, by=None):
        """For each question a list of at most k Found, best first. ValueError for one string, k < 1 or a wrong `by`."""
        if (by := by or self.by) not in ("words", "meaning", "both"):
            raise ValueError(f'by must be "words", "meaning" or "both", got {by!r}')
        if type(k) is not int or k < 1:
            raise ValueError(f"k must be a whole number of at least 1, got {k!r}")
        found = []
        for question, cosines, near in zip(questions, *self.index.search(self.embed(questions), len(self.passages))):
            cosine = dict(zip(near.tolist(), cosines.tolist()))
            rankings = {"words": self.bm25.ranking(question), "meaning": near.tolist()}
            rows = fuse(rankings.values()) if by == "both" else rankings[by]
            found.append([Found(self.passages[row], cosine[row]) for row in rows[:k]])
        return found
