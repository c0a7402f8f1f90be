"""Coverage-guided fuzzing of the file readers with atheris.

    python tests/fuzz/run.py ckpt -runs=1000000          targets: ckpt, weights, vocabulary, manifest, records

Takes libFuzzer's flags; starts from tests/fuzz/corpus/TARGET and adds nothing to it unless --grow is given. A crash, a hang of
more than five seconds, more than 512 MB, or anything but a one-line DLRMError stops it and leaves the input as crash-* in this
folder.
"""

import os
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["dlrm_tf", "json"]):
    import targets


def main() -> None:
    """Fuzzes the target that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in targets.TARGETS:
        sys.exit(__doc__)
    target, flags = sys.argv[1], sys.argv[2:]
    corpus = str(targets.CORPUS / target)
    if "--grow" in flags:
        flags.remove("--grow")
        corpora = [corpus]
    else:
        corpora = [tempfile.mkdtemp(prefix="fuzz-"), corpus]
    limits = ["-timeout=5", "-rss_limit_mb=512", "-max_len=16384", f"-artifact_prefix={os.getcwd()}/"]
    atheris.Setup([sys.argv[0], *limits, *flags, *corpora], lambda data: targets.run(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
