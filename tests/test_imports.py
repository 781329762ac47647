"""The rooms import one way, and the ground floors do without torch and Composer."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import llmshearing

ROOT = Path(llmshearing.__file__).parent
FLOORS = [
    {"errors", "llmshearing", "processes", "substrate"},
    {"checksums", "files", "progress", "quantities", "tables", "yaml_files"},
    {"ledger", "tensor_files", "typed_yaml"},
    {"architecture", "tasks"},
    {"pruning", "mixture"},
    {"models", "data"},
    {"config"},
    {"checkpoints"},
    {"huggingface"},
    {"preparation"},
    {"export"},
    {"tracking"},
    {"preflight", "watchdog", "parallelism"},
    {"callbacks"},
    {"optimization", "evaluation", "reports", "planning"},
    {"building", "oneshot_start", "resuming", "run_manifest"},
    {"caching"},
    {"train"},
    {"search"},
    {"quickstart"},
    {"commands"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            found.add(module)
            if module == "llmshearing":
                found |= {f"llmshearing.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    part = path.relative_to(ROOT).parts[0]
    return "llmshearing" if part == "__init__.py" else part.removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "llmshearing" or len(parts) == 1 or parts[1] == own:
            continue
        assert FLOOR[parts[1]] < FLOOR[own] or {parts[1], own} <= {"evaluation", "reports"}, (
            f"{own} imports {name}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ground_floors_need_neither_torch_nor_composer(path):
    if room(path) in {
        "architecture",
        "mixture",
        "errors",
        "files",
        "typed_yaml",
        "yaml_files",
        "quantities",
    }:
        heavy = {name.split(".")[0] for name in imports(path)}
        assert not heavy & {"torch", "composer", "streaming", "transformers"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_substrate_touches_private_names_of_libraries(path):
    """Private names are the ones with a leading underscore that our own code does not define."""
    if room(path) == "substrate":
        return
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [name for name in names if private(name)]
        elif isinstance(node, ast.Attribute) and private(node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()", "os"):
                found.append(f"{owner}.{node.attr}")
    assert not found


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def loaded_with(module: str) -> dict[str, str]:
    """What a module imports at its start, and through its imports, each with its importer."""
    found, waiting = {}, [module]
    while waiting:
        importer = waiting.pop()
        path = ROOT.parent.joinpath(*importer.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not path.is_file():
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for name in names:
                if name not in found:
                    found[name] = importer
                    waiting.append(name)
    return found


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("llmshearing.export.export", {"composer", "streaming"}),
        ("llmshearing.export.oneshot", {"composer", "streaming"}),
        ("llmshearing.checkpoints.manifest", {"composer", "streaming", "torch", "transformers"}),
    ],
)
def test_what_a_command_must_not_wait_for(module, forbidden):
    found = loaded_with(module)
    assert "llmshearing.errors" in found
    heavy = {name: importer for name, importer in found.items() if name.split(".")[0] in forbidden}
    assert not heavy


def test_no_two_modules_share_a_name_unless_they_are_the_same_idea():
    """Each package with a section of the recipe has its `settings.py`."""
    names = Counter(path.name for path in FILES)
    assert {name for name, count in names.items() if count > 1} == {"__init__.py", "settings.py"}
