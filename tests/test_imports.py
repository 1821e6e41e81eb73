"""The rooms of the house import one way only: landmarks <- stages <- pipeline <- run_pipeline."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {  # room -> rooms it may import
    "landmarks": {"landmarks"},
    "stages": {"stages", "landmarks"},
    "pipeline": {"pipeline", "stages", "landmarks"},
    "run_pipeline": {"pipeline", "stages", "landmarks"},
    "training": {"training", "stages", "landmarks"},
    "evaluation": {"evaluation", "run_pipeline", "pipeline", "stages", "landmarks"},
}
# The command line starts every job, so these may reach `training` and `evaluation`, but only once a job is chosen.
DISPATCHERS = {"run_pipeline.py", "pipeline/cli.py"}


def imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[str, int, bool]]:
    """Dotted name, line and whether it lies inside a function, for each import in a module of `package`."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, inside = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import name` at the top of the tree names the module itself
            yield from ((base or alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value), node.lineno, inside
        here = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        waiting.extend((child, here) for child in ast.iter_child_nodes(node))


def forbidden(source: str, path: str) -> list[str]:
    """The imports in `source`, a module at `path` below the root, that turn an arrow round."""
    parts = Path(path).with_suffix("").parts
    room = parts[0]
    found = []
    for name, line, inside in imported(ast.parse(source), list(parts[:-1])):
        target = name.split(".")[0]
        if target not in ALLOWED or target in ALLOWED[room]:
            continue
        if path in DISPATCHERS and inside and target in ("training", "evaluation"):
            continue
        found.append(f"{path}:{line}: {room} must not import {name}")
    return found


def modules() -> list[str]:
    """Every module of the rooms that exist, as paths below the root."""
    found: list[Path] = []
    for room in ALLOWED:
        single = ROOT / f"{room}.py"
        found += [single] if single.is_file() else sorted((ROOT / room).rglob("*.py"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def test_the_rooms_are_found() -> None:
    assert {"landmarks/scheme.py", "stages/base.py", "training/faces.py"} <= set(modules())


@pytest.mark.parametrize("path", modules())
def test_imports_point_one_way(path: str) -> None:
    assert forbidden((ROOT / path).read_text(encoding="utf-8"), path) == []


def test_no_measuring_script_is_imported_by_another() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "evaluation").rglob("*.py")}
    scripts = {path.stem for path, text in texts.items() if 'if __name__ == "__main__"' in text}
    used = re.compile(r"(?:from|import) evaluation(?:\.| import )(\w+)")
    assert "benchmark" in scripts and not scripts & {name for text in texts.values() for name in used.findall(text)}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("landmarks/scheme.py", "import stages.batch"),
        ("stages/align.py", "from pipeline import chain"),
        ("stages/align.py", "def f():\n    from training.losses import psnr"),
        ("stages/networks/unet.py", "from ...pipeline import chain"),
        ("pipeline/chain.py", "def f():\n    import evaluation.metrics"),
        ("pipeline/chain.py", "import importlib\nimportlib.import_module('training.loop')"),
        ("pipeline/cli.py", "import training.loop"),
        ("run_pipeline.py", "from evaluation import protocol"),
        ("training/loop.py", "import evaluation.metrics"),
        ("training/loop.py", "from pipeline.images import read"),
        ("evaluation/protocol.py", "if True:\n    from training.losses import psnr"),
    ],
)
def test_an_arrow_turned_round_is_caught(path: str, source: str) -> None:
    assert len(forbidden(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("landmarks/alignment.py", "from landmarks.scheme import five_points\nimport cv2"),
        ("landmarks/backends/__init__.py", "from .base import Face"),
        ("stages/align.py", "from landmarks import scheme"),
        ("pipeline/cli.py", "def train():\n    from training.loop import run"),
        ("run_pipeline.py", "from pipeline.cli import main"),
        ("evaluation/protocol.py", "from pipeline import Restorer"),
    ],
)
def test_an_arrow_the_right_way_round_passes(path: str, source: str) -> None:
    assert forbidden(source, path) == []
