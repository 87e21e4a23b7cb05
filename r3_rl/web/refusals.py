"""What a server answers when it does not do what it was asked: one line, and the HTTP status for it."""

from __future__ import annotations

from r3_rl.errors import R3Error


class Refusal(R3Error, ValueError):
    """A request that is refused; `status` is the HTTP status of the answer.

    >>> refusal = Refusal("8 requests are waiting", status=503, retry_after_s=2)
    >>> refusal.status, refusal.headers
    (503, {'Retry-After': '2'})
    """

    def __init__(self, message: str, *, status: int = 400, hint: str = "", retry_after_s: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after_s = retry_after_s
        """Seconds after which the sender may try again; None if trying again does not help."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
