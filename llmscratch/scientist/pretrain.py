"""Pretraining: batches of whole stories, AdamW and Muon with warm-up and cosine, and a run that a kill cannot spoil."""

# Made from 02_for_scientist/07_pretraining.ipynb by `make export`: change the notebook, not this file.

import argparse
import contextlib
import itertools
import math
import os
import time
import zlib
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from llmscratch.basis.train import CheckpointError, load_checkpoint, save_checkpoint
from llmscratch.kit import device, fast_bf16, scale, stories, tinystories
from llmscratch.scientist.gpt import GPT, GPTConfig
from llmscratch.scientist.muon import Muon
from llmscratch.scientist.stories import World
from llmscratch.scientist.storyteller import encode, nats, save_model, story_bits, tell
from llmscratch.scientist.tokenizer import storyteller as storyteller_tokenizer

__all__ = ["Batches", "Recipe", "checkpoints", "hub_source", "main", "pretrain", "story_source", "train_step"]


class Batches:
    """Batches of whole documents by the number of the step: the same ones in every process and after every restart.

    source(epoch): the documents of an epoch, always as many. Documents of like length come together, since a row is
    padded to the longest of its batch; which batch comes when is drawn from (seed, epoch). ValueError when an epoch
    does not fill a batch, or has not as many documents as the first.
    """

    def __init__(self, source, batch, seed=0, pool=16):
        self.source, self.batch, self.seed, self.pool, self.epoch, self.size = source, batch, seed, pool, None, None
        self._fill(0)
        self.size = len(self.documents)
        if not self.order:
            raise ValueError(f"{self.size} documents do not fill one batch of {batch}")

    def _fill(self, epoch):
        documents, rng = self.source(epoch), np.random.default_rng([self.seed, epoch])
        if self.size not in (None, len(documents)):
            raise ValueError(f"epoch {epoch} has {len(documents)} documents, the first had {self.size}: give as many")
        drawn, self.order, self.documents = rng.permutation(len(documents)), [], documents
        for at in range(0, len(drawn), self.batch * self.pool):
            near = sorted(drawn[at : at + self.batch * self.pool], key=lambda i: len(self.documents[i]))
            self.order += [near[i : i + self.batch] for i in range(0, len(near) - self.batch + 1, self.batch)]
        rng.shuffle(self.order)
        self.epoch = epoch

    def __getitem__(self, step):
        """The documents of a step."""
        epoch, at = divmod(step, len(self.order))
        if epoch != self.epoch:
            self._fill(epoch)
        return [self.documents[i] for i in self.order[at]]


def _check(recipe):
    """ValueError, with the value found and what is right, when a recipe's numbers make no run."""
    for name, kind in {"batch": int, "micro": int, "steps": int, "lr": (int, float), "clip": (int, float)}.items():
        value = getattr(recipe, name)
        if not isinstance(value, kind) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be {'a whole number ' if kind is int else ''}above 0, got {value!r}")
    decay, beta2, steps, warmup, floor = (
        getattr(recipe, n) for n in ("weight_decay", "beta2", "steps", "warmup", "floor")
    )
    if not decay >= 0 or not 0 <= beta2 < 1:
        raise ValueError(f"needs weight_decay ≥ 0 and 0 ≤ beta2 < 1; got {decay}, {beta2}")
    if not 0 <= warmup < steps or not 0 <= floor <= 1:
        raise ValueError(f"needs 0 ≤ warmup < steps, 0 ≤ floor ≤ 1; got {warmup}, {steps}, {floor}")


