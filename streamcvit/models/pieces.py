"""Encoder outputs taken apart picture by picture, and put together again for other batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

POOLED = "pooler_output"

Pieces = tuple[torch.Tensor, ...]
"""What one picture has of encoder outputs, [its image tokens, D] each; the projected features come first."""


@dataclass(frozen=True)
class _Leaf:
    """One feature an image token, of all pictures: a tensor, or a list of tensors.

    Attributes:
        kind: torch.Tensor, list or tuple.
        rows: tokens of each entry of a tensor of three dimensions, else 0.
    """

    kind: type
    rows: int = 0

    def cut(self, value: Any, counts: Sequence[int]) -> list[torch.Tensor] | None:
        """The pictures' own features; None where they are not as many as the tokens."""
        if isinstance(value, torch.Tensor):
            flat = value.flatten(0, -2) if value.ndim > 1 else None
        elif [len(each) for each in value] == list(counts):
            return list(value)
        else:
            flat = torch.cat(list(value))
        return list(flat.split(list(counts))) if flat is not None and len(flat) == sum(counts) else None

    def join(self, features: list[torch.Tensor]) -> Any:
        """Inverse of `cut`, for the pictures of another batch."""
        if self.kind is not torch.Tensor:
            return self.kind(features)
        joined = torch.cat(features)
        return joined.unflatten(0, (-1, self.rows)) if self.rows else joined


@dataclass(frozen=True)
class _Node:
    """A list or tuple of leaves and nodes, such as the features of several layers of the tower."""

    kind: type
    below: tuple[_Leaf | _Node, ...]


@dataclass(frozen=True)
class Layout:
    """How the encoder outputs of a model hold what belongs to each picture.

    Every field holds features of the image tokens (a tensor, or a list with one a picture), or lists of such: the
    projected features, and those of other layers of the tower beside them (Qwen3-VL's deepstack).
    """

    outputs: type
    fields: tuple[tuple[str, _Leaf | _Node], ...]

    @classmethod
    def of(cls, outputs: Any, counts: Sequence[int]) -> Layout | None:
        """The layout of what `encode_images` gave; None where some of it does not belong to the pictures one by one.

        Args:
            outputs: a model's encoder outputs.
            counts: image tokens of each picture.
        """
        given = {name: value for name, value in vars(outputs).items() if value is not None}
        pooled = given.pop(POOLED, None)
        found = {POOLED: _tree(pooled, counts, None), **{k: _tree(v, counts, pooled) for k, v in given.items()}}
        known = {name: tree for name, tree in found.items() if tree is not None}
        return cls(type(outputs), tuple(known.items())) if len(known) == len(found) else None

    def cut(self, outputs: Any, counts: Sequence[int]) -> list[Pieces] | None:
        """The pieces of each picture, views into the outputs; None where these are laid out otherwise."""
        if Layout.of(outputs, counts) != self:
            return None
        columns = [c for name, tree in self.fields for c in _cut(tree, getattr(outputs, name), counts)]
        return [tuple(row) for row in zip(*columns, strict=True)]

    def join(self, pictures: Sequence[Pieces]) -> Any:
        """Encoder outputs of a batch with these pictures, in their order."""
        columns = iter([list(column) for column in zip(*pictures, strict=True)])
        values = {name: _join(tree, columns) for name, tree in self.fields}
        empty = {field.name: None for field in dataclasses.fields(self.outputs)}
        return self.outputs(**empty | values)


def _tree(value: Any, counts: Sequence[int], pooled: Any, inside: bool = False) -> _Leaf | _Node | None:
    """The shape of a field, or of a list `inside` one; None where it holds anything but features of the image tokens.

    A list of tensors may hold one a picture, or one a layer: where it is like the projected features it holds one a
    picture. Of a field with a single tensor, of a single picture, that cannot be told.
    """
    if isinstance(value, torch.Tensor):
        leaf = _Leaf(torch.Tensor, value.shape[1] if value.ndim == 3 else 0)
        return leaf if leaf.cut(value, counts) is not None else None
    if type(value) not in (list, tuple) or not value:
        return None
    tensors = all(isinstance(each, torch.Tensor) for each in value)
    if tensors and (pooled is None or (type(value) is type(pooled) and len(value) == len(pooled))):
        if pooled is not None and len(value) == 1 and not inside:
            return None
        flat = all(each.ndim == 2 for each in value)
        return _Leaf(type(value)) if flat and _Leaf(type(value)).cut(value, counts) is not None else None
    below = [_tree(each, counts, pooled, inside=True) for each in value]
    return _Node(type(value), tuple(tree for tree in below if tree is not None)) if all(below) else None


def _cut(tree: _Leaf | _Node, value: Any, counts: Sequence[int]) -> list[list[torch.Tensor]]:
    if isinstance(tree, _Leaf):
        found = tree.cut(value, counts)
        assert found is not None
        return [found]
    return [column for part, each in zip(tree.below, value, strict=True) for column in _cut(part, each, counts)]


def _join(tree: _Leaf | _Node, columns: Any) -> Any:
    if isinstance(tree, _Leaf):
        return tree.join(next(columns))
    return tree.kind(_join(part, columns) for part in tree.below)
