"""Exercises of CB 12, training in PyTorch."""

import copy
import math
import weakref

import torch
from torch import nn
from torch.nn import functional as F

from llmscratch.basis.train import looking
from llmscratch.exercises.lesson import Lesson, Wrong, expect

lesson = Lesson("CB12")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _points(n, seed=0):
    """n points (n, 4) of three classes, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def _network(seed=0, dropout=0.0):
    """A small network in float64, the same for every call with the same seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)]
        return nn.Sequential(*(layers if dropout else [layers[0], *layers[2:]])).double()


def _expect_tensor(got, want, given):
    """Compare two tensors; the message names the first entry that differs."""
    if got.shape != want.shape:
        raise Wrong(f"expected shape {tuple(want.shape)} for {given}, got {tuple(got.shape)}")
    wrong = (~torch.isclose(got.double(), want.double(), rtol=1e-6, atol=1e-9)).nonzero()
    if len(wrong):
        where = tuple(wrong[0].tolist())
        place = f" at {list(where)}" if where else ""
        expect(got[where].item(), want[where].item(), given + place)


# 1 Windows


def _check_windows(answer):
    tokens = torch.tensor([5, 6, 7, 8, 9, 3, 1])
    given = "Windows(tensor([5, 6, 7, 8, 9, 3, 1]), 3)"
    windows = answer(tokens, 3)
    expect(len(windows), 4, f"len of {given}")
    for i in range(4):
        item = windows[i]
        if not isinstance(item, tuple) or len(item) != 2 or not all(isinstance(part, torch.Tensor) for part in item):
            raise Wrong(f"expected a pair of tensors (x, y) for item {i} of {given}, got {item!r}")
        for name, part, start in zip("xy", item, (i, i + 1), strict=True):
            expect(part.tolist(), tokens[start : start + 3].tolist(), f"{name} of item {i} of {given}")
            if part.dtype != torch.int64:
                raise Wrong(f"expected {name} to stay int64 for {given}, got {part.dtype}")
    for i in (4, 100, -1, -2):
        try:
            windows[i]
        except IndexError:
            continue
        raise Wrong(f"expected an IndexError for item {i} of {given}, which has 4 windows (0 to 3)")
    expect(len(answer(tokens, 6)), 1, "len of Windows of 7 tokens, context 6")
    for context in (7, 8):
        try:
            answer(tokens, context)
        except ValueError:
            continue
        raise Wrong(f"expected a ValueError for 7 tokens and context {context}: the last x has no next token")
    x, y = next(iter(torch.utils.data.DataLoader(windows, batch_size=2)))
    expect(list(x.shape) + list(y.shape), [2, 3, 2, 3], f"the shapes of a DataLoader's batch of 2 of {given}")


class Windows:
    """Pairs (x, y) of next-token windows over tokens (N,)."""

    def __init__(self, tokens, context):
        if len(tokens) <= context:
            raise ValueError(f"{len(tokens)} tokens are too few for a window of {context} and a next token")
        self.tokens, self.context = tokens, context

    def __len__(self):
        return len(self.tokens) - self.context

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        piece = self.tokens[i : i + self.context + 1]
        return piece[:-1], piece[1:]


class _TooLong(Windows):
    def __len__(self):
        return len(self.tokens) - self.context + 1


class _NotShifted(Windows):
    def __getitem__(self, i):
        x, _ = super().__getitem__(i)
        return x, x


class _NoEnd(Windows):
    def __getitem__(self, i):
        return self.tokens[i : i + self.context], self.tokens[i + 1 : i + 1 + self.context]


class _Strided(Windows):
    def __len__(self):
        return (len(self.tokens) - 1) // self.context


lesson.add(
    1, 1, "Windows of a text", check=_check_windows,
    hints=["With N tokens and context T, the last x must end one token before the last. How many starts are there?",
           "Cut out T + 1 tokens once; x is all but the last of them, y all but the first.",
           "A slice past the end is silently shorter: check the index before you slice."],
    solution=Windows,
    wrong={_TooLong: "len of Windows", _NotShifted: "y of item 0", _NoEnd: "IndexError", _Strided: "len of Windows"},
)  # fmt: skip


