"""Text-only GRPO on one small Qwen2, ours against TRL's GRPOTrainer, in one process and in turns.

Both train the same decoder on the same prompts with the same reward function: 8 prompts x 8 completions a step, 64 new
tokens each (no token ends a text early), no KL, AdamW, clip-norm 1, one update a rollout, and each through its whole
trainer: rollout, reward, loss, optimiser, callbacks, metrics. Ours runs the understanding expert of a BAGEL of the same
sizes, whose attention has q/k norms that Qwen2 lacks: a little more work on our side. A prompt's wrapping tokens count
on both sides, so both are given equally many tokens. Ours reads a group's prompt once, in the rollout and in the
update; TRL reads it for every completion. How much of the ratio that is, `--prompt-tokens 8` shows. On processors where
MKL is slow our linear layers multiply with oneDNN (r3_rl/policy/linear.py); `--plain-products` goes without.

    python benchmarks/against_trl.py --help
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import Report, middle, spread

GOAL = 2.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step does and on what."""

    hidden: int
    layers: int
    vocab: int
    prompt_tokens: int
    """Tokens that the decoder reads before the first sampled one."""
    new_tokens: int
    num_prompts: int
    group: int
    lora: bool

    @property
    def samples(self) -> int:
        """Completions of a step."""
        return self.num_prompts * self.group


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=128, help="width, a multiple of 64 (default 128)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=8, help="prompts a step")
    parser.add_argument("--group", type=int, default=8, help="completions a prompt")
    parser.add_argument("--lora", action="store_true", help="rank 16 on all linear layers instead of full weights")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each trainer gets")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of a turn")
    parser.add_argument("--warmup", type=int, default=2, help="steps of a turn that are not counted")
    parser.add_argument("--threads", type=int, default=None, help="default: the physical cores")
    parser.add_argument("--trl-attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--trl-cache", choices=("dynamic", "static"), default="dynamic")
    parser.add_argument("--trl-accumulation", type=int, default=1, help="micro-batches of TRL's step")
    parser.add_argument(
        "--token-budget", type=int, default=32768, help="of our micro-batches; the default takes a step whole"
    )
    parser.add_argument("--plain-products", action="store_true", help="leave our float32 products to torch too")
    parser.add_argument("--profile", action="store_true", help="print torch's profile of one step of ours")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    # offline, and without the usage ping that TRL's base trainer sends
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    from r3_rl.process import prepare_process

    prepare_process(args.threads)
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if args.plain_products:
        torch.backends.mkldnn.enabled = False
    transformers.logging.set_verbosity_error()
    work = Work(
        hidden=args.hidden, layers=args.layers, vocab=args.vocab, prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens, num_prompts=args.prompts, group=args.group, lora=args.lora,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        qwen = make_qwen(work, args.trl_attention)
        ours = Timed(our_trainer(work, qwen, args, Path(folder)))
        theirs = Timed(trl_trainer(work, qwen, args, Path(folder)))
        for _ in range(args.rounds):
            ours.turn(args.warmup)
            theirs.turn(args.warmup)
        if args.profile:
            profile(ours)
    report(work, ours, theirs, args).show(args.out)


def words(work: Work) -> dict[str, int]:
    """w0, w1, ...; the four special ids lie behind the head's rows, so that no sampled token ever ends a text."""
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    return {word: i for i, word in enumerate([*(f"w{i}" for i in range(work.vocab)), *special])}


def prompt_texts(work: Work, count: int) -> list[str]:
    """Texts of equal length: begin, words, end, and the begin of the answer are the tokens read."""
    import numpy as np

    rng = np.random.default_rng(0)
    return [" ".join(f"w{i}" for i in rng.integers(0, work.vocab, work.prompt_tokens - 3)) for _ in range(count)]


def reward(completions: list[str], **columns: Any) -> list[float]:
    """A trivial reward without ties: the mean number in the words."""
    return [sum(int(word[1:]) for word in text.split()) / 1000 / max(len(text.split()), 1) for text in completions]


def raw_tokenizer(work: Work) -> Any:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(words(work), unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(words(work))[work.vocab :])
    return tokenizer


def make_qwen(work: Work, attention: str) -> Any:
    """The Qwen2 that both train, random; its head has `vocab` rows, its embedding four more."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=work.vocab + 4, hidden_size=work.hidden, intermediate_size=3 * work.hidden,
        num_hidden_layers=work.layers, num_attention_heads=work.hidden // 32, num_key_value_heads=work.hidden // 64,
        max_position_embeddings=1024, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
        attn_implementation=attention,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.lm_head = torch.nn.Linear(work.hidden, work.vocab, bias=False)
    return model


def our_trainer(work: Work, qwen: Any, args: argparse.Namespace, folder: Path) -> Any:
    """R3Trainer with a schedule of texts alone, on the understanding expert of a BAGEL with Qwen2's weights."""
    from text_grpo import TextSchedule, text_policy

    from r3_rl.policy.adapters import AdapterSettings
    from r3_rl.rollout.prompts import PromptStream
    from r3_rl.scoring.panel import Panel, ScorerSpec
    from r3_rl.training.config import R3Config
    from r3_rl.training.trainer import R3Trainer
    from r3_rl.types import Prompt

    policy = text_policy(qwen, raw_tokenizer(work))
    for name, parameter in policy.module.named_parameters():
        ours = name.startswith("language_model.") and "_moe_gen" not in name
        parameter.requires_grad_(ours and not work.lora)
    trainer = R3Trainer(
        model=policy,
        reward_funcs=Panel([ScorerSpec(name="reward", scorer=reward)]),
        args=R3Config(
            output_dir=str(folder / "ours"), num_prompts=work.num_prompts, num_generations=work.group,
            token_budget=args.token_budget, probe_every=0, logging_steps=10**9, **common(work, args),
        ),
        train_dataset=PromptStream(
            [Prompt(text=text) for text in prompt_texts(work, 64)], num_prompts=work.num_prompts, seed=0
        ),
        peft_config=AdapterSettings(rank=16, alpha=32.0, branches="understanding") if work.lora else None,
    )  # fmt: skip
    trainer.schedule = TextSchedule.like(trainer.schedule, new_tokens=work.new_tokens)
    return trainer


def trl_trainer(work: Work, qwen: Any, args: argparse.Namespace, folder: Path) -> Any:
    """TRL's GRPOTrainer, set up to be as fast as it can be for this work."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerFast, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw_tokenizer(work), bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token="<|vision_end|>", padding_side="left",
    )  # fmt: skip
    # the wrapping tokens that a BAGEL prompt has, so that both decoders read equally many
    wrapped = [f"<|im_start|> {text} <|im_end|> <|im_start|>" for text in prompt_texts(work, 64)]
    trainer = GRPOTrainer(
        model=qwen,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=work.samples // args.trl_accumulation,
            gradient_accumulation_steps=args.trl_accumulation, num_generations=work.group, num_iterations=1,
            max_completion_length=work.new_tokens, temperature=1.0, top_p=1.0, top_k=0, beta=0.0,
            scale_rewards="none", loss_type="dapo", disable_dropout=True, gradient_checkpointing=False, bf16=False,
            cache_implementation="static" if args.trl_cache == "static" else None, log_completions=False,
            use_cpu=True, logging_strategy="no", dataloader_num_workers=0, dataloader_pin_memory=False,
            **common(work, args),
        ),
        train_dataset=Dataset.from_dict({"prompt": wrapped}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if work.lora else None,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def common(work: Work, args: argparse.Namespace) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "max_steps": args.warmup + args.steps, "learning_rate": 1e-4, "lr_scheduler_type": "constant",
        "optim": "adamw_torch", "max_grad_norm": 1.0, "seed": 0, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip


class Timed:
    """A trainer and the seconds of its steps, from one step's end to the next: nothing in between is left out."""

    def __init__(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        marks: list[tuple[float, float]] = []

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                marks.append((time.perf_counter(), time.process_time()))

        trainer.add_callback(Clock())
        self.trainer, self.marks = trainer, marks
        self.seconds: list[float] = []
        self.processor_seconds: list[float] = []

    def turn(self, warmup: int) -> None:
        """Some steps; those after the warm-up count."""
        self.marks.clear()
        self.trainer.train()
        pairs = list(itertools.pairwise(self.marks))[max(warmup - 1, 0) :]
        self.seconds += [after[0] - before[0] for before, after in pairs]
        self.processor_seconds += [after[1] - before[1] for before, after in pairs]


def profile(ours: Timed) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        ours.turn(0)
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=48))


