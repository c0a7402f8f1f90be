"""`dlrm-tf VERB`: picks the verb's module, parses, runs, and turns errors into one line and an exit code."""

import argparse
import importlib
import os
import sys
from typing import Optional

from dlrm_tf import __version__, keras2
from dlrm_tf.errors import DLRMError, UsageError

# Verb -> one line for --help. Its module in dlrm_tf.cli has the same name, `add_arguments(parser)` and `run(args)`.
VERBS = {
    "demo": "run every step on generated data and write a report",
    "fetch": "download the MindSpore Hub checkpoint, sha256 verified, resumable",
    "inspect": "show what is in a checkpoint, weights file, vocabulary or data folder",
    "convert": "convert a MindSpore or PyTorch checkpoint to .weights.h5, or back to MindSpore",
    "grow": "add table rows for new ids, keeping the trained ones",
    "spec": "look at a log and write a feature spec of its columns to edit",
    "synth": "write Criteo-format rows with a learnable signal",
    "prepare": "convert raw Criteo TSV to records, manifest and vocabulary",
    "train": "train on prepared data",
    "evaluate": "measure accuracy, AUC, logloss, normalized entropy, calibration",
    "export": "write a SavedModel for TF Serving, or a quantized TFLite model",
    "serve": "serve SavedModels over gRPC and REST, as TF Serving does",
    "score": "score rows with a server, a SavedModel, a .tflite or a weights file",
    "drift": "compare the rows of two data folders, or of a data folder and a request log",
    "bench": "run the benchmarks",
}
EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_GATE = 0, 1, 2, 3


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<10}{line}" for verb, line in VERBS.items())
    return (
        "usage: dlrm-tf VERB [options]     (dlrm-tf VERB --help lists its options)\n\n"
        f"{verbs}\n\n"
        "  --version prints the version; --debug on any verb shows the traceback of an error\n"
        "exit codes: 0 done, 1 failed, 2 wrong usage, 3 a bound that was given is exceeded"
    )


def make_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb's options, which also makes its page in the documentation.

    Raises:
      MissingExtraError: the options come from a package that is not installed (`serve`).
    """
    from absl.flags import argparse_flags  # not for a mere `dlrm-tf --help`

    class Parser(argparse_flags.ArgumentParser):
        """Prints an error as one line, without argparse's usage text before it."""

        def error(self, message):
            self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")

    module = importlib.import_module(f"dlrm_tf.cli.{verb}")
    parser = Parser(prog=f"dlrm-tf {verb}", description=module.__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    module.add_arguments(parser)
    return parser


def _report(error: BaseException) -> int:
    """Prints `error` as one line on stderr; returns the exit code that goes with it."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror}"
    if not isinstance(error, (DLRMError, OSError, ValueError, ImportError)):
        text = f"{type(error).__name__}: {text}"
    print("dlrm-tf: " + " ".join(text.split()), file=sys.stderr)
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED


def main(argv: Optional[list[str]] = None) -> int:
    """Runs one verb; returns the exit code (0 done, 1 failed, 2 wrong usage, 3 a bound is exceeded)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return EXIT_DONE if argv else EXIT_USAGE
    if argv[0] == "--version":
        print(f"dlrm_tf {__version__}")
        return EXIT_DONE
    verb = argv[0]
    if verb not in VERBS:
        print(f"dlrm-tf: unknown verb {verb!r}; known are {', '.join(VERBS)}", file=sys.stderr)
        return EXIT_USAGE
    # Hides TensorFlow's log messages, unless the user has set a level.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    try:
        parser = make_parser(verb)
    except DLRMError as e:  # a verb whose options come from a package that is not installed
        return _report(e)
    try:
        args = parser.parse_args(argv[1:])
    except SystemExit as e:  # argparse has printed its message
        return e.code if isinstance(e.code, int) else EXIT_USAGE
    keras2.quiet = not args.debug
    try:
        return importlib.import_module(f"dlrm_tf.cli.{verb}").run(args) or EXIT_DONE
    except KeyboardInterrupt:
        print("dlrm-tf: interrupted", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:  # the program that reads our output has ended (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as e:
        if args.debug:
            raise
        return _report(e)


def entry() -> None:
    """Console script."""
    sys.exit(main())
