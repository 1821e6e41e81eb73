"""The set-up: all dependencies pinned; a wheel that carries weights and configs; nothing of one machine."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("landmarks", "stages", "pipeline", "training", "evaluation")
GIVEN = ("torch", "kornia", "face-alignment", "basicsr", "numpy", "opencv-python-headless", "timm", "scikit-image")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def package_name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def declared() -> set[str]:
    """Names of all third-party packages in the core and the extras."""
    table = project()["project"]
    lists = [table["dependencies"], *table["optional-dependencies"].values()]
    return {package_name(r) for requirements in lists for r in requirements} - {"revisage"}


def pins() -> list[tuple[str, str, str]]:
    """(name, version, marker) of each line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9.-]+)==([^ ;]+)(?: ; (.+))?", line)
            assert match, f"constraints.txt: not a pin: {line}"
            found.append((match[1], match[2], match[3] or ""))
    return found


def repository_files() -> Iterator[Path]:
    """What git tracks or would add; where there is no git, every file outside hidden folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        yield from (ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file())
    else:
        yield from (p for p in ROOT.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.parts))


def test_the_given_packages_are_declared() -> None:
    assert set(GIVEN) <= declared()


def test_opencv_is_declared_once_without_its_window_toolkit() -> None:
    assert [n for n in declared() if n.startswith("opencv")] == ["opencv-python-headless"]


def test_every_declared_package_is_pinned() -> None:
    assert declared() - {name for name, _, _ in pins()} == set()


def test_each_pin_holds_for_one_python_only_once() -> None:
    for old in (True, False):
        names = [n for n, _, marker in pins() if not marker or (marker == 'python_version < "3.11"') == old]
        assert len(names) == len(set(names))
    assert {marker for _, _, marker in pins()} == {"", 'python_version < "3.11"', 'python_version >= "3.11"'}


def test_every_declared_package_has_its_line_in_the_licence_table() -> None:
    table = (ROOT / "LICENCES.md").read_text(encoding="utf-8")
    assert [name for name in sorted(declared()) if f"\n| {name} |" not in table] == []
    assert "iBUG 300-W" in table


def test_every_package_that_is_installed_has_its_terms_stated() -> None:
    told = set(re.findall(r"[a-z0-9]+(?:[-._][a-z0-9]+)*", (ROOT / "LICENCES.md").read_text(encoding="utf-8").lower()))
    assert {name for name, _, _ in pins() if not name.startswith("nvidia-")} <= told


def test_the_licence_is_apache_in_full() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert project()["project"]["license"] == "Apache-2.0"


def test_pythons_3_10_to_3_12_are_supported() -> None:
    assert project()["project"]["requires-python"] == ">=3.10,<3.13"
    for path in repository_files():
        if path.suffix == ".py":
            ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 10))


def test_the_version_is_written_once_and_read_by_the_build() -> None:
    assert project()["project"]["dynamic"] == ["version"]
    assert project()["tool"]["hatch"]["version"]["path"] == "pipeline/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_console_script_exists() -> None:
    module, function = project()["project"]["scripts"]["revisage"].split(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_make_and_ci_have_the_commands_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in ("restore", "test"):
        assert f"\n{target}:" in makefile and f"make {target}" in readme
    ci = ROOT / ".ci" / "run"
    assert os.access(ci, os.X_OK) and re.search(r"^make .*\btest\b", ci.read_text(encoding="utf-8"), re.MULTILINE)


def test_no_file_names_a_folder_of_one_machine_or_a_registry_host() -> None:
    # Written in pieces, so that this file passes its own test.
    machine = re.compile("|".join(["/" + "root/", "/" + "home/[a-z]", "/" + "work/", "/" + "opt/", "pypi" + r"\.org"]))
    for path in repository_files():
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".html"} or path.name == "Makefile":
            found = machine.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)}: {found and found.group()}"


def test_no_weights_are_pickles() -> None:
    assert [p for p in repository_files() if p.suffix in {".pth", ".pt", ".pkl", ".ckpt", ".pickle"}] == []


def test_weights_stay_within_their_budget() -> None:
    sizes = [p.stat().st_size for p in (ROOT / "weights").glob("*.safetensors")]
    assert sum(sizes) < 150e6
    assert all(size < 40e6 for size in sizes)


@pytest.mark.slow
def test_the_wheel_carries_weights_and_configs_and_finds_them(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    names = [p.relative_to(ROOT) for p in repository_files()]
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"revisage-{__version__}-py3-none-any.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    carried = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    assert {n.as_posix() for n in names if n.parts[0] in (*PACKAGES, "configs", "weights")} <= carried
    (metadata,) = site.glob("revisage-*.dist-info")
    assert "revisage = pipeline.cli:main" in (metadata / "entry_points.txt").read_text(encoding="utf-8")
    assert (metadata / "licenses" / "LICENSE").is_file()

    look = "from stages.weights import card_names, weights_dir; print(weights_dir()); print(*card_names())"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "REVISAGE_WEIGHTS")}
    found = subprocess.run(
        [sys.executable, "-c", look],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert Path(found[0]) == site / "weights"
    assert found[1].split() == sorted(p.stem for p in (site / "weights").glob("*.json"))


def test_example_thumbnails_are_the_same_each_time_and_keep_grey_grey(tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "make_thumbnails.py")
    trees = []
    for run in ("first", "second"):
        out = tmp_path / run
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(
            [sys.executable, script, str(out)], check=True, capture_output=True, cwd=tmp_path, env=environment
        )
        trees.append({p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert trees[0] == trees[1]
    thumbnails = sorted((tmp_path / "first" / "thumbnails").iterdir())
    assert len(thumbnails) == 32
    for path in thumbnails:
        with Image.open(path) as picture:
            assert picture.size == (16, 16)
            assert picture.mode == ("L" if path.name.startswith("lfw") else "RGB")
