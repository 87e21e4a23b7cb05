"""The reference policy: the weights before training, or the same weights without their adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from r3_rl.errors import RunError
from r3_rl.policy.adapters import adapted_layers, adapter_disabled


class Base:
    """What a module goes back to while it is its own reference. A backbone's policy holds one and hands it on.

    Args:
        module: with an adapter, or with weights that are trained themselves.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._kept: dict[str, Tensor] = {}
        self._restored = False

    def remember(self, *, on_host: bool = False) -> None:
        """Keeps a copy of the weights that are about to be trained: without an adapter `reference` needs it.
        on_host: in the host's memory, where no loss asks for it."""
        trained = {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}
        self._kept = {n: p.to("cpu", copy=True) if on_host else p.clone() for n, p in trained.items()}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the caller has put the base's weights back itself, and `reference` leaves them alone."""
        self._restored = True
        try:
            yield
        finally:
            self._restored = False

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the module is its base again: its adapter is switched off, or the remembered weights are back. A
        module of which nothing is trained is its own base.

        Raises RunError when full weights are trained and no base was remembered.
        """
        if self._restored:
            yield
            return
        if adapted_layers(self.module):
            with adapter_disabled(self.module):
                yield
            return
        if not self._kept and any(p.requires_grad for p in self.module.parameters()):
            raise RunError(
                "there is no reference policy: full weights are trained and their base was not kept",
                hint="call policy.remember_base() before training, or train an adapter",
            )
        trained = {n: p.data for n, p in self.module.named_parameters() if n in self._kept}
        own = dict(self.module.named_parameters())
        try:
            for name, base in self._kept.items():
                own[name].data = base.to(own[name].device)
            yield
        finally:
            for name, data in trained.items():
                own[name].data = data
