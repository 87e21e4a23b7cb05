"""R3Trainer as a user of TRL would write it: a data set, a reward function, a LoraConfig.

python examples/r3_trainer.py
"""

from datasets import Dataset
from peft import LoraConfig

from r3_rl import R3Config, R3Trainer, Refiner

words = [
    f"{n} {color} {shape}s" for n in ("two", "three") for color in ("red", "blue") for shape in ("circle", "square")
]
dataset = Dataset.from_dict({"prompt": words, "want": [0, 0, 2, 2] * 2})  # 0: red, 2: blue


def colourful(images, want, **kwargs):
    return [float(image[..., channel].mean()) / 255 for image, channel in zip(images, want, strict=True)]


pipe = Refiner.from_pretrained()
trainer = R3Trainer(
    model=pipe.policy,
    reward_funcs=colourful,
    args=R3Config("runs/example", max_steps=4, num_prompts=4, num_generations=4, logging_steps=1, report_to="none"),
    train_dataset=dataset,
    processing_class=pipe.loop,
    peft_config=LoraConfig(r=8, lora_alpha=16),
)
trainer.train()
trainer.save_model("runs/example/adapter")
