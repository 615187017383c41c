"""Training, resuming, bundles."""

import errno
import json
import math
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from loopwright.agents.controllers.bundle import SHIPPED, list_policies, load_policy, save_policy
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.controllers.simple import Constant
from loopwright.agents.judging.runner import run_controller
from loopwright.agents.training import trainer
from loopwright.agents.training.callback import TrainingCallback
from loopwright.agents.training.config import ALGORITHMS, CONTRIB_ALGORITHMS, PRESETS, TrainingConfig, find_hidden
from loopwright.agents.training.extraction import extract_policy, insert_policy
from loopwright.agents.training.trainer import STANDING_STILL, prefer_standing_still, train
from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import BundleError, LoopwrightError, UnknownNameError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES, OBSERVATION_VERSION
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.sb3 import SB3VecEnv
from loopwright.envs.vector import TrainingLoopVectorEnv
from loopwright.inner_tasks import Task, get_suite, get_task

QUICK = EpisodeSettings(budget_factor=0.4)
TINY = {"lanes": 4, "suite": "demo-new", "compile": False, "checkpoint_every": 64}
SMALL_PPO = {"n_steps": 16, "batch_size": 32, "n_epochs": 1}


@pytest.mark.parametrize(("algorithm", "action"), [(PPO, "discrete"), (PPO, "box"), (A2C, "discrete"), (SAC, "box")])
def test_stable_baselines3_runs_2000_steps_on_the_vector_environment(algorithm: type, action: str) -> None:
    envs = SB3VecEnv(
        TrainingLoopVectorEnv(
            20, tasks=["breast-cancer:1", "breast-cancer:2"], action=action, autoreset_mode="SameStep",
            settings=EpisodeSettings(budget_factor=0.4, ticks_per_decision=4),
        )
    )  # fmt: skip
    rollout = {} if algorithm is SAC else {"n_steps": 16}  # PPO's default of 2048 would be 40 thousand steps
    model = algorithm("MlpPolicy", envs, seed=0, device="cpu", **rollout)
    model.learn(2000)
    assert model.num_timesteps >= 2000
    weights = torch.cat([p.detach().flatten() for p in model.policy.parameters()])
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "SAC", "TD3", "DQN"])
def test_a_bundle_acts_as_the_policy_it_came_from(algorithm: str, tmp_path: Path) -> None:
    options = SMALL_PPO if algorithm == "PPO" else {"n_steps": 8} if algorithm == "A2C" else {"learning_starts": 8}
    options = {**options, "policy_kwargs": {"net_arch": [16, 8]}}
    config = TrainingConfig(algorithm=algorithm, steps=64, options=options, **TINY)
    bundle = train(config, tmp_path, show_progress=False, settings=QUICK)
    loaded = load_policy(tmp_path / "policy.safetensors")
    observations = torch.randn(50, len(OBSERVATION_NAMES))
    np.testing.assert_allclose(loaded.act(observations.numpy()), bundle.act(observations.numpy()), atol=1e-6)
    model = trainer._load_model(config, tmp_path, trainer._make_envs(config, QUICK))
    expected, _ = model.predict(observations.numpy(), deterministic=True)
    np.testing.assert_allclose(loaded.act(observations.numpy()), expected, atol=1e-5)
    assert any((tmp_path / "tensorboard").rglob("events.*"))


def small_model(algorithm: type = PPO, normalised: bool = False, **policy: object) -> tuple[BaseAlgorithm, KnobSet]:
    """A model that was never trained, whose weights are large enough to choose different actions."""
    action = {PPO: "discrete", A2C: "discrete", DQN: "flat"}.get(algorithm, "box")
    vector = TrainingLoopVectorEnv(2, tasks=["breast-cancer:1"], knobs="core", action=action, autoreset_mode="SameStep")
    envs = VecNormalize(SB3VecEnv(vector)) if normalised else SB3VecEnv(vector)
    rollout = {"n_steps": 8, "batch_size": 16} if algorithm is PPO else {}
    model = algorithm("MlpPolicy", envs, seed=0, device="cpu", policy_kwargs={"net_arch": [16], **policy}, **rollout)
    with torch.no_grad():
        for weights in model.policy.parameters():
            weights.mul_(5)
    return model, vector.knobs


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU])
@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_every_activation_comes_through(algorithm: type, activation: type[nn.Module], tmp_path: Path) -> None:
    model, knobs = small_model(algorithm, activation_fn=activation)
    save_policy(extract_policy(model, knobs, LoopPlan()), tmp_path / "policy.safetensors")
    seen = np.random.default_rng(1).normal(size=(100, len(OBSERVATION_NAMES))).astype(np.float32)
    expected, _ = model.predict(seen, deterministic=True)
    acted = load_policy(tmp_path / "policy.safetensors").act(seen)
    np.testing.assert_allclose(acted, expected, atol=1e-5)
    assert len(np.unique(acted, axis=0)) > 10


