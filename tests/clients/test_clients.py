"""What docs/clients.md shows of other libraries, run as it stands there, where they are installed."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import pytest

import loopwright
from loopwright.envs.loop.knob_set import ACTION_KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
# What each section needs, and what it leaves behind.
NEEDED = {
    "Stable-Baselines3 and sb3-contrib": (["sb3_contrib"], "dqn/policy.safetensors"),
    "Optuna": (["optuna"], "trial-0/policy.safetensors"),
    "TensorBoard, Weights & Biases, MLflow": (["mlflow", "wandb"], "logged/policy.safetensors"),
    "CleanRL": ([], ""),
    "RL Baselines3 Zoo": (
        ["rl_zoo3"],
        "logs/ppo/loopwright-TrainingLoop-core-v0_1/loopwright-TrainingLoop-core-v0.zip",
    ),
    "RLlib": (["ray"], "rllib.safetensors"),
    "TorchRL": (["torchrl"], ""),
    "tianshou": (["tianshou"], ""),
}
QUIET = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "RAY_DEDUP_LOGS": "0", "OMP_NUM_THREADS": "1"}


def test_every_section_is_tried() -> None:
    assert list(SECTIONS) == list(NEEDED)


# Of a MultiDiscrete of one entry TorchRL takes int(), which NumPy 2.4 refuses.
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
@pytest.mark.parametrize("action", ACTION_KINDS)
@pytest.mark.parametrize("env_id", loopwright.ENVIRONMENT_IDS)
def test_torchrl_finds_what_the_specs_say(env_id: str, action: str) -> None:
    pytest.importorskip("torchrl")
    from torchrl.envs import GymEnv, check_env_specs
    from torchrl.envs.libs.gym import GymWrapper

    check_env_specs(GymEnv(env_id, tasks="breast-cancer:1", action=action))
    for mode in ("SAME_STEP", "DISABLED"):
        vector = gym.make_vec(
            env_id, num_envs=2, tasks="breast-cancer:1", action=action, texts=False, autoreset_mode=mode
        )
        check_env_specs(GymWrapper(vector))


@pytest.mark.slow
@pytest.mark.parametrize("section", NEEDED)
def test_what_the_page_shows_runs(section: str, tmp_path: Path) -> None:
    packages, left = NEEDED[section]
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    blocks = re.findall(r"```(\w+)\n(.*?)```", SECTIONS[section], re.DOTALL)
    code = "\n".join(text for language, text in blocks if language == "python")
    commands = [[sys.executable, "-W", "ignore", "-c", code]] if code else []
    for language, text in blocks:
        if language == "yaml":
            (tmp_path / "ppo.yml").write_text(text)
        elif language == "sh":
            commands.append(["bash", "-ec", text.replace("python ", f"{sys.executable} -W ignore ", 1)])
    assert commands
    for command in commands:
        done = subprocess.run(command, cwd=tmp_path, env=QUIET, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / left).exists()
