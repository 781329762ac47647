"""Would the tests notice a wrong line? Makes random one-line changes and runs the nearest tests.

    python tests/mutations.py --count 20 --seed 1 llmshearing/pruning llmshearing/optimization.py

Works in a copy of the tree. A change that survives needs a test, unless it has no effect; the exit
status is then 1.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, run

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "runs", "quickstart-out")
PAIRS = "Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn, And Or, Add Sub, Mult Div, Pow FloorDiv"
PAIRS = [[getattr(ast, name) for name in pair.split()] for pair in PAIRS.split(", ")]
OTHER = {one: two for pair in PAIRS for one, two in (pair, pair[::-1])}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


def changed(node: ast.AST) -> ast.AST | None:
    """The node with one thing wrong, or None if there is nothing to change."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op]) | ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in OTHER:
            new.op, new.ops = OTHER[type(op)](), [OTHER[type(op)]()]  # each class reads its own
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            new = new.operand
        case ast.Constant(value=bool() | int() | float() as value):
            new.value = not value if isinstance(value, bool) else value + 1
        case ast.IfExp():
            new.body, new.orelse = new.orelse, new.body
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            new.func = ast.Name(NAMES[name])
        case ast.Call(args=[first, second], keywords=[]) if not isinstance(second, ast.Starred):
            new.args = [second, first]
        case ast.Expr(value=ast.Call()):
            new = ast.Pass()
        case _:
            return None
    return new


def nodes(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """The nodes that run: no annotations, no messages and nothing that only logs."""
    skipped = ("annotation", "returns", "decorator_list")
    for _, value in (field for field in ast.iter_fields(tree) if field[0] not in skipped):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.JoinedStr | ast.Raise) or not isinstance(child, ast.AST):
                continue
            if not ast.unparse(child).startswith("log."):
                yield from [child] if isinstance(child, ast.expr | ast.stmt) else []
                yield from nodes(child)


def mutants(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Every change of a file: (line, old, new, the whole changed text)."""
    source = path.read_bytes()
    starts = [0, *(match.end() for match in re.finditer(b"\n", source))]
    for node in nodes(ast.parse(source)):
        if (new := changed(node)) is None:
            continue
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[node.end_lineno - 1] + node.end_col_offset
        text = ast.unparse(new) if isinstance(node, ast.stmt) else f"({ast.unparse(new)})"
        whole = source[:first] + text.encode() + source[last:]
        yield node.lineno, source[first:last].decode(), text, whole.decode()


def nearest_tests(path: Path) -> list[str]:
    """The golden losses, the module's own tests, and those that import it or a helper that does."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    parent, _, name = module.rpartition(".")
    wanted = rf"{re.escape(module)}\b|from {re.escape(parent)} import .*\b{name}\b"
    helpers = [p.stem for p in ROOT.glob("tests/*.py") if re.search(wanted, p.read_text())]
    wanted = "|".join([wanted, *(rf"(?m:^)(from|import) {helper}\b" for helper in helpers)])
    tests = {p for p in ROOT.glob("tests/**/test_*.py") if re.search(wanted, p.read_text())}
    tests |= set(ROOT.glob(f"tests/**/test_{name}.py"))
    return [*sorted(str(p.relative_to(ROOT)) for p in tests), "tests/golden"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="files, or folders of files, to change")
    parser.add_argument("--count", type=int, default=20, help="changes to draw")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    files = [f for p in given.paths for f in ([p] if p.is_file() else sorted(p.rglob("*.py")))]
    every = [(f.resolve(), *mutant) for f in files for mutant in mutants(f)]
    drawn = random.Random(given.seed).sample(every, min(given.count, len(every)))
    caught = 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=LEFT_OUT)
        own = {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        environment = {"LLMSHEARING_SHARED": str(ROOT.parent / "shared")} | os.environ | own

        def passes(tests: list[str], output: int | None = DEVNULL) -> bool:
            command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", *tests]
            return not run(command, cwd=folder, env=environment, stdout=output).returncode

        if not passes(sorted({t for path, *_ in drawn for t in nearest_tests(path)}), None):
            sys.exit("the nearest tests fail without any change")
        for path, line, old, new, text in drawn:
            place = path.relative_to(ROOT)
            Path(folder, place).write_text(text)
            survived = passes(nearest_tests(path))
            Path(folder, place).write_text(path.read_text())
            caught += not survived
            change = " ".join(f"{place}:{line}: {old} -> {new}".split())
            print("SURVIVED" if survived else "caught  ", change, flush=True)
    print(f"{caught} of {len(drawn)} changes were caught")
    sys.exit(caught < len(drawn))


if __name__ == "__main__":
    main()
