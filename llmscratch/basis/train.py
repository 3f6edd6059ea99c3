"""The training loop of the course: validation, early stopping, and checkpoints from which a run goes on bit for bit."""

# Generated from 01_common_basis/12_pytorch_training.ipynb by `make export`: change the notebook, not this file.

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

__all__ = [
    "CheckpointError",
    "History",
    "evaluate",
    "fit",
    "load_checkpoint",
    "looking",
    "save_checkpoint",
    "to_device",
    "train_step",
]


def _device_of(model):
    """The device of the model's first parameter; the CPU for a model that has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def looking(model):
    """Within it, the model is in eval mode and no graph is recorded; afterwards the modes of all modules and torch's
    global random state (the CPU's, and the model's GPU's) are as before: looking changes nothing.
    """
    modes, device = {module: module.training for module in model.modules()}, _device_of(model)
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def to_device(batch, device):
    """The batch with every tensor in it on `device`. Tuples and lists become lists, mappings dicts; the rest stays."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(part, device) for key, part in batch.items()}
    return [to_device(part, device) for part in batch] if isinstance(batch, (tuple, list)) else batch


def _batch_size(batch):
    """The number of examples in a batch: the length of its first tensor. ValueError when it does not begin with one."""
    while isinstance(batch, (Mapping, tuple, list)):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch), None)
    if not isinstance(batch, torch.Tensor) or not batch.ndim:
        raise ValueError(f"a batch must begin with a tensor (B, …); this one begins with {type(batch).__name__}")
    return len(batch)


def evaluate(model, batches, loss_fn):
    """The mean of loss_fn(model, batch) over the examples in `batches`, each batch weighted by its size: a float.

    The model is in eval mode meanwhile, and nothing is changed (see looking). ValueError when there are no examples.
    """
    total, examples = 0.0, 0
    with looking(model):
        for batch in batches:
            n = _batch_size(batch)
            total += loss_fn(model, to_device(batch, _device_of(model))).item() * n
            examples += n
    if not examples:
        raise ValueError("batches gave nothing: it must be a list or a loader, not a generator that is used up")
    return total / examples


class CheckpointError(ValueError):
    """A checkpoint cannot be used: the message names the file, what is wrong with it and what was expected."""


def _owners(model):
    """{name: the name its tensor is stored under}: a weight that two layers share is stored once."""
    first = {}
    return {name: first.setdefault(id(t), name) for name, t in model.state_dict(keep_vars=True).items()}