def test_the_statistics_of_normalised_observations_come_through() -> None:
    model, knobs = small_model(normalised=True)
    normalize = model.get_vec_normalize_env()
    assert normalize is not None
    rng = np.random.default_rng(1)
    normalize.obs_rms.update(
        rng.normal(0.5, np.linspace(0.1, 3, len(OBSERVATION_NAMES)), (500, len(OBSERVATION_NAMES)))
    )
    policy = extract_policy(model, knobs, LoopPlan())
    seen = rng.normal(0.5, 0.2, (200, len(OBSERVATION_NAMES))).astype(np.float32)
    expected, _ = model.predict(normalize.normalize_obs(seen).astype(np.float32), deterministic=True)
    np.testing.assert_array_equal(policy.act(seen), expected)
    assert (policy.act(seen) != model.predict(seen, deterministic=True)[0]).any()


@pytest.mark.parametrize("algorithm", [PPO, SAC, DQN])
def test_a_policy_goes_back_into_a_model(algorithm: type) -> None:
    source, knobs = small_model(algorithm)
    policy = extract_policy(source, knobs, LoopPlan())
    model, _ = small_model(algorithm)
    with torch.no_grad():
        for weights in model.policy.parameters():
            weights.mul_(-1)
    insert_policy(model, policy)
    seen = np.random.default_rng(1).normal(size=(50, len(OBSERVATION_NAMES))).astype(np.float32)
    expected = source.predict(seen, deterministic=True)[0]
    np.testing.assert_allclose(model.predict(seen, deterministic=True)[0], expected, atol=1e-6)
    model.learn(8)
    wider = algorithm("MlpPolicy", model.get_env(), device="cpu", policy_kwargs={"net_arch": [17]})
    with pytest.raises(LoopwrightError, match=r"the policy's network is .*out_features=16.*out_features=17"):
        insert_policy(wider, policy)


def test_callbacks_of_others_see_and_end_a_training(tmp_path: Path) -> None:
    seen: list[int] = []

    class Impatient(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.num_timesteps)
            return self.num_timesteps < 32

    config = TrainingConfig(steps=640, options=SMALL_PPO, **TINY)
    policy = train(config, tmp_path, show_progress=False, settings=QUICK, callback=Impatient())
    assert seen == list(range(4, 33, 4))
    assert policy.training["decisions"] == 32
    assert load_policy(tmp_path / "policy.safetensors").fingerprint == policy.fingerprint


def test_a_log_that_meets_a_full_disk_ends_a_training_and_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = set(threading.enumerate())
    config = TrainingConfig(steps=640, options=SMALL_PPO, **TINY)
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", refuse)
    with pytest.raises(OSError, match="No space left"):
        train(config, tmp_path, show_progress=False, settings=QUICK)
    for thread in set(threading.enumerate()) - before:
        if type(thread).__module__.startswith("tensorboard"):
            thread.join()  # it tells a moment after it has let the training know
    told = capfd.readouterr().err
    assert "TensorBoard: cannot write its log: No space left" in told
    assert "Traceback" not in told


def test_tensorboard_has_a_point_for_every_rollout_and_family(tmp_path: Path) -> None:
    config = TrainingConfig(steps=256, options=SMALL_PPO, **TINY)
    train(config, tmp_path, show_progress=False, settings=replace(QUICK, budget_factor=0.1))
    log = EventAccumulator(str(tmp_path / "tensorboard" / "agent_0"))
    log.Reload()
    tags = log.Tags()["scalars"]
    assert [point.step for point in log.Scalars("time/fps")] == [64, 128, 192, 256]
    assert {"rollout/ep_rew_mean", "episode/hit_rate"} <= set(tags)
    families = {name.partition(":")[0] for name in get_suite("demo-new").tasks()}
    assert {tag.partition("/")[0] for tag in tags if tag.endswith("/budget_share")} == {"episode", *families}


