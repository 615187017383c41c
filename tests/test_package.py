"""The package as a whole: what wheel and sdist hold, and that what the README and CONTRIBUTING show works."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("inner_tasks", "envs", "agents", "scripts")
DATA = ("py.typed", "envs/engine/prices.json", "inner_tasks/targets.json", "inner_tasks/checksums.json",
        "agents/controllers/tuned.json", "agents/controllers/shipped/core.safetensors",
        "agents/controllers/shipped/adamw.safetensors", "agents/controllers/shipped/all.safetensors",
        "agents/controllers/shipped/clip.safetensors", "agents/controllers/shipped/lr-clip-average.safetensors",
        "agents/controllers/shipped/loop.safetensors", "agents/controllers/shipped/lr-momentum.safetensors",
        "agents/judging/report.html.jinja", "agents/controllers/network.c", "envs/loop/probe.c")  # fmt: skip


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


def load_shipped_policies(wheel: Path, folder: Path) -> None:
    """Every policy that the wheel brings along decides something, read from the wheel and nothing else."""
    zipfile.ZipFile(wheel).extractall(folder)
    code = """
        import loopwright, numpy
        assert loopwright.__file__.startswith(FOLDER), loopwright.__file__
        for name in loopwright.list_policies():
            policy = loopwright.load_policy(name)
            actions, _ = policy.predict(numpy.zeros((3, len(loopwright.OBSERVATION_NAMES)), numpy.float32))
            assert actions.shape == (3, len(policy.knobs.choices))
            steps = policy.steps_of_one(numpy.zeros((1, len(loopwright.OBSERVATION_NAMES)), numpy.float32))
            assert len(steps) == len(policy.knobs.choices)
        print(*loopwright.list_policies())
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code).replace("FOLDER", repr(str(folder)))],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)}, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == sorted(Path(name).stem for name in DATA if name.endswith(".safetensors"))


def test_wheel_and_sdist_hold_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    copy_of_the_tree(tree)  # so that building leaves nothing behind in the checkout
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--sdist",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(tree),
    ]
    subprocess.run(command, check=True, capture_output=True)
    modules = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    expected = {f"loopwright/{name}" for name in ("__init__.py", *DATA, *modules)}
    (wheel,) = tmp_path.glob("*.whl")
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == expected
    load_shipped_policies(wheel, tmp_path / "unpacked")
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    kept = {f"src/loopwright/{name}" for name in ("__init__.py", *DATA, *modules)}
    assert kept <= inside


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    named = {name for group in groups for name in group if not name.startswith("loopwright")}
    allowed = {re.sub(r"\[.*\]", "", name).replace(">=", "==") for name in named}  # constraints have no extras
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == allowed


def run_changed(tree: Path, code: str) -> None:
    """Run Python against a copy of the package, which is taken in place of the installed one."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tree, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tree / "src")}, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def insert_before(path: Path, place: str, text: str) -> None:
    assert path.read_text().count(place) == 1
    path.write_text(path.read_text().replace(place, f"{text}{place}"))


def examples(page: str, pattern: str) -> list[str]:
    """The Python blocks of a page that begin with ``pattern``."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    return [block for block in blocks if re.match(pattern, block)]


USE_OF_THE_NEW_KNOB = """
import loopwright
from gymnasium.utils.env_checker import check_env
env = loopwright.TrainingLoopEnv(tasks=["breast-cancer:1"], settings=loopwright.EpisodeSettings(budget_factor=0.4))
check_env(env)
assert "plan_nudge" in loopwright.OBSERVATION_NAMES
assert "| `nudge` | the learning rate, finely" in loopwright.TrainingLoopEnv.__doc__
before = env.reset(seed=0)[1]["plan"]["learning_rate"]
names = [knob.name for knob in env.knobs.knobs]
action = [knob.still for knob in env.knobs.knobs]
action[names.index("nudge")] = 2
after = env.step(action)[4]["plan"]["learning_rate"]
assert abs(after / before - 1.05) < 1e-5, (before, after)
action[names.index("lr")] += 1  # both knobs move the same field
last = env.step(action)[4]["plan"]["learning_rate"]
assert abs(last / after - 1.05 * 1.2) < 1e-5, (after, last)
"""


def test_a_knob_is_added_in_one_place_as_contributing_says(tmp_path: Path) -> None:
    (example,) = examples("CONTRIBUTING.md", r"Knob\(")
    copy_of_the_tree(tmp_path)
    entry = textwrap.indent(example.rstrip() + ",\n", " " * 8)
    insert_before(tmp_path / "envs/loop/knobs.py", '        Knob(\n            "optimizer"', entry)
    run_changed(tmp_path, USE_OF_THE_NEW_KNOB)


