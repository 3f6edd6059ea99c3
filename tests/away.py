"""An environment away from the checkout, with this one's third-party packages and without `llmscratch`."""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path


class Away:
    """A new virtual environment in `folder`.

    Its third-party packages are links to those of the running environment, so that nothing is downloaded. pip is one of
    them; it installs into the new environment.
    """

    def __init__(self, folder: Path, without: tuple[str, ...] = ()):
        """without: how the names of further packages that it lacks begin."""
        self.folder = folder
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        links = folder / "third-party"
        links.mkdir()
        for source in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(source).iterdir():
                if "llmscratch" not in entry.name and not entry.name.startswith(without) and entry.suffix != ".pth":
                    (links / entry.name).symlink_to(entry)
        self.packages = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (self.packages / "third-party.pth").write_text(f"{links}\n")

    def run(self, *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None, status: int = 0) -> str:
        """Run the environment's Python, away from the checkout, and return what it printed.

        AssertionError with the output unless it ends with `status`.
        """
        clean = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV"))
        }
        clean |= {
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "LLMSCRATCH_HOME": str(self.folder / "home"),
        }
        done = subprocess.run(
            [str(self.python), *arguments], cwd=cwd or self.folder, env=clean | (env or {}), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == status, f"{arguments} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout


def wheel_of(distribution: str, folder: Path) -> None:
    """Pack an installed package into a wheel in `folder`, from which pip can install it without a network."""
    found = importlib.metadata.distribution(distribution)
    name = f"{found.name.replace('-', '_')}-{found.version}"  # in a wheel's name, hyphens divide the parts
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        for file in found.files:
            if file.suffix != ".pyc" and ".." not in file.parts:
                wheel.write(found.locate_file(file), str(file))


def build_wheel(checkout: Path, folder: Path) -> Path:
    """Build the course's wheel from the checkout into `folder`, without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=checkout, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    (wheel,) = folder.glob("llmscratch-*.whl")
    return wheel
