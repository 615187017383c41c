"""The environment's page: its documentation, with tables that follow from the knobs and features there are."""

from loopwright.envs.loop.averages import HALF_LIVES
from loopwright.envs.loop.knob_set import KNOB_SETS
from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.observation import FEATURES, OBSERVATION_VERSION

TEMPLATE = """
## Description

An inner training run, controlled while it runs. The agent watches loss and gradient statistics and rewrites the
loop: its hyperparameters, and its structure (batch size, gradient paths over layers and samples, the order of data
and of updates). It is rewarded for bringing the loss on data it never sees down to the task's target with little
computation. Each episode draws a task (data, network, initial weights) from a suite, so that what is learnt is a
tuning *policy* rather than a schedule.

One step, a *decision*, trains for ``ticks_per_decision`` microbatches under one plan.

## Action Space

One dimension per knob of the knob set. By default `MultiDiscrete`: each entry picks one of the knob's steps, the
one of step 0 leaves it alone. With `action="box"`, `Box(-1, 1)`: the step as a fraction of the largest. With
`action="flat"`, `Discrete`, for algorithms such as DQN: 0 moves nothing, every other action one knob by one of its
steps. `action_masks()` says which choices would change anything, for sb3-contrib's MaskablePPO.

{knobs}

Registered knob sets: {sets}.

## Observation Space

`Box(-5, 5, float32)`, clipped there. L is the mean training loss of the last decision, V the loss on the last
control batch (where there is no control split, L), V0 that before training; v the running average of log V (fast);
G the gradient of an update, m the momentum, d the step before, H the Hessian and P the optimizer's metric. Running
averages have half-lives of {half_lives} decisions. *Blind to*: multiplying the
loss by a constant ("scale"), or adding one as well ("affine"), changes nothing.

{features}
| `brought_...` | what the last change of each knob brought (`envs.loop.changes`) | any | scale |
| `plan_...` | where each knob stands between its bounds, in the order above | -1 to 1 | |

## Cost

Counted in geq: the measured FLOPs of forward and backward over one sample are 1. A frozen prefix costs no backward
pass; keeping a share of a microbatch costs a forward pass over all of it; looks at the control split are charged,
and what a rollback or the guard throws away stays charged. An update costs what the price list says (`prices`,
`envs.engine.prices`), by optimizer, and the budget is priced alike.

## Rewards

Chosen by `settings.reward` (`envs.episode.reward.REWARDS`). "time": 1 on a hit, less the share of the budget spent,
so that an episode that hits returns 1 - the share it used, and any other -1. "progress": the same, shaped by a
potential, the progress towards the target counted in the cost at which the task's best static configuration gets as
far; `settings.discount` is what the shaping discounts by. "log-progress": that with the bill in logarithms, so that
halving a cost is worth as much wherever it stands, which is how costs are compared. "anytime": the mean progress over
the budget.

## Guard

When a loss, gradient or step is not finite, or the loss or the gradient norm jumps far above its average, the run
is brought back to its last good snapshot and the learning rate halved, `settings.guard` times an episode at most
(`envs.loop.guard`). It shows in the observation (`restored`, `guard_left`), in `info["verdict"]` and in the ledger.

## Starting State

Freshly initialised weights and the starting ``plan``. The control split has been looked at once.

## Episode End

*Terminated* when the target-split loss stays at or below the target for two decisions (`outcome` "hit"), when the
budget is spent ("miss": the budget is part of what is observed, hence no truncation), or when the guard gives up
or, with the guard off, the loss is no longer finite ("diverged", which costs the rest of the budget). Truncated
only by `max_episode_steps`.

## Information

`task`, `outcome`, `cost` and `budget` (geq: gradient equivalents, one forward and backward pass over one sample),
`loss` and `metric` on the target split (the harness's, not for the agent; NaN at `reset`), `verdict` of the guard, and
`plan`, a dict of its fields. `outcome_code` and `verdict_code` are the same as numbers: running, hit, miss, diverged
from 0 on; fine, not finite, loss spike, gradient spike.

## Arguments

| parameter | type | default | description |
|---|---|---|---|
| `suite` | str | "train" | suite that tasks are drawn from |
| `tasks` | name, `Task`, or list of them | None | draw from these instead |
| `knobs` | str | "all" | a knob set, or knob names joined by "+" |
| `action` | str | "discrete" | or "box", or "flat" |
| `plan` | LoopPlan or mapping | LoopPlan() | the starting plan |
| `spread` | Spread or mapping | Spread() | how far around that plan episodes start (`envs.sampling.Spread`) |
| `prices` | str, mapping or PriceList | "gradients" | what an update costs: "gradients", "measured", "drawn" |
| `withheld` | float | 0.0 | chance with which each source is withheld: control split, target, budget, size, prices |
| `open_runs` | float | 0.0 | chance of a run without a target, for a quarter of C* to C* (`envs.episode.reward`) |
| `plain_runs` | float | 0.0 | chance of a start around torch's AdamW, its optimizer and batch size held |
| `settings` | EpisodeSettings or mapping | EpisodeSettings() | microbatch, ticks per decision, budget, reward, guard |
| `ledgers` | path | None | folder for an audit log per episode (`envs.loop.ledger`) |
| `texts` | bool | True | False leaves out of `info` what is no number, and gives `plan` as numbers (for TorchRL) |
| `render_mode` | str | None | "rgb_array" draws the run so far, "ansi" says it |

``reset(options=dict(task=name))`` chooses the task of one episode.

## Vectorized environment

`gymnasium.make_vec(id, num_envs=64)` gives `TrainingLoopVectorEnv`, which trains all runs in one batch, at many
times the speed of as many separate environments; it takes `autoreset_mode` as well.

## Version History

* v0: initial version. Observation version {version}: a saved policy fits one version only.
"""


def write_page() -> str:
    knobs = ["| knob | moves; by; between | source |", "|---|---|---|"]
    knobs += [f"| `{knob.name}` | {knob.about} | {knob.source} |" for knob in KNOBS.values()]
    features = ["| name | formula | range | blind to |", "|---|---|---|---|"]
    features += ["| `{}` | {} | {} | {} |".format(f.name, f.formula.replace("|", r"\|"), *f[2:]) for f in FEATURES]
    return TEMPLATE.format(
        knobs="\n".join(knobs),
        features="\n".join(features),
        sets="; ".join(f"`{name}` ({', '.join(members)})" for name, members in KNOB_SETS.items()),
        half_lives=", ".join(f"{value:g} ({name})" for name, value in HALF_LIVES.items()),
        version=OBSERVATION_VERSION,
    )
