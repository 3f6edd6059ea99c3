"""What the lessons use but do not teach: data, proofs, pictures, the machine, the runner."""

from llmscratch.kit.digits import DataUnavailable, Digits, mnist
from llmscratch.kit.machine import device, scale, seed_everything
from llmscratch.kit.paths import asset_file, data_file
from llmscratch.kit.pictures import show, use_style
from llmscratch.kit.proofs import Race, holds, race, race_apart, same

__all__ = [
    "DataUnavailable", "Digits", "Race", "asset_file", "data_file", "device", "holds", "mnist", "race", "race_apart",
    "same", "scale", "seed_everything", "show", "use_style",
]  # fmt: skip
