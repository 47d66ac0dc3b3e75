"""Thoughts that a model writes before its answer, in the marks that families use."""

from __future__ import annotations

TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"))
"""Opening and closing marks: Qwen, DeepSeek, GLM ...; Magistral; Kimi."""
MARKS = frozenset(mark for pair in TAGS for mark in pair)


def has_thoughts(answer: str) -> bool:
    """Whether a text closes a thinking block."""
    return any(close in answer for _, close in TAGS)


def within_thoughts(prompt: str) -> str:
    """The mark that closes the thinking block which a prompt leaves open; empty: it leaves none open."""
    for opening, close in TAGS:
        if prompt.rfind(opening) > prompt.rfind(close):
            return close
    return ""


def opening_tag(answer: str) -> str:
    """The mark of a thinking block that an answer begins with; empty: it begins with none."""
    return next((opening for opening, _ in TAGS if answer.lstrip().startswith(opening)), "")


def drop_thoughts(answer: str, opened: bool = False) -> str:
    """What follows the thoughts of an answer, without outer whitespace; empty where it never came to an end of them.

    Args:
        answer: the text.
        opened: the prompt has opened the thinking block.
    """
    ends = [answer.rfind(close) + len(close) for _, close in TAGS if close in answer]
    if ends:
        return answer[max(ends) :].strip()
    return "" if opened or opening_tag(answer) else answer.strip()
