"""Text out of a language model: the choice of the next token, whole characters, stop strings, beams and scores."""

# Made from 03_for_engineer/01_talking_to_llms.ipynb by `make export`: change the notebook, not this file.

import codecs
import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

import torch

from llmscratch.basis.train import looking
from llmscratch.scientist.llama import KVCache, Llama

__all__ = [
    "ENDS",
    "Reader",
    "Sampling",
    "Stream",
    "TextFlow",
    "beam_search",
    "generate",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "penalise",
    "prompt_ids",
    "score",
    "special_ids",
]


def keep_top_k(logits, k):
    """Logits (B, V) with all but the k largest −∞; whatever equals the k-th stays."""
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits, p):
    """Logits (B, V) with only the likeliest left, as few as have probability p together (Holtzman et al. 2020)."""
    rising, order = logits.sort(-1)  # small ones first: their sum loses less to rounding
    cut = rising.softmax(-1).cumsum(-1) <= 1 - p
    cut[..., -1] = False
    return logits.masked_fill(cut.scatter(-1, order, cut), -math.inf)


def keep_min_p(logits, p):
    """Logits (B, V) with only those left that are at least p times as likely as the likeliest (Nguyen et al. 2024)."""
    probability = logits.softmax(-1)
    best, at = probability.max(-1, keepdim=True)
    return logits.masked_fill((probability < p * best).scatter(-1, at, False), -math.inf)


def penalise(logits, seen, penalty):
    """Logits (B, V) with those of the tokens in seen (B, T) made smaller: divided by `penalty` if positive (Keskar
    et al. 2019), else multiplied."""
    old = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Temperature 0 takes the likeliest; a cut of None, or a penalty of 1, changes nothing.

    The order is that of transformers: penalty, temperature, top-k, top-p, min-p. ValueError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        T, k, p, m, penalty = self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty
        real = lambda x: isinstance(x, Real) and math.isfinite(x)
        rules = [
            ("temperature", T, real(T) and T >= 0, "a number from 0 up"),
            ("top_k", k, k is None or (type(k) is int and k > 0), "a whole number above 0"),
            ("top_p", p, p is None or (real(p) and 0 < p <= 1), "above 0 and at most 1"),
            ("min_p", m, m is None or (real(m) and 0 <= m <= 1), "from 0 to 1"),
            ("repetition_penalty", penalty, real(penalty) and penalty > 0, "above 0; 1 changes nothing"),
        ]
        for name, value, right, what in rules:
            if not right:
                raise ValueError(f"{name} must be {what}, got {value!r}")

    def reshape(self, logits, seen):
        """The logits (B, V) to draw from, after tokens seen (B, T)."""
        if self.repetition_penalty != 1:
            logits = penalise(logits, seen, self.repetition_penalty)
        if self.temperature == 0:
            return torch.full_like(logits, -math.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
        logits = logits / self.temperature
        for keep, value in ((keep_top_k, self.top_k), (keep_top_p, self.top_p), (keep_min_p, self.min_p)):
            if value is not None:
                logits = keep(logits, value)
        return logits

    def draw(self, logits, seen, generator=None):
        """Tokens (B,) drawn after tokens seen (B, T), from logits (B, V)."""
        logits = self.reshape(logits, seen)
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


class TextFlow:
    """Text out of bytes as they come: whole characters only, and nothing from a stop string on.

    stop: a text, or several; when the first is complete, `stopped` becomes True. ValueError for an empty one.
    """

    def __init__(self, stop=()):
        texts = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"a stop string is a text of at least one character, got {texts}")
        self._stop = [text.encode() for text in texts]
        self._held, self.stopped = b"", False
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, data: bytes) -> str:
        """The text that is certain once these bytes have come."""
        if self.stopped:
            return ""
        data = self._held + data
        found = [(at + len(text), at) for text in self._stop if (at := data.find(text)) >= 0]
        if found:
            self._held, self.stopped = b"", True
            return self._decode(data[: min(found)[1]], final=True)
        n = max((n for text in self._stop for n in range(1, len(text)) if data.endswith(text[:n])), default=0)
        self._held = data[len(data) - n :]
        return self._decode(data[: len(data) - n])

    def finish(self) -> str:
        """What was held back, when nothing more comes; half a character becomes U+FFFD."""
        held, self._held = self._held, b""
        return self._decode(held, final=True)


