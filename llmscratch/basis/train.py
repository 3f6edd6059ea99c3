"""The training loop of the course: validation, early stopping, and checkpoints from which a run goes on bit for bit."""

# Made from 01_common_basis/12_pytorch_training.ipynb by `make export`: change the notebook, not this file.

import json
import math
import operator
import os
import zlib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

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
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _generators(batches, *more):
    """The torch.Generators that a loader, its sampler or its batch sampler draws from, and `more`: each once."""
    parts = (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    found = [getattr(part, "generator", None) for part in (*parts, getattr(parts[2], "sampler", None))]
    return list({id(g): g for g in (*found, *more) if g is not None}.values())


@contextmanager
def looking(model, generators=()):
    """Within it, the model is in eval mode and no graph is recorded. Afterwards all modules' modes, torch's global
    random state (the CPU's and a CUDA model's) and `generators` are as before; `random`, numpy.random are not."""
    modes, device = {module: module.training for module in model.modules()}, _device_of(model)
    states = [g.get_state() for g in generators]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for generator, state in zip(generators, states):
            generator.set_state(state)


def to_device(batch, device):
    """The batch with every tensor in it on `device`. Tuples and lists become lists, mappings dicts; the rest stays."""
    if isinstance(batch, Mapping):
        return {key: to_device(part, device) for key, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [to_device(part, device) for part in batch]
    return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch


def _batch_size(batch):
    """The number of examples in a batch: the length of its first tensor. ValueError when it does not begin with one."""
    while isinstance(batch, (Mapping, tuple, list)):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch), None)
    if not isinstance(batch, torch.Tensor) or not batch.ndim:
        raise ValueError(f"a batch must begin with a tensor (B, …); this one begins with {type(batch).__name__}")
    return len(batch)


def evaluate(model, batches, loss_fn):
    """The mean of loss_fn(model, batch) over `batches`, each weighted by its length: a float. Only looks.
    That is the mean over examples if all weigh the same (where padding is left out, they do not). ValueError: none."""
    total, examples = 0.0, 0
    with looking(model, _generators(batches)):
        for batch in batches:
            n = _batch_size(batch)
            total += loss_fn(model, to_device(batch, _device_of(model))).item() * n
            examples += n
    if not examples:
        raise ValueError("batches gave nothing: it must be a list or a loader, not a generator that is used up")
    return total / examples


class CheckpointError(ValueError):
    """A checkpoint cannot be used: the message names the file, what is wrong with it and what was expected."""


def _random(generators):
    """{name: generator}: torch's global ones and those given."""
    gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    kinds = {"cpu": [torch.default_generator], "cuda": gpus, "given": generators}
    return {f"{kind}{i}": g for kind, found in kinds.items() for i, g in enumerate(found)}


def _kinds(model, optimizer, scheduler):
    """What optimizer and scheduler are, and which parameters are trained: names, or shapes of those outside model."""
    names = {id(p): name for name, p in model.named_parameters()}
    trained = [[names.get(id(p), list(p.shape)) for p in group["params"]] for group in optimizer.param_groups]
    parts = [type(s).__name__ for s in (scheduler, *getattr(scheduler, "_schedulers", ())) if s]
    return {"optimizer": type(optimizer).__name__, "trained": trained, "scheduler": ", ".join(parts) or "none"}


def _checksum(tensors, text):
    """CRC-32 of a text and of all tensors: names, types, shapes and bytes."""
    crc = zlib.crc32(text.encode())
    for name, t in sorted(tensors.items()):
        about = f"{name} {t.dtype} {tuple(t.shape)}".encode()
        crc = zlib.crc32(t.reshape(-1).view(torch.uint8).numpy(), zlib.crc32(about, crc))
    return f"{crc:08x}"


def save_checkpoint(path, model, optimizer=None, *, scheduler=None, generators=(), best=None, notes=None):
    """Write what training needs to go on into one safetensors file: the states of model, optimizer, scheduler, torch's
    global generators and those given; also `best` (another state_dict of the model) and `notes` (a dict for JSON).
    At every moment `path` is the whole old file or the whole new one. TypeError for what is neither tensor nor JSON."""
    found, about = {f"model/{name}": t for name, t in model.state_dict().items()}, {"notes": notes or {}}
    found |= {f"best/{name}": t for name, t in (best or {}).items()}
    found |= {f"random/{name}": generator.get_state() for name, generator in _random(generators).items()}
    if optimizer is not None:
        packed = optimizer.state_dict()
        found |= {f"optimizer/{i}/{key}": v for i, values in packed["state"].items() for key, v in values.items()}
        about |= {"kinds": _kinds(model, optimizer, scheduler), "groups": packed["param_groups"]}
        about["schedule"] = scheduler.state_dict() if scheduler else None
    tensors = {key: v for key, v in found.items() if isinstance(v, torch.Tensor)}
    about["plain"] = {key: v for key, v in found.items() if key not in tensors}
    tensors = {key: t.detach().cpu().clone(memory_format=torch.contiguous_format) for key, t in tensors.items()}
    text, temporary = json.dumps(about), f"{os.fspath(path)}.tmp"
    save_file(tensors, temporary, metadata={"about": text, "crc32": _checksum(tensors, text)})
    with open(temporary, "r+b") as file:
        os.fsync(file.fileno())  # first the bytes are on the disk,
    os.replace(temporary, path)  # then the name leads to them