# 2 warm-up and cosine


def _factor(step, warmup, total, floor):
    if step < warmup:
        return (step + 1) / warmup
    if step >= total:
        return floor
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def _check_warmup_cosine(answer):
    for warmup, total, floor in ((10, 100, 0.1), (0, 50, 0.0), (1, 20, 0.2), (5, 5, 0.1)):
        middle = (warmup + total) // 2
        for step in sorted({0, 1, warmup - 1, warmup, warmup + 1, middle, total - 1, total, total + 500}):
            if step >= 0:
                given = f"step {step}, warmup {warmup}, total {total}, floor {floor}"
                expect(float(answer(step, warmup, total, floor)), _factor(step, warmup, total, floor), given)
    expect(float(answer(100, 10, 100)), 0.1, "step 100, warmup 10, total 100 and no floor given")
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: answer(step, 4, 12, 0.1))
    for step in range(15):
        lr = optimizer.param_groups[0]["lr"]
        expect(lr, 0.5 * _factor(step, 4, 12, 0.1), f"LambdaLR's rate in step {step} (lr 0.5, warmup 4, total 12)")
        optimizer.step()
        schedule.step()


def warmup_cosine(step, warmup, total, floor=0.1):
    if step < warmup:
        return (step + 1) / warmup
    if step >= total:
        return floor
    done = (step - warmup) / (total - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def _from_zero(step, warmup, total, floor=0.1):
    return step / warmup if step < warmup else _factor(step, warmup, total, floor)  # the first step is lost


def _rises_again(step, warmup, total, floor=0.1):
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def _whole_cosine(step, warmup, total, floor=0.1):
    if step < warmup:
        return (step + 1) / warmup
    return max(floor, (1 + math.cos(math.pi * min(1.0, step / total))) / 2)


lesson.add(
    2, 2, "Warm-up and cosine", check=_check_warmup_cosine,
    hints=["Three cases, in this order: before warm-up's end, after the total, between.",
           "Between, how much of the way is done is (step − warmup)/(total − warmup): 0 at the top, 1 at the floor.",
           "Without the second case a cosine rises again."],
    solution=warmup_cosine,
    wrong={_from_zero: "step 0, warmup 10", _rises_again: "step 600", _whole_cosine: "step 10, warmup 10"},
)  # fmt: skip


# 3 accumulation


class _Kept:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def _check_accumulated(answer):
    for sizes in ((4, 4), (6, 3, 1), (10,)):
        given = f"pieces of {', '.join(map(str, sizes))} examples"
        x, t = _points(sum(sizes))
        pieces = list(zip(x.split(list(sizes)), t.split(list(sizes)), strict=True))
        model, twin = _network(), _network()
        optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.5, momentum=0.9) for m in (model, twin))
        forward_at_once = []
        model.register_forward_hook(lambda m, inputs, out, seen=forward_at_once: seen.append(len(out)))
        alive, before = weakref.WeakSet(), []
        model.register_forward_pre_hook(lambda m, inputs, alive=alive, seen=before: seen.append(len(alive)))

        def keep(tensor, alive=alive):
            kept = _Kept(tensor)
            alive.add(kept)
            return kept

        for p in model.parameters():
            p.grad = torch.ones_like(p)  # left over from before: not to be used
        for step in (1, 2):
            other.zero_grad()
            loss = F.cross_entropy(twin(x), t)
            loss.backward()
            other.step()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
                got = answer(model, pieces, optimizer)
            if isinstance(got, torch.Tensor):
                raise Wrong(f"expected the loss as a float for {given}, got a tensor, which keeps its graph's nodes")
            expect(got, loss.item(), f"the loss of step {step} with {given}")
            cleared = " (are old gradients cleared, before the first piece?)"
            for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
                _expect_tensor(p.detach(), q.detach(), f"{name} after step {step} with {given}{cleared}")
        if forward_at_once != list(sizes) * 2:
            raise Wrong(f"expected forward passes over {list(sizes) * 2} examples for {given}, got {forward_at_once}")
        if any(before):
            raise Wrong(f"expected no graph of an earlier piece to be alive when the next one starts, for {given}")


