"""Answers from passages, with their source, or a refusal: the prompt, a small model, and both in one."""

# Made from 03_for_engineer/05_rag.ipynb by `make export`: change the notebook, not this file.

__all__ = [
    "Answer",
    "FLOOR",
    "LIMIT",
    "REFUSAL",
    "ROOM",
    "Rag",
    "SYSTEM",
    "TOP",
    "articles",
    "command",
    "exact_match",
    "grounded",
    "grounded_prompt",
    "near_enough",
    "normalise",
    "parse",
    "replies",
    "supported",
]


import argparse
import copy
import re
import string
from typing import NamedTuple

import torch

from llmscratch.basis.train import looking
from llmscratch.engineer.generate import Stream
from llmscratch.engineer.retrieval import Passage, Retriever
from llmscratch.kit import almanac, asset_file
from llmscratch.kit.packages import DataUnavailable
from llmscratch.scientist.llama import KVCache, load
from llmscratch.scientist.lora import load_adapter, merge

SYSTEM = "Answer in a few words from the passages, then the number of the passage. If they do not say it: not found."
REFUSAL = "not found"
TOP, ROOM, LIMIT = 3, 150, 12  # passages found; tokens of the last turn, room for two articles; tokens of a reply
FLOOR = 0.5  # the best cosine that a question must reach to be put to the model


def replies(model, tokenizer, prompts, *, limit=LIMIT, batch=20):
    """The likeliest reply of a Llama to each prompt (a list of ids), at most `limit` tokens long.

    Prompts of one length are read together, and what all prompts begin with is read once. ValueError for no prompts.
    """
    if not prompts or not all(prompts):
        raise ValueError("there must be at least one prompt, and none may be empty")
    end, texts = tokenizer.special["<|im_end|>"], [""] * len(prompts)
    shared = 0
    while shared < min(map(len, prompts)) - 1 and len({prompt[shared] for prompt in prompts}) == 1:
        shared += 1
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with looking(model):
        start = KVCache(model.config)
        if shared:
            model(torch.tensor([prompts[0][:shared]]), start, last=True)
        while order:
            rows = [i for i in order[:batch] if len(prompts[i]) == len(prompts[order[0]])]
            order = order[len(rows) :]
            cache, told = copy.deepcopy(start), torch.empty(len(rows), 0, dtype=torch.long)
            cache.select([0] * len(rows))
            new = torch.tensor([prompts[i][shared:] for i in rows])  # (B, T)
            while told.shape[1] < limit and not (told == end).any(1).all():
                new = model(new, cache, last=True)[:, -1].argmax(-1, keepdim=True)  # (B, 1)
                told = torch.cat([told, new], dim=1)
            for i, row in zip(rows, told.tolist()):
                texts[i] = tokenizer.decode(row[: row.index(end)] if end in row else row).strip()
    return texts


