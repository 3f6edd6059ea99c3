"""What 4S 07 claims: speed beside transformers' GPT-2, its model beside n-grams, the Storyteller beside its source."""

import ast
import functools
import statistics

import numpy as np
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from llmscratch.kit import Race, race, stories
from llmscratch.scientist.ngram import Counts, KneserNey, Words
from llmscratch.scientist.pretrain import Batches, Recipe, pretrain, train_step
from llmscratch.scientist.stories import World
from llmscratch.scientist.storyteller import encode, rows, story_bits, storyteller, tell
from llmscratch.scientist.tokenizer import storyteller as storyteller_tokenizer
from tests.anatomy import code_cells, read, tree
from tests.bench import against, row
from tests.bench.lessons import COURSE, source

NOTEBOOK = "02_for_scientist/07_pretraining"
CORNER = ("key", "lost", "share")


@functools.cache
def corner(split: str, context: int = 288):
    """(stories of the corner, their documents)."""
    found = stories(split, plots=CORNER)
    return found, encode((story.text for story in found), storyteller_tokenizer(), context)


def tokens_a_second(recipe: Recipe, repeats: int, **options) -> Race:
    """Training tokens a second on the same batches: ours, and transformers' GPT-2 as the lesson trains it."""
    tokenizer = storyteller_tokenizer()
    space = {"torch": torch, "F": F, "rows": rows, "tokenizer": tokenizer}
    space |= {"GPT2Config": GPT2Config, "GPT2LMHeadModel": GPT2LMHeadModel}
    exec(source(NOTEBOOK, "their_step"), space)
    theirs, model = space["their_step"](recipe, **options), recipe.model(tokenizer.n_vocab)
    optimizer, documents = recipe.optimizer(model), Batches(lambda epoch: corner("train")[1], recipe.batch)[0]
    timed = race(
        "a training step", lambda: train_step(model, optimizer, documents, recipe, 1e-4), lambda: theirs(documents),
        repeats=repeats,
    )  # fmt: skip
    tokens = sum(len(ids) - 1 for ids in documents)
    ratios = 1 / timed.ratio, 1 / timed.high, 1 / timed.low
    return Race(tokens / timed.ours, tokens / timed.theirs, *ratios)


@row("4S07: training speed, 3 layers, 96 wide, 8 stories; theirs: transformers' GPT-2", at_least=1.1, unit="tokens/s")
def speed_small() -> Race:
    sizes = {"n_layer": 3, "n_head": 3, "d_model": 96, "context": 288, "batch": 8, "micro": 8}
    return tokens_a_second(Recipe(**sizes, bf16=False), repeats=30)


@row("4S07: the same; theirs: with a fused GELU", at_least=0.9, unit="tokens/s")
def speed_fused() -> Race:
    sizes = {"n_layer": 3, "n_head": 3, "d_model": 96, "context": 288, "batch": 8, "micro": 8}
    return tokens_a_second(Recipe(**sizes, bf16=False), repeats=30, activation_function="gelu_pytorch_tanh")


@row("4S07: training speed, the Storyteller's recipe; theirs: transformers' GPT-2", at_least=1.1, unit="tokens/s")
def speed_storyteller() -> Race:
    return tokens_a_second(Recipe(), repeats=8)


def recipe_of_the_notebook() -> Recipe:
    """What the notebook's cell `own = Recipe(...)` says."""
    assigned = (node for _, cell in code_cells(read(COURSE / f"{NOTEBOOK}.ipynb")) for node in tree(cell).body)
    (own,) = (node for node in assigned if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "own")
    return eval(ast.unparse(own.value), {"Recipe": Recipe, "CONTEXT": 288})


@row("4S07: held-out bits a byte of the notebook's own run; theirs: the best n-gram", at_most=0.85, unit="bits/byte")
def own_run() -> Race:
    train, documents = corner("train")
    held_out, held_out_documents = corner("validation")
    n_bytes = sum(len(story.text) for story in held_out)
    own = recipe_of_the_notebook()
    model = own.model(storyteller_tokenizer().n_vocab)
    pretrain(own, Batches(lambda epoch: documents, own.batch), model, progress=False)
    words = Words([story.text for story in train])
    kn = KneserNey(Counts([words.encode(s.text) for s in train], 8, words.V), 8, words.base)
    best = kn.bits_per_byte([words.encode(s.text) for s in held_out], n_bytes)
    return against([story_bits(model, held_out_documents).sum() / n_bytes] * 2, [best] * 2)


@row("4S07: bits of the Storyteller on 400 held-out stories; theirs: the true bits", at_most=1.05, unit="bits")
def beside_entropy() -> Race:
    model, tokenizer = storyteller()
    corpus = stories("validation")[:400]
    documents = encode((story.text for story in corpus), tokenizer, model.config.context)
    paid, true = story_bits(model, documents), np.array([story.bits for story in corpus])
    quarters = sorted(paid[i::4].sum() / true[i::4].sum() for i in range(4))
    low, _, high = statistics.quantiles(quarters, n=4, method="inclusive")
    return Race(paid.mean(), true.mean(), paid.sum() / true.sum(), low, high)


@row(
    "4S07: stories told at temperature ½ that the generator could have told, letter for letter; theirs: all 100",
    at_least=0.9,
    unit="",
)
def accepted() -> Race:
    model, tokenizer = storyteller()
    world, draw = World.load(), torch.Generator().manual_seed(0)
    told = [text for _ in range(10) for text in tell(model, tokenizer, 10, temperature=0.5, generator=draw)]
    passed = [any(True for _ in world.paths(text)) for text in told]
    by_ten = [sum(passed[i : i + 10]) / 10 for i in range(0, 100, 10)]
    low, _, high = statistics.quantiles(by_ten, n=4, method="inclusive")
    return Race(sum(passed), 100, sum(passed) / 100, low, high)
