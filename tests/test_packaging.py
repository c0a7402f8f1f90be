"""The sdist and the wheel hold what they should, and the wheel works in an environment that has nothing else."""

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

import dlrm_tf
from dlrm_tf.train.recipe import RECIPES

ROOT = pathlib.Path(__file__).parent.parent
VERSION = dlrm_tf.__version__


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> pathlib.Path:
    """Folder with the sdist, and the wheel that was made of that sdist alone."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    # A copy: a build writes dlrm_tf.egg-info beside the package, and takes its list of files from an old one.
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", "*.egg-info", "build", "site", "__pycache__"))
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source], check=True)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> pathlib.Path:
    """The `bin` of an environment that holds the wheel and no dependency."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=True)
    wheel = next(built.glob("*.whl"))
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    return folder / "bin"


def run(*command, folder) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_sdist_is_the_checkout(built):
    with tarfile.open(built / f"dlrm_tf-{VERSION}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    tracked = run("git", "ls-files", folder=ROOT).split("\n") if (ROOT / ".git").exists() else []
    assert {name for name in tracked if name} - names == set()
    assert {"LICENSE", "Makefile", "tests/conftest.py", "tests/golden/hub_layout.npz", "docs/formats.md"} <= names
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_licence(built):
    with zipfile.ZipFile(built / f"dlrm_tf-{VERSION}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"dlrm_tf-{VERSION}.dist-info/METADATA").decode()
    info = f"dlrm_tf-{VERSION}.dist-info"
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dlrm_tf").rglob("*.py")}
    golden = {f"dlrm_tf/checkpoints/golden/tiny.{end}" for end in ("init.ckpt", "trained.ckpt", "json", "npz")}
    recipes = {f"dlrm_tf/train/recipes/{name}.json" for name in RECIPES}
    assert tracked | golden | recipes | {"dlrm_tf/py.typed", f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= names
    assert {name.split("/")[0] for name in names} == {"dlrm_tf", info}
    assert "License-Expression: Apache-2.0" in metadata


@pytest.mark.slow
def test_the_installed_wheel_runs(installed, tmp_path):
    assert run(installed / "dlrm-tf", "--version", folder=tmp_path) == f"dlrm_tf {VERSION}\n"
    assert "usage: dlrm-tf VERB" in run(installed / "dlrm-tf", "--help", folder=tmp_path)
    program = "import sys, dlrm_tf; print(dlrm_tf.__file__); print({'numpy', 'tensorflow', 'h5py'} & set(sys.modules))"
    place, loaded = run(installed / "python", "-c", program, folder=tmp_path).split("\n")[:2]
    assert pathlib.Path(place).is_relative_to(installed.parent)
    assert loaded == "set()"


@pytest.mark.slow
def test_a_missing_extra_is_told_by_its_packages(installed, tmp_path):
    program = (
        "from dlrm_tf.errors import MissingExtraError, require\n"
        "try:\n    require('matplotlib', extra='report')\nexcept MissingExtraError as e:\n    print(e)"
    )
    message = run(installed / "python", "-c", program, folder=tmp_path)
    assert "pip install 'matplotlib<4,>=3.7'" in message
    assert "dlrm_tf" not in message  # whose name on an index may be a stranger's


def test_the_papers_name_the_version():
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {VERSION.partition('.dev')[0]}" in (ROOT / "CHANGELOG.md").read_text()


def test_no_page_tells_to_install_the_package_by_its_name():
    """Nothing is published: on an index the name may be a stranger's."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md"), *(ROOT / "dlrm_tf").rglob("*.py")]
    assert [str(page) for page in pages if re.search(r"pip install ['\"]?dlrm[_-]tf", page.read_text())] == []