def normalise(text):
    """As SQuAD compares answers (Rajpurkar et al. 2016): small letters, no punctuation, no articles, single blanks."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(answer, gold):
    """Whether an answer is the gold one after `normalise`. None stands for a refusal, which only None matches."""
    if answer is None or gold is None:
        return answer is gold
    return normalise(answer) == normalise(gold)


def articles(book):
    """The articles of an almanac as passages."""
    return [Passage(entry.name, entry.text) for entry in book.entries]


def grounded_prompt(tokenizer, question, passages, *, room=ROOM, shots=(), system=SYSTEM):
    """The ids of a prompt: the system's message; shots, each (question, passages, reply), as turns; then the question.

    Passages come best first, and stand in the prompt with the best one last, next to the question. room: how many
    tokens the last turn may have, None for any number; the passage with which it is full is cut off, the rest left
    out. No passage and no question can make a special token. ValueError when the question alone needs more room.
    """
    special = set(tokenizer.special)

    def say(text):
        for name in special:  # what looks like a special token gets a blank behind its first character
            text = text.replace(name, f"{name[0]} {name[1:]}")
        return tokenizer.encode(text)

    def frame(text):
        return tokenizer.encode(text, allowed_special=special)

    def turn(question, passages, room):
        head, tail = frame("<|im_start|>user\n"), say(f"\nQuestion: {question}")
        tail += frame("<|im_end|>\n<|im_start|>assistant\n")
        left, body = (float("inf") if room is None else room) - len(head + tail), []
        if left < 0:
            raise ValueError(f"the question needs {len(head + tail)} tokens, the room is {room}")
        for number, passage in enumerate(passages, start=1):
            part = say(f"[{number}] {passage.text}\n")
            part = part if len(part) <= left else (part[: left - 1] + say("\n"))[:left]
            left, body = left - len(part), part + body
        return head + body + tail

    ids = frame("<|im_start|>system\n") + say(system) + frame("<|im_end|>\n")
    for asked, given, reply in shots:
        ids += turn(asked, given, None) + say(reply) + frame("<|im_end|>\n")
    return ids + turn(question, passages, room)


class Answer(NamedTuple):
    """text: None for a refusal; cited: the number of the passage, None when the reply names none."""

    text: str | None
    cited: int | None


def parse(reply):
    """The Answer that a reply such as "644 [2]" gives."""
    text, number = re.fullmatch(r"(.*?)\s*(?:\[(\d+)\]?.*)?", reply.strip(), re.DOTALL).groups()
    if normalise(text) == normalise(REFUSAL):
        return Answer(None, None)
    return Answer(text, int(number) if number else None)


def near_enough(question, found, floor=FLOOR):
    """Whether what was found may answer the question: a cosine of at least `floor`, and its names in one passage.

    The names of a question are its capitalised words, but for the first word.
    """
    names = set(re.findall(r"\b[A-Z]\w*", question.strip()[1:]))
    there = any(names <= set(re.findall(r"\w+", f.passage.text)) for f in found)
    return there and max(f.cosine for f in found) >= floor


def supported(answer, passages):
    """Whether the words of an Answer stand in a row in the passage that it cites, as `normalise` compares; a bool."""
    if answer.text is None or answer.cited is None or not 1 <= answer.cited <= len(passages):
        return False
    return f" {normalise(answer.text)} " in f" {normalise(passages[answer.cited - 1].text)} "


def grounded():
    """(model, tokenizer): SmolLM2 with the shipped adapter, which learned to answer, cite and refuse."""
    model, tokenizer = load()
    load_adapter(model, asset_file("checkpoints/smollm2_grounded"))
    merge(model)
    return model, tokenizer


class Rag:
    """Answers questions from a retriever's passages: iterate over `stream(question)` for pieces of the reply.

    Afterwards `found` holds what was found, and `answer` the Answer. When nothing found is near enough
    (with this floor), the reply is a refusal and the model is not asked.
    """

    def __init__(self, retriever, model, tokenizer, floor=FLOOR):
        self.retriever, self.model, self.tokenizer, self.floor = retriever, model, tokenizer, floor
        self.found, self.answer = [], Answer(None, None)

    def stream(self, question):
        """The reply, piece by piece. ValueError for an empty question, or one too long for the prompt."""
        self.found, self.answer, reply = [], Answer(None, None), ""
        if not question.strip():
            raise ValueError("the question is empty")
        self.found = self.retriever.search([question], TOP)[0]
        if not near_enough(question, self.found, self.floor):
            yield REFUSAL
            return
        prompt = grounded_prompt(self.tokenizer, question, [found.passage for found in self.found])
        for piece in Stream(self.model, self.tokenizer, prompt, max_tokens=LIMIT):
            reply += piece
            yield piece
        self.answer = parse(reply)

    def source(self):
        """The passage that the answer cites; None after a refusal, or when there is no such passage."""
        cited = self.answer.cited
        return self.found[cited - 1].passage if cited and cited <= len(self.found) else None


def command(argv=None):
    """What `llmscratch ask` does: answer a question from the almanac. Exit status 2 for words that it does not know."""
    parser = argparse.ArgumentParser(prog="llmscratch ask", description="Answer a question from the almanac.")
    parser.add_argument("question", nargs="+", help='such as "In which year was the Raven Mill finished?"')
    question = " ".join(parser.parse_args(argv).question)
    try:
        rag = Rag(Retriever(articles(almanac()), by="meaning"), *grounded())
        for piece in rag.stream(question):
            print(piece, end="", flush=True)
    except (DataUnavailable, FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    source = rag.source()
    print(f"\n[{rag.answer.cited}] {source.source}: {source.text}" if source else "")
