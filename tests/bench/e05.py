"""What 4E 05 claims: recall, answers with and without passages, and what the lessons bring, on questions that nothing
was chosen on: the exam almanac, and the test questions about Python."""

import functools
import json
import tempfile
from collections import Counter
from pathlib import Path

import bm25s
import numpy as np

from llmscratch.engineer.embedding import Embedder
from llmscratch.engineer.grounding import EXAM, PLAIN, SHOTS, drawn, main, measure, taught
from llmscratch.engineer.rag import FLOOR, articles, exact_match, grounded, replies
from llmscratch.engineer.retrieval import BM25, Retriever, python_docs, python_questions, terms
from llmscratch.kit import Race, almanac, race
from llmscratch.scientist import tasks
from llmscratch.scientist.llama import load
from tests.bench import against, row

KINDS = ("entities", "unknown fact", "unknown name")


def once(ours: float, goal: float) -> Race:
    return against([ours] * 3, [goal] * 3)


@functools.cache
def exam():
    book = tasks.almanac(EXAM)
    return book, Retriever(articles(book), Embedder(), by="meaning")


@functools.cache
def examined() -> dict:
    """Sixty questions of each kind, about nothing that stands in the lessons of the shipped adapter."""
    shown = {passage.source for lesson in taught(800, 1) for passage in lesson.passages}
    return {kind: drawn(exam()[0], kind, 60, seed=21, leave_out=shown) for kind in KINDS}


@row("4E05: BM25 scores of 200 questions over 272 articles; theirs: bm25s", at_most=1)
def words() -> Race:
    texts, asked = [e.text for e in almanac().entries], [terms(q.text) for q in almanac().questions[:200]]
    ours, theirs = BM25(texts), bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    theirs.index([terms(text) for text in texts], show_progress=False)
    lines = [" ".join(question) for question in asked]
    return race("200 questions", lambda: [ours.scores(q) for q in lines], lambda: [theirs.get_scores(q) for q in asked])


@row("4E05: recall@5, single facts of the exam almanac, both; theirs: the goal", at_least=1, unit="of 1")
def almanac_recall() -> Race:
    book, valley = exam()
    single = [q for q in book.questions if q.kind == "single"][::2]
    found = valley.search([q.text for q in single], 5, "both")
    right = [q.sources[0] in {f.passage.source for f in row} for q, row in zip(single, found, strict=True)]
    return once(float(np.mean(right)), 0.95)


@functools.cache
def python_recall(by: str, most: int = 150, split: str = "test") -> float:
    manual, questions = Retriever(python_docs(most), exam()[1].embed), python_questions(split)
    found = manual.search([q.text for q in questions], 5, by)
    return float(np.mean([any(q.answered_by(f.passage) for f in r) for q, r in zip(questions, found, strict=True)]))


@row("4E05: recall@5, sixty test questions about Python, both; theirs: the goal", at_least=1, unit="of 1")
def python_both() -> Race:
    return once(python_recall("both"), 0.85)


@row("4E05: the same; theirs: MiniLM alone", at_least=1, unit="of 1")
def python_meaning() -> Race:
    return once(python_recall("both"), python_recall("meaning"))


@row("4E05: recall@5, development questions about Python, 150 words a passage; theirs: 60", at_least=1, unit="of 1")
def python_size() -> Race:
    return once(python_recall("both", 150, "development"), python_recall("both", 60, "development"))


@row("4E05: exact match of 60 exam facts with passages, before lessons; theirs: without them", at_least=5, unit="of 1")
def open_book() -> Race:
    (model, tokenizer), asked = load(), examined()["entities"]
    said = [("system", "Answer the question in a few words."), ("user", "Which river flows through London?")]
    said += [("assistant", "the Thames")]
    prompts = []
    for question in asked:
        messages = [{"role": who, "content": text} for who, text in [*said, ("user", question.text)]]
        prompts.append(tokenizer.encode(tokenizer.chat(messages), allowed_special=set(tokenizer.special)))
    closed = [exact_match(r, q.answer) for r, q in zip(replies(model, tokenizer, prompts), asked, strict=True)]
    told = measure(model, tokenizer, exam()[1], asked, shots=SHOTS, system=PLAIN)
    return once(float(np.mean([what == "right" for *_, what in told])), max(float(np.mean(closed)), 1 / 60))


@functools.cache
def shipped() -> dict[str, Counter]:
    """How many of sixty questions of each kind came to what, with the shipped adapter."""
    model, tokenizer = grounded()
    told = {k: measure(model, tokenizer, exam()[1], asked, floor=FLOOR) for k, asked in examined().items()}
    return {kind: Counter(what for *_, what in rows) for kind, rows in told.items()}


@row("4E05: exam, unknown facts refused by the shipped adapter; theirs: the goal", at_least=1, unit="of 1")
def refused_facts() -> Race:
    return once(shipped()["unknown fact"]["refused"] / 60, 0.8)


@row("4E05: exam, unknown names refused; theirs: the goal", at_least=1, unit="of 1")
def refused_names() -> Race:
    return once(shipped()["unknown name"]["refused"] / 60, 0.8)


@row("4E05: exam, unseen entities, refused wrongly; theirs: the goal", at_most=1, unit="of 1")
def false_refusals() -> Race:
    return once(shipped()["entities"]["refusal"] / 60, 0.1)


@row("4E05: exam, unseen entities, exact match; theirs: the goal", at_least=1, unit="of 1")
def answered() -> Race:
    return once(shipped()["entities"]["right"] / 60, 0.6)


@functools.cache
def short() -> dict:
    """The notes of 32 steps on one thread, with forty exam questions of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        main(["--out", folder, "--steps", "32", "--tests", "40", "--threads", "1"])
        notes = json.loads((Path(folder) / "notes.json").read_text(encoding="utf-8"))
    return notes | {"outcomes": {kind: Counter(told) for kind, told in notes["outcomes"].items()}}


@row("4E05: processor time of 32 steps of lessons; theirs: the goal", at_most=1)
def seconds() -> Race:
    return once(short()["cpu_seconds"], 85.0)


@row("4E05: exam, unknown facts refused after 32 steps; theirs: the goal", at_least=1, unit="of 1")
def short_refused() -> Race:
    return once(short()["outcomes"]["unknown fact"]["refused"] / 40, 0.8)


@row("4E05: exam, unseen entities, refused wrongly after 32 steps; theirs: the goal", at_most=1, unit="of 1")
def short_false() -> Race:
    return once(short()["outcomes"]["entities"]["refusal"] / 40, 0.1)