class Reader:
    """Reads tokens (B, n), which follow those before; gives the logits (B, V) of what comes next.

    A Llama keeps keys and values; any other model, called with tokens alone, reads all of them anew.
    """

    def __init__(self, model, batch=1):
        self.model, self.past = model, torch.empty(batch, 0, dtype=torch.long)
        self.cache = KVCache(model.config, batch) if isinstance(model, Llama) else None

    def __call__(self, tokens):
        self.past = torch.cat([self.past, tokens], dim=1)
        to = next(self.model.parameters()).device
        with looking(self.model):
            if self.cache is None:
                logits = self.model(self.past.to(to))
            else:
                logits = self.model(tokens.to(to), self.cache, last=True)
        return logits[:, -1].float().cpu()

    def select(self, rows):
        """Go on with these rows of the batch, in this order and perhaps repeatedly."""
        self.past = self.past[rows]
        if self.cache is not None:
            self.cache.select(rows)


# Special tokens that end an answer: SmolLM2's, and the Storyteller's.
ENDS = ("<|im_end|>", "<|endoftext|>", "<|end|>")


def special_ids(tokenizer) -> dict[str, int]:
    """The id of each special token, by name."""
    return tokenizer.special if hasattr(tokenizer, "special") else tokenizer.specials


def prompt_ids(tokenizer, prompt) -> list[int]:
    """The ids of a prompt: a text (no special tokens), a chat [{"role": …, "content": …}, …], or ids as they are."""
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    elif len(prompt) and isinstance(prompt[0], dict):
        ids = tokenizer.encode(tokenizer.chat(prompt), allowed_special=set(tokenizer.special))
    else:
        ids = [int(i) for i in prompt]
    if not ids:
        raise ValueError("the prompt is empty: the model needs at least one token to go on from")
    return ids


class Stream:
    """An answer as it is written: iterate over it for pieces of text. Afterwards `ids` are its tokens, `reason` is why
    it ended: "end" (the model said so), "stop" (a stop string), "grammar" (nothing may follow), "length" (cut off, but
    for a grammar, whose text fits even then).

    prompt: as for `prompt_ids`. grammar: of `engineer.grammar`. generator: a torch.Generator, for a repeatable draw.
    sampling: the fields of Sampling. ValueError for bad values, or a prompt longer than the context.
    """

    def __init__(self, model, tokenizer, prompt, *, max_tokens=200, stop=(), grammar=None, generator=None, **sampling):
        self.model, self.tokenizer, self.grammar, self.generator = model, tokenizer, grammar, generator
        self.prompt, self.sampling = prompt_ids(tokenizer, prompt), Sampling(**sampling)
        self.stop, self.ids, self.reason = stop, [], None
        TextFlow(stop)  # refuses what is no stop string
        if type(max_tokens) is not int or max_tokens < 1:
            raise ValueError(f"max_tokens must be a whole number above 0, got {max_tokens!r}")
        self.most = min(max_tokens, model.config.context + 1 - len(self.prompt))
        if self.most < 1:
            raise ValueError(f"the prompt has {len(self.prompt)} tokens, the context is {model.config.context}")
        if grammar and grammar.least > self.most:
            raise ValueError(f"the grammar may need {grammar.least} tokens, and there is room for {self.most}")

    def __iter__(self) -> Iterator[str]:
        read, flow, grammar = Reader(self.model), TextFlow(self.stop), self.grammar
        ends = [i for name, i in special_ids(self.tokenizer).items() if name in ENDS]
        self.ids, self.reason, new = [], None, torch.tensor([self.prompt])
        state = grammar and grammar.start
        while not self.reason:
            logits = read(new)
            if grammar:  # only what can still be finished in time
                logits = logits.masked_fill(~grammar.allowed(state, self.most - len(self.ids), ends), -math.inf)
            new = self.sampling.draw(logits, read.past, self.generator)[:, None]
            if (token := new.item()) in ends:
                self.reason = "end"
                break
            self.ids.append(token)
            if piece := flow.push(self.tokenizer.decode_bytes([token])):
                yield piece
            state = grammar and grammar.step(state, token)
            if flow.stopped:
                self.reason = "stop"
            elif grammar and grammar.finished(state):
                self.reason = "grammar"
            elif len(self.ids) == self.most:
                self.reason = "length"
        if piece := flow.finish():
            yield piece


