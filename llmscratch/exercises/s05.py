"""Exercises of 4S 05, GPT."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from llmscratch.exercises.lesson import Lesson, Wrong, expect
from llmscratch.scientist.gpt import GPT, GPTConfig

lesson = Lesson("4S05")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _model(V=23, context=12, n_layer=3, n_head=2, d_model=16, seed=0):
    """A small GPT, in training mode and with dropout, whose every parameter is random."""
    draw = torch.Generator().manual_seed(seed)
    model = GPT(GPTConfig(V, context, n_layer, n_head, d_model, dropout=0.3))
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(torch.randn(p.shape, generator=draw) * 0.4 + scale)
    return model


def _ids(T, V=23, seed=0):
    return torch.randint(0, V, (T,), generator=torch.Generator().manual_seed(seed))


def _plain(result, given):
    """The tensor as an array; Wrong when it is none, or records a graph."""
    if not isinstance(result, torch.Tensor):
        raise Wrong(f"expected a tensor for {given}, got {type(result).__name__}")
    if result.requires_grad:
        raise Wrong(f"expected a result without a graph for {given}; use torch.no_grad()")
    return result.double().numpy()


def _close(got, want, given):
    """Wrong, with the first value that differs, unless two arrays are equal to float32's precision."""
    expect(got.shape, want.shape, f"the shape of the result, {given}")
    off = np.abs(got - want) > 1e-5 + 1e-4 * np.abs(want)
    if off.any():
        at = tuple(int(i) for i in np.argwhere(off)[0])
        raise Wrong(f"expected {want[at]:.4g} at {list(at)} of the result for {given}, got {got[at]:.4g}")


def _check_deepest(answer):
    for sizes in ((50257, 1024, 12, 768), (84, 64, 4, 128), (100, 16, 1, 8)):
        need = [16 * GPTConfig(*sizes[:2], n, *sizes[2:]).n_parameters for n in (1, 2, 97)]
        for budget, want in (
            (need[0], 1),
            (need[0] - 1, 0),
            (need[2], 97),
            (need[2] - 1, 96),
            (need[1] + 1, 2),
            (0, 0),
        ):
            given = f"a budget of {budget:,} bytes and (V, context, n_head, d_model) = {sizes}"
            got = answer(budget, *sizes)
            expect(got, want, given)
            if type(got) is not int:
                raise Wrong(f"expected a whole number, {want}, for {given}, got {got!r}: divide with //")


def deepest(budget, vocab_size, context, n_head, d_model):
    one, two = (GPTConfig(vocab_size, context, n, n_head, d_model).n_parameters for n in (1, 2))
    block, rest = two - one, 2 * one - two
    return max((budget // 16 - rest) // block, 0)


def _forgets_adam(budget, vocab_size, context, n_head, d_model):
    return deepest(2 * budget, vocab_size, context, n_head, d_model)  # weight and gradient only


def _forgets_embeddings(budget, vocab_size, context, n_head, d_model):
    return budget // 16 // (12 * d_model**2 + 13 * d_model)


lesson.add(
    1, 1, "Will it fit?", check=_check_deepest,
    hints=["Four numbers of 4 bytes make 16 bytes a parameter.",
           "The parameters grow by the same amount with each block: compare n_parameters of two GPTConfigs."],
    solution=deepest,
    wrong={_forgets_adam: "expected 1 for a budget", _forgets_embeddings: "a budget of"},
)  # fmt: skip


def _reference_surprise(model, ids):
    training, context, parts = model.training, model.config.context, []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(ids) - 1, context):
            piece = ids[start : start + context + 1]
            logp = model(piece[None, :-1])[0].log_softmax(-1)  # (T, V)
            parts.append(-logp.gather(1, piece[1:, None])[:, 0])
    model.train(training)
    return torch.cat(parts)


def _check_surprise(answer):
    for training in (False, True):
        model = _model().train(training)
        for T in (2, 9, 13, 14, 30):
            given = f"{T} tokens, a context of 12, a model in {'training' if training else 'evaluation'} mode"
            want = _reference_surprise(model, _ids(T)).numpy()
            with torch.enable_grad():  # an answer that switches it off does so for itself
                got = answer(model, _ids(T))
            _close(_plain(got, given), want, given)
            if {module.training for module in model.modules()} != {training}:
                raise Wrong(f"expected the model's mode to be as before for {given}")


def surprise(model, ids):
    training, context, parts = model.training, model.config.context, []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(ids) - 1, context):
            piece = ids[start : start + context + 1]
            logits = model(piece[None, :-1])[0]
            parts.append(F.cross_entropy(logits, piece[1:], reduction="none"))
    model.train(training)
    return torch.cat(parts)


