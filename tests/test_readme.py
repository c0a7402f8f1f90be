"""What the pages tell a user to type: recipes of README and docs/logs.md run as they stand, every `dlrm-tf` command exists."""

import contextlib
import importlib
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys

import pytest

from dlrm_tf.cli.main import VERBS, make_parser

# A line before a block says why it is not run.
BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "[!.]*/README.md", "dlrm_tf/*/README.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # tells of names that are gone
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(name: str, tmp_path: pathlib.Path) -> pathlib.Path:
    """Runs the blocks of a page, one after the other in one folder, which is returned."""
    script = ["set -euo pipefail"]
    page = (ROOT / name).read_text(encoding="utf-8")
    for block in BLOCK.finditer(page):
        why, language, text = block.groups()
        if why is None:
            line = page.count("\n", 0, block.start()) + 1
            script.append(f'echo "--- {name}:{line} after $SECONDS s" >&2')
            script.append(text if language == "bash" else f"python - << 'END_OF_PYTHON'\n{text}END_OF_PYTHON")
    assert len(script) > 10
    text = "\n".join(script)
    for port in ("8500", "8501"):  # may be taken on this machine
        text = text.replace(port, str(free_port()))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "dlrm-tf").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m dlrm_tf "$@"\n')
    for name in ("python", "python3"):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    folder = tmp_path / "folder"
    folder.mkdir()
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "log", "w+") as log:
        shell = subprocess.Popen(
            ["bash", "-c", text], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = shell.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # a server that a failed recipe left behind
                os.killpg(shell.pid, signal.SIGKILL)
        log.seek(0)
        said = log.read()
    assert code == 0, said[-5000:]
    return folder


@pytest.mark.slow
def test_the_recipes_run_top_to_bottom(tmp_path):
    folder = run("README.md", tmp_path)
    # The three ways to a probability of day 2 agree: server, device.
    served = (folder / "served.csv").read_text().split()[1:]
    device = (folder / "device.csv").read_text().split()[1:]
    assert len(served) == len(device) == 14_000
    assert max(abs(float(a) - float(b)) for a, b in zip(served, device)) < 0.05


@pytest.mark.slow
def test_the_page_about_logs_runs_top_to_bottom(tmp_path):
    folder = run("docs/logs.md", tmp_path)
    assert (folder / "drift.json").exists()


@pytest.mark.parametrize("page", PAGES)
def test_the_verbs_options_and_modules_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for verb, rest in re.findall(r"dlrm-tf ([a-z]+)([^`\n#]*)", text):
        assert verb in VERBS, f"dlrm-tf {verb}"
        if verb != "bench":  # its options are the benchmark's
            known = make_parser(verb)._option_string_actions
            assert {o for o in re.findall(r"--[a-z][\w-]*", rest) if o not in known} == set(), f"dlrm-tf {verb}"
    for module, names in re.findall(r"from (dlrm_tf[\w.]*) import ([\w, ]+)", text):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}.{name}"
