"""A small real model, questions that want a tool call, the calls that answer them, and what is wrong with a reply."""

# Made from 02_for_scientist/15_lora.ipynb by `make export`: change the notebook, not this file.

import argparse
import json
import random
import re
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmscratch.kit import data_file, smollm2_file
from llmscratch.scientist.lora import add_lora, save_adapter, tune

__all__ = [
    "Example",
    "PARTS",
    "SYSTEM",
    "ToolCalls",
    "chat_prompt",
    "id_pairs",
    "main",
    "replies",
    "smollm2",
    "verdict",
]


PARTS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def smollm2():
    """SmolLM2-135M-Instruct as transformers' LlamaForCausalLM (float32, evaluation mode), and its tokenizer."""
    file = GGUFReader(smollm2_file())
    about = {key: field.contents() for key, field in file.fields.items()}
    size = {key.removeprefix("llama."): value for key, value in about.items() if key.startswith("llama.")}
    weights = {}
    for tensor in file.tensors:
        w = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if "attn_q" in tensor.name or "attn_k" in tensor.name:  # rotated pairs: neighbours in the file, halves here
            w = w.view(-1, size["rope.dimension_count"] // 2, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)
        block, number, part = re.fullmatch(r"(blk\.(\d+)\.)?(\w+)\.weight", tensor.name).groups()
        names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
        weights[(f"model.layers.{number}.{PARTS[part]}" if block else names[part]) + ".weight"] = w
    config = LlamaConfig(
        vocab_size=size["vocab_size"], hidden_size=size["embedding_length"], num_hidden_layers=size["block_count"],
        intermediate_size=size["feed_forward_length"], max_position_embeddings=size["context_length"],
        num_attention_heads=size["attention.head_count"], num_key_value_heads=size["attention.head_count_kv"],
        rms_norm_eps=size["attention.layer_norm_rms_epsilon"], tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2, pad_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": size["rope.freq_base"]},
    )  # fmt: skip
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    return model.eval(), _tokenizer(about)


def _tokenizer(about):
    """The tokenizer of a GGUF file's fields: byte-level BPE that takes digits one by one."""
    tokens, kinds = about["tokenizer.ggml.tokens"], about["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, levels = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence([digits, levels]), decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds) if kind == 3]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    end, template = tokens[about["tokenizer.ggml.eos_token_id"]], about["tokenizer.chat_template"]
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token=end, chat_template=template)


SYSTEM = "Tools: {}. Call one as JSON, or answer in words."


def chat_prompt(question, tools):
    """What the model reads: a system message that lists the tools, the question, and the head of the answer."""
    if isinstance(tools, str):
        raise ValueError(f"tools must be a list of strings, got the string {tools!r}")
    said = f"<|im_start|>system\n{SYSTEM.format(', '.join(tools))}<|im_end|>\n"
    return f"{said}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@torch.no_grad()
def replies(model, tokenizer, prompts, limit=48, batch=24):
    """What the model answers to each prompt: the likeliest token each time, until <|im_end|> or `limit` tokens."""
    order, texts = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), {}
    for at in range(0, len(order), batch):
        group = order[at : at + batch]  # of like length: shorter ones are padded on the left
        given = tokenizer([prompts[i] for i in group], return_tensors="pt", padding=True, padding_side="left")
        out = model.generate(
            input_ids=given.input_ids, attention_mask=given.attention_mask, max_new_tokens=limit, do_sample=False
        )
        told = tokenizer.batch_decode(out[:, given.input_ids.shape[1] :], skip_special_tokens=True)
        texts |= dict(zip(group, (text.strip() for text in told)))
    return [texts[i] for i in range(len(prompts))]


class Example(NamedTuple):
    """A question, the tools that the prompt lists, and the right reply: `call`, or in words when that is None."""

    question: str
    tools: tuple[str, ...]
    call: dict | None
    words: str = ""

    @property
    def prompt(self):
        """What the model reads."""
        return chat_prompt(self.question, self.tools)

    @property
    def reply(self):
        """What it should write, up to <|im_end|>."""
        return json.dumps(self.call) if self.call else self.words