@torch.no_grad()
def _not_ahead(model, ids):
    model.eval()
    return F.cross_entropy(model(ids[None, :12])[0], ids[:12], reduction="none")[: len(ids) - 1]


@torch.no_grad()
def _with_dropout(model, ids):
    model.train()
    pieces = [ids[i : i + 13] for i in range(0, len(ids) - 1, 12)]
    return torch.cat([F.cross_entropy(model(p[None, :-1])[0], p[1:], reduction="none") for p in pieces])


@torch.no_grad()
def _without_overlap(model, ids):
    training = model.training
    model.eval()
    pieces = [ids[i : i + 12] for i in range(0, len(ids), 12)]
    found = [F.cross_entropy(model(p[None, :-1])[0], p[1:], reduction="none") for p in pieces if len(p) > 1]
    model.train(training)
    return torch.cat(found)


@torch.no_grad()
def _stays_in_evaluation(model, ids):
    found = surprise(model, ids)
    model.eval()
    return found


lesson.add(
    2, 2, "Where was the model surprised?", check=_check_surprise,
    hints=["Pieces start at 0, context, 2 · context, …; the inputs are a piece without its last token, the targets "
           "without its first.",
           "F.cross_entropy with reduction='none' gives one number a token. Set model.training back at the end."],
    solution=surprise,
    wrong={
        _not_ahead: "2 tokens", _with_dropout: "evaluation mode", _without_overlap: "13 tokens",
        _stays_in_evaluation: "mode to be as before",
    },
)  # fmt: skip


def _check_lengthen(answer):
    model = _model()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for context in (13, 24, 40):
        given = f"a model with context 12, lengthened to {context}"
        longer = answer(model, context)
        if not isinstance(longer, GPT) or longer is model:
            raise Wrong(f"expected a new GPT for {given}")
        ids = _ids(12)[None]
        old, new = (m.eval()(ids).detach().numpy() for m in (model, longer))
        _close(new, old, f"the logits of 12 tokens, {given}")
        table = model.wpe.weight.detach()[torch.arange(context) % 12].numpy()
        _close(longer.wpe.weight.detach().numpy(), table, f"wpe.weight of {given}")
        for field, want in vars(replace(model.config, context=context)).items():
            expect(getattr(longer.config, field), want, f"config.{field} of {given}")
        for (name, p), old_p in zip(longer.named_parameters(), model.parameters(), strict=True):
            if not p.requires_grad or not old_p.requires_grad:
                raise Wrong(f"expected {name} to be trainable (requires_grad) in both models, {given}")
            if p.data_ptr() == old_p.data_ptr():
                raise Wrong(f"expected {name} to be a copy: it shares its memory with the old model, {given}")
        longer(_ids(context)[None])
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, kept[name]):
            raise Wrong(f"expected the old model's {name} to stay as it was")
    for context in (12, 5):
        try:
            answer(model, context)
        except ValueError:
            continue
        raise Wrong(f"expected a ValueError for a model with context 12 and context = {context}, got none")


def lengthen(model, context):
    old = model.config.context
    if context <= old:
        raise ValueError(f"the new context must be larger than {old}, got {context}")
    c = model.config
    longer = GPT(replace(c, context=context))
    weights = dict(model.state_dict())
    weights["wpe.weight"] = weights["wpe.weight"][torch.arange(context) % old]
    longer.load_state_dict(weights)
    return longer


def _fresh_rows(model, context):
    if context <= model.config.context:
        raise ValueError
    c = model.config
    longer = GPT(replace(c, context=context))
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "wpe.weight"}
    longer.load_state_dict(weights, strict=False)
    with torch.no_grad():
        longer.wpe.weight[: c.context] = model.wpe.weight
    return longer