class Halved(FlattenExtractor):
    """An extractor that would be lost without a trace: the network behind it has the same shape."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations) / 2


def test_what_a_bundle_would_lose_is_refused() -> None:
    for match, options in {
        "Softsign.*accepted are linear layers": {"activation_fn": nn.Softsign},
        "a Halved: it takes the observation itself": {"features_extractor_class": Halved},
    }.items():
        model, knobs = small_model(**options)  # type: ignore[arg-type]
        with pytest.raises(LoopwrightError, match=match):
            extract_policy(model, knobs, LoopPlan())
    model, knobs = small_model()
    model.policy.mlp_extractor.policy_net[1] = nn.LeakyReLU(0.5)  # of the right kind, with another slope
    with pytest.raises(LoopwrightError, match=r"LeakyReLU\(negative_slope=0.5\)"):
        extract_policy(model, knobs, LoopPlan())


def test_a_bundle_is_proved_on_random_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    model, knobs = small_model()
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda seen, **options: predict(seen[:, ::-1].copy(), **options))
    with pytest.raises(LoopwrightError, match="on random observations it acts otherwise"):
        extract_policy(model, knobs, LoopPlan())


@pytest.mark.slow
def test_every_advertised_algorithm_trains(tmp_path: Path) -> None:
    options: dict[str, dict[str, object]] = {
        "PPO": SMALL_PPO, "MaskablePPO": SMALL_PPO, "RecurrentPPO": SMALL_PPO, "A2C": {"n_steps": 8},
        "TRPO": {"n_steps": 16, "batch_size": 32},
        "ARS": {"n_delta": 2, "n_eval_episodes": 1},
    }  # fmt: skip
    for algorithm in (*ALGORITHMS, *CONTRIB_ALGORITHMS):
        own = options.get(algorithm, {"learning_starts": 8})
        config = TrainingConfig(algorithm=algorithm, steps=64, options=own, **TINY)
        bundle = train(config, tmp_path / algorithm, show_progress=False, settings=QUICK)
        assert bundle.training["algorithm"] == algorithm
        assert load_policy(tmp_path / algorithm / "policy.safetensors").fingerprint == bundle.fingerprint


def test_a_training_computes_in_as_many_threads_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, unless told otherwise: two wait for each other, and for whatever else the machine does."""
    seen: set[int] = set()
    step = TrainingCallback._on_step

    def spy(self: TrainingCallback) -> bool:
        seen.add(torch.get_num_threads())
        return step(self)

    monkeypatch.setattr(TrainingCallback, "_on_step", spy)
    before = torch.get_num_threads()
    for threads in (1, 2):
        config = TrainingConfig(steps=64, options=SMALL_PPO, **TINY, **({} if threads == 1 else {"threads": 2}))
        with limit_threads(3 - threads):
            train(config, tmp_path / str(threads), show_progress=False, settings=QUICK)
            assert torch.get_num_threads() == 3 - threads
        assert seen == {threads}
        seen.clear()
    assert torch.get_num_threads() == before


def test_a_bundle_says_how_it_was_trained(tmp_path: Path) -> None:
    config = TrainingConfig(steps=64, options={**SMALL_PPO, "gamma": 0.9}, rate_spread=0.5, **TINY)
    train(config, tmp_path, show_progress=False, settings=QUICK)
    made = load_policy(tmp_path / "policy.safetensors").training
    assert (made["suite"], made["seed"], made["rate_spread"]) == ("demo-new", 0, 0.5)
    assert made["options"]["gamma"] == made["settings"]["discount"] == 0.9
    assert {"microbatch", "ticks_per_decision", "guard"} <= made["settings"].keys()


def test_a_policy_gives_no_weight_to_what_was_hidden_from_it(tmp_path: Path) -> None:
    config = TrainingConfig(steps=64, options=SMALL_PPO, hidden=("price_*", "passes"), **TINY)
    policy = train(config, tmp_path, show_progress=False, settings=QUICK)
    seen = [name for name, used in zip(OBSERVATION_NAMES, policy.network[0].weight.any(dim=0), strict=True) if used]
    unseen = [name for name in OBSERVATION_NAMES if name == "passes" or name.startswith("price_")]
    assert len(unseen) == 5
    assert seen == [name for name in OBSERVATION_NAMES if name not in unseen]
    assert policy.training["hidden"] == ["price_*", "passes"]
    with pytest.raises(
        UnknownNameError, match=r"unknown feature 'cost_\*'; known: feedback, context, prices, train_prog"
    ):
        TrainingConfig(hidden=("cost_*",))


