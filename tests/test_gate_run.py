"""The run of the notebooks: it passes what is right and fails on what nbval alone would let through."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
import run_notebooks
import samples
from samples import code, text

RUNNER = Path(run_notebooks.__file__)
OFFLINE = RUNNER.parent / "offline"

GOOD = [
    code("import os, socketserver, threading, urllib.request\nprint(6 * 7)", text("42\n")),
    code("print(*(os.environ[f'{name}_NUM_THREADS'] for name in ('OMP', 'OPENBLAS', 'MKL')))", text("1 1 1\n")),
    code("print('HOME' in os.environ, 'llmscratch-' in os.environ['LLMSCRATCH_HOME'])", text("True True\n")),
    code("from http.server import BaseHTTPRequestHandler, HTTPServer\n"
         "class Here(BaseHTTPRequestHandler):\n"
         "    def do_GET(self):\n        self.send_response(204)\n        self.end_headers()\n"
         "    def log_message(self, *_): pass\n"
         "server = HTTPServer(('127.0.0.1', 0), Here)\n"
         "threading.Thread(target=server.handle_request).start()\n"
         "print(urllib.request.urlopen(f'http://localhost:{server.server_port}').status)", text("204\n")),
]  # fmt: skip
STALE = [code("print(6 * 7)", text("41\n"))]
CALLS = [code("import urllib.request\nurllib.request.urlopen('http://calls.example')")]
SWALLOWS = [
    code("import socket\ntry:\n    socket.create_connection(('192.0.2.1', 80))\nexcept OSError:\n    print('fine')",
         text("fine\n")),
    code("import subprocess, sys\ncall = 'import socket; socket.getaddrinfo(\"child.example\", 80)'\n"
         "print(subprocess.run([sys.executable, '-c', call], capture_output=True).returncode)", text("1\n")),
]  # fmt: skip
WRITES = [code("open('left.txt', 'w').write('here')", samples.result("4"))]


class Run(NamedTuple):
    status: int
    out: str


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course in a git repository of its own."""
    folder = samples.course(tmp_path_factory.mktemp("course"))
    git(folder, "init", "--quiet")
    return folder


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True)


def run(course: Path, **notebooks) -> Run:
    """Commit the notebooks, NN_name=cells, and run them."""
    files = [course / "01_common_basis" / f"{name}.ipynb" for name in notebooks]
    for file, cells in zip(files, notebooks.values(), strict=True):
        samples.write(file, cells)
    git(course, "add", "--all")
    git(course, "commit", "--quiet", "--message", "Notebooks")
    return ask(*files)


def ask(*arguments) -> Run:
    command = [sys.executable, str(RUNNER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Run(done.returncode, done.stdout + done.stderr)


def test_a_good_notebook_passes_and_its_seconds_are_told(course):
    status, out = run(course, c01_good=GOOD)
    assert status == 0, out
    assert "4 passed" in out
    assert "running 1 notebooks; the network is cut off by" in out
    assert " s  01_common_basis/c01_good.ipynb" in out
    assert "the network was asked" not in out
    assert "changed the checkout" not in out


def test_stale_outputs_and_network_calls_fail_the_run(course):
    status, out = run(course, c02_stale=STALE, c03_calls=CALLS)
    assert status == 1
    assert "2 failed" in out
    assert "'41\\n' == '42\\n'" in out
    assert "the network is cut off in this run, but socket.getaddrinfo was asked for 'calls.example'" in out


def test_hidden_network_calls_and_files_left_fail_a_run_that_pytest_passes(course):
    status, out = run(course, c04_swallows=SWALLOWS, c05_writes=WRITES)
    assert "3 passed" in out
    assert status == 1
    assert "the network was asked for: socket.getaddrinfo '192.0.2.1'" in out
    assert "the network was asked for: socket.getaddrinfo 'child.example'" in out
    assert "the run changed the checkout: ?? 01_common_basis/left.txt" in out


def test_an_unexecuted_cell_fails_before_anything_runs(tmp_path):
    course = samples.course(tmp_path)
    path = course / "01_common_basis" / "01_new.ipynb"
    nb = samples.write(path, [code("print(1)")])
    nb.cells[0].execution_count = None
    nbformat.write(nb, path)
    status, out = ask(path)
    assert status == 1
    assert "01_new.ipynb: cell 0 ('print(1)') has execution count None, expected 1" in out
    assert "passed" not in out


def test_no_notebooks_and_wrong_names(tmp_path, capsys):
    assert run_notebooks.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no notebooks yet: nothing to run\n"
    assert run_notebooks.main([str(tmp_path / "none.ipynb")]) == 2
    assert "none.ipynb is neither a notebook nor a folder of notebooks" in capsys.readouterr().err


def test_a_notebook_named_twice_runs_once(tmp_path):
    path = samples.course(tmp_path) / "01_common_basis" / "01_one.ipynb"
    samples.write(path, [])
    assert run_notebooks.chosen([str(path), str(path.parent)]) == [path]


def test_a_changed_file_that_changes_again_is_seen(course):
    before = run_notebooks.fingerprint(course)
    notes = course / "notes.txt"
    notes.write_text("one")
    once = run_notebooks.fingerprint(course)
    notes.write_text("two, longer")
    twice = run_notebooks.fingerprint(course)
    notes.unlink()
    assert len({frozenset(before), frozenset(once), frozenset(twice)}) == 3
    assert run_notebooks.fingerprint(course) == before


def test_outside_a_git_checkout_there_is_no_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run_notebooks.fingerprint(tmp_path) is None


# The guard by itself, where no namespace helps


def guarded(program: str, log: Path) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(OFFLINE), "LLMSCRATCH_NETWORK_LOG": str(log)}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)


