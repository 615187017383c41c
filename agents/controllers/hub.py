"""Policies on the Hugging Face Hub: a bundle and a card that says what it is, in a repository. An extra, ``hub``."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loopwright.agents.controllers.bundle import load_policy, save_policy
from loopwright.agents.controllers.policy import Policy
from loopwright.envs.loop.errors import BundleError, LoopwrightError
from loopwright.envs.loop.extras import import_extra

FILE_NAME, CARD_NAME = "policy.safetensors", "README.md"
_CARD = """---
library_name: loopwright
tags: [reinforcement-learning, hyperparameter-optimization, gymnasium]
---

# A tuning policy

Trained with Loopwright to steer training runs. It moves {knobs}, by {action} actions, and is to start from {start}.

```python
import loopwright

policy = loopwright.load_from_hub("{repository}")
```

| it was trained with | |
|---|---|
{training}
"""


def push_to_hub(policy: Policy, repository: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a policy's bundle and a card to ``repository``, ``user/name``, which is made where there is none.

    ``token`` is that of the account; by default the one that ``huggingface_hub`` finds. Returns the address of the
    commit. Raises ``LoopwrightError`` where the extra is missing or the upload fails.
    """
    hub = import_extra("huggingface_hub", "hub")
    card = _write_card(policy, repository)
    with TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAME
        save_policy(policy, path)
        files = {FILE_NAME: path.read_bytes(), CARD_NAME: card.encode()}
    operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    api = hub.HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.create_commit(repository, operations, commit_message="Upload a policy").commit_url)
    except Exception as problem:  # of which kind depends on what it talks to the network with
        raise LoopwrightError(f"cannot upload to {repository}: {problem}") from problem


def load_from_hub(repository: str, *, revision: str | None = None, token: str | None = None) -> Policy:
    """The policy in ``repository``, ``user/name``, at a branch, tag or commit. Loading it executes no code.

    Raises ``BundleError`` where it cannot be had, and as ``load_policy`` does.
    """
    hub = import_extra("huggingface_hub", "hub")
    try:
        path = hub.hf_hub_download(repository, FILE_NAME, revision=revision, token=token)
    except (OSError, ValueError) as problem:
        raise BundleError(f"cannot load {FILE_NAME} from {repository}: {problem}") from problem
    return load_policy(Path(path))


def _write_card(policy: Policy, repository: str) -> str:
    described: dict[str, Any] = policy.describe()
    entries = {**described["training"], "observation version": described["observation_version"]}
    return _CARD.format(
        repository=repository,
        knobs=", ".join(knob.name for knob in policy.knobs.knobs),
        action=policy.knobs.action,
        start=", ".join(f"{name} {value}" for name, value in described["start"].items()),
        training="\n".join(f"| {name} | `{value}` |" for name, value in entries.items()),
    )