def generate(model, tokenizer, prompt, **settings) -> str:
    """The whole answer; prompt and settings as for `Stream`."""
    return "".join(Stream(model, tokenizer, prompt, **settings))


def beam_search(model, prompt, *, beams=4, max_tokens=20, ends=(), length_penalty=1.0):
    """The likeliest continuations found for prompt ids: [(score, ids)], best first, at most `beams`.

    score = ln p / n**length_penalty for n tokens; one of `ends` ends a continuation and counts. Each time the `beams`
    likeliest unfinished ones go on, as in transformers' generate with early_stopping=False.
    """
    if beams < 1 or max_tokens < 1 or not len(prompt):
        raise ValueError(f"expected beams and max_tokens above 0 and a prompt; got {beams}, {max_tokens}, {prompt}")
    read, running, done = Reader(model), [(0.0, [])], []
    logits = read(torch.tensor([prompt]))
    for n in range(1, max_tokens + 1):
        total = logits.log_softmax(-1) + torch.tensor([[score] for score, _ in running])  # (beams, V)
        best, at = total.flatten().topk(min(max(2, 1 + len(ends)) * beams, total.numel()))
        going, rows = [], []
        for rank, (score, i) in enumerate(zip(best.tolist(), at.tolist())):
            row, token = divmod(i, total.shape[1])
            ids = [*running[row][1], token]
            if token in ends or n == max_tokens:
                done += [(score / n**length_penalty, ids)] if rank < beams else []
            elif len(going) < beams:
                going.append((score, ids))
                rows.append(row)
        done = sorted(done, key=lambda one: -one[0])[:beams]
        if not going or (len(done) == beams and going[0][0] / n**length_penalty <= done[-1][0]):
            break
        running = going
        read.select(rows)
        logits = read(torch.tensor([ids[-1:] for _, ids in running]))
    return done


def score(model, tokenizer, prompts, continuations, *, at_once=1024):
    """ln p(continuation | prompt) of each pair, and its number of tokens: two tensors (n,).

    prompts: as for `prompt_ids`. at_once: how many tokens are read in a batch.
    """
    rows = [(prompt_ids(tokenizer, p), tokenizer.encode(c)) for p, c in zip(prompts, continuations, strict=True)]
    if not all(said for _, said in rows):
        raise ValueError("a continuation is empty: it has no likelihood")
    nats, order = torch.zeros(len(rows)), sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    while order:
        longest = sum(map(len, rows[order[-1]]))
        batch = [order.pop() for _ in range(min(len(order), max(1, at_once // longest)))]
        tokens = torch.zeros(len(batch), longest, dtype=torch.long)  # nothing sees the zeros after a short row
        for row, i in enumerate(batch):
            tokens[row, : sum(map(len, rows[i]))] = torch.tensor(rows[i][0] + rows[i][1])
        with looking(model):
            logits = model(tokens[:, :-1].to(next(model.parameters()).device)).cpu()
        for row, i in enumerate(batch):
            before, said = rows[i]
            at = slice(len(before) - 1, len(before) + len(said) - 1)
            nats[i] = logits[row, at].float().log_softmax(-1).gather(1, torch.tensor(said)[:, None]).sum()
    return nats, torch.tensor([len(said) for _, said in rows])
