"""How a judge is reached: the keys under `judge` in a scorer's `params`. Light: a list of scorers imports it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from r3_rl.errors import InputError

_OURS = frozenset(
    ("model", "messages", "temperature", "seed", "stream", "n", "logprobs", "top_logprobs", "max_completion_tokens",
     "max_tokens")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """One model behind one or more OpenAI-compatible servers; raises InputError for values that cannot work.

    The key is never a setting: `key_env` names the environment variable that holds it, so it is in no recipe and no
    log. `OPENAI_API_KEY` is read only where it is named here, lest it be sent to a server of somebody else.

    >>> JudgeSettings(base_urls=("http://127.0.0.1:8000/v1",), model="Qwen/Qwen2.5-VL-7B-Instruct").num_retries
    5
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    base_urls: tuple[str, ...]
    """Servers of the same model, with their `/v1`; the load is spread, and others stand in for a dead one."""
    model: str
    """What the servers call it."""
    key_env: str = "R3_JUDGE_KEY"
    """Environment variable with the key; servers that ask for none need no variable."""
    num_concurrent: int = 32
    """Requests under way at once, over all servers."""
    timeout_s: float = 60.0
    """Seconds until one request is given up, from the first byte sent to the last one read."""
    deadline_s: float = 240.0
    """Seconds for one question with all its retries; below the 300 s that the panel gives a whole call."""
    num_retries: int = 5
    """Further attempts after a first that failed."""
    backoff_s: float = 0.5
    """Rest of a server after its first failure; doubles with each, up to 30 s, give or take a quarter."""
    seed: int = 0
    """Sent with temperature 0; together they make an answer as repeatable as the server allows."""
    send_seed: bool = True
    """False for servers that refuse a seed."""
    temperature: float | None = 0.0
    """None sends none, for reasoning models that refuse 0; answers are then less repeatable."""
    max_tokens: int = 1024
    """Longest answer; one that is cut off counts as missing."""
    max_tokens_key: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """What the server calls `max_tokens`: older ones know the second name only."""
    top_logprobs: int = 20
    """Alternatives asked for beside the first token, 1 to 20; some servers give 5 at most."""
    max_reply_bytes: int = 1_000_000
    """A longer response is not read to its end."""
    usd_per_million_prompt_tokens: float | None = None
    """Price; None leaves money out of the metrics."""
    usd_per_million_completion_tokens: float | None = None
    """Price; None leaves money out of the metrics."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keys of the request, such as `chat_template_kwargs: {enable_thinking: false}`."""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise InputError(f"judge: {'; '.join(problems)}")

    @classmethod
    def read(cls, settings: JudgeSettings | Mapping[str, Any]) -> JudgeSettings:
        """Return the settings of a recipe's mapping; settings that are read already are returned as they are.

        >>> JudgeSettings.read({"base_urls": ["http://127.0.0.1:8000"], "model": "a"}).base_urls
        ('http://127.0.0.1:8000',)
        """
        if isinstance(settings, JudgeSettings):
            return settings
        fields = {**settings}
        if isinstance(fields.get("base_urls"), list):  # as YAML has it
            fields["base_urls"] = tuple(fields["base_urls"])
        try:
            return cls(**fields)
        except TypeError as error:
            raise InputError(f"judge: {str(error).partition('() ')[2]}") from error


def _problems(settings: JudgeSettings) -> Iterator[str]:
    if isinstance(settings.base_urls, str) or not settings.base_urls:
        yield "base_urls takes a list of addresses, such as [http://127.0.0.1:8000/v1]"
    else:
        yield from filter(None, map(_url_problem, settings.base_urls))
    if not settings.model:
        yield "model is empty"
    for name in ("num_concurrent", "max_tokens", "max_reply_bytes"):
        if getattr(settings, name) < 1:
            yield f"{name} must be at least 1, not {getattr(settings, name)}"
    for name in ("timeout_s", "deadline_s", "backoff_s"):
        if not 0 < getattr(settings, name) < float("inf"):
            yield f"{name} must be a number above 0, not {getattr(settings, name)}"
    if not 1 <= settings.top_logprobs <= 20:
        yield f"top_logprobs must be 1 to 20, not {settings.top_logprobs}"
    if settings.temperature is not None and not 0 <= settings.temperature <= 2:
        yield f"temperature must be 0 to 2, or null to send none, not {settings.temperature}"
    if settings.max_tokens_key not in ("max_completion_tokens", "max_tokens"):
        yield f"max_tokens_key is max_completion_tokens or max_tokens, not {settings.max_tokens_key!r}"
    if settings.num_retries < 0:
        yield f"num_retries must be at least 0, not {settings.num_retries}"
    for name in ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens"):
        price = getattr(settings, name)
        if price is not None and not 0 <= price < float("inf"):
            yield f"{name} must be at least 0, not {price}"
    taken = sorted(_OURS & set(settings.options))
    if taken:
        yield f"options may not hold {', '.join(taken)}: what a score depends on is set by the scorer"


def _url_problem(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return f"base_urls: {url!r} is no address"
    if parts.username or parts.password:
        # Not quoted: what stands there is a secret.
        return "base_urls: an address holds a user name or password; put the key into the variable that key_env names"
    return "" if good else f"base_urls: {url!r} is no address that starts with http:// or https://"