def accumulated_step(model, pieces, optimizer):
    n, total = sum(len(t) for _, t in pieces), 0.0
    optimizer.zero_grad()
    for x, t in pieces:
        loss = F.cross_entropy(model(x), t, reduction="sum") / n
        loss.backward()  # frees this piece's graph, adds to .grad
        total += loss.item()
    optimizer.step()
    return total


def _by_pieces(model, pieces, optimizer):
    total = 0.0
    optimizer.zero_grad()
    for x, t in pieces:
        loss = F.cross_entropy(model(x), t) / len(pieces)  # right only for pieces of equal length
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total


def _undivided(model, pieces, optimizer):
    n = sum(len(t) for _, t in pieces)
    optimizer.zero_grad()
    losses = []
    for x, t in pieces:
        loss = F.cross_entropy(model(x), t)
        loss.backward()
        losses.append(loss.item() * len(t) / n)
    optimizer.step()
    return sum(losses)


def _steps_each(model, pieces, optimizer):
    n, total = sum(len(t) for _, t in pieces), 0.0
    for x, t in pieces:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), t, reduction="sum") / n
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


def _zeroed_inside(model, pieces, optimizer):
    n, total = sum(len(t) for _, t in pieces), 0.0
    for x, t in pieces:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), t, reduction="sum") / n
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total


def _all_at_once(model, pieces, optimizer):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(torch.cat([x for x, _ in pieces])), torch.cat([t for _, t in pieces]))
    loss.backward()
    optimizer.step()
    return loss.item()


def _all_graphs(model, pieces, optimizer):
    n = sum(len(t) for _, t in pieces)
    optimizer.zero_grad()
    loss = sum(F.cross_entropy(model(x), t, reduction="sum") / n for x, t in pieces)
    loss.backward()
    optimizer.step()
    return loss.item()


def _retained(model, pieces, optimizer):
    n, losses = sum(len(t) for _, t in pieces), []
    optimizer.zero_grad()
    for x, t in pieces:
        losses.append(F.cross_entropy(model(x), t, reduction="sum") / n)
        losses[-1].backward(retain_graph=True)
    optimizer.step()
    return sum(loss.item() for loss in losses)


def _never_zeroed(model, pieces, optimizer):
    zero_grad, optimizer.zero_grad = optimizer.zero_grad, lambda: None
    try:
        return accumulated_step(model, pieces, optimizer)
    finally:
        optimizer.zero_grad = zero_grad


def _zeroed_after(model, pieces, optimizer):
    total = _never_zeroed(model, pieces, optimizer)
    optimizer.zero_grad()
    return total


lesson.add(
    3, 2, "A large batch in small pieces", check=_check_accumulated,
    hints=["backward() adds to .grad. Zero it once before the pieces, and step once after them.",
           "Each example must weigh 1/N, with N the number of all examples, whichever piece it is in.",
           'F.cross_entropy(…, reduction="sum") gives the sum over a piece.'],
    solution=accumulated_step,
    wrong={_by_pieces: "pieces of 6, 3, 1", _undivided: "0.weight after step 1", _steps_each: "with pieces of 4, 4",
           _zeroed_inside: "0.weight after step 1", _all_at_once: "forward passes over",
           _all_graphs: "no graph of an earlier piece", _retained: "no graph of an earlier piece",
           _never_zeroed: "are old gradients cleared", _zeroed_after: "are old gradients cleared"},
)  # fmt: skip


# 4 the loop with six bugs


def _reference(model, batches, val_batches, optimizer, epochs):
    losses, shares = [], []
    for _ in range(epochs):
        for x, t in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with looking(model):
            right = sum((model(x).argmax(dim=1) == t).sum().item() for x, t in val_batches)
        shares.append(right / sum(len(t) for _, t in val_batches))
    return losses, shares