class ToolCalls:
    """Questions with exact answers, drawn from data/tool_calls.toml.

    examples(split, n): "train"; "entities": phrasings of training, entities that it never shows; "phrasings": new
    phrasings and new entities; "tools": two tools that it never shows; "words": new questions that want no tool.
    """

    def __init__(self):
        with open(data_file("tool_calls.toml"), "rb") as file:
            self.lists = tomllib.load(file)
        self.tools = self.lists["tools"]

    def signature(self, name):
        """A tool as the prompt lists it: name(argument, argument)."""
        return f"{name}({', '.join(self.tools[name]['arguments'])})"

    def examples(self, split, n, seed=0):
        """n examples; tools take turns, so that each is asked for equally often. ValueError for an unknown split."""
        if split not in ("train", "entities", "phrasings", "tools", "words"):
            raise ValueError(f"split must be train, entities, phrasings, tools or words, got {split!r}")
        draw = random.Random(f"{split} {seed}").random
        learnt = [name for name, tool in self.tools.items() if tool.get("learnt", True)]
        asked = [name for name in self.tools if (name in learnt) != (split == "tools")]
        turns = asked + [None, None] if split == "train" else [None] if split == "words" else asked
        return [self._example(turns[i % len(turns)], i, split, learnt, draw) for i in range(n)]

    def _example(self, name, i, split, learnt, draw):
        def pick(values):
            return values[int(draw() * len(values))]

        others = sorted((other for other in learnt if other != name), key=lambda _: draw())[: 4 - (name is not None)]
        tools = tuple(map(self.signature, sorted(others + [name] * (name is not None), key=lambda _: draw())))
        if name is None and split == "train":
            question, words = pick(self.lists["plain"]["seen"])
            return Example(question, tools, None, words)
        if name is None:
            unseen = self.lists["plain"]["unseen"]
            return Example(unseen[i % len(unseen)], tools, None)
        tool, entities = self.tools[name], self._entities(split == "train", pick)
        question = pick(tool["unseen" if split in ("phrasings", "tools") else "seen"]).format(**entities)
        made = entities | {key: form.format(**entities) for key, form in tool.get("call", {}).items()}
        return Example(question, tools, {"name": name, "arguments": {key: made[key] for key in tool["arguments"]}})

    def _entities(self, seen, pick):
        """One of everything that a phrasing may ask for; every fourth number is kept for tests."""
        lists = self.lists["unseen"] | self.lists["seen"] if seen else self.lists["seen"] | self.lists["unseen"]
        one = {key: pick(values) for key, values in lists.items()}
        for key in ("city", "name", "song") if seen and pick("01") == "1" else ():  # invented: it must be copied
            one[key] = "".join(pick(lists["syllables"]) for _ in pick(("12", "123"))).capitalize()
        (one["from"], one["to"]), (one["verb"], one["sign"]) = one["units"], one["signs"]
        numbers = [n for n in range(2, 100) if (n % 4 != 3) == seen]
        one |= {key: pick(numbers) for key in ("a", "b", "amount")} | {"minutes": pick([n for n in numbers if n < 61])}
        half_hours = [t for t in range(12, 44) if (t % 4 != 3) == seen]
        return one | {"time": "{}:{:02d}".format(*divmod(pick(half_hours) * 30, 60))}


def id_pairs(tokenizer, examples):
    """(prompt ids, answer ids) of examples; an answer ends with <|im_end|>."""
    return [(tokenizer(e.prompt).input_ids, tokenizer(e.reply + "<|im_end|>").input_ids) for e in examples]


def verdict(example, reply):
    """ "right", or what is wrong with a reply: the first of the ways to fail that applies.

    A call is right when it is the wanted one, all names and values equal; words are right when they are no call.
    """
    try:
        said = json.loads(reply)
    except ValueError:
        said = None
    if example.call is None:
        return "a call, words were wanted" if isinstance(said, dict | list) or reply.startswith("{") else "right"
    if not isinstance(said, dict):
        return "broken JSON" if reply.startswith("{") else "words, a call was wanted"
    if said.get("name") != example.call["name"]:
        return "another tool"
    arguments = said.get("arguments")
    if not isinstance(arguments, dict) or set(arguments) != set(example.call["arguments"]):
        return "other arguments"
    return "right" if said == example.call else "another value"


def main(argv=None):
    """Teach SmolLM2 to call tools and write the adapter: python -m llmscratch.scientist.tool_calls --out runs/tools"""
    parser = argparse.ArgumentParser(prog="python -m llmscratch.scientist.tool_calls", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    usual = {"steps": 140, "batch": 4, "rank": 8, "lr": 1.5e-3, "seed": 0, "tests": 40}
    usual["threads"] = torch.get_num_threads()
    for name, value in usual.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default: {value}")
    asked = parser.parse_args(argv)
    torch.set_num_threads(asked.threads)
    (model, tokenizer), calls = smollm2(), ToolCalls()
    add_lora(model, asked.rank, 16.0, generator=torch.Generator().manual_seed(asked.seed))
    pairs = id_pairs(tokenizer, calls.examples("train", asked.steps * asked.batch, asked.seed))
    start = time.perf_counter(), time.process_time()
    losses = tune(model, pairs, steps=asked.steps, batch=asked.batch, lr=asked.lr, seed=asked.seed)
    notes = {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}
    notes |= {"losses": [round(loss, 3) for loss in losses], "right": {}}
    notes["settings"] = {key: value for key, value in vars(asked).items() if key != "out"}
    for split in ("entities", "phrasings", "tools", "words") if asked.tests else ():
        test = calls.examples(split, asked.tests, seed=1)
        told = [verdict(e, reply) for e, reply in zip(test, replies(model, tokenizer, [e.prompt for e in test]))]
        notes["right"][split] = f"{told.count('right')} of {len(told)}"
        print(f"{split}: {notes['right'][split]} right", flush=True)
    save_adapter(asked.out, model, base="SmolLM2-135M-Instruct", notes=notes)


if __name__ == "__main__" and __spec__:  # `python -m`, and not a notebook, which is called __main__ as well
    main()
