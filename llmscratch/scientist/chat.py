"""Chat: a template that users cannot forge, losses on the answers alone, answers to many requests at once, and how many
of them obey.
"""

# Made from 02_for_scientist/14_instruction_tuning.ipynb by `make export`: change the notebook, not this file.

import math

import numpy as np
import torch
from torch.nn import functional as F

from llmscratch.basis.train import looking
from llmscratch.scientist.gpt import GPT
from llmscratch.scientist.storyteller import rows
from llmscratch.scientist.tasks import satisfied

__all__ = [
    "ASSISTANT",
    "AnswerGPT",
    "END",
    "END_OF_TEXT",
    "USER",
    "answer",
    "answer_bits",
    "bootstrap",
    "conversation",
    "encode_chat",
    "is_target",
    "obeyed",
    "with_turns",
    "write_on",
]


def obeyed(instruction, text):
    """Whether a text passes every check of an instruction."""
    return all(satisfied(instruction.checks, text).values())


def bootstrap(values, n=10_000, level=0.95, seed=0):
    """(low, high): the percentile bootstrap interval of the mean of `values` (Efron 1979). ValueError for no values."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values must be a list with at least one number, got shape {values.shape}")
    drawn = np.random.default_rng(seed).integers(0, len(values), (n, len(values)))
    low, high = np.quantile(values[drawn].mean(1), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


END_OF_TEXT, USER, ASSISTANT, END = 2044, 2045, 2046, 2047  # the special tokens of the Storyteller's vocabulary


def encode_chat(messages, tokenizer):
    """The ids of a conversation, uint16: <|endoftext|>, then for each turn its role's token, its text and <|end|>.

    messages: dicts with "role" ("user" and "assistant" in turn, the user first) and "content". After a last turn of the
    user comes <|assistant|>: it is the model's turn. What stands in a text is text: no content can become a special
    token. ValueError for other roles, another order, or a content that is no string.
    """
    if not messages:
        raise ValueError("a conversation needs at least one message")
    ids = [END_OF_TEXT]
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role != ("user", "assistant")[number % 2] or not isinstance(content, str):
            expected = f"the role {('user', 'assistant')[number % 2]!r} and a string as content"
            raise ValueError(f"message {number} needs {expected}, got {role!r} and {type(content).__name__}")
        ids += [(USER, ASSISTANT)[number % 2], *tokenizer.encode_ordinary(content), END]
    if len(messages) % 2 == 0:
        return np.array(ids, dtype=np.uint16)
    return np.array([*ids, ASSISTANT], dtype=np.uint16)


def conversation(instruction, tokenizer, title=""):
    """An instruction and the story that fulfils it, as the ids of a conversation; a title stands in a line above it."""
    turns = {"user": instruction.prompt, "assistant": f"{title}\n{instruction.story}" if title else instruction.story}
    return encode_chat([{"role": role, "content": text} for role, text in turns.items()], tokenizer)


def is_target(tokens):
    """Which places have a target that counts: bool (B, T) for ids (B, T), one conversation or plain text a row.

    At place t that is so when token t + 1 is the assistant's to write, its <|end|> included; in a row without <|user|>,
    everywhere.
    """
    places = torch.arange(tokens.shape[-1], device=tokens.device)

    def latest(found):
        return torch.where(found, places, -1).cummax(-1).values  # the last such place so far, −1 for none

    user = tokens == USER
    writing = latest(tokens == ASSISTANT) > latest(user | (tokens == END))
    return writing | ~user.any(-1, keepdim=True)


class AnswerGPT(GPT):
    """A GPT that learns answers only: logits whose targets do not count (see is_target) pass no gradient back.

    Its logits are those of a GPT with the same weights. So any loop that trains a GPT on all targets trains this one on
    the answers; the loss that such a loop shows counts the requests, too.
    """

    @classmethod
    def of(cls, model):
        """One with the sizes of a GPT and a copy of its weights."""
        new = cls(model.config)
        new.load_state_dict(model.state_dict())
        return new

    def forward(self, tokens):
        """Logits (B, T, V) for ids (B, T), a conversation or plain text a row. Errors as for GPT."""
        logits = super().forward(tokens)
        return torch.where(is_target(tokens)[..., None], logits, logits.detach())


def _read_on(model, tokens, start, pad, cache):
    """Logits (B, V) of what follows tokens (B, n) at the places from `start` on; pad (B,): places empty at the left."""
    B, n = tokens.shape
    places, seen = torch.arange(start, start + n, device=pad.device), torch.arange(start + n, device=pad.device)
    x = model.wte(tokens) + model.wpe((places - pad[:, None]).clamp(0, model.config.context - 1))
    allowed = (seen >= pad[:, None, None]) & (seen <= places[:, None])  # (B, n, S)
    allowed = (allowed | (seen == places[:, None]))[:, None]  # itself, so that padding looks at something
    for block, kept in zip(model.h, cache):  # kept (2, B, H, places, d)
        q, k, v = block.attn.qkv(block.ln_1(x)).view(B, n, 3, block.attn.n_head, -1).permute(2, 0, 3, 1, 4)
        kept[0, :, :, start : start + n], kept[1, :, :, start : start + n] = k, v
        y = F.scaled_dot_product_attention(q, *kept[:, :, :, : start + n], attn_mask=allowed)
        x = x + block.attn.proj(y.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    return F.linear(model.ln_f(x[:, -1]), model.wte.weight)


@torch.no_grad()
def write_on(model, starts, *, limit=None, temperature=1.0, generator=None, batch=32):
    """What a GPT writes after each of several beginnings (lists of ids), as lists of ids, `batch` of them at a time.

    Each ends before <|end|> or <|endoftext|>, after `limit` tokens, or where the context is full. temperature: logits
    are divided by it; 0 takes the likeliest token. ValueError when it is below 0, or a beginning is empty or too long.
    """
    context, written = model.config.context, [[] for _ in starts]
    if temperature < 0 or (limit is not None and limit < 1):
        raise ValueError(f"temperature must be at least 0, and limit at least 1; got {temperature} and {limit}")
    if any(not 0 < len(ids) <= context for ids in starts):
        raise ValueError(f"a beginning must have 1 to {context} tokens; lengths are {sorted(map(len, starts))}")
    order = sorted(range(len(starts)), key=lambda i: len(starts[i]))  # like lengths together
    with looking(model):
        for group in (order[at : at + batch] for at in range(0, len(order), batch)):
            _write_group(model, starts, group, written, limit or context, temperature, generator)
    return written


def _write_group(model, starts, group, written, limit, temperature, generator):
    """Fill written[i] for each i in `group`."""
    config, to, longest = model.config, model.wte.weight.device, max(len(starts[i]) for i in group)
    pad = torch.tensor([longest - len(starts[i]) for i in group], device=to)
    tokens = torch.tensor([[0] * (longest - len(starts[i])) + list(starts[i]) for i in group], device=to)
    shape = (2, len(group), config.n_head, config.context + int(pad.max()), config.d_model // config.n_head)
    cache, start, going = [torch.zeros(shape, device=to) for _ in model.h], 0, set(group)
    while going:
        logits = _read_on(model, tokens, start, pad, cache).cpu()
        start += tokens.shape[1]
        p = (logits / (temperature or 1)).softmax(-1)
        new = torch.multinomial(p, 1, generator=generator)[:, 0] if temperature else logits.argmax(-1)
        for i, token in zip(group, new.tolist()):
            if i in going and token not in (END, END_OF_TEXT):
                written[i].append(token)
            full = len(written[i]) == limit or len(starts[i]) + len(written[i]) > config.context
            if full or token in (END, END_OF_TEXT):
                going.discard(i)
        left = [row for row, i in enumerate(group) if i in going]
        if 2 * len(left) <= len(group):
            cache, group = [kept[:, left] for kept in cache], [group[row] for row in left]
            pad, new = pad[left], new[left]
        tokens = new[:, None].to(to)


def answer(model, tokenizer, prompts, **options):
    """The model's answers to prompts (texts, or messages as for encode_chat), as texts. Options as for write_on."""
    chats = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    written = write_on(model, [encode_chat(chat, tokenizer).tolist() for chat in chats], **options)
    return [tokenizer.decode(ids) for ids in written]


def answer_bits(model, documents, batch=32, bf16=False):
    """The bits that a model needs for the targets that count in each document, an array; see is_target."""
    to, found = model.wte.weight.device, [torch.zeros(0)]
    with looking(model):
        for at in range(0, len(documents), batch):
            tokens, targets = rows(documents[at : at + batch], to)
            targets = torch.where(is_target(tokens), targets, -100)
            with torch.autocast(to.type, torch.bfloat16, enabled=bf16):
                logits = model(tokens)
            each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
            found.append(each.view_as(targets).sum(1).cpu())
    return torch.cat(found).double().numpy() / math.log(2)


def with_turns(model):
    """An AnswerGPT with a copy of a pretrained model's weights, in which the tokens of turns begin with a meaning.

    <|assistant|> and <|end|> get the vector of <|endoftext|>, at which texts begin and end; <|user|> the mean of all.
    """
    new = AnswerGPT.of(model)
    with torch.no_grad():
        vectors = new.wte.weight
        vectors[ASSISTANT] = vectors[END] = vectors[END_OF_TEXT]
        vectors[USER] = vectors[: END_OF_TEXT + 1].mean(0)
    return new