USE_OF_THE_NEW_COMPETITOR = """
from loopwright.agents.controllers.competitors import COMPETITORS
from loopwright.inner_tasks import get_task
import loopwright
controller = next(COMPETITORS["Lion"].candidates(1))
settings = loopwright.EpisodeSettings(budget_factor=0.3)
(run,) = loopwright.run_controller(controller, [get_task("breast-cancer:1")], [0], settings)
assert run.method == "Lion" and run.final_loss < 1
"""


def test_a_competitor_is_added_in_two_files_as_contributing_says(tmp_path: Path) -> None:
    (function,), (entry,) = examples("CONTRIBUTING.md", "def make_lion"), examples("CONTRIBUTING.md", "_add_optimizer")
    copy_of_the_tree(tmp_path)
    insert_before(tmp_path / "agents/controllers/optimizers.py", "BY_MATRIX = ", f"{function}\n\n")
    entry = textwrap.indent(entry.rstrip() + ",\n", " " * 8)
    insert_before(tmp_path / "agents/controllers/competitors.py", '        _add_optimizer(\n            "SOAP"', entry)
    run_changed(tmp_path, USE_OF_THE_NEW_COMPETITOR)


USE_OF_THE_NEW_FAMILY = """
import loopwright
family = loopwright.list_families()["rings"]
assert [len(getattr(family.make_plain(), split)) for split in ("train", "control", "target")] == [512, 64, 256]
assert len({family.make_task(seed).model for seed in range(8)}) == 2
assert "rings:3" in loopwright.get_suite("demo").candidates()
task = loopwright.calibrate(family.make_task(3))
env = loopwright.TrainingLoopEnv(tasks=[task])
env.reset(seed=0)
env.step(env.action_space.sample())
"""


def test_a_family_is_added_in_two_files_as_contributing_says(tmp_path: Path) -> None:
    (example,) = examples("CONTRIBUTING.md", "import numpy")
    copy_of_the_tree(tmp_path)
    place = tmp_path / "inner_tasks/synthetic.py"
    definition = example[example.index("class Rings") :]
    place.write_text(f"{place.read_text()}\n\n{definition}\n\nregister_family(Rings())\n")
    suites = tmp_path / "inner_tasks/suites.py"
    suites.write_text(suites.read_text().replace("DEMONSTRATED = (", 'DEMONSTRATED = ("rings", '))
    run_changed(tmp_path, USE_OF_THE_NEW_FAMILY)


@pytest.mark.slow
def test_the_readme_examples_run(tmp_path: Path) -> None:
    # In order and in one namespace, as a reader would paste them; shortened where they say how long and how often.
    code = "\n".join(examples("README.md", ""))
    for long, short in (
        (r"learn\([\d_]+", "learn(256"),
        (r"seeds=range\(5\)", "seeds=range(1)"),
        ("seeds=2", "seeds=1"),
    ):
        code, shortened = re.subn(long, short, code)
        assert shortened == 1
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1200
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_users_strict_type_check_passes_on_every_example(tmp_path: Path) -> None:
    """With the package as it is installed, from a wheel or from a clone; what torch leaves untyped is its own."""
    script = tmp_path / "mine.py"
    script.write_text("\n".join(examples("README.md", "")))
    strict = ["--strict", "--untyped-calls-exclude=torch", "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "mypy", *strict, str(script)]
    outside = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=outside)
    assert result.returncode == 0, result.stdout
    script.write_text("import loopwright\nloopwright.LoopPlan(batch='two')\n")  # a mistake is found, so it is read
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=outside)
    assert 'Argument "batch" to "LoopPlan" has incompatible type' in result.stdout


def test_a_loop_of_ones_own_is_steered_as_the_guide_says(tmp_path: Path) -> None:
    (example,) = examples("docs/attach.md", "import torch")
    script = tmp_path / "mine.py"
    script.write_text(example)
    command = [sys.executable, "-W", "ignore"]
    shown = ["-m", "loopwright.scripts.main", "replay", "steered.jsonl", "--show", "--plot", "steered.png"]
    said = [
        subprocess.run([*command, *rest], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True).stdout
        for rest in (["mine.py"], shown)
    ]
    found = re.fullmatch(r"36 decisions, (\S+)% right, learning rate \S+\n", said[0])
    assert found is not None, said[0]
    assert float(found[1]) > 85
    assert said[1].count("learning_rate") >= 2  # it was moved, and the table says so
    assert (tmp_path / "steered.png").stat().st_size > 10_000


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/attach.md", "docs/results/README.md"])
def test_no_example_imports_from_more_than_two_modules_deep(page: str) -> None:
    for example in examples(page, ""):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loopwright"):
                assert (node.module or "").count(".") <= 1, node.module