@dataclass(frozen=True)
class Recipe:
    """Every choice of a run: with the same data and threads, one recipe gives one model. ValueError if unfit."""

    n_layer: int = 4
    n_head: int = 4
    d_model: int = 256
    context: int = 384
    batch: int = 16  # stories a step
    micro: int = 16  # stories a backward pass: fewer need less memory, and change nothing
    steps: int = 12_000
    muon: bool = True  # for the matrices of the blocks; without, AdamW for everything
    lr: float = 2e-3
    warmup: int = 400  # steps
    floor: float = 0.02  # the last learning rate, as a part of lr
    weight_decay: float = 0.1
    beta2: float = 0.99
    clip: float = 0.3
    bf16: bool = field(default_factory=fast_bf16)
    seed: int = 0

    def __post_init__(self):
        _check(self)

    def model(self, vocab_size):
        """A new GPT of these sizes; narrow models get larger first weights, 0.02·√(768/C)."""
        config = GPTConfig(vocab_size, self.context, self.n_layer, self.n_head, self.d_model)
        return GPT(config, torch.Generator().manual_seed(self.seed), std=0.02 * math.sqrt(768 / self.d_model))

    def optimizer(self, model):
        """Muon for the matrices of the blocks, AdamW for the rest; biases and LayerNorms do not decay."""
        groups = defaultdict(list)
        for name, p in model.named_parameters():
            groups[self.muon and p.ndim > 1 and ".h." in f".{name}", p.ndim > 1].append(p)
        groups = [
            {"params": p, "muon": m, "bf16": self.bf16, "weight_decay": self.weight_decay * d}
            for (m, d), p in groups.items()
        ]
        return Muon(groups, lr=self.lr, betas=(0.9, self.beta2), fused=True)

    def lr_at(self, step):
        """The learning rate of a step, counted from 0: up in a line, then down along half a cosine to the floor."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        along = (step - self.warmup) / (self.steps - self.warmup)
        return self.lr * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * along)) / 2)


def train_step(model, optimizer, documents, recipe, lr):
    """One update on a batch shared by all processes, in pieces of `recipe.micro`; (loss in nats a token, norm).

    However it is cut up, the gradient is that of the mean over all tokens of the batch. FloatingPointError when the
    loss or the gradient is not finite: the weights are then as before. ValueError for a batch without documents.
    """
    if not documents:
        raise ValueError("a batch must have at least one document")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    count, mine = sum(len(ids) - 1 for ids in documents), documents[rank::world]
    pieces = [mine[at : at + recipe.micro] for at in range(0, len(mine), recipe.micro)]
    optimizer.zero_grad()
    total = torch.zeros(())
    for piece in pieces:
        last = piece is pieces[-1] or world == 1
        with contextlib.nullcontext() if last else model.no_sync():  # processes exchange gradients once a step
            loss = nats(model, piece, recipe.bf16).sum() / count
            (loss * world).backward()  # DDP takes the mean over processes, we want the sum
        total += loss.detach().cpu()
    if world > 1:
        dist.all_reduce(total)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    if not (total.isfinite() and norm.isfinite()):
        raise FloatingPointError(f"loss {total:.3g}, gradient norm {norm:.3g}: try a smaller lr or a longer warm-up")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return total.item(), norm.item()


def checkpoints(folder):
    """The checkpoints in a folder, oldest first."""
    return sorted(Path(folder).glob("step_*.safetensors"))


def _keep(folder, step, model, optimizer, notes):
    """Write a checkpoint, then remove all but it and the one before. CheckpointError when it cannot be written."""
    path = Path(folder) / f"step_{step:07d}.safetensors"
    try:
        save_checkpoint(path, model, optimizer, notes=notes)
    except (OSError, SafetensorError) as error:
        path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        left = ", ".join(kept.name for kept in checkpoints(folder)) or "none"
        what = f"{path} could not be written ({error}). Is the disk full? Whole checkpoints: {left}"
        raise CheckpointError(f"{what}; make room and start the same command again.") from error
    for old in checkpoints(folder)[:-2]:
        old.unlink()


def _resume(folder, expect, model, optimizer):
    """Load the newest checkpoint of a folder, in which `expect` must stand; the log until then, [] for none."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not (found := checkpoints(folder)):
        return []
    try:
        return load_checkpoint(found[-1], model, optimizer, expect=expect)[0]["log"]
    except CheckpointError as error:
        before = f" To go on from {found[-2].name}, remove it." if len(found) > 1 and "damaged" in str(error) else ""
        raise CheckpointError(f"{error}.{before}") from None