def test_the_blind_agent_sees_budget_and_decisions_alone() -> None:
    hidden = find_hidden(TrainingConfig(**PRESETS["blind"]).hidden)
    seen = [name for position, name in enumerate(OBSERVATION_NAMES) if position not in hidden]
    assert seen == ["decisions", "budget_given", "budget_left", "budget_passes"]
    assert find_hidden(["prices", "prices_given"]) == find_hidden(["prices_given", "price_*"])


def test_what_is_hidden_is_zero_in_every_observation() -> None:
    envs = SB3VecEnv(
        TrainingLoopVectorEnv(2, tasks=["breast-cancer:1"], settings=QUICK, autoreset_mode="SameStep"), hidden=[0, 5]
    )
    observations = [envs.reset()]
    last = []
    for _ in range(12):
        envs.step_async(np.tile([knob.still for knob in envs.envs.knobs.knobs], (2, 1)))
        observation, _, _, infos = envs.step_wait()
        observations.append(observation)
        last += [info["terminal_observation"] for info in infos if "terminal_observation" in info]
    assert last
    for seen in (*observations, np.stack(last)):
        assert not seen[:, [0, 5]].any()
        assert seen[:, OBSERVATION_NAMES.index("budget_given")].all()


def test_a_discrete_policy_moves_a_knob_by_its_mean_step() -> None:
    knobs = KnobSet("lr+batch")
    network = torch.nn.Sequential(torch.nn.Linear(len(OBSERVATION_NAMES), 10))
    torch.nn.init.zeros_(network[0].weight)
    chances = [[0.0, 0.3, 0.0, 0.5, 0.0, 0.2, 0.0], [0.1, 0.3, 0.6]]
    network[0].bias.data = torch.tensor([*chances[0], *chances[1]]).clamp(min=1e-9).log()
    bundle = Policy(network, knobs, LoopPlan())
    steps = bundle.steps(np.zeros((1, len(OBSERVATION_NAMES)), np.float32))
    assert steps[0, 0].item() == pytest.approx(-0.1 * math.log(2), rel=1e-4)
    assert steps[0, 1].item() == 1.0  # batch takes whole rungs: the most probable one
    assert bundle.act(np.zeros((1, len(OBSERVATION_NAMES)), np.float32)).tolist() == [[3, 2]]


def test_before_training_every_knob_mostly_stands_still() -> None:
    envs = TrainingLoopVectorEnv(2, tasks=["breast-cancer:1"], settings=QUICK, knobs="all", autoreset_mode="SameStep")
    model = PPO("MlpPolicy", SB3VecEnv(envs), seed=0, device="cpu", n_steps=4, batch_size=8)
    prefer_standing_still(model, envs.knobs)
    observation = torch.randn(64, len(OBSERVATION_NAMES))
    chosen = model.policy.get_distribution(observation).distribution
    for knob, own in zip(envs.knobs.knobs, chosen, strict=True):
        assert own.probs[:, knob.still].tolist() == pytest.approx([STANDING_STILL] * 64, abs=0.02)


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    first = TrainingConfig(steps=64, options=SMALL_PPO, **TINY)
    with pytest.raises(LoopwrightError, match="nothing to resume"):
        train(first, tmp_path / "no", resume=True)
    train(first, tmp_path, show_progress=False, settings=QUICK)
    with pytest.raises(LoopwrightError, match="already holds a training"):
        train(first, tmp_path)
    more = TrainingConfig(steps=192, options=SMALL_PPO, **TINY)
    bundle = train(more, tmp_path, resume=True, show_progress=False, settings=QUICK)
    assert bundle.training["decisions"] == 192
    with pytest.raises(LoopwrightError, match="another configuration"):
        train(TrainingConfig(steps=192, seed=5, options=SMALL_PPO, **TINY), tmp_path, resume=True)