def _outline(optimizer):
    shapes = [[list(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    return f"{type(optimizer).__name__} over {shapes}"


def _random(generators):
    """{name: generator}: torch's global ones and those given."""
    gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    found = {"cpu": torch.default_generator} | {f"cuda{i}": g for i, g in enumerate(gpus)}
    return found | {f"given{i}": g for i, g in enumerate(generators)}


def _checksum(tensors, text):
    """CRC-32 of a text and of all tensors: names, types, shapes and bytes."""
    crc = zlib.crc32(text.encode())
    for name, t in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {t.dtype} {tuple(t.shape)}".encode(), crc)
        crc = zlib.crc32(t.reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def save_checkpoint(path, model, optimizer=None, *, scheduler=None, generators=(), best=None, notes=None):
    """Write what training needs to go on into one safetensors file: the states of model, optimizer, scheduler, torch's
    global generators and those given; also `best` (another state_dict of the model) and `notes` (a dict for JSON).

    Atomic: written beside `path`, forced to the disk, then renamed. At every moment `path` is the whole old file or the
    whole new one. TypeError when a state or a note is neither tensor nor JSON.
    """
    tensors = {}
    for kind, state in (("model", model.state_dict()), ("best", best)):
        if state is not None:
            tensors |= {f"{kind}/{name}": state[name] for name in _owners(model).values()}
    tensors |= {f"random/{name}": generator.get_state() for name, generator in _random(generators).items()}
    about = {"notes": notes or {}}
    if optimizer is not None:
        packed = optimizer.state_dict()
        slots = [(i, key, value) for i, values in packed["state"].items() for key, value in values.items()]
        tensors |= {f"optimizer/{i}/{key}": v for i, key, v in slots if isinstance(v, torch.Tensor)}
        plain = [(i, key, v) for i, key, v in slots if not isinstance(v, torch.Tensor)]
        about["optimizer"] = {"outline": _outline(optimizer), "plain": plain, "groups": packed["param_groups"]}
    if scheduler is not None:
        about["scheduler"] = {"outline": type(scheduler).__name__, "state": scheduler.state_dict()}
    tensors = {k: t.detach().cpu().clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
    text, temporary = json.dumps(about), f"{os.fspath(path)}.tmp"
    try:
        save_file(tensors, temporary, metadata={"about": text, "crc32": _checksum(tensors, text)})
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())  # first the bytes are on the disk,
        os.replace(temporary, path)  # then the name leads to them
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _read(path):
    """(tensors, about) of a checkpoint. CheckpointError when the file is truncated, damaged or of another kind."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, size))
        ends = re.findall(rb'"data_offsets":\[\d+,(\d+)\]', header) if len(header) == length else []
        whole = f"{8 + length + max(map(int, ends)):,}" if ends else "a whole header"
        raise CheckpointError(f"{path} is truncated or damaged: {size:,} bytes, expected {whole} ({error})") from None
    if "about" not in metadata:
        raise CheckpointError(f"{path} was not written by save_checkpoint, as expected: its header has no 'about'")
    if metadata.get("crc32") != _checksum(tensors, metadata["about"]):
        raise CheckpointError(f"{path} is damaged: its bytes are not those whose checksum was saved with them")
    return tensors, json.loads(metadata["about"])


def _misfits(tensors, about, model, optimizer, scheduler, generators, expect):
    """Each thing in which a checkpoint differs from what it shall be loaded into, as a sentence."""
    state, owners = model.state_dict(), _owners(model).values()
    here = {f"model/{name}": f"{tuple(state[name].shape)} {state[name].dtype}" for name in owners}
    there = {name: f"{tuple(t.shape)} {t.dtype}" for name, t in tensors.items() if name.startswith("model/")}
    if optimizer is not None:
        here |= {"optimizer": _outline(optimizer), "scheduler": type(scheduler).__name__ if scheduler else "none"}
        there |= {key: about.get(key, {}).get("outline", "none") for key in ("optimizer", "scheduler")}
        here["number of generators"] = len(generators)
        there["number of generators"] = sum(name.startswith("random/given") for name in tensors)
    here |= {f"note {key!r}": json.dumps(value) for key, value in (expect or {}).items()}
    there |= {f"note {key!r}": json.dumps(about["notes"].get(key)) for key in expect or {}}
    for name in here | there:
        if here.get(name) != there.get(name):
            yield f"{name} is {there.get(name, 'absent')} in the file, expected {here.get(name, 'none')}"


def load_checkpoint(path, model, optimizer=None, *, scheduler=None, generators=(), expect=None):
    """Load what save_checkpoint wrote; returns (notes, best), best being None if none was kept.

    Without `optimizer`, only the model's weights and buffers are loaded. With it, everything goes on where it stopped:
    the states of optimizer (its settings, such as lr, included), scheduler, generators, global random numbers.
    expect: notes that the file must hold. CheckpointError, before anything is changed, when the file is truncated or
    damaged, or does not fit. FileNotFoundError when there is none.
    """
    tensors, about = _read(path)
    if wrong := list(_misfits(tensors, about, model, optimizer, scheduler, generators, expect)):
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path} does not fit: {'; '.join(wrong[:3])}{more}")
    owners = _owners(model)
    model.load_state_dict({name: tensors[f"model/{owner}"] for name, owner in owners.items()})
    if optimizer is not None:
        slots = [(*name.split("/", 2)[1:], t) for name, t in tensors.items() if name.startswith("optimizer/")]
        state, groups = {}, about["optimizer"]["groups"]
        for i, key, value in about["optimizer"]["plain"] + slots:
            state.setdefault(int(i), {})[key] = value
        for group, now in zip(groups, optimizer.param_groups):  # JSON has lists only: make tuples again
            group |= {key: tuple(group[key]) for key, value in now.items() if isinstance(value, tuple)}
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        if scheduler is not None:
            scheduler.load_state_dict(about["scheduler"]["state"])
        for name, generator in _random(generators).items():
            if f"random/{name}" in tensors:
                generator.set_state(tensors[f"random/{name}"])
    best = {name: tensors.get(f"best/{owner}") for name, owner in owners.items()}
    return about["notes"], None if any(t is None for t in best.values()) else best


@dataclass
class History:
    """What fit saw."""

    train_loss: list[float] = field(default_factory=list)  # one a step
    val_loss: list[float] = field(default_factory=list)  # one an epoch
    epochs: int = 0  # finished
    best_epoch: int = 0  # the one with the lowest val_loss, counted from 1; 0: none yet
    stopped: bool = False  # because patience ran out


def train_step(model, batch, *, optimizer, loss_fn, scheduler=None, clip=None):
    """One step: loss, gradients (clipped to norm `clip`), update. Returns the loss before the step, a float.

    FloatingPointError when the loss is not finite; the weights are then as before.
    """
    loss = loss_fn(model, to_device(batch, _device_of(model)))
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}: look at the batch, or try a smaller learning rate or clip=1.0")
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return value


def fit(model, batches, *, optimizer, loss_fn, epochs, val_batches=None, scheduler=None, patience=None, clip=None,
        checkpoint=None, generators=(), progress=True, after_epoch=None):  # fmt: skip
    """Train `model` until it has seen `epochs` epochs. Returns a History, and leaves the model in eval mode.

    batches, val_batches: what can be walked anew each epoch, a list or a loader; moved to the model's device.
    loss_fn(model, batch): a scalar tensor, the mean over the batch. scheduler: stepped after every step.
    patience: stop after that many epochs without a lower val_loss; the best epoch's weights are kept.
    checkpoint: a file written after each epoch; where it exists, training goes on from it. generators: torch.Generators
    that batches or loss_fn draw from, besides batches.generator. after_epoch(history): called inside `looking`.
    ValueError for unfit arguments, CheckpointError for an unfit file; else as train_step.
    """
    if epochs < 1 or (patience is not None and (patience < 1 or val_batches is None)):
        raise ValueError(f"epochs and patience must be ≥ 1, patience needs val_batches; got {epochs}, {patience}")
    if checkpoint is not None and not os.path.isdir(os.path.dirname(os.path.abspath(checkpoint))):
        raise ValueError(f"the folder of the checkpoint {checkpoint} does not exist: make it before you train")
    generators = list({id(g): g for g in (getattr(batches, "generator", None), *generators) if g is not None}.values())
    steps = len(batches) if hasattr(batches, "__len__") else None
    run = {"steps an epoch": steps, "seeds": [g.initial_seed() for g in generators], "best kept": patience is not None}
    resume, history, best = {"scheduler": scheduler, "generators": generators}, History(), None
    if checkpoint is not None and os.path.exists(checkpoint):
        notes, best = load_checkpoint(checkpoint, model, optimizer, expect={"run": run}, **resume)
        history = History(**notes["history"])
    model.train()
    seen = len(history.train_loss)
    with tqdm(total=steps and steps * epochs, initial=seen, mininterval=1, disable=not progress) as bar:
        while history.epochs < epochs and not history.stopped:
            for batch in batches:
                loss = train_step(model, batch, optimizer=optimizer, loss_fn=loss_fn, scheduler=scheduler, clip=clip)
                history.train_loss.append(loss)
                bar.set_postfix_str(f"epoch {history.epochs + 1}, loss {loss:.3f}", refresh=False)
                bar.update()
            if len(history.train_loss) == seen:
                raise ValueError("batches gave nothing: it must be a list or a loader, not a generator that is used up")
            seen, history.epochs = len(history.train_loss), history.epochs + 1
            if val_batches is not None:
                history.val_loss.append(evaluate(model, val_batches, loss_fn))
                if history.val_loss[-1] < min(history.val_loss[:-1], default=math.inf):
                    history.best_epoch = history.epochs
                    best = {name: t.clone() for name, t in model.state_dict().items()} if patience else None
                history.stopped = patience is not None and history.epochs - history.best_epoch >= patience
            if after_epoch is not None:
                with looking(model):
                    after_epoch(history)
            if checkpoint is not None:
                notes = {"history": asdict(history), "run": run}
                save_checkpoint(checkpoint, model, optimizer, best=best, notes=notes, **resume)
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return history
