"""What 4S 14 claims: obedience before and after, what was forgotten, and answering beside transformers."""

import functools

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llmscratch.kit import Race, asset_file, fast_bf16, instructions, race, stories
from llmscratch.scientist.chat import END, END_OF_TEXT, answer, answer_bits, conversation, encode_chat, obeyed, write_on
from llmscratch.scientist.sft import untitled
from llmscratch.scientist.storyteller import encode, load_model, story_bits, storyteller
from tests.bench import against, row
from tests.bench.lessons import source

NOTEBOOK = "02_for_scientist/14_instruction_tuning"


@functools.cache
def models():
    """(the Storyteller, the one that listens, the tokenizer)."""
    base, tokenizer = storyteller()
    return base, load_model(asset_file("checkpoints/storyteller-sft.safetensors"))[0], tokenizer


def shares(model, asked, seeds=(0, 1)) -> list[float]:
    """The share of requests obeyed, asked by the template, a share a seed."""
    prompts, found = [instruction.prompt for instruction in asked], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        told = answer(model, models()[2], prompts, temperature=0.3, generator=generator)
        found.append(float(np.mean([obeyed(i, untitled(text)) for i, text in zip(asked, told, strict=True)])))
    return found


@row("4S14: share of the 500 held-out requests obeyed, shipped model; theirs: 80%", at_least=1.0, unit="")
def after() -> Race:
    return against(shares(models()[1], instructions("validation")), [0.8] * 2)


@row("4S14: those of them that ask for no words and no last sentence; theirs: 80%", at_least=1.0, unit="")
def simple() -> Race:
    asked = [i for i in instructions("validation") if not {"words", "ends"} & i.checks.keys()]
    return against(shares(models()[1], asked), [0.8] * 2)


@row("4S14: share of the 500 obeyed before, by the Storyteller of 4S07; theirs: 20%", at_most=1.0, unit="")
def before() -> Race:
    return against(shares(models()[0], instructions("validation")), [0.2] * 2)


@row("4S14: the 42 requests for a hero and a place that never met in training; theirs: 50%", at_least=1.0, unit="")
def new_pairs() -> Race:
    return against(shares(models()[1], instructions("validation")[:42], seeds=(0, 1, 2)), [0.5] * 3)


@row("4S14: bits of 200 plain stories after tuning; theirs: before", at_most=1.03, unit="bits")
def forgotten() -> Race:
    base, listens, tokenizer = models()
    texts = [story.text for story in stories("validation")[:200]]
    documents = encode(texts, tokenizer, base.config.context)
    bits = [story_bits(model, documents, bf16=fast_bf16()).mean() for model in (listens, base)]
    return against([bits[0]] * 2, [bits[1]] * 2)


@row("4S14: bits of 200 answers, given the request; theirs: the true bits of the stories", at_most=1.0, unit="bits")
def below_entropy() -> Race:
    _, listens, tokenizer = models()
    asked, told = instructions("validation")[42:242], {story.text: story for story in stories("validation")}
    chats = [conversation(i, tokenizer, told[i.story].facts["plot"]) for i in asked]
    paid = answer_bits(listens, chats, bf16=fast_bf16()).mean()
    return against([paid] * 2, [float(np.mean([told[i.story].bits for i in asked]))] * 2)


@row("4S14: 40 greedy tokens for four requests; theirs: transformers' generate", at_most=1.0)
def answering() -> Race:
    _, listens, tokenizer = models()
    space = {"torch": torch, "GPT2Config": GPT2Config, "GPT2LMHeadModel": GPT2LMHeadModel, "END": END}
    space |= {"END_OF_TEXT": END_OF_TEXT}
    exec(source(NOTEBOOK, "as_transformers", "cut", "their_answers"), space)
    space["production"] = space["as_transformers"](listens)
    chats = [[{"role": "user", "content": i.prompt}] for i in instructions("validation")[42:46]]
    starts = [encode_chat(chat, tokenizer).tolist() for chat in chats]
    return race(
        "four requests", lambda: write_on(listens, starts, limit=40, temperature=0),
        lambda: space["their_answers"](starts), repeats=10,
    )  # fmt: skip
