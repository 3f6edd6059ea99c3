"""Instruction tuning: a template that users cannot forge, loss on the answers alone, and a Storyteller that does as
asked.
"""

# Made from 02_for_scientist/14_instruction_tuning.ipynb by `make export`: change the notebook, not this file.

import argparse
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from llmscratch.kit import asset_file, data_file, device, instructions, stories
from llmscratch.kit.stories import Instruction
from llmscratch.scientist.chat import answer, answer_bits, conversation, encode_chat, obeyed, with_turns
from llmscratch.scientist.pretrain import Batches, Recipe, pretrain
from llmscratch.scientist.stories import World
from llmscratch.scientist.storyteller import encode, load_model, save_model, story_bits
from llmscratch.scientist.tasks import Dice, constraints, make_instructions, prompt
from llmscratch.scientist.tokenizer import storyteller as storyteller_tokenizer

__all__ = ["SHARES", "demanding", "instruction_source", "main", "reading", "untitled"]


def demanding(story, dice, phrases):
    """An instruction that asks for all that can be asked of a story, also for more of its words than is usual."""
    apart = phrases["held_out"]["place"]
    checks = {name: value for found in constraints(story, dice, apart).values() for name, value in found.items()}
    if words := [word for word in story.facts["words"] if word not in apart]:
        checks["words"] = dice.some(words, dice.between((len(words) + 1) // 2, len(words)))
    return Instruction(prompt(checks, dice, phrases), story.text, checks)


def reading(instruction, tokenizer):
    """A conversation in which an instruction is not followed, but read: what must the story have?"""
    checks = instruction.checks
    parts = [checks[name] for name in ("who", "kind", "place", "town") if name in checks] + checks.get("words", [])
    parts += [f"{name} than {checks[name]} words" for name in ("fewer", "more") if name in checks]
    said = f"It must have {', '.join(parts)}. {checks.get('ends', '')}".rstrip()
    turns = {"user": f"What must it have? {instruction.prompt}", "assistant": said}
    return encode_chat([{"role": role, "content": text} for role, text in turns.items()], tokenizer)


def untitled(text):
    """A text without the line of its title, if it has one."""
    return text.split("\n", 1)[-1]


SHARES = {"replay": 0.1, "read": 0.2, "demand": 0.4}


def instruction_source(tokenizer, context, size=4_096, first_seed=50_000, **shares):
    """A source for Batches: every epoch `size` new documents from the seed first_seed + epoch.

    shares (default SHARES): `replay`, of plain stories; `read`, of instructions that are only read; `demand`, of
    demanding ones with their stories; the rest is instructions as in `data/`. Stories that were asked for have their
    plot as a title. No hero meets a place that is held out with it. ValueError for shares that are none.
    """
    shares = SHARES | shares
    if min(shares.values()) < 0 or sum(shares.values()) > 1:
        raise ValueError(f"replay, read and demand must be shares that add up to at most 1, got {shares}")
    phrases = tomllib.loads(data_file("instructions.toml").read_text(encoding="utf-8"))
    world, apart = World.load(), phrases["held_out"]
    at, n_read = np.cumsum([round(shares[name] * size) for name in SHARES]), round(shares["read"] * size)

    def documents(epoch):
        seed = first_seed + epoch
        told = world.stories(size + size // 4 + 8, seed)  # more, since some are held out or too long
        told = [s for s in told if not all(s.facts.get(key) in apart[key] for key in ("who", "place"))]
        dice, titles = Dice(seed), {story.text: story.facts["plot"] for story in told}
        plain = encode((story.text for story in told[: at[0]]), tokenizer, context)
        hard = [demanding(story, dice, phrases) for story in told[at[0] : at[2]]]
        usual = make_instructions(told[at[2] :], len(told) - at[2], seed)
        made = [reading(each, tokenizer) for each in hard[:n_read]]
        made += [conversation(each, tokenizer, titles[each.story]) for each in hard[n_read:] + usual]
        return plain + [ids for ids in made if len(ids) <= context + 1][: size - len(plain)]

    return documents


def _options(argv):
    """(folder, threads, model to start from, shares, recipe) from the command line."""
    usual = Recipe(batch=16, micro=16, steps=3_400, warmup=100, weight_decay=0.0)
    parser = argparse.ArgumentParser(prog="python -m llmscratch.scientist.sft", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and model.safetensors")
    parser.add_argument("--base", type=Path, help="model to start from (default: the Storyteller of this course)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all)")
    for name, value in SHARES.items():
        parser.add_argument(f"--{name}", type=float, default=value, help=f"default: {value}")
    for name, value in asdict(usual).items():
        if name in ("n_layer", "n_head", "d_model", "context"):  # those of the model that it starts from
            continue
        kind = {"action": argparse.BooleanOptionalAction} if type(value) is bool else {"type": type(value)}
        parser.add_argument(f"--{name}", default=value, help=f"default: {value}", **kind)
    options = vars(parser.parse_args(argv))
    shares = {name: options.pop(name) for name in SHARES}
    return *(options.pop(name) for name in ("out", "threads", "base")), shares, replace(usual, **options)


def main(argv=None):
    """Teach the Storyteller to follow instructions, or go on where a run broke off."""
    out, threads, base, shares, recipe = _options(argv)
    torch.set_num_threads(threads)
    model = with_turns(load_model(base or asset_file("checkpoints/storyteller.safetensors"))[0]).to(device())
    sizes = {name: getattr(model.config, name) for name in ("n_layer", "n_head", "d_model", "context")}
    recipe, tokenizer, asked = replace(recipe, **sizes), storyteller_tokenizer(), instructions("validation")[-64:]
    titles = {story.text: story.facts["plot"] for story in stories("validation")}
    chats, size = [conversation(i, tokenizer, titles[i.story]) for i in asked], sum(len(i.story) for i in asked)
    plain = encode((i.story for i in asked), tokenizer, recipe.context)

    def look(step, model):
        generator = torch.Generator().manual_seed(0)
        told = answer(model, tokenizer, [i.prompt for i in asked], temperature=0.3, generator=generator)
        found = {"obeyed": sum(map(obeyed, asked, map(untitled, told))) / len(asked)}
        found["answer_bits_per_byte"] = answer_bits(model, chats, bf16=recipe.bf16).sum() / size
        found["bits_per_byte"] = story_bits(model, plain, bf16=recipe.bf16).sum() / size
        tqdm.write(f"step {step}: {', '.join(f'{name} {value:.4f}' for name, value in found.items())}. {told[0]!r}")
        return found

    batches = Batches(instruction_source(tokenizer, recipe.context, **shares), recipe.batch, recipe.seed)
    log = pretrain(recipe, batches, model, folder=out, look=look, look_every=500)
    notes = {name: sum(entry[name] for entry in log) for name in ("seconds", "tokens")}
    notes["curve"] = [{key: entry[key] for key in entry.keys() - {"loss", "lr", "norm", "tokens", "seconds"}}
                      for entry in log if "obeyed" in entry]  # fmt: skip
    save_model(out / "model.safetensors", model, notes | {"recipe": asdict(recipe), "shares": shares})


if __name__ == "__main__" and __spec__:  # `python -m`, and not a notebook, which is called __main__ as well
    main()
