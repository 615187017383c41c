"""The package as a whole: what a wheel holds, which way imports run, and that the README's Python works."""

import ast
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path
from typing import Any

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


def copy_of_the_tree(tree: Path) -> None:
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


def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    copy_of_the_tree(tree)  # so that building leaves nothing behind in the checkout
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"loopwright/{path.relative_to(ROOT)}" for package in LAYERS for path in sources(package)}
    expected |= {"loopwright/__init__.py", "loopwright/py.typed", "loopwright/inner_tasks/targets.json",
                 "loopwright/inner_tasks/checksums.json", "loopwright/agents/tuned.json",
                 "loopwright/agents/report.html.jinja"}  # fmt: skip
    assert inside == expected


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    allowed = {name.replace(">=", "==") for group in groups for name in group if not name.startswith("loopwright")}
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == allowed


USE_OF_THE_NEW_KNOB = """
import loopwright
from gymnasium.utils.env_checker import check_env
from loopwright.envs.observation import OBSERVATION_NAMES
env = loopwright.TrainingLoopEnv(tasks=["breast-cancer:1"], settings=loopwright.EpisodeSettings(budget_factor=0.4))
check_env(env)
assert "plan_second_momentum" in OBSERVATION_NAMES
assert "| `second_momentum` | 1 - beta2" in loopwright.TrainingLoopEnv.__doc__
before = env.reset(seed=0)[1]["plan"]["second_momentum"]
action = [knob.still for knob in env.knobs.knobs]
action[[knob.name for knob in env.knobs.knobs].index("second_momentum")] = 0
after = env.step(action)[4]["plan"]["second_momentum"]
assert abs(before - 0.999) < 1e-6 and abs(after - 0.998) < 1e-5, (before, after)
"""


def test_a_knob_is_added_in_one_place_as_contributing_says(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(Knob\(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S)
    copy_of_the_tree(tmp_path)
    knobs = tmp_path / "envs" / "knobs.py"
    place = '        Knob(\n            "optimizer"'
    assert knobs.read_text().count(place) == 1
    knobs.write_text(knobs.read_text().replace(place, f"{textwrap.indent(example.rstrip() + ',', ' ' * 8)}\n{place}"))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", USE_OF_THE_NEW_KNOB], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")}, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_a_family_is_added_as_contributing_says() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (example,) = re.findall(r"```python\n(import [^`]*?class Rings.*?)```", text, flags=re.S)
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    family = namespace["Rings"]()
    assert [len(getattr(family.plain(), split)) for split in ("train", "control", "target")] == [512, 64, 256]
    assert len({family.task(seed).model for seed in range(8)}) == 2


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