def _loses_dropout(model, context):
    longer = lengthen(model, context)
    c = longer.config
    fresh = GPT(GPTConfig(c.vocab_size, c.context, c.n_layer, c.n_head, c.d_model))
    fresh.load_state_dict(longer.state_dict())
    return fresh


def _does_not_refuse(model, context):
    c = model.config
    longer = GPT(replace(c, context=context))
    rows = model.wpe.weight[torch.arange(context) % c.context]
    longer.load_state_dict(dict(model.state_dict()) | {"wpe.weight": rows})
    return longer


def _frozen(model, context):
    return lengthen(model, context).requires_grad_(False)


def _shares_weights(model, context):
    longer = lengthen(model, context)
    longer.h = model.h
    return longer


lesson.add(
    3, 2, "A longer context", check=_check_lengthen,
    hints=["dataclasses.replace(model.config, context=…) is the config. Load the old state_dict, wpe.weight changed.",
           "Row i of the new table is row i % old of the old one. load_state_dict copies, so nothing is shared."],
    solution=lengthen,
    wrong={
        _fresh_rows: "wpe.weight of a model", _loses_dropout: "config.dropout",
        _does_not_refuse: "expected a ValueError", _shares_weights: "shares its memory", _frozen: "trainable",
    },
)  # fmt: skip


@torch.no_grad()
def _reference_lens(model, ids):
    seen, hooks = [], [block.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for block in model.h]
    hooks.append(model.h[-1].register_forward_hook(lambda _, given, out: seen.append(out)))
    model(ids[None, :-1])
    for hook in hooks:
        hook.remove()
    p = [F.linear(model.ln_f(x[0]), model.wte.weight).softmax(-1) for x in seen]
    return torch.stack([row.gather(1, ids[1:, None])[:, 0] for row in p])


def _check_logit_lens(answer):
    for n_layer, T, training in ((1, 5, False), (3, 11, False), (2, 7, True)):
        model = _model(n_layer=n_layer)
        want = _reference_lens(model.eval(), _ids(T + 1)).numpy()
        model.train(training)
        given = f"{n_layer} blocks and {T + 1} tokens, a model in {'training' if training else 'evaluation'} mode"
        _close(_plain(answer(model, _ids(T + 1)), given), want, given)
        if {module.training for module in model.modules()} != {training}:
            raise Wrong(f"expected the model's mode to be as before for {given}")


def logit_lens(model, ids):
    training = model.training
    model.eval()
    with torch.no_grad():
        tokens, targets = ids[:-1], ids[1:]
        x = model.wte(tokens) + model.wpe.weight[: len(tokens)]
        heights = [x]
        for block in model.h:
            x = block(x[None])[0]
            heights.append(x)
        logits = F.linear(model.ln_f(torch.stack(heights)), model.wte.weight)  # (L + 1, T, V)
    model.train(training)
    return logits.softmax(-1)[:, torch.arange(len(tokens)), targets]


@torch.no_grad()
def _in_its_own_mode(model, ids, norm=True, positions=1):
    """Right but for the mode, and for what the arguments leave out."""
    x = model.wte(ids[:-1]) + positions * model.wpe.weight[: len(ids) - 1]
    heights = torch.stack([x] + [x := block(x[None])[0] for block in model.h])
    p = F.linear(model.ln_f(heights) if norm else heights, model.wte.weight).softmax(-1)
    return p[:, torch.arange(len(ids) - 1), ids[1:]]


lesson.add(
    4, 3, "What the stream knows on the way up", check=_check_logit_lens,
    hints=["Do what GPT.forward does, and keep x before the first block and after each one.",
           "torch.stack the heights to (L + 1, T, C); ln_f and the head work on all at once. Pick each next token."],
    solution=logit_lens,
    wrong={
        _in_its_own_mode: "training mode",
        (lambda model, ids: _in_its_own_mode(model, ids, norm=False)): "blocks and",
        (lambda model, ids: _in_its_own_mode(model, ids, positions=0)): "blocks and",
        (lambda model, ids: logit_lens(model, ids)[1:]): "the shape of the result",
    },
)  # fmt: skip