def products() -> str:
    """Who multiplies our float32 matrices."""
    import torch

    from r3_rl.policy.linear import onednn_is_faster

    return "oneDNN" if onednn_is_faster() and torch.backends.mkldnn.enabled else "torch, as TRL's"


def report(work: Work, ours: Timed, theirs: Timed, args: argparse.Namespace) -> Report:
    import torch
    import transformers
    import trl

    rows, rate = [], {}
    for name, timed in (("r3_rl", ours), (f"trl {trl.__version__}", theirs)):
        rate[name] = work.samples / middle(timed.seconds)
        wall, processor = f"{middle(timed.seconds):.3f}", f"{middle(timed.processor_seconds):.3f}"
        per_s = [f"{rate[name]:.1f}", f"{rate[name] * work.new_tokens:.0f}"]
        rows.append([name, wall, spread(timed.seconds), processor, *per_s, str(len(timed.seconds))])
    ratio = middle(theirs.seconds) / middle(ours.seconds)
    processor_ratio = middle(theirs.processor_seconds) / middle(ours.processor_seconds)
    rows.append(["ratio", f"{ratio:.2f}x", "", f"{processor_ratio:.2f}x", f"{ratio:.2f}x", "", ""])
    what = "LoRA of rank 16" if work.lora else "full weights"
    return Report(
        title=f"GRPO on text, {work.num_prompts} prompts x {work.group}, {work.prompt_tokens} + {work.new_tokens} "
        f"tokens, Qwen2 {work.hidden} x {work.layers}, vocabulary {work.vocab}, {what}",
        columns=["trainer", "s/step", "smallest .. largest", "processor s", "samples/s", "new tokens/s", "steps"],
        rows=rows,
        notes=[
            f"Medians; {args.rounds} turns each, one after the other, {args.warmup} warm-up steps a turn not counted.",
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}; "
            f"TRL with {args.trl_attention} attention, {args.trl_cache} cache. "
            "Ours carries q/k norms that Qwen2 has not.",
            f"Our float32 products: {products()}.",
            f"Goal: ours at least {GOAL:.0f}x in samples/s: {'reached' if ratio >= GOAL else 'NOT reached'}.",
        ],
        numbers={
            "samples_per_s": rate, "ratio": ratio, "processor_ratio": processor_ratio, "goal": GOAL,
            "seconds": {"ours": ours.seconds, "trl": theirs.seconds},
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
