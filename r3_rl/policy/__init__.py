"""Backbones: write, draw, replay."""
