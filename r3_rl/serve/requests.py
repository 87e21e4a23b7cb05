"""What may be asked, in the shapes of OpenAI's API; a field that would change the answer and cannot is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from r3_rl.web.refusals import Refusal

_Asked = TypeVar("_Asked", bound="Asked")
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]


class BadField(Refusal):
    """A field of a request that is wrong; `param` is its name."""

    def __init__(self, param: str, message: str, *, status: int = 400, hint: str = "") -> None:
        super().__init__(f"{param}: {message}", status=status, hint=hint)
        self.param = param


class Asked(BaseModel):
    """What requests have in common. Fields of OpenAI's that change nothing here (`user`, `quality`) are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    model: str = ""
    """One of `/v1/models`; empty takes the adapter if there is one."""
    n: Count = 1
    seed: Seed | None = None
    """None takes another one each time; the answer says which."""

    @classmethod
    def refused(cls) -> Mapping[str, tuple[Any, ...]]:
        """Fields that cannot be followed -> values that ask for nothing."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _follows(cls, values: Any) -> Any:
        for name, harmless in cls.refused().items():
            if name in values and values[name] not in harmless:
                raise ValueError(f"'{name}' cannot be followed by this server; leave it out")
        return values


class ImagesAsked(Asked):
    """What both kinds of image requests have in common."""

    prompt: str
    size: str = "auto"
    """`auto` or the size that the model draws, such as `512x512`."""

    @classmethod
    def refused(cls) -> Mapping[str, tuple[Any, ...]]:
        return {
            "response_format": ("b64_json",),
            "output_format": ("png",),
            "background": ("auto", "opaque"),
            "stream": (False, "false"),
            "mask": (),
        }


class GenerationAsked(ImagesAsked):
    """Body of `/v1/images/generations`; the last three fields are extensions."""

    rounds: int | None = Field(None, ge=0)
    """Refinements at most; None takes the server's."""
    temperature: Temperature = 0.3
    """Of plans and critiques."""
    intermediate: bool = True
    """Whether the answer holds the images before the last one."""


class EditAsked(ImagesAsked):
    """Fields of `/v1/images/edits`."""

    image: bytes | str
    """A file of a form, or a data URL in JSON."""
    original_prompt: str | None = None
    """Extension: what the image should show, for models whose refinements read it."""


class ImageUrl(BaseModel):
    """Where an image of a message is."""

    url: str


class TextPart(BaseModel):
    """A text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(hide_input_in_errors=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """The content as a list."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return list(self.content)


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatAsked(Asked):
    """Body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=256)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Temperature = 0.0
    """0 writes the likeliest words, which is what measurements want; OpenAI's own default is 1."""
    top_p: float = Field(1.0, gt=0, le=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @classmethod
    def refused(cls) -> Mapping[str, tuple[Any, ...]]:
        nothing: tuple[Any, ...] = (0, False, [], {})
        return {
            "tools": nothing,
            "functions": nothing,
            "stop": nothing,
            "logprobs": nothing,
            "logit_bias": nothing,
            "frequency_penalty": nothing,
            "presence_penalty": nothing,
            "response_format": ({"type": "text"},),
            "modalities": (["text"],),
            "audio": (),
        }


def parsed(kind: type[_Asked], fields: Mapping[str, Any]) -> _Asked:
    """Return the request in the fields of a body. Raises `Refusal` with the first field that is wrong.

    >>> parsed(GenerationAsked, {"prompt": "a cross", "n": 0})
    Traceback (most recent call last):
    ...
    r3_rl.serve.requests.BadField: n: Input should be greater than or equal to 1
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise Refusal(message) from None
        raise BadField(".".join(map(str, first["loc"])), message) from None


def check_text(param: str, text: str, *, most: int) -> None:
    """Raise `BadField` for a text that is empty, too long, or not Unicode."""
    if len(text) > most:
        raise BadField(param, f"{len(text)} letters; at most {most} are taken", status=413)
    if not text.strip():
        raise BadField(param, "empty")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadField(param, "half of a surrogate pair is not a letter")


def check_at_most(param: str, value: int, most: int) -> None:
    """Raise `BadField` for a number above the server's limit."""
    if value > most:
        raise BadField(param, f"{value}; at most {most}")
