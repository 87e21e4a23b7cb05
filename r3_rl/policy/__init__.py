"""Backbones: write, draw, replay. Importing this room makes torchvision importable beside a CPU build of torch, before
transformers or peft look for it."""

from r3_rl.torchvision_guard import guard

guard()
