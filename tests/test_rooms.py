"""The house's rule: a room imports only from rooms below it."""

import ast
import pathlib

import dlrm_tf

PACKAGE = pathlib.Path(dlrm_tf.__file__).parent
# Top to bottom; single modules beside the rooms (config, errors, files, keras2, progress) are the ground.
ROOMS = ["cli", "serve", "export", "lite", "train", "ascend", "mindspore", "model", "data"]
# (importing file, room): which optimizers are safe for a table is known to the training room, and compile() asks it.
EXCEPTIONS = {("model/dlrm.py", "train")}


def imported_rooms(path: pathlib.Path) -> set:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        rooms |= {m.split(".")[1] for m in modules if m.startswith("dlrm_tf.")}
    return rooms & set(ROOMS)


def test_rooms_import_downwards_only():
    faults = []
    for room in ROOMS:
        above = set(ROOMS[: ROOMS.index(room)])
        for path in sorted((PACKAGE / room).rglob("*.py")):
            name = path.relative_to(PACKAGE).as_posix()
            faults += [f"{name} imports {other}" for other in imported_rooms(path) & above if (name, other) not in EXCEPTIONS]
    assert faults == []


def test_the_ground_imports_no_room():
    for path in PACKAGE.glob("*.py"):
        if path.name != "__main__.py":
            assert imported_rooms(path) == set(), path.name