def test_the_same_seed_trains_the_same_policy(tmp_path: Path) -> None:
    config = TrainingConfig(steps=128, options=SMALL_PPO, **TINY)
    one, two = (train(config, tmp_path / name, show_progress=False, settings=QUICK) for name in "ab")
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown algorithm 'DQN2'; known: PPO"):
        TrainingConfig(algorithm="DQN2")
    with pytest.raises(LoopwrightError, match="lanes must be 1 or more, got 0"):
        TrainingConfig(lanes=0)
    with pytest.raises(LoopwrightError, match="SAC needs action='box', got 'discrete'"):
        TrainingConfig(algorithm="SAC", action="discrete")
    with pytest.raises(LoopwrightError, match="MaskablePPO needs action='discrete' or 'flat', got 'box'"):
        TrainingConfig(algorithm="MaskablePPO", action="box")
    with pytest.raises(LoopwrightError, match="CrossQ cannot be trained here: its actor has batch normalisation"):
        TrainingConfig(algorithm="CrossQ")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    config = TrainingConfig(steps=64, options=SMALL_PPO, **TINY)
    train(config, tmp_path, show_progress=False, settings=QUICK)
    return tmp_path / "policy.safetensors"


def test_a_bundle_controls_runs(bundle: Path, small_task: Task) -> None:
    records = run_controller(load_policy(bundle), [small_task], [1, 2], QUICK)
    assert {r.method for r in records} == {"agent"}
    assert all(0 < r.cost <= r.budget for r in records)


def rewrite(path: Path, change_card: dict[str, object]) -> None:
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["card"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"card": json.dumps({**card, **change_card})})


def test_a_truncated_bundle_is_refused(bundle: Path) -> None:
    content = bundle.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        bundle.write_bytes(content[:length])
        with pytest.raises(BundleError, match="not a readable policy bundle"):
            load_policy(bundle)


def test_a_tampered_bundle_is_refused(bundle: Path) -> None:
    content = bytearray(bundle.read_bytes())
    content[-5] ^= 0x40
    bundle.write_bytes(bytes(content))
    with pytest.raises(BundleError, match="altered"):
        load_policy(bundle)


def test_an_altered_card_is_refused(bundle: Path) -> None:
    rewrite(bundle, {"knobs": "clip"})
    with pytest.raises(BundleError, match="altered"):
        load_policy(bundle)
    known = ", ".join(list_policies())
    assert known.startswith("adamw, all, clip, core, loop")
    with pytest.raises(
        BundleError, match=rf"no bundle at .*nothing; the policies that come with the package are {known}$"
    ):
        load_policy(bundle.with_name("nothing"))


def test_a_bundle_of_another_observation_version_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwright.agents.controllers.bundle.OBSERVATION_VERSION", 99)
    with pytest.raises(BundleError, match=f"made for observation version {OBSERVATION_VERSION}"):
        load_policy(bundle)


@pytest.mark.parametrize(
    "name", [name for name in list_policies() if "lr" in [knob.name for knob in load_policy(name).knobs.knobs]]
)
def test_a_shipped_policy_finds_the_learning_rate(name: str) -> None:
    """From a hundredth of the tuned learning rate it hits nearly always, where what it started from never does."""
    policy = load_policy(name)
    assert policy.fingerprint == load_policy(SHIPPED / f"{name}.safetensors").fingerprint
    far = replace(policy, start=replace(policy.start, learning_rate=policy.start.learning_rate / 100))
    reachable = {"lr-momentum": "parity:100000"}  # without a knob for decay or averaging, which the other task needs
    task, seeds = get_task(reachable.get(name, "digits-mlp:100000")), range(4)
    assert not any(run.hit for run in run_controller(Constant(far.start), [task], seeds))
    assert sum(run.hit for run in run_controller(far, [task], seeds)) >= 3


def test_the_shipped_threshold_of_clipping_copes_with_gross_errors_among_labels() -> None:
    """On a task where the best fixed threshold hits one run in ten."""
    policy, task, seeds = load_policy("clip"), get_task("outliers:100000"), range(4)
    assert sum(run.hit for run in run_controller(Constant(policy.start), [task], seeds)) <= 1
    assert all(run.hit for run in run_controller(policy, [task], seeds))


def test_the_shipped_structure_of_the_loop_needs_less_than_a_static_one() -> None:
    policy, task, seeds = load_policy("loop"), get_task("coordinates:100000"), range(4)
    static = [run.cost for run in run_controller(Constant(policy.start), [task], seeds)]
    assert sum(run.cost for run in run_controller(policy, [task], seeds)) < 0.9 * sum(static)


def test_saving_again_changes_nothing(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    save_policy(load_policy(bundle), copy)
    first, second = load_policy(bundle), load_policy(copy)
    assert isinstance(first, Policy)
    assert first.start == second.start
    assert first.training == second.training
    observation = torch.randn(4, len(OBSERVATION_NAMES))
    assert (first.act(observation.numpy()) == second.act(observation.numpy())).all()
