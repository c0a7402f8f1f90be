"""The plan of the house: a room imports only from rooms below it, no module imports itself in a circle, and imports are seen."""

import ast
import pathlib

import dlrm_tf

PACKAGE = pathlib.Path(dlrm_tf.__file__).parent
# Top to bottom; single modules beside the rooms (config, errors, files, ...) are the ground and import no room.
ROOMS = [
    *("cli", "reports", "serve", "score", "serving_api", "export", "train", "ascend"),
    *("checkpoints", "model", "weights", "lite", "data"),
]
MODULES = {path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")}
# Rooms that read, write and convert files: all their modules load without TensorFlow.
WITHOUT_TENSORFLOW = ("weights", "checkpoints", "data", "lite", "serving_api.status")


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
