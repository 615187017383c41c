"""Steering inside the trainers of other libraries, against the libraries themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*left as they are"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*"),
]
SAMPLES = 256


def make_policy() -> Policy:
    """One that was never trained, and moves every knob."""
    knobs = KnobSet("core")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build_network([len(OBSERVATION_NAMES), 32, sum(knobs.choices)], "tanh")
    return Policy(network, knobs, LoopPlan(), training={"settings": {"ticks_per_decision": 16}})


class TestHuggingFace:
    @pytest.fixture
    def transformers(self) -> Any:
        return pytest.importorskip("transformers")

    def make(self, transformers: Any, folder: Path, **arguments: Any) -> Any:
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
        )
        tokens = torch.randint(0, 32, (SAMPLES, 16), generator=torch.Generator().manual_seed(0))
        data = [{"input_ids": row, "labels": row} for row in tokens]
        defaults = {
            "output_dir": str(folder), "max_steps": 48, "per_device_train_batch_size": 8, "report_to": [],
            "lr_scheduler_type": "constant", "learning_rate": 1e-3, "use_cpu": True, "logging_steps": 16,
            "save_strategy": "no", "disable_tqdm": True, "max_grad_norm": 1.0,
        }  # fmt: skip
        return transformers.Trainer(
            model, transformers.TrainingArguments(**defaults | arguments), train_dataset=data, eval_dataset=data[:32]
        )

    def attach(self, trainer: Any, **options: Any) -> Any:
        from loopwright.agents.steering.callbacks.huggingface import HuggingFaceSteering

        callback = HuggingFaceSteering(trainer, make_policy(), prices=None, **options)
        trainer.add_callback(callback)
        return callback

    def test_it_decides_and_its_plan_is_in_the_logs(self, transformers: Any, tmp_path: Path) -> None:
        trainer = self.make(transformers, tmp_path, eval_strategy="steps", eval_steps=16)
        callback = self.attach(trainer, ledger=tmp_path / "run.jsonl")
        trainer.train()
        assert callback.steering.decisions == 3
        logged = [entry for entry in trainer.state.log_history if "steering/learning_rate" in entry]
        assert [entry["steering/decisions"] for entry in logged] == [1, 2, 3]
        assert len({entry["steering/learning_rate"] for entry in logged}) > 1
        assert callback.steering._control is not None  # the evaluations' loss
        assert trainer.args.max_grad_norm == 1.0
        assert trainer.compute_loss.__func__ is transformers.Trainer.compute_loss

    def test_the_constant_schedule_does_not_set_the_rate_back(self, transformers: Any, tmp_path: Path) -> None:
        trainer = self.make(transformers, tmp_path, max_steps=40)
        callback = self.attach(trainer)
        rates: list[tuple[float, float]] = []

        class Watch(transformers.TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step:  # what is decided before the first update is decided in it
                    rates.append((kwargs["optimizer"].param_groups[0]["lr"], callback.steering.plan["learning_rate"]))

        trainer.add_callback(Watch())
        trainer.train()
        held, planned = zip(*rates, strict=True)
        assert held == pytest.approx(planned)
        assert held[0] != pytest.approx(1e-3)
        assert len(set(planned)) > 2

    def test_advice_changes_nothing(self, transformers: Any, tmp_path: Path) -> None:
        plain, advised = (self.make(transformers, tmp_path / name) for name in ("a", "b"))
        callback = self.attach(advised, advise=True)
        for trainer in (plain, advised):
            torch.manual_seed(0)  # of dropout
            trainer.train()
        assert callback.steering.decisions == 3
        for one, other in zip(plain.model.parameters(), advised.model.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_gradients_are_gathered_before_an_update(self, transformers: Any, tmp_path: Path) -> None:
        trainer = self.make(transformers, tmp_path, gradient_accumulation_steps=2, max_steps=16)
        callback = self.attach(trainer)
        trainer.train()
        assert callback.steering.updates == 16
        assert callback.steering.decisions == 1

    def test_a_resumed_training_goes_on_exactly(self, transformers: Any, tmp_path: Path) -> None:
        whole = self.make(transformers, tmp_path / "whole", save_strategy="steps", save_steps=20)
        self.attach(whole)
        whole.train()
        again = self.make(transformers, tmp_path / "whole", save_strategy="steps", save_steps=20)
        callback = self.attach(again)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-20"))
        assert callback.steering.decisions == 3
        for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(one, other)
        (tmp_path / "whole" / "checkpoint-20" / "steering.pt").unlink()  # as where it was killed before it was written
        anew = self.make(transformers, tmp_path / "whole")
        self.attach(anew)
        with pytest.warns(UserWarning, match=r"steering begins at step 20: the checkpoint has no .*steering\.pt"):
            anew.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-20"))

    def test_another_schedule_is_refused(self, transformers: Any, tmp_path: Path) -> None:
        trainer = self.make(transformers, tmp_path, lr_scheduler_type="cosine")
        self.attach(trainer)
        with pytest.raises(LoopwrightError, match=r"constant.*cosine"):
            trainer.train()


class TestLightning:
    @pytest.fixture
    def lightning(self) -> Any:
        return pytest.importorskip("lightning.pytorch")

    def make(self, lightning: Any, schedule: bool = False) -> Any:
        torch.manual_seed(0)

        class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 2))

            def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
                return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
                if not schedule:
                    return optimizer
                return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

        return Module()

    def loader(self) -> Any:
        inputs = torch.randn(SAMPLES, 20, generator=torch.Generator().manual_seed(0))
        data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
        return torch.utils.data.DataLoader(data, batch_size=8)

    def train(self, lightning: Any, module: Any, callback: Any, folder: Path, **options: Any) -> Any:
        resume = options.pop("ckpt_path", None)
        defaults = {
            "max_steps": 64, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False, "gradient_clip_val": 1.0,
            "default_root_dir": str(folder),
        }  # fmt: skip
        trainer = lightning.Trainer(callbacks=callback, **defaults | options)
        trainer.fit(module, self.loader(), self.loader(), ckpt_path=resume)
        return trainer

    def callback(self, **options: Any) -> Any:
        from loopwright.agents.steering.callbacks.lightning import LightningSteering

        return LightningSteering(make_policy(), prices=None, **options)

    def test_it_decides_and_its_plan_is_in_the_logs(self, lightning: Any, tmp_path: Path) -> None:
        from lightning.pytorch.loggers import CSVLogger

        callback = self.callback()
        logger = CSVLogger(str(tmp_path))
        trainer = self.train(lightning, self.make(lightning), callback, tmp_path, logger=logger, log_every_n_steps=16)
        assert callback.steering.decisions == 4
        assert callback.steering._control is not None
        assert "steering/learning_rate" in trainer.logged_metrics
        assert trainer.gradient_clip_val == 1.0
        assert "steering/learning_rate" in Path(logger.experiment.metrics_file_path).read_text()

    def test_advice_changes_nothing(self, lightning: Any, tmp_path: Path) -> None:
        plain, advised = self.make(lightning), self.make(lightning)
        self.train(lightning, plain, None, tmp_path)
        callback = self.callback(advise=True)
        self.train(lightning, advised, callback, tmp_path)
        assert callback.steering.decisions == 4
        for one, other in zip(plain.parameters(), advised.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_gradients_are_gathered_before_an_update(self, lightning: Any, tmp_path: Path) -> None:
        callback = self.callback()
        self.train(lightning, self.make(lightning), callback, tmp_path, accumulate_grad_batches=2, max_steps=16)
        assert (callback.steering.updates, callback.steering.decisions) == (16, 1)

    def test_a_resumed_training_goes_on_exactly(self, lightning: Any, tmp_path: Path) -> None:
        from lightning.pytorch.callbacks import ModelCheckpoint

        whole, rest = self.make(lightning), self.make(lightning)
        options = {"max_steps": 60, "limit_val_batches": 0}
        saving = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=32, save_top_k=-1)
        self.train(lightning, whole, [self.callback(), saving], tmp_path, enable_checkpointing=True, **options)
        callback = self.callback()
        half = str(tmp_path / "half.ckpt")
        self.train(lightning, rest, callback, tmp_path, ckpt_path=half, **options)
        assert callback.steering.decisions == 3
        for one, other in zip(whole.parameters(), rest.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_a_schedule_is_refused(self, lightning: Any, tmp_path: Path) -> None:
        with pytest.raises(LoopwrightError, match="scheduler"):
            self.train(lightning, self.make(lightning, schedule=True), self.callback(), tmp_path)