def _read(path):
    """(tensors, about) of a checkpoint. CheckpointError when the file is truncated, damaged or of another kind."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged ({os.path.getsize(path):,} bytes): {error}") from None
    text = metadata.get("about", "{}")
    if metadata.get("crc32") != _checksum(tensors, text):
        raise CheckpointError(f"{path} is damaged, or not by save_checkpoint: its checksum is not that of its bytes")
    return tensors, json.loads(text, object_hook=lambda d: {int(k) if k.isdigit() else k: v for k, v in d.items()})


def _misfits(tensors, about, model, optimizer, scheduler, generators, expect):
    """Each thing in which a checkpoint differs from what it shall be loaded into, as a sentence."""
    here = {f"model/{name}": f"{tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items()}
    there = {name: f"{tuple(t.shape)} {t.dtype}" for name, t in tensors.items() if name.startswith("model/")}
    if optimizer is not None:
        here |= _kinds(model, optimizer, scheduler) | {"number of generators": len(generators)}
        there |= about.get("kinds", {})
        there["number of generators"] = sum(name.startswith("random/given") for name in tensors)
    here |= {key: json.dumps(value) for key, value in (expect or {}).items()}
    there |= {key: json.dumps(about["notes"].get(key)) for key in expect or {}}
    for name in here | there:
        if here.get(name) != there.get(name):
            yield f"{name} is {there.get(name, 'absent')} in the file, expected {here.get(name, 'none')}"


def load_checkpoint(path, model, optimizer=None, *, scheduler=None, generators=(), expect=None):
    """Load what save_checkpoint wrote; returns (notes, best), best being None if none was kept.
    Without `optimizer`, only the model's weights and buffers are loaded; with it, also the states of optimizer and
    scheduler (settings such as lr included), generators, global random numbers. expect: notes that must be in the file.
    CheckpointError, before anything is changed, when it is truncated, damaged or unfit; FileNotFoundError for none."""
    tensors, about = _read(path)
    if wrong := list(_misfits(tensors, about, model, optimizer, scheduler, generators, expect)):
        raise CheckpointError(f"{path} does not fit: {'; '.join(wrong[:3])}{'; …' if wrong[3:] else ''}")
    found = {"model": {}, "best": {}, "random": {}, "optimizer": {}}
    for name, value in (tensors | about["plain"]).items():
        kind, _, rest = name.partition("/")
        found[kind][rest] = value
    model.load_state_dict(found["model"])
    if optimizer is not None:
        state = {}
        for name, value in found["optimizer"].items():
            i, _, key = name.partition("/")
            state.setdefault(int(i), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": about["groups"]})
        if scheduler is not None:
            scheduler.load_state_dict(about["schedule"])
        for name, generator in _random(generators).items():
            if name in found["random"]:
                generator.set_state(found["random"][name])
    return about["notes"], found["best"] or None


@dataclass
class History:
    """What fit saw."""
    train_loss: list[float] = field(default_factory=list)  # one a step
    val_loss: list[float] = field(default_factory=list)  # one an epoch
    epochs: int = 0  # finished
    best_epoch: int = 0  # the one with the lowest val_loss, counted from 1; 0: none yet
    stopped: bool = False  # because patience ran out

    def close_epoch(self, val_loss=None, patience=None):
        """Count a finished epoch; True when its val_loss (None: not measured) is the lowest so far."""
        self.epochs += 1
        better = val_loss is not None and val_loss < min(filter(math.isfinite, self.val_loss), default=math.inf)
        self.val_loss += [] if val_loss is None else [val_loss]
        self.best_epoch = self.epochs if better else self.best_epoch
        self.stopped = patience is not None and self.epochs - self.best_epoch >= patience
        return better


def train_step(model, batch, *, optimizer, loss_fn, scheduler=None, clip=None):
    """One step: loss, gradients of what optimizer trains (clipped to norm `clip`), update. Returns the loss before it.
    FloatingPointError when loss or gradients are not finite; the model is then as before. ValueError: clip ≤ 0."""
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be a norm > 0, got {clip}")
    buffers = [b.clone() for b in model.buffers()]  # the forward pass moves those of batch norm
    loss = loss_fn(model, to_device(batch, _device_of(model)))
    value = total = loss.item()
    if math.isfinite(value):
        optimizer.zero_grad()
        loss.backward()
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = sum(p.grad.sum() for p in trained)  # not finite as soon as one gradient is not
    if not math.isfinite(total):
        for b, old in zip(model.buffers(), buffers):
            b.copy_(old)
        raise FloatingPointError(f"loss {value:.3g} or a gradient not finite: look at the batch, or try a smaller lr")
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(trained, clip)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return value


def _settings(optimizer, scheduler):
    """What was chosen for optimizer and scheduler, without what changes during a run."""
    parts = {"schedule": scheduler.state_dict() if scheduler else {}}
    parts |= {f"group {i}": group for i, group in enumerate(optimizer.param_groups)}
    moving = {"params", "last_epoch", "T_cur", "T_i"} | ({"lr"} if scheduler else set())
    moving |= {"momentum", "betas"} if "'cycle_momentum': True" in str(parts["schedule"]) else set()
    found = {(name, key) for name, part in parts.items() for key in part.keys() - moving if key[0] != "_"}
    return {f"{key} of {name}": parts[name][key] for name, key in sorted(found)}


def fit(model, batches, *, optimizer, loss_fn, epochs, val_batches=None, scheduler=None, patience=None, clip=None,
        checkpoint=None, generators=(), progress=True, after_epoch=None):  # fmt: skip
    """Train `model` until it has seen `epochs` epochs. Returns a History, and leaves the model in eval mode.
    model: if it is in train mode, frozen parts (in eval mode) stay so; if not, all of it is put into train mode.
    batches, val_batches: what can be walked anew each epoch, a list or a loader; moved to the model's device.
    loss_fn(model, batch): a scalar tensor, the mean over the batch. scheduler: stepped after every step.
    patience: stop after that many epochs without a lower val_loss; the best epoch's weights are kept.
    checkpoint: a file written after each epoch; where it exists, training goes on from it, with the same settings only.
    generators: torch.Generators that loss_fn or data draw from, besides the loader's; `random`, numpy.random, workers
    that persist and what after_epoch keeps are not saved. after_epoch(history): called inside `looking`.
    ValueError for unfit arguments, CheckpointError for an unfit file; FloatingPointError as in train_step."""
    if epochs < 1 or (patience is not None and (patience < 1 or val_batches is None)):
        raise ValueError(f"epochs and patience must be ≥ 1, patience needs val_batches; got {epochs}, {patience}")
    if checkpoint is not None and not os.path.isdir(os.path.dirname(os.path.abspath(checkpoint))):
        raise ValueError(f"the folder of the checkpoint {checkpoint} does not exist: make it before you train")
    generators, n = _generators(batches, *generators), operator.length_hint(batches) or None  # n: steps an epoch
    run = {"steps an epoch": n, "seeds": [g.initial_seed() for g in generators], "best kept": patience is not None}
    run |= {"clip": clip} | _settings(optimizer, scheduler)
    rest, history, best = {"scheduler": scheduler, "generators": generators}, History(), None
    if checkpoint is not None and os.path.exists(checkpoint):
        notes, best = load_checkpoint(checkpoint, model, optimizer, expect=run, **rest)
        history = History(**notes["history"])
        history.stopped = patience is not None and history.epochs - history.best_epoch >= patience
    if not model.training:
        model.train()
    with tqdm(total=n and n * epochs, initial=len(history.train_loss), disable=not progress, mininterval=5) as bar:
        while history.epochs < epochs and not history.stopped:
            done = len(history.train_loss)
            for batch in batches:
                loss = train_step(model, batch, optimizer=optimizer, loss_fn=loss_fn, scheduler=scheduler, clip=clip)
                history.train_loss.append(loss)
                bar.set_postfix_str(f"epoch {history.epochs + 1}, loss {loss:.3f}", refresh=False)
                bar.update()
            if len(history.train_loss) == done:
                raise ValueError("batches gave nothing: it must be a list or a loader, not a generator that is used up")
            if not all(p.isfinite().all() for p in model.parameters()):
                raise FloatingPointError("the last step made weights infinite or NaN: try a smaller lr, or clip=1.0")
            with looking(model, generators):
                val_loss = None if val_batches is None else evaluate(model, val_batches, loss_fn)
                if history.close_epoch(val_loss, patience) and patience:
                    best = {name: t.clone() for name, t in model.state_dict().items()}
                if after_epoch is not None:
                    after_epoch(history)
            if checkpoint is not None:
                save_checkpoint(checkpoint, model, optimizer, best=best, notes=run | {"history": vars(history)}, **rest)
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return history
