"""A wheel built from the checkout, installed into an empty environment away from it, works by itself."""

import os
import zipfile

import pytest
from away import Away, build_wheel

from llmscratch.kit.paths import checkout

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the environment is made of symbolic links")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(checkout(), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def away(tmp_path_factory, wheel):
    away = Away(tmp_path_factory.mktemp("away"))
    away.run("-c", "import llmscratch", status=1)
    away.run("-m", "pip", "install", "-q", "--no-deps", str(wheel))
    return away


def test_the_library_comes_from_the_wheel(away):
    printed = away.run("-c", "import llmscratch; print(llmscratch.__file__)").strip()
    assert printed == str(away.packages / "llmscratch" / "__init__.py")


def test_data_and_assets_are_found_without_a_checkout(away):
    printed = away.run("-c", """if True:
        from llmscratch.kit import asset_file, data_file
        from llmscratch.kit.paths import checkout
        print(checkout())
        print(data_file("README.md").read_text().splitlines()[0])
        print(asset_file("README.md").read_text().splitlines()[0])
        """)  # fmt: skip
    assert printed.splitlines() == ["None", "# Data", "# Assets"]


def test_every_shipped_file_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("data", "assets"):
        shipped = [path for path in (checkout() / folder).rglob("*") if path.is_file() and path.name != ".DS_Store"]
        assert {f"llmscratch/_shipped/{path.relative_to(checkout()).as_posix()}" for path in shipped} <= names
    assert not [name for name in names if name.startswith(("tests/", "0"))]


def test_the_digits_load(away):
    printed = away.run("-c", "from llmscratch.kit import mnist; print(mnist().x_train.shape)")
    assert printed.strip() == "(4000, 784)"


def test_the_command_says_that_there_are_no_notebooks(away):
    printed = away.run(str(away.python.with_name("llmscratch")), "list", status=2)
    assert "no notebooks here" in printed and "Clone the repository" in printed
