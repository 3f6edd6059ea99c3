"""What the lessons use but do not teach: data, proofs, pictures, the machine, the runner."""

from llmscratch.kit.digits import Digits, mnist
from llmscratch.kit.machine import device, fast_bf16, scale, seed_everything
from llmscratch.kit.models import glove, minilm_folder, smollm2_file
from llmscratch.kit.packages import DataUnavailable
from llmscratch.kit.paths import asset_file, data_file
from llmscratch.kit.pictures import show, use_style
from llmscratch.kit.proofs import Race, holds, race, race_apart, same
from llmscratch.kit.stories import almanac, instructions, stories, tinystories
from llmscratch.kit.texts import shakespeare
from llmscratch.kit.vocabularies import tiktoken_file

__all__ = [
    "DataUnavailable", "Digits", "Race", "almanac", "asset_file", "data_file", "device", "fast_bf16", "glove", "holds",
    "instructions", "minilm_folder", "mnist", "race", "race_apart", "same", "scale", "seed_everything", "shakespeare",
    "show", "smollm2_file", "stories", "tiktoken_file", "tinystories", "use_style",
]  # fmt: skip
