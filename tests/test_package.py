"""The package as a whole: what a wheel holds, which way imports run, and that the README's Python works."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["inner_tasks", "envs", "agents", "scripts"]


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).glob("*.py"))


@pytest.mark.parametrize("package", LAYERS)
def test_imports_run_one_way_only(package: str) -> None:
    above = LAYERS[LAYERS.index(package) + 1 :]
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                layer = name.removeprefix("loopwright.").partition(".")[0]
                assert not (name.startswith("loopwright.") and layer in above), f"{path} imports {name}"
                assert name.partition(".")[0] not in LAYERS, f"{path} imports {name} without loopwright."


def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    # A copy, so that building leaves nothing behind in the checkout.
    tree = tmp_path / "tree"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    ).stdout.split()
    for name in files:
        source, target = ROOT / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.exists():
            target.write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"loopwright/{path.relative_to(ROOT)}" for package in LAYERS for path in sources(package)}
    expected |= {"loopwright/__init__.py", "loopwright/py.typed", "loopwright/inner_tasks/targets.json",
                 "loopwright/agents/tuned.json"}  # fmt: skip
    assert inside == expected


def readme_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)


def test_the_readme_has_its_examples() -> None:
    assert len(readme_examples()) >= 2


def test_the_readme_examples_run(tmp_path: Path) -> None:
    # In order and in one namespace, as a reader would paste them; shortened where they say how long to train.
    code = "\n".join(readme_examples())
    code, shortened = re.subn(r"learn\([\d_]+", "learn(256", code)
    assert shortened == 1
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr


def test_nothing_is_named_utils() -> None:
    for package in LAYERS:
        assert not {p.stem for p in sources(package)} & {"utils", "helpers", "common", "misc"}
