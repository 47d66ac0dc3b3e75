"""A chat template of one's own: read from a file as text, and looked at before anything is made of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOST = 1 << 20  # bytes; templates of models have some thousands
_STATEMENT = re.compile(r"{[{%]")


def template_text(given: str) -> str:
    """The text of a chat template that is given as a file, or as it is.

    Args:
        given: a path, or a text with Jinja statements; empty: none.

    Raises:
        ValueError: the file cannot be read as UTF-8 text, or what is there is no Jinja template that writes messages.
    """
    if not given.strip():
        return ""
    what, text = "the text", given
    if not _STATEMENT.search(given):
        what = given
        try:
            with Path(os.path.expanduser(given)).open("rb") as file:
                held = file.read(_MOST + 1)
            text = held.decode("utf-8").removeprefix("\ufeff")
        except (OSError, ValueError) as fault:
            raise ValueError(f"{given} cannot be read as text ({getattr(fault, 'strerror', None) or fault})") from None
        if len(held) > _MOST:
            raise ValueError(f"{given} has more than {_MOST} bytes: it is no chat template")
    if wrong := _wrong(text):
        raise ValueError(f"{what} is no chat template: {wrong}")
    return text


def _wrong(text: str) -> str:
    """What keeps a text from being a chat template; empty: nothing that can be seen without a conversation."""
    from jinja2 import TemplateSyntaxError, meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        environment = _compile_jinja_template(text).environment
        read = meta.find_undeclared_variables(environment.parse(text))
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    return "" if "messages" in read else "it reads no `messages`"