def _check_mended(answer):
    given = "a small network with dropout and a batch norm frozen in eval mode"
    x, t = _points(60)
    batches = list(zip(x[:40].split(10), t[:40].split(10), strict=True))
    val_batches = list(zip(x[40:].split(17), t[40:].split(17), strict=True))  # 17 and 3
    runs = []
    for loop in (_reference, answer):
        model = _network(seed=1, dropout=0.3)
        model[1].eval()
        graphs = []

        def watch(m, inputs, out, graphs=graphs):
            graphs.append((m.training, out.requires_grad))

        model.register_forward_hook(watch)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        with torch.random.fork_rng([]):
            torch.manual_seed(5)
            result = loop(model, batches, val_batches, optimizer, 3)
        if not isinstance(result, tuple) or len(result) != 2:
            raise Wrong(f"expected (losses, shares) for {given}, got {type(result).__name__}")
        runs.append((*result, graphs, model))
    (losses, shares, graphs, _), (my_losses, my_shares, my_graphs, my_model) = runs
    if len(my_losses) != len(losses):
        raise Wrong(f"expected {len(losses)} losses, one a step, for {given}, got {len(my_losses)}")
    if any(isinstance(loss, torch.Tensor) for loss in my_losses):
        raise Wrong("expected the losses as floats, got tensors: each keeps its graph's nodes alive")
    expect(my_losses[0], losses[0], f"the first loss of {given} (cross_entropy wants logits)")
    expect(my_losses[2], losses[2], f"the loss of step 3 of {given} (which gradients are used?)")
    first = len(batches)
    expect(my_losses[first], losses[first], f"the first loss of epoch 2 of {given} (in which mode is the model?)")
    expect(my_losses[-1], losses[-1], f"the last loss of {given}")
    evaluating = [recorded for training, recorded in my_graphs if not training]
    if not evaluating or any(evaluating):
        raise Wrong(f"expected every look at the validation data in eval mode and without a graph, for {given}")
    expect([float(share) for share in my_shares], shares, f"the shares right, on batches of 17 and 3, of {given}")
    for name, module in my_model.named_modules():
        if module.training != (name != "1"):
            raise Wrong(f"expected module {name or 'model'!r} in the mode it was in at the start, for {given}")


def mended(model, batches, val_batches, optimizer, epochs):
    losses, shares = [], []
    for _ in range(epochs):
        for x, t in batches:
            loss = F.cross_entropy(model(x), t)  # logits: cross_entropy does the softmax itself
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with looking(model):  # puts back the mode of every module
            hits = [(model(x).argmax(dim=1) == t).float() for x, t in val_batches]
        shares.append(torch.cat(hits).mean().item())
    return losses, shares


def _with(**bugs):
    """The loop with chosen bugs left in."""

    def loop(model, batches, val_batches, optimizer, epochs):
        losses, shares = [], []
        for _ in range(epochs):
            for x, t in batches:
                logits = model(x)
                loss = F.cross_entropy(F.softmax(logits, dim=1) if "softmax" in bugs else logits, t)
                if "zero" not in bugs:
                    optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss if "graph" in bugs else loss.item())
            modes = {module: module.training for module in model.modules()}
            model.eval()
            with torch.set_grad_enabled("grad" in bugs):
                hits = [(model(x).argmax(dim=1) == t).float() for x, t in val_batches]
            if "thaw" in bugs:
                model.train()
            elif "mode" not in bugs:
                for module, mode in modes.items():
                    module.training = mode
            share = sum(h.mean() for h in hits) / len(hits) if "mean" in bugs else torch.cat(hits).mean()
            shares.append(share.item())
        return losses, shares

    return loop


lesson.add(
    4, 2, "A loop with six bugs", check=_check_mended,
    hints=["Two bugs are around the loss: what does cross_entropy expect, and what does backward() do to .grad?",
           "Two are about graphs: what does a loss tensor in a list keep alive, and what does a look need none of?",
           "Two are at the epoch's end: which mode did each module have before the look (see `looking`)? And what "
           "does the small last batch weigh?"],
    solution=mended,
    wrong={_with(softmax=1): "cross_entropy wants logits", _with(zero=1): "which gradients",
           _with(graph=1): "as floats", _with(grad=1): "without a graph", _with(mode=1): "in which mode",
           _with(thaw=1): "in which mode", _with(mean=1): "batches of 17 and 3"},
)  # fmt: skip


# 5 EMA


def _check_ema(answer):
    for decay in (0.9, 0.5):
        _check_ema_at(answer, decay)


