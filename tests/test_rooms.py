"""The plan of the house: a room imports only from rooms below it, no module imports itself in a circle, and imports are seen."""

import ast
import pathlib
import subprocess
import sys

import dlrm_tf

PACKAGE = pathlib.Path(dlrm_tf.__file__).parent
# Top to bottom; single modules beside the rooms (config, errors, files, ...) are the ground and import no room.
ROOMS = [
    *("cli", "reports", "fresh", "serve", "score", "serving_api", "export", "train", "ascend"),
    *("checkpoints", "model", "weights", "lite", "data"),
]
MODULES = {path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")}
# Imports inside functions are for verbs, whose --help must not wait for TensorFlow, and for these, which say why.
INSIDE_FUNCTIONS = {
    # Each needs packages that a user of the other one may not have.
    ("dlrm_tf.score.client", "dlrm_tf.score.grpc_transport"),
    ("dlrm_tf.score.client", "dlrm_tf.score.rest_transport"),
    # Folders are compared without the packages that a request log needs.
    ("dlrm_tf.fresh.drift", "dlrm_tf.fresh.request_log"),
    # The script is copied to machines without dlrm_tf; only --npu needs it.
    ("dlrm_tf.export.ascend.check", "dlrm_tf.ascend.session"),
}
# Reading, writing and converting files needs no TensorFlow; the one module that runs Keras on what was converted does.
WITHOUT_TENSORFLOW = (
    "weights",
    "checkpoints",
    "data",
    "lite",
    "config",
    "config_checks",
    "errors",
    "files",
    "presets",
    "progress",
    "probability",
    "versions",
)
WITH_TENSORFLOW = {"dlrm_tf.checkpoints.verify"}


def own_imports(path: pathlib.Path) -> list:
    """`(module of the package, whether it is imported inside a function)` for every import of a file."""
    tree = ast.parse(path.read_text())
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
            names = [name if name in MODULES else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found += [(name, id(node) in inside) for name in names if name == "dlrm_tf" or name.startswith("dlrm_tf.")]
    return found


def room_of(module: str) -> str:
    return (module.split(".") + [""])[1]


def test_every_folder_is_a_room():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)


def test_rooms_import_downwards_only():
    faults = []
    for module, path in sorted(MODULES.items()):
        room = room_of(module)
        above = ROOMS[: ROOMS.index(room)] if room in ROOMS else [] if module == "dlrm_tf.__main__" else ROOMS
        faults += [f"{module} imports {name}" for name, _ in own_imports(path) if room_of(name) in above]
    assert faults == []


def test_no_module_is_part_of_a_circle():
    graph = {module: {name for name, _ in own_imports(path) if name in MODULES} for module, path in MODULES.items()}
    done, faults = set(), []

    def visit(module, way):
        if module in way:
            faults.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for name in sorted(graph[module]):
                visit(name, [*way, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    assert faults == []


def test_imports_stand_at_the_top():
    inside = {
        (m, name) for m, path in MODULES.items() for name, is_inside in own_imports(path) if is_inside and room_of(m) != "cli"
    }
    assert inside == INSIDE_FUNCTIONS


def test_files_are_read_and_written_without_tensorflow():
    modules = sorted(m for m in MODULES if room_of(m) in WITHOUT_TENSORFLOW and m not in WITH_TENSORFLOW)
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
