"""The command line: answers at once without TensorFlow, one line an error, exit codes 0, 1, 2."""

import subprocess
import sys

import pytest

from dlrm_tf.cli.main import VERBS, main


def run(*argv, code=None):
    command = [sys.executable, "-m", "dlrm_tf", *argv] if code is None else [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_import_loads_no_tensorflow_and_prepares_keras_2():
    code = (
        "import sys, os, dlrm_tf; dlrm_tf.DLRMConfig.preset('tiny'); "
        "heavy = {'tensorflow', 'keras', 'tf_keras', 'polars', 'h5py', 'numpy', 'grpc', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy; assert os.environ['TF_USE_LEGACY_KERAS'] == '1'"
    )
    done = run(code=code)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_verb():
    done = run("--help")
    assert done.returncode == 0
    assert all(f"  {verb}" in done.stdout for verb in VERBS)
    assert run().returncode == 2


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_without_tensorflow(verb):
    code = (
        f"import sys; from dlrm_tf.cli.main import main; status = main([{verb!r}, '--help']); "
        "assert 'tensorflow' not in sys.modules; sys.exit(status)"
    )
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    assert f"usage: dlrm-tf {verb}" in done.stdout


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nonsense"], "unknown verb 'nonsense'"),
        (["export"], "the following arguments are required"),
        (["export", "onnx", "--weights", "a"], "'onnx'"),
        (["train", "--epochs", "many"], "--epochs: wanted a number or auto. Received 'many' (see dlrm-tf train --help)"),
        (
            ["train", "--data", "a", "-o", "b", "--weights", "w", "--embedding-dim", "8"],
            "weights must come without embedding_dim",
        ),
        (["prepare", "a.tsv", "-o", "b", "--test-fraction", "3"], "--test-fraction must be from 0 to below 1"),
        (["bench", "none"], "none"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(argv, message, capsys):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1, said


def test_bench_lists_the_benchmarks_without_what_they_share(capsys):
    assert main(["bench"]) == 0
    names = capsys.readouterr().out.split()
    assert {"convert", "serving", "train"} <= set(names) and not {"initial_checkpoint", "pure_python"} & set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv, message",
    [
        (["export", "savedmodel", "--weights", "{tmp}/none.weights.h5", "-o", "{tmp}"], "none.weights.h5: no such file"),
        (["export", "savedmodel", "--weights", "{tmp}/text.weights.h5", "-o", "{tmp}"], "not a readable HDF5 file"),
        (["convert", "{tmp}/none.ckpt", "-o", "{tmp}/a.weights.h5"], "none.ckpt"),
        (["convert", "{tmp}/text.weights.h5", "-o", "{tmp}/a.weights.h5"], "text.weights.h5"),
        (["prepare", "{tmp}/none.tsv", "-o", "{tmp}/data"], "none.tsv"),
        (["train", "--data", "{tmp}/none", "-o", "{tmp}/run"], "none"),
        (["evaluate", "--data", "{tmp}/none", "--weights", "{tmp}/text.weights.h5"], "none"),
        (["inspect", "{tmp}/none.ckpt"], "none.ckpt"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(argv, message, tmp_path):
    (tmp_path / "text.weights.h5").write_text("not a checkpoint, only some text that is long enough\n" * 3)
    done = run(*(a.format(tmp=tmp_path) for a in argv))
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.weights.h5"]


def test_debug_shows_the_traceback(tmp_path):
    done = run("convert", str(tmp_path / "none.ckpt"), "-o", str(tmp_path / "a.weights.h5"), "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