def pretrain(recipe, batches, model, *, folder=None, save_every=100, look_every=100, look=None, progress=True):
    """Train `model` for `recipe.steps` steps; the log: one dict a step, with step, loss, lr, norm, tokens, seconds.

    folder: checkpoints go there every `save_every` steps, and a run goes on from the newest: bit for bit on a CPU.
    look(step, model): called every `look_every` steps and at the end; what it returns (a dict) joins the log.
    CheckpointError when a checkpoint is damaged, of another recipe or other data, or cannot be written; earlier ones
    stay. ValueError when batches are not those of the recipe, or too small for the number of processes.
    """
    if (batches.batch, batches.seed) != (recipe.batch, recipe.seed):
        found = f"batch {batches.batch} and seed {batches.seed}"
        raise ValueError(f"the recipe has batch {recipe.batch} and seed {recipe.seed}, but batches has {found}")
    world = dist.get_world_size() if dist.is_initialized() else 1
    if recipe.batch < world:
        raise ValueError(f"a batch of {recipe.batch} cannot be shared by {world} processes: each needs a story")
    optimizer, first = recipe.optimizer(model), world == 1 or dist.get_rank() == 0
    run = {"recipe": asdict(recipe), "data": zlib.crc32(b"".join(ids.tobytes() for ids in batches[0]))}
    log = [] if folder is None else _resume(folder, run, model, optimizer)
    trained = DistributedDataParallel(model) if world > 1 else model
    model.train()
    with tqdm(total=recipe.steps, initial=len(log), disable=not (progress and first), mininterval=5) as bar:
        for step in range(len(log), recipe.steps):
            start, documents, lr = time.perf_counter(), batches[step], recipe.lr_at(step)
            loss, norm = train_step(trained, optimizer, documents, recipe, lr)
            log.append({"step": step + 1, "loss": loss, "lr": lr, "norm": norm})
            log[-1] |= {"tokens": sum(map(len, documents)) - len(documents), "seconds": time.perf_counter() - start}
            done = step + 1 == recipe.steps
            if look is not None and first and (done or (step + 1) % look_every == 0):
                log[-1] |= look(step + 1, model) or {}
            if folder is not None and first and (done or (step + 1) % save_every == 0):
                _keep(folder, step + 1, model, optimizer, run | {"log": log})
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
    model.eval()
    return log


def story_source(tokenizer, context, size=8_192, first_seed=1_000):
    """A source for Batches: every epoch `size` new stories of the generator, told with the seed first_seed + epoch."""
    world = World.load()
    return lambda epoch: encode((s.text for s in world.stories(size, first_seed + epoch)), tokenizer, context)[:size]


def hub_source(tokenizer, context, size=65_536, total=2_100_000):
    """A source for Batches: every epoch the next documents of TinyStories, streamed from the Hugging Face Hub.

    total: of how many; after the last whole epoch among them comes the first again.
    """

    def documents(epoch):
        stream = tinystories("train").skip(epoch % (total // size) * size)
        return encode((record["text"] for record in itertools.islice(stream, size)), tokenizer, context)[:size]

    return documents


def _options(argv):
    """(folder, threads, recipe) from the command line."""
    small = scale() == "small"
    usual = Recipe() if small else Recipe(12, 12, 768, 512, batch=256, micro=64, steps=20_000, lr=6e-4, warmup=700)
    parser = argparse.ArgumentParser(prog="python -m llmscratch.scientist.pretrain", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and model.safetensors")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all)")
    for name, value in asdict(usual).items():
        kind = {"action": argparse.BooleanOptionalAction} if type(value) is bool else {"type": type(value)}
        parser.add_argument(f"--{name}", default=value, help=f"default: {value}", **kind)
    options = vars(parser.parse_args(argv))
    return options.pop("out"), options.pop("threads"), replace(usual, **options)


def main(argv=None):
    """Train the Storyteller, or go on where a run broke off: python -m llmscratch.scientist.pretrain --out runs/one"""
    out, threads, recipe = _options(argv)
    torch.set_num_threads(threads)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():  # torchrun sets it
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group()
    tokenizer, held_out = storyteller_tokenizer(), stories("validation")[:200]
    documents = encode((story.text for story in held_out), tokenizer, recipe.context)
    size, floor = sum(len(s.text) for s in held_out), sum(s.bits for s in held_out)

    def look(step, model):
        bits = story_bits(model, documents, bf16=recipe.bf16).sum()
        story = tell(model, tokenizer, generator=torch.Generator().manual_seed(step))[0]
        tqdm.write(f"step {step}: {bits / size:.4f} bits/byte (entropy {floor / size:.4f}). {story}")
        return {"bits_per_byte": bits / size}

    source = (story_source if scale() == "small" else hub_source)(tokenizer, recipe.context)
    model = recipe.model(tokenizer.n_vocab).to(device())
    log = pretrain(recipe, Batches(source, recipe.batch, recipe.seed), model, folder=out, look=look, look_every=250)
    if not dist.is_initialized() or dist.get_rank() == 0:
        curve = [[entry["step"], entry["bits_per_byte"]] for entry in log if "bits_per_byte" in entry]
        notes = {name: sum(entry[name] for entry in log) for name in ("seconds", "tokens")}
        notes |= {"recipe": asdict(recipe), "curve": curve, "bits_per_byte": curve[-1][1]}
        save_model(out / "model.safetensors", model, notes)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__" and __spec__:  # `python -m`, and not a notebook, which is called __main__ as well
    main()
