"""How good the answers from passages are, what failed, and lessons from which a small model learns to do better."""

# Made from 03_for_engineer/05_rag.ipynb by `make export`: change the notebook, not this file.

import argparse
import re
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from llmscratch.engineer.rag import (
    FLOOR,
    REFUSAL,
    SYSTEM,
    TOP,
    Answer,
    articles,
    exact_match,
    grounded_prompt,
    near_enough,
    parse,
    replies,
)
from llmscratch.engineer.retrieval import BM25, Passage, Retriever
from llmscratch.kit import almanac
from llmscratch.scientist.llama import load
from llmscratch.scientist.lora import add_lora, save_adapter, tune
from llmscratch.scientist.stories import World
from llmscratch.scientist.tasks import Dice
from llmscratch.scientist.tasks import almanac as make_almanac

__all__ = [
    "EXAM",
    "INVENTED",
    "KINDS",
    "LAND",
    "Lesson",
    "PLAIN",
    "SHOTS",
    "drawn",
    "lesson_pairs",
    "lessons",
    "main",
    "measure",
    "outcome",
    "taught",
]


def outcome(question, found, answer):
    """What became of a question: "right", "refused" (rightly), or the step that failed.

    "retrieval": a source is not among the two best passages found, which the prompt has room for; "reading": it is, and
    the answer is wrong; "refusal": it is, and there is no answer; "invented": an answer where there is none.
    """
    if question.answer is None:
        return "refused" if answer.text is None else "invented"
    if exact_match(answer.text, question.answer):
        return "right"
    if not {f.passage.source for f in found[:2]} >= set(question.sources):
        return "retrieval"
    return "refusal" if answer.text is None else "reading"


def measure(model, tokenizer, retriever, questions, *, floor=None, **prompt):
    """(question, what was found, Answer, outcome) of each question; prompt: settings of `grounded_prompt`.

    floor: refuse without the model where nothing is `near_enough` with this floor; None: always ask the model.
    """
    given, prompts = retriever.search([q.text for q in questions], TOP), []
    asked = [floor is None or near_enough(q.text, found, floor) for q, found in zip(questions, given)]
    for question, found, ask in zip(questions, given, asked):
        if ask:
            prompts.append(grounded_prompt(tokenizer, question.text, [f.passage for f in found], **prompt))
    told = iter(replies(model, tokenizer, prompts) if prompts else [])
    answers = [parse(next(told)) if ask else Answer(None, None) for ask in asked]
    return [(q, found, a, outcome(q, found, a)) for q, found, a in zip(questions, given, answers)]


INVENTED = [
    Passage("the Red Barn", "The Red Barn stands in Fernside. It was built by Ada Reed. It was finished in 644."),
    Passage("Ada Reed", "Ada Reed was a goat from the coast. She was born in Fernside. She worked as a nurse."),
]
SHOTS = [("In which year was the Red Barn finished?", INVENTED, "644 [1]"),
         ("What was the profession of Ada Reed?", INVENTED, "a nurse [2]")]  # fmt: skip
PLAIN = SYSTEM[: SYSTEM.index("If they")]


EXAM = 2027  # the seed of an almanac on which nothing was chosen


LAND, KINDS = ("towns", "rivers", "hills"), ("entities", "land", "unknown fact", "unknown name")


class Lesson(NamedTuple):
    """A question with passages and the reply that they warrant, to learn from."""

    question: str
    passages: list[Passage]
    reply: str


def lessons(book, n, seed, *, leave_out=()):
    """n lessons from an almanac: of six, four have an answer, one lost the sentence with it, and one the article.

    So the question alone never tells whether there is an answer. All relations are asked about equally often. No entry
    whose name is in `leave_out` is asked about or shown. The other passages are those that BM25 finds for the question.
    """
    entries = {entry.name: entry for entry in book.entries if entry.name not in set(leave_out)}
    names, dice, asked, made = list(entries), Dice(seed), {}, []
    for question in book.questions:
        if question.kind == "single" and question.sources[0] in entries:
            entry = entries[question.sources[0]]
            relation = next(name for name, answer in entry.facts.items() if answer == question.answer)
            asked.setdefault((entry.group, relation), []).append(question)
    least = min(map(len, asked.values()), default=0) * len(asked)
    if not 0 < n <= least:
        raise ValueError(f"there are questions for 1 to {least} lessons that ask all alike, not for {n}")
    mixed = [dice.some(questions, len(questions)) for questions in dice.some(list(asked.values()), len(asked))]
    search = BM25([entries[name].text for name in names])
    for number in range(n):
        question = mixed[number % len(mixed)].pop()
        gold, answer = question.sources[0], question.answer
        near = [names[row] for row in search.ranking(question.text)[: TOP + 1] if names[row] != gold]
        passages = [Passage(name, entries[name].text) for name in near]
        first, *rest = re.split(r"(?<=\.) ", entries[gold].text)  # the first sentence says whom it is about
        lacks = ("nothing", "nothing", "sentence", "nothing", "nothing", "article")[number % 6]
        if lacks == "sentence":
            lacks = "article" if answer in first else lacks
            rest = [sentence for sentence in rest if answer not in sentence]
        if lacks != "article":
            place = dice.between(0, 1)
            passages.insert(place, Passage(gold, " ".join([first, *rest])))
        made.append(Lesson(question.text, passages[:TOP], f"{answer} [{place + 1}]" if lacks == "nothing" else REFUSAL))
    return made


