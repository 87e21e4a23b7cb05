"""R3Trainer: what a script hands over -> a training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from r3_rl import ranks
from r3_rl.policy.adapters import adapter_merged, attach
from r3_rl.policy.base import Policy
from r3_rl.rollout.engine import Stopwatch
from r3_rl.scoring.panel import Panel
from r3_rl.stages.protocol import PROTOCOLS
from r3_rl.stages.settings import LoopSettings
from r3_rl.training.arguments import Scorer, free_layers, panel_of, refuse, schedule_of, stream_of, teacher_of
from r3_rl.training.batcher import Batcher
from r3_rl.training.callbacks import FlowCallback, TrackerCallback
from r3_rl.training.checkpoint import save_weights
from r3_rl.training.engines import learner_of
from r3_rl.training.from_trl import adapter_of, config_of
from r3_rl.training.guarding import GuardCallback
from r3_rl.training.loop import Loop
from r3_rl.training.schedules import AboutNodes, AskedNodes, Collected, SyntheticNodes
from r3_rl.training.self_check import SelfCheck, self_check
from r3_rl.training.teaching import Examples


class R3Trainer(Loop):
    """Trains a policy with R3. Constructor order and names are TRL's GRPOTrainer's.

    Args:
        model: a `Policy` (its module is trained).
        reward_funcs: what is trained on: a panel, or one or several scorers, each a function that is called as TRL
            calls reward functions or a scorer's name (`shapes`, `trl:think_format_reward`, `./file.py:name`).
        args: `R3Config`, or TRL's `GRPOConfig`.
        train_dataset: prompts: a `datasets.Dataset` with a column `prompt`, a list, or the `PromptStream` of a world.
        eval_dataset: must be None; evaluation of the loop lies in `r3_rl.evaluate`.
        processing_class: the loop's settings (templates, sampling, drawing): what a tokenizer is to a text trainer.
        callbacks: transformers' `TrainerCallback`s. A step has no epochs: `on_epoch_*` and `on_substep_end` never come.
        optimizers: an optimiser and a schedule of your own; None makes those of `args`.
        peft_config: `peft.LoraConfig` or `AdapterSettings`; None trains what has a
            gradient already, of a model that is loaded frozen the decoder's layers (full weights).
        eval_reward_funcs: held-out panel, scored and logged, never in the loss.
        base_fingerprint: of the base's folder, kept beside every saved adapter.
        synthetic: nodes that a world draws itself.
        questions: given images, each with a question for a prompt, whose column `answer` is the right answer (or a list
            of right ones), and `match` the rule (`stages.answer_rules`); for `answer_share`.
        about: the same about images that the policy drew, for `answer_own_share`.
        examples: (task, count, seed) -> right examples, for `supervised`.
        on_collected: called with every step's rollouts (recording).

    Raises InputError for arguments that contradict each other.
    """

    def __init__(
        self,
        model: Policy,
        reward_funcs: Panel | str | Scorer | Sequence[str | Scorer],
        args: Any,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: LoopSettings | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        *,
        eval_reward_funcs: Panel | None = None,
        base_fingerprint: str = "",
        synthetic: SyntheticNodes | None = None,
        questions: AskedNodes | None = None,
        about: AboutNodes | None = None,
        examples: Examples | None = None,
        on_collected: Callable[[int, Collected], None] | None = None,
    ) -> None:
        args, adapter = config_of(args), adapter_of(peft_config)
        refuse(model, args, eval_dataset, adapter)
        panel = reward_funcs if isinstance(reward_funcs, Panel) else panel_of(reward_funcs, args)
        prompts = stream_of(train_dataset, args, model.tokenizer)
        self.loop = processing_class or LoopSettings(protocol=PROTOCOLS["compact"])
        if adapter is not None:
            attach(model.module, adapter, model.spec.branches, seed=args.seed)
        elif not any(parameter.requires_grad for parameter in model.module.parameters()):
            free_layers(model)
        learner = learner_of(model, args, optimizers)
        watch, self.guards = Stopwatch(), GuardCallback()
        super().__init__(
            policy=model,
            learner=learner,
            args=args,
            panel=panel,
            held_out=eval_reward_funcs,
            prompts=prompts,
            schedule=schedule_of(model, panel, self.loop, args, synthetic, questions, about, watch=watch),
            batcher=Batcher(policy=model, token_budget=args.token_budget, drawing=self.loop.draft.drawing),
            watch=watch,
            base_fingerprint=base_fingerprint,
            callbacks=[
                FlowCallback(),
                self.guards,
                *([] if args.disable_tqdm else [ProgressCallback()]),
                *([TrackerCallback(args.report_to)] if args.report_to else []),
                *(callbacks or []),
            ],
            teacher=teacher_of(args, examples),
            on_collected=on_collected,
        )
        self.checked: SelfCheck | None = None

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Call it after the others."""
        self.handler.add_callback(callback)

    def pop_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> TrainerCallback | None:
        """Take a callback, or the first one of a class, away and return it."""
        return self.handler.pop_callback(callback)  # type: ignore[no-any-return]

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Take a callback, or the first one of a class, away."""
        self.handler.remove_callback(callback)

    def self_check(self) -> SelfCheck:
        """Proves the ratio and the gradient on two rollouts of every stage; to be called before `train`."""
        self.checked = self_check(
            self.policy,
            self.prompts.batch(0),
            self.loop,
            seed=self.args.seed,
            rollout=adapter_merged(self.policy.module),
            learner=self.learner,
            batcher=self.updater.batcher,
        )
        return self.checked

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the adapter in PEFT's layout, or the full weights, into a folder (`args.output_dir` by default)."""
        if ranks.rank() == 0:
            folder = Path(output_dir or self.args.output_dir)
            save_weights(self.policy.module, folder, fingerprint=self.base_fingerprint)

    def push_to_hub(self, commit_message: str = "End of training", **options: Any) -> str | None:
        """Upload what `save_model` writes to `args.hub_model_id`; return the address, on the first process only.

        Args:
            commit_message: of the commit.
            options: `token` and `private`, as `huggingface_hub.HfApi` takes them.
        """
        if ranks.rank():
            return None
        from huggingface_hub import HfApi

        api = HfApi(token=options.get("token"))
        name = self.args.hub_model_id or Path(self.args.output_dir).name
        repository = api.create_repo(name, private=options.get("private"), exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_model(folder)
            api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=commit_message)
        return str(repository)

    def close(self) -> None:
        """Ends the scorers' threads."""
        self.panel.close()
        if self.held_out is not None:
            self.held_out.close()