def _check_ema_at(answer, decay):
    given = f"a network with batch norm, decay {decay}"
    model = _network(seed=2, dropout=0.2)
    ema = answer(model, decay)
    if not isinstance(getattr(ema, "model", None), nn.Module):
        raise Wrong("expected ema.model to be the averaged copy, an nn.Module")
    if ema.model is model or any(a is b for a, b in zip(ema.model.parameters(), model.parameters(), strict=True)):
        raise Wrong("expected ema.model to be a copy; it shares its parameters with the model")
    if any(p.requires_grad for p in ema.model.parameters()):
        raise Wrong("expected ema.model's parameters not to require gradients")
    if any(module.training for module in ema.model.modules()):
        raise Wrong("expected ema.model in eval mode from the start")
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, t = _points(40, seed=3)
    for step in range(1, 5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), t).backward()
        optimizer.step()
        model[3].train(step < 3)  # from step 3 on its dropout is frozen
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        ema.update(model)
        if any(module.training for module in ema.model.modules()):
            raise Wrong(f"expected ema.model in eval mode after update {step}")
        if [module.training for module in model.modules()] != modes:
            raise Wrong("expected update to leave each of the model's modules in its mode")
        for name, tensor in model.state_dict().items():
            if not torch.equal(tensor, before[name]):
                raise Wrong(f"expected update to leave the model as it is, but it changed {name}")
        for name, p in model.named_parameters():
            wanted[name] = decay * wanted[name] + (1 - decay) * p.detach()
            got = ema.model.get_parameter(name).detach()
            _expect_tensor(got, wanted[name], f"{name} after update {step} of {given}")
        for name, b in model.named_buffers():
            got = ema.model.get_buffer(name)
            _expect_tensor(got, b, f"the buffer {name} after update {step} of {given}")
            if got.dtype != b.dtype:
                raise Wrong(f"expected the buffer {name} to stay {b.dtype}, got {got.dtype}")
            if got.data_ptr() == b.data_ptr():
                raise Wrong(f"expected the buffer {name} to be copied; it is the model's own tensor")


class EMA:
    """An exponential moving average of a model's parameters, in a copy of the model."""

    def __init__(self, model, decay):
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model):
        for mean, p in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(p, 1 - self.decay)
        for kept, b in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(b)


class _Alias(EMA):
    def __init__(self, model, decay):
        self.model, self.decay = model, decay


class _NoBuffers(EMA):
    @torch.no_grad()
    def update(self, model):
        for mean, p in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(p, 1 - self.decay)


class _TurnedAround(EMA):
    @torch.no_grad()
    def update(self, model):
        super().update(model)
        for mean, p in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(p, self.decay)


class _SharedBuffers(EMA):
    @torch.no_grad()
    def update(self, model):
        super().update(model)
        for kept, module in zip(self.model.modules(), model.modules(), strict=True):
            kept._buffers.update(module._buffers)


class _OneDecay(EMA):
    def __init__(self, model, decay):
        super().__init__(model, 0.9)


class _Trains(EMA):
    @torch.no_grad()
    def update(self, model):
        super().update(model)
        model.train()


class _TrainMode(EMA):
    def __init__(self, model, decay):
        self.model, self.decay = copy.deepcopy(model).requires_grad_(False), decay


class _LateEval(_TrainMode):
    @torch.no_grad()
    def update(self, model):
        super().update(model)
        self.model.eval()


lesson.add(
    5, 3, "The average of a training", check=_check_ema,
    hints=["copy.deepcopy copies a module with all its tensors; eval() and requires_grad_(False) return the module.",
           "Change the copy's tensors in place, under torch.no_grad(): mean.mul_(d).add_(p, alpha=1 - d).",
           "Walk buffers() of both models in parallel and copy_ them."],
    solution=EMA,
    wrong={_Alias: "shares its parameters", _NoBuffers: "the buffer", _TurnedAround: "after update 1",
           _TrainMode: "in eval mode", _LateEval: "from the start",
           _SharedBuffers: "to be copied", _OneDecay: "decay 0.5", _Trains: "in its mode"},
)  # fmt: skip