def taught(n, seed):
    """n lessons from almanacs of other seeds, without any person, building or thing of the shipped one.

    Towns, rivers and hills are called the same in every almanac; their facts differ. 100 lessons come from an almanac.
    """
    known, world, made = [entry.name for entry in almanac().entries if entry.group not in LAND], World.load(), []
    while len(made) < n:
        seed += 1
        made += lessons(make_almanac(seed, world), min(100, n - len(made)), seed, leave_out=known)
    return made


def lesson_pairs(tokenizer, given):
    """(prompt ids, reply ids) of lessons, as `tune` takes them."""
    end = [tokenizer.special["<|im_end|>"]]
    prompts = [grounded_prompt(tokenizer, lesson.question, lesson.passages) for lesson in given]
    return [(prompt, tokenizer.encode(lesson.reply) + end) for prompt, lesson in zip(prompts, given)]


def drawn(book, kind, n, seed, *, leave_out=()):
    """n questions of a kind, none about a person, building or thing whose name is in `leave_out`.

    "entities": single facts of people, buildings and things; "land": of towns, rivers and hills; "unknown fact",
    "unknown name": without an answer. ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"a kind is one of {', '.join(KINDS)}; got {kind!r}")
    group, hidden, fitting = {entry.name: entry.group for entry in book.entries}, set(leave_out), []
    for question in book.questions:
        of = group[question.sources[0]] if question.sources else None
        this = ("land" if of in LAND else "entities") if question.kind == "single" else question.kind
        if this == kind and (of in LAND or not hidden & set(question.sources)):
            fitting.append(question)
    return Dice(seed).some(fitting, n)


def main(argv=None):
    """Teach SmolLM2 to answer or to refuse: python -m llmscratch.engineer.grounding --out runs/grounded"""
    parser = argparse.ArgumentParser(prog="python -m llmscratch.engineer.grounding", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    usual = {"steps": 200, "batch": 4, "rank": 8, "seed": 1, "tests": 100, "lr": 2e-3}
    for name, value in (usual | {"threads": torch.get_num_threads()}).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default: {value}")
    asked = parser.parse_args(argv)
    torch.set_num_threads(asked.threads)
    (model, tokenizer), given, book = load(), taught(asked.steps * asked.batch, asked.seed), make_almanac(EXAM)
    pairs, shown = lesson_pairs(tokenizer, given), {p.source for lesson in given for p in lesson.passages}
    add_lora(model, asked.rank, 16.0, generator=torch.Generator().manual_seed(asked.seed))
    start, cpu = time.perf_counter(), time.process_time()
    losses = tune(model, pairs, steps=asked.steps, batch=asked.batch, lr=asked.lr, seed=asked.seed)
    notes = {"seconds": round(time.perf_counter() - start), "cpu_seconds": round(time.process_time() - cpu)}
    notes |= {"losses": [round(x, 3) for x in losses], "outcomes": {}}
    notes["settings"] = {key: value for key, value in vars(asked).items() if key not in ("out", "threads")}
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.half().float()  # as it will be read from the file
    retriever = Retriever(articles(book), by="meaning") if asked.tests else None
    for kind in KINDS if asked.tests else ():
        questions = drawn(book, kind, asked.tests, seed=21, leave_out=shown)
        told = measure(model, tokenizer, retriever, questions, floor=FLOOR)
        notes["outcomes"][kind] = [what for *_, what in told]
        print(f"{kind}: {Counter(notes['outcomes'][kind])}", flush=True)
    save_adapter(asked.out, model, base="SmolLM2-135M-Instruct", notes=notes)


if __name__ == "__main__" and __spec__:  # `python -m`, and not a notebook, which is called __main__ as well
    main()
