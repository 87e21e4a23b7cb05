"""Bodies of requests: JSON objects, and forms with files (multipart/form-data), as plain dictionaries."""

from __future__ import annotations

import json
from email.parser import BytesHeaderParser
from email.policy import HTTP
from typing import Any

from r3_rl.web.refusals import Refusal

_MOST_PARTS = 64
_MOST_HEAD = 4096
"""Bytes of the headers of a part."""


def fields_of(body: bytes, content_type: str) -> dict[str, Any]:
    """Return the fields of a body: of a JSON object, or of a form, whose files are bytes. Fields of null are left out.

    Raises `Refusal` for anything else.

    >>> fields_of(b'{"n": 2, "user": null}', "application/json")
    {'n': 2}
    >>> form = b'--x\\r\\nContent-Disposition: form-data; name="n"\\r\\n\\r\\n2\\r\\n--x--\\r\\n'
    >>> fields_of(form, "multipart/form-data; boundary=x")
    {'n': '2'}
    """
    if content_type.lower().startswith("multipart/form-data"):
        return _form(body, content_type)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal("the body is not JSON") from None
    if not isinstance(found, dict):
        raise Refusal("the body is not a JSON object")
    return {name: value for name, value in found.items() if value is not None}


def _form(body: bytes, content_type: str) -> dict[str, Any]:
    boundary = _parameters(f"Content-Type: {content_type}".encode("latin-1", "replace"), "content-type").get("boundary")
    if not boundary:
        raise Refusal("the form names no boundary")
    mark = b"--" + boundary.encode("latin-1", "replace")
    first, *parts = (b"\r\n" + body).split(b"\r\n" + mark, _MOST_PARTS + 2)
    if first or not parts or not parts[-1].startswith(b"--"):
        raise Refusal(f"not a whole form of at most {_MOST_PARTS} parts")
    fields: dict[str, Any] = {}
    for part in parts[:-1]:
        head, blank, content = part.partition(b"\r\n\r\n")
        if not blank or len(head) > _MOST_HEAD:
            raise Refusal("a part of the form has no headers")
        named = _parameters(head.strip(), "content-disposition")
        if "name" not in named:
            raise Refusal("a part of the form has no name")
        fields[named["name"].removesuffix("[]")] = content if "filename" in named else _text(content)
    return fields


def _parameters(head: bytes, header: str) -> dict[str, str]:
    parsed = BytesHeaderParser(policy=HTTP).parsebytes(head)[header]
    return dict(getattr(parsed, "params", {}))


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Refusal("a field of the form is not UTF-8") from None
