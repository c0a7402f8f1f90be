"""The pages of the site that are made of what stands elsewhere: README and its fellows, the parsers' help, the public names."""

import os
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

import dlrm_tf
from dlrm_tf.cli import main

ROOT = pathlib.Path(__file__).parent.parent
# Page of the site -> file of the checkout.
COPIED = {
    "notes.md": "BUILD_NOTES.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changes.md": "CHANGELOG.md",
    "serving.md": "serving/README.md",
    "devices.md": "examples/README.md",
    "ascend.md": "dlrm_tf/ascend/README.md",
}
# Public names that are not attributes of dlrm_tf itself.
FURTHER = ("score.client.Client", "serve.server.ModelServer", "lite.scorer.Scorer", "model.keras3.load")


def on_files(files, config):
    """Adds the pages."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    start, recipes = readme.split("\n## Recipes\n")
    recipes, rest = recipes.split("\n## Tests, benchmarks, documentation\n")
    measured = rest[rest.index("\n## Measured\n") :]
    pages = {"index.md": start + measured, "recipes.md": f"# Recipes\n{recipes}", "cli.md": _cli(), "api.md": _api()}
    pages = {page: _linked(text, "README.md") for page, text in pages.items()}
    pages.update((page, _linked((ROOT / source).read_text(encoding="utf-8"), source)) for page, source in COPIED.items())
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def _linked(text: str, source: str) -> str:
    """Links to files that are pages of the site lead there; links to others become plain text."""
    pages = {path: page for page, path in COPIED.items()}

    def link(found):
        name, target = found.groups()
        if ":" in target or target.startswith("#"):
            return found.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.startswith("docs/"):
            return f"[{name}]({path[len('docs/') :]})"
        return f"[{name}]({pages[path]})" if path in pages else name

    text = re.sub(r"<!-- not run: .* -->\n", "", text)
    return re.sub(r"\[([^][]*)\]\(([^()\s]+)\)", link, text)


def _cli() -> str:
    os.environ["COLUMNS"] = "110"  # argparse's
    codes = "0 done, 1 failed (one line says why), 2 wrong usage, 3 a bound that was given is exceeded"
    parts = [f"# Command line\n\nExit codes: {codes}.\n"]
    for verb, line in main.VERBS.items():
        parts.append(f"## {verb}\n\n{line[0].upper()}{line[1:]}.\n\n```text\n{main.make_parser(verb).format_help()}```\n")
    return "\n".join(parts)


def _api() -> str:
    names = [f"{module}.{name}" for name, module in dlrm_tf._PUBLIC.items()]
    parts = ["# Python\n\nWhat `import dlrm_tf` offers, as `dlrm_tf.NAME`; a name's module is loaded when it is first used.\n"]
    parts += [f"::: {name}\n" for name in names]
    parts += ["## In the rooms\n", *(f"::: dlrm_tf.{name}\n" for name in FURTHER), "## Errors\n", "::: dlrm_tf.errors\n"]
    return "\n".join(parts)
