"""R3Trainer: rollouts, rewards and losses of R3 on transformers' Trainer.

Optimiser, schedule, precision, checkpoints, resume and callbacks are Trainer's. A step reads: collect -> accumulate ->
balance -> step -> record.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from r3_rl import ranks
from r3_rl.balance.gradients import Balancer
from r3_rl.errors import RunError
from r3_rl.observe.environment import peak_bytes
from r3_rl.observe.metrics import Numbers, combine
from r3_rl.policy.adapters import adapted_layers, adapter_dropout, attach
from r3_rl.policy.backbone import GENERATION
from r3_rl.policy.base import Policy
from r3_rl.policy.lora import drops
from r3_rl.rollout.stopwatch import Stopwatch
from r3_rl.scoring.panel import Panel
from r3_rl.stages.protocol import PROTOCOLS
from r3_rl.stages.settings import LoopSettings
from r3_rl.training.arguments import Scorer, losses_of, panel_of, refuse, refuse_training, schedule_of, stream_of
from r3_rl.training.batcher import Batcher
from r3_rl.training.callbacks import TimeBudgetCallback
from r3_rl.training.checkpoint import load_pool, load_weights, save_pool, save_weights, writing
from r3_rl.training.config import R3Config
from r3_rl.training.credit import Credit
from r3_rl.training.fast import fast_update, fast_weights
from r3_rl.training.from_trl import adapter_of
from r3_rl.training.held import Held, Steps, alone
from r3_rl.training.rates import ending_in_time, over_epsilon_of, set_branch_rate
from r3_rl.training.schedules import Collected, SyntheticNodes
from r3_rl.training.self_check import SelfCheck, self_check
from r3_rl.training.sharded import handed_over, keep_gradient
from r3_rl.training.shards import Shards
from r3_rl.training.update import DEVIATIONS, accumulate, step_sizes
from r3_rl.types import TextSegment, Verdict


class R3Trainer(Trainer):
    """Trains a policy with R3. Constructor order and names are TRL's GRPOTrainer's.

    Args:
        model: a `Policy` (its module is trained).
        reward_funcs: what is trained on: a panel, or one or several scorers called as TRL calls reward functions.
        args: `R3Config`.
        train_dataset: prompts: a `datasets.Dataset` with a column `prompt`, a list, or the `PromptStream` of a world.
        eval_dataset: must be None; evaluation of the loop lies in `r3_rl.evaluate`.
        processing_class: the loop's settings (templates, sampling, drawing): what a tokenizer is to a text trainer.
        callbacks, optimizers: as in Trainer.
        peft_config: `peft.LoraConfig` or `AdapterSettings`; None trains the full weights.
        eval_reward_funcs: held-out panel, scored and logged, never in the loss.
        base_fingerprint: of the base's folder, kept beside every saved adapter.
        synthetic: nodes that a world draws itself.
        on_collected: called with every step's rollouts (recording).

    Raises InputError for arguments that contradict each other.
    """

    args: R3Config

    def __init__(
        self,
        model: Policy,
        reward_funcs: Panel | Scorer | Sequence[Scorer],
        args: R3Config,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: LoopSettings | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        *,
        eval_reward_funcs: Panel | None = None,
        base_fingerprint: str = "",
        synthetic: SyntheticNodes | None = None,
        on_collected: Callable[[int, Collected], None] | None = None,
    ) -> None:
        adapter = adapter_of(peft_config)
        refuse(args, eval_dataset, adapter)
        self.policy, self.held_out = model, eval_reward_funcs
        self.panel = reward_funcs if isinstance(reward_funcs, Panel) else panel_of(reward_funcs, args.reward_weights)
        self.prompts = stream_of(train_dataset, args)
        self.loop = processing_class or LoopSettings(protocol=PROTOCOLS["compact"])
        self.base_fingerprint, self.on_collected = base_fingerprint, on_collected
        if adapter is not None:
            attach(model.module, adapter, model.spec.branches, seed=args.seed)
        self.shards: Shards | None = None
        if args.optimizer_parts:
            keep_base = bool(args.beta or args.image_beta)
            self.shards = Shards(model.module, parts=args.optimizer_parts, keep_base=keep_base)
        elif not adapted_layers(model.module):
            model.remember_base(on_host=not (args.beta or args.image_beta))
        masters = self.shards.masters if self.shards else {}
        self.time_budget = TimeBudgetCallback()
        super().__init__(
            model=Held(model.module, masters),
            args=args,
            train_dataset=Steps(args.max_steps),
            callbacks=[*(callbacks or []), self.time_budget],
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = False
        self.watch = Stopwatch()
        self.schedule = schedule_of(model, self.panel, self.loop, args, synthetic, watch=self.watch)
        self.losses = losses_of(args)
        self.batcher = Batcher(policy=model, token_budget=args.token_budget, drawing=self.loop.draft.drawing)
        self.balancer = Balancer(
            model.module,
            aggregator=args.aggregator,
            probe_every=args.probe_every,
            seed=args.seed,
            shards=list(masters.values()),
        )
        self.checked: SelfCheck | None = None
        self._steps: list[Numbers] = []
        self._collected: Collected | None = None
        self._asked: list[Future[list[Verdict]]] = []
        self._flat_steps: deque[bool] = deque(maxlen=args.max_zero_variance_steps)

    def self_check(self) -> SelfCheck:
        """Proves the ratio and the gradient on two rollouts of every stage; to be called before `train`."""
        self.checked = self_check(
            self.policy,
            self.prompts.batch(0),
            self.loop,
            seed=self.args.seed,
            rollout=fast_weights(self.policy.module),
            shards=self.shards,
        )
        return self.checked

    def close(self) -> None:
        """Ends the scorers' threads."""
        self.panel.close()
        if self.held_out is not None:
            self.held_out.close()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; a rehearsal, which keeps nothing that it learns, goes without it and may hold coarser weights."""
        refuse_training(self.policy.module, self.args)
        return super().train(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One step of the schedule: its gradient stands in the parameters afterwards."""
        step = int(inputs["step"])
        begin = time.perf_counter()
        collected = self._rollouts(step)
        updating = time.perf_counter()
        learned = self.accumulate(step, collected.credits)
        self._refuse_broken_gradient()
        # with dropout the ratio of a first pass is not 1, and its deviation says nothing about rollout and replay
        first_pass = step % self.args.num_iterations == 0 and not drops(self.policy.module)
        over_epsilon = over_epsilon_of(self._trained_names(), self.policy.spec.branches, self.args.adam_epsilon)
        if self._in_deepspeed:
            self.accelerator.backward(handed_over(self.balancer.parameters))
        updated = time.perf_counter()
        held_out = self._held_out_numbers()
        collected.metrics |= held_out
        done = time.perf_counter()
        seconds = {f"time/{name}_s": value for name, value in self.watch.take().items()}
        measured = {
            **over_epsilon,
            **seconds,
            "num_tokens": sum(
                len(c.segment.token_ids) for c in collected.credits if isinstance(c.segment, TextSegment)
            ),
            "memory/peak_bytes": peak_bytes(self.args.device),
            "time/update_s": updated - updating,
            **({"time/held_out_s": done - updated} if held_out else {}),
            "time/step_s": done - begin,
            "tree/pool_size": sum(map(len, self.schedule.pool.groups)),
        }
        own = collected.metrics | learned.without(() if first_pass else DEVIATIONS) | collected.likelihoods() | measured
        numbers = combine(ranks.everyone(own), over="ranks")
        # counted over a resume: Trainer's state keeps it
        self.state.num_input_tokens_seen += int(numbers["num_tokens"])
        self._steps.append(numbers | {"num_tokens": self.state.num_input_tokens_seen})
        return torch.tensor(numbers["loss"])

    def accumulate(self, step: int, credits: Sequence[Credit]) -> Numbers:
        """The gradient of these credits and of those of the other processes; the only place where an adapter drops."""
        with adapter_dropout(self.policy.module, seed=(self.args.seed, step, ranks.rank())):
            return self.balancer.accumulate(step, credits, self._accumulate, step_sizes(credits))

    def _accumulate(self, credits: Sequence[Credit], normalisers: tuple[float, float]) -> Numbers:
        with fast_update(self.policy.module), self.shards.collecting() if self.shards else nullcontext():
            return accumulate(
                self.batcher,
                credits,
                self.losses,
                backward=self._backward,
                normalisers=normalisers,
                base_first=self.shards.reference(self.policy) if self.shards and self.shards.base else None,
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's, with a rate of its own for the generation branch where one is set; where it steps shards, the
        weights are written after every step."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.args.image_learning_rate is not None:
            rate, branches = self.args.image_learning_rate, self.policy.spec.branches
            set_branch_rate(optimizer, self._trained_names(), branches, GENERATION, rate)
        if self.shards and fresh:
            publish = self.shards.publish
            optimizer.register_step_post_hook(lambda *_: publish())
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's; under a limit of time the course ends with it."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.args.time_budget_s is not None and isinstance(scheduler, LambdaLR):
            scheduler = ending_in_time(scheduler, lambda: self.time_budget.used, total_steps=num_training_steps)
            self.lr_scheduler = scheduler
        return scheduler

    def _trained_names(self) -> dict[nn.Parameter, str]:
        """Names of what the optimiser steps; a master has that of its weight."""
        masters = self.shards.masters if self.shards else {}
        return {masters.get(p, p): name for name, p in self.policy.module.named_parameters() if p.requires_grad}

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.shards is None:
            return super()._clip_grad_norm(model)
        norm = self.shards.norm()
        torch.nn.utils.clip_grads_with_norm_(self.balancer.parameters, self.args.max_grad_norm, norm)
        return norm

    @property
    def _in_deepspeed(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _backward(self, loss: Tensor) -> None:
        if self._in_deepspeed:
            keep_gradient(self.balancer.parameters, loss)
        else:
            self.accelerator.backward(loss)

    def _rollouts(self, step: int) -> Collected:
        """Fresh rollouts, or the last ones again for `num_iterations` updates."""
        if self._collected is not None and step % self.args.num_iterations:
            return self._collected
        turn = step // self.args.num_iterations
        with torch.no_grad(), fast_weights(self.policy.module):
            collected = self.schedule.collect(
                turn,
                self.prompts.batch(turn, ranks.rank(), ranks.count()),
                seed=self.args.seed * 1_000_003 + turn,
                progress=step / max(self.args.max_steps, 1),
            )
        collected.metrics |= self.panel.metrics()
        self._ask_held_out()
        self._refuse_flat(collected)
        if self.on_collected is not None:
            self.on_collected(step, collected)
        self._collected = collected
        return collected

    def _ask_held_out(self) -> None:
        """Held-out scorers see what the others saw, while the weights are updated: nothing of the update waits."""
        batches = self.schedule.engine.take_batches()
        if self.held_out is not None:
            self._asked = [self.held_out.submit(batch) for batch in batches]

    def _held_out_numbers(self) -> Numbers:
        asked, self._asked = self._asked, []
        if self.held_out is None or not asked:
            return Numbers()
        for answer in asked:
            answer.result()
        return self.held_out.metrics()

    def _refuse_flat(self, collected: Collected) -> None:
        self._flat_steps.append(all(ranks.everyone(collected.all_flat)))
        if len(self._flat_steps) == self._flat_steps.maxlen and all(self._flat_steps):
            raise RunError(
                f"all groups had equal rewards for {len(self._flat_steps)} steps: there is nothing to learn",
                hint="use a scorer with finer scores, harder prompts, more peers or a higher temperature",
            )

    def _refuse_broken_gradient(self) -> None:
        gradients = [p.grad for p in self.balancer.parameters if p.grad is not None]
        norm = self.shards.norm() if self.shards else torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise RunError(
                "the gradient is not finite",
                hint="lower training.learning_rate or eta; the last checkpoint is good",
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's numbers and those of the steps since the last line."""
        if "train_runtime" not in logs:
            logs = {**combine(self._steps, over="steps"), **{k: v for k, v in logs.items() if k != "epoch"}}
            self._steps = []
        super().log(logs, start_time)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Step numbers: the prompts of a step follow from its number, so that a resumed run sees the same ones."""
        # batches of one: a resumed Trainer skips batches by their sampler, which batch_size=None does without
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=alone)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with writing(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            save_weights(self.policy.module, folder, fingerprint=self.base_fingerprint)
        save_pool(self.schedule.pool, folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.shards:
            self.shards.save(Path(output_dir))
            if ranks.rank():  # the first process's was saved above
                torch.save(self.optimizer.state_dict(), _own_optimizer(output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        ranks.wait()  # the state that makes a checkpoint whole is written next, by one process for all

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.policy.module, Path(resume_from_checkpoint), fingerprint=self.base_fingerprint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:  # here, since DeepSpeed loads its weights by itself
            load_pool(self.schedule.pool, Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.shards:
            self.shards.load(Path(checkpoint))
            if ranks.rank():
                stored = torch.load(_own_optimizer(checkpoint), map_location="cpu", weights_only=True)
                self.optimizer.load_state_dict(stored)


def _own_optimizer(folder: str) -> Path:
    return Path(folder) / f"optimizer_{ranks.rank()}.pt"