OUTWARD = """
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
calls = [
    lambda: socket.socket().connect(("192.0.2.1", 80)),
    lambda: socket.socket().connect_ex(("192.0.2.2", 80)),
    lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80)),
    lambda: udp.sendto(b"x", ("192.0.2.3", 53)),
    lambda: udp.sendmsg([b"x"], [], 0, ("192.0.2.4", 53)),
    lambda: socket.getaddrinfo("a.example", 80),
    lambda: socket.gethostbyname("b.example"),
    lambda: socket.gethostbyname_ex("c.example"),
    lambda: socket.gethostbyaddr("192.0.2.5"),
    lambda: socket.getnameinfo(("192.0.2.6", 80), 0),
]
for call in calls:
    try:
        call()
    except OSError as error:
        print(error)
"""
ASKED = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.3", "192.0.2.4", "a.example", "b.example", "c.example",
         "192.0.2.5", "192.0.2.6"]  # fmt: skip

INWARD = """
import os, socket, sys, tempfile
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
socket.create_connection(("localhost", server.getsockname()[1])).close()
socket.getaddrinfo("127.0.0.1", 80), socket.getaddrinfo(None, 80), socket.getaddrinfo("::1", 80)
one, other = socket.socketpair()
one.sendmsg([b"x"])
with tempfile.TemporaryDirectory() as folder:
    place = os.path.join(folder, "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    socket.socket(socket.AF_UNIX).connect(place)
print("all went through")
"""


def test_the_guard_stops_and_logs_every_way_out(tmp_path):
    done = guarded(OUTWARD, tmp_path / "log")
    said, logged = done.stdout.splitlines(), (tmp_path / "log").read_text().splitlines()
    assert len(said) == len(logged) == len(ASKED), done.stdout + done.stderr
    for address, line, entry in zip(ASKED, said, logged, strict=True):
        assert "the network is cut off in this run" in line
        assert address in line
        assert address in entry


def test_the_guard_lets_the_machine_talk_to_itself(tmp_path):
    done = guarded(INWARD, tmp_path / "log")
    assert done.stdout == "all went through\n", done.stderr
    assert not (tmp_path / "log").exists()


def test_the_guard_runs_the_sitecustomize_that_it_hides(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('the other one')")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(OFFLINE), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", ""], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "the other one\n"


def test_the_namespace_has_no_network_but_itself():
    prefix = run_notebooks.namespace()
    if not prefix:
        pytest.skip("this system allows no empty network namespace; the runs above used the guard alone")
    program = "import socket; print(socket.if_nameindex())"
    done = subprocess.run([*prefix, sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[(1, 'lo')]\n"


def test_a_series_without_a_folder_is_no_fault(tmp_path, monkeypatch):
    """Git keeps no empty folder, so a clone has only the series that hold lessons."""
    (tmp_path / "01_common_basis").mkdir()
    monkeypatch.setattr(run_notebooks, "ROOT", tmp_path)
    assert run_notebooks.chosen([]) == []
