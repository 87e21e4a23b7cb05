"""What transformers' Trainer is handed for a model and for a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


class Held(nn.Module):
    """The policy's module as Trainer holds it: what is trained, and without our frozen `config`, which Trainer would
    write to. A wrapper for several processes neither sends nor saves the base."""

    def __init__(self, module: nn.Module, masters: Mapping[nn.Parameter, nn.Parameter]) -> None:
        super().__init__()
        self.module, self.masters = module, masters
        # what is sharded gets no wrapper: nobody else's gradients belong to this process's part
        self._is_accelerate_prepared = bool(masters)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        trained = ((name, p) for name, p in super().named_parameters(*args, **kwargs) if p.requires_grad)
        return ((name, self.masters.get(p, p)) for name, p in trained)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: p.detach() for name, p in self.named_parameters()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({**super().state_dict(), **state_dict}, *args, **kwargs)


class Steps(torch.utils.data.Dataset[dict[str, int]]):
    """The numbers of the steps."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"step": index}


def alone(batch: list[dict[str, int]]) -> dict[str, int]:
    """The one example of a batch of one."""
    return batch[0]
