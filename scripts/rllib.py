"""Train a controller with PPO of Ray's RLlib instead of Stable-Baselines3, and save it as a bundle.

    loopwright rllib --folder runs/rllib --steps 250000

Needs the extra rllib. The native vector environment runs inside the runner; the bundle is written after every
iteration.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium import VectorizeMode
from tqdm import tqdm

from loopwright.agents.controllers.bundle import save_policy
from loopwright.agents.controllers.tuned import get_starting_plan
from loopwright.agents.training.rllib import extract_rllib_policy
from loopwright.envs.loop.extras import import_extra
from loopwright.envs.loop.holding import holding_folder
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.plan import LoopPlan
from loopwright.scripts.run import compile_where_possible, run

DISCOUNT, ROLLOUT = 0.995, 16  # decisions of a lane between updates of the policy


@dataclass
class Config:
    folder: Path = Path("runs/rllib")
    """Where policy.safetensors goes."""
    steps: int = 250_000
    """Decisions in all."""
    lanes: int = 128
    """Inner runs side by side."""
    suite: str = "demo"
    """Suite to draw tasks from."""
    knobs: str = "core"
    """Knob set, or knob names joined by "+"."""
    rate_spread: float = 0.5
    """Episodes start with the learning rate times 10^U(-spread, spread)."""
    compile: bool = True
    """Fuse the inner loop with torch.compile; needs a C++ compiler."""
    seed: int = 0
    """Of the agent and of the tasks it draws."""


def main(config: Config) -> None:
    start, knobs = get_starting_plan("tuned"), KnobSet(config.knobs)
    with holding_folder(config.folder):
        algorithm = _build(config, start)
        trained = {"algorithm": "PPO of RLlib", "suite": config.suite, "seed": config.seed}
        try:
            with tqdm(total=config.steps, unit="decision", unit_scale=True, desc="train PPO of RLlib") as bar:
                while bar.n < config.steps:
                    found = algorithm.train()["env_runners"]
                    bar.update(int(found["num_env_steps_sampled_lifetime"]) - bar.n)
                    bar.set_postfix_str(f"return {found.get('episode_return_mean', float('nan')):.3f}", refresh=False)
                    training = trained | {"decisions": bar.n}
                    policy = extract_rllib_policy(algorithm.get_module(), knobs, start, training)
                    save_policy(policy, config.folder / "policy.safetensors")
        finally:
            algorithm.stop()
    print(f"saved {config.folder / 'policy.safetensors'}")


def _build(config: Config, start: LoopPlan) -> Any:
    """RLlib's PPO on the registered environment."""
    ppo = import_extra("ray.rllib.algorithms.ppo", "rllib")
    batch = ROLLOUT * config.lanes
    environment = {
        "suite": config.suite, "knobs": config.knobs, "plan": start.as_json(),
        "spread": {"rate": config.rate_spread},
        "settings": {"compile": config.compile and compile_where_possible(), "discount": DISCOUNT},
    }  # fmt: skip
    return (
        ppo.PPOConfig()
        .environment("loopwright:loopwright/TrainingLoop-v0", env_config=environment)
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=config.lanes, rollout_fragment_length=ROLLOUT,
            gym_env_vectorize_mode=VectorizeMode.VECTOR_ENTRY_POINT,
        )
        .training(
            train_batch_size_per_learner=batch, minibatch_size=min(512, batch), num_epochs=6, lr=7e-4, gamma=DISCOUNT,
            lambda_=0.95, clip_param=0.2, grad_clip=0.5, entropy_coeff=0.0, vf_clip_param=100.0, use_kl_loss=False,
        )
        .rl_module(model_config={"fcnet_hiddens": [128, 128], "fcnet_activation": "tanh"})
        .debugging(seed=config.seed)
        .build_algo()
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
