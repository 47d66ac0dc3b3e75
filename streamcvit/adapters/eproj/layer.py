"""A projector in the place of which one of several acts, sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from streamcvit.adapters.eproj.config import EProjConfig
from streamcvit.adapters.routing import RoutingCall, RoutingContext
from streamcvit.errors import UserError


class ProjectorKeys(nn.Module):
    """Two keys for each of E projectors, of which the first `used` are taken; [E, Dv] and [E, Di]."""

    used: torch.Tensor

    def __init__(self, config: EProjConfig, device: torch.device) -> None:
        super().__init__()
        assert config.visual_dim is not None
        self.image = nn.Parameter(torch.zeros(config.num_projectors, config.visual_dim, device=device))
        self.instruction = nn.Parameter(torch.zeros(config.num_projectors, config.instruction_dim, device=device))
        self.register_buffer("used", torch.zeros((), dtype=torch.int64, device=device))

    def similarity(self, image: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        """cos(q_img, k_img) + cos(q_inst, k_inst), [B, E], of queries [B, Dv] and [B, Di]."""
        return _cosines(image, self.image) + _cosines(instruction, self.instruction)


class EProjLayer(nn.Module, BaseTunerLayer):
    """Weights, per adapter: every parameter of the projector stacked [E, ...], and the keys.

    A sample's queries are the mean of its picture's features as the frozen projector gives them, and its instruction's
    embedding; neither changes while anything is learned. Samples of one projector are projected together.
    """

    adapter_layer_names = ("eproj_projectors", "eproj_keys")
    other_param_names = ("configs",)

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: EProjConfig, routing: RoutingContext, key: str
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.configs: dict[str, EProjConfig] = {}
        self.eproj_projectors, self.eproj_keys = nn.ModuleDict(), nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.routing, self.key = routing, key
        self._fresh: dict[str, list[int]] = {}  # by adapter, projectors that were taken since the last step
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: EProjConfig) -> None:
        """Add an adapter: copies of the projector, of which none is taken."""
        own = dict(self.base_layer.named_parameters())
        if not own:
            raise UserError("the projector has no weights", where=self.key, fix="Take another adapter")
        self.configs[adapter_name] = config
        count = config.num_projectors
        self.eproj_projectors[adapter_name] = nn.ParameterDict(
            {_flat(name): nn.Parameter(p.detach().expand(count, *p.shape).clone()) for name, p in own.items()}
        )
        self.eproj_keys[adapter_name] = ProjectorKeys(config, next(iter(own.values())).device)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def stacked(self, name: str) -> dict[str, nn.Parameter]:
        """The projectors of adapter `name`: parameter of the projector -> [E, ...]."""
        held: Any = self.eproj_projectors[name]
        return {own: held[_flat(own)] for own, _ in self.base_layer.named_parameters()}

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Projected features of all pictures, each by its sample's projector."""
        with torch.no_grad():
            first = self.base_layer(x, *args, **kwargs)
        name = next((name for name in self.active_adapters if name in self.eproj_keys), None)
        if self._disable_adapters or name is None:
            return first
        if args or kwargs or not isinstance(first, torch.Tensor):
            raise self._unknown("is given more than the tower's features, or gives more than projected ones")
        return self._chosen(name, self.routing.current(), x, first)

    def _chosen(self, name: str, call: RoutingCall, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        if call.inputs.image_mask is None:
            raise UserError("projectors are chosen by sample", fix="Pass routing=RoutingInputs(..., image_mask=...)")
        counts = call.inputs.image_mask.sum(1)
        image, instruction = self._queries(call, first, counts)
        chosen, tokens = self._choose(name, call, image, instruction, counts)
        found = self._project(name, self._units(x, first, tokens), np.repeat(chosen, tokens // _per(first)), x.dim())
        if call.learning:
            seeing = torch.from_numpy(np.flatnonzero(tokens)).to(image.device)
            route = torch.from_numpy(chosen).to(image.device)[seeing]
            call.routes[name, self.key] = route.unsqueeze(1)
            keys: Any = self.eproj_keys[name]
            near = _cosine(image[seeing], keys.image[route]) + _cosine(instruction[seeing], keys.instruction[route])
            call.losses[name, self.key] = self.configs[name].key_loss * (2 - near).sum() / len(chosen)
        return found

    @torch.no_grad()
    def _queries(
        self, call: RoutingCall, first: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a sample's picture [B, Dv] and instruction [B, Di] are compared by; zeros where there is no picture."""
        flat = first.flatten(0, -2)
        owner = torch.searchsorted(counts.cumsum(0), torch.arange(len(flat), device=flat.device), right=True)
        member = (owner == torch.arange(len(counts), device=flat.device).unsqueeze(1)).float()
        pooled = member @ flat.float() / counts.clamp_min(1).unsqueeze(1)
        return pooled, call.instruction(len(counts)).to(flat.device, torch.float32)

    @torch.no_grad()
    def _choose(
        self, name: str, call: RoutingCall, image: torch.Tensor, instruction: torch.Tensor, counts: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """The projector of each sample, and its image tokens, both [B] on the host; new ones are taken while learning.

        A batch sees the keys as they stood before it, and those that samples before it in the batch took. One read from
        the device tells all that is to be known, as which projectors act decides what is computed.
        """
        keys: Any = self.eproj_keys[name]
        size, config = self.configs[name].num_projectors, self.configs[name]
        known = keys.similarity(image, instruction)
        parts = [known, counts.unsqueeze(1).float(), keys.used.expand(len(counts), 1).float()]
        if call.learning:
            parts.append(_cosines(image, image) + _cosines(instruction, instruction))
        said = torch.cat(parts, 1).cpu().numpy()
        tokens, used = said[:, size].astype(np.int64), int(said[0, size + 1])
        # What is not finite is like nothing, and takes nothing.
        near = np.where(np.isfinite(said[:, :size]), said[:, :size], -2.0)
        near[:, used:] = -np.inf
        taken: list[int] = []
        if call.learning and used < size:
            mutual = np.where(np.isfinite(said[:, size + 2 :]), said[:, size + 2 :], -2.0)
            lonely = (near.max(1) < config.spawn_below) & (tokens > 0) & (mutual.diagonal() > -2)
            while lonely.any() and used + len(taken) < size:
                row = int(lonely.argmax())
                taken.append(row)
                lonely &= mutual[row] < config.spawn_below
                lonely[row] = False
            for slot, row in enumerate(taken, start=used):
                near[row:, slot] = mutual[row:, row]
                near[row, slot] = np.inf
            self._take(name, used, [(image[row], instruction[row]) for row in taken])
        return np.where(near.max(1) == -np.inf, 0, near.argmax(1)), tokens

    def _take(self, name: str, used: int, queries: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Have free projectors begin as the first one stands, with these queries for keys.

        Nothing of a graph reads free projectors, so their storage is written without telling autograd.
        """
        keys: Any = self.eproj_keys[name]
        for slot, (image, instruction) in enumerate(queries, start=used):
            keys.image.data[slot] = image
            keys.instruction.data[slot] = instruction
            for stack in self.stacked(name).values():
                stack.data[slot] = stack.data[0]
            self._fresh.setdefault(name, []).append(slot)
        keys.used.fill_(used + len(queries))

    def _units(self, x: torch.Tensor, first: torch.Tensor, tokens: np.ndarray) -> torch.Tensor:
        """What is projected, one entry a unit: pictures or tiles [N, T, I], or tokens [N, rows of the tower, I].

        Args:
            x: what the projector is given.
            first: what it makes of it.
            tokens: [B] image tokens of each sample.
        """
        per, rows = _per(first), first.numel() // first.shape[-1]
        units = rows // per
        if x.dim() not in (2, 3) or x.dim() != first.dim() or len(x) % units or (x.dim() == 3 and len(x) != units):
            raise self._unknown("does not make its features picture by picture, or token by token")
        if tokens.sum() != rows or (tokens % per).any():
            raise self._unknown(
                "does not give the model's image tokens, but other features that are put together later"
            )
        return x if x.dim() == 3 else x.unflatten(0, (units, -1))

    def _project(self, name: str, units: torch.Tensor, chosen: np.ndarray, dim: int) -> torch.Tensor:
        """Every unit by its projector, in their order; `dim` axes are what the projector takes."""
        pieces = {own: stack.unbind(0) for own, stack in self.stacked(name).items()}

        def project(x: torch.Tensor, which: int) -> torch.Tensor:
            weights = {own: piece[which].to(x.dtype) for own, piece in pieces.items()}
            return functional_call(self.base_layer, weights, (x.flatten(0, 1) if dim == 2 else x,))

        taken, sizes = np.unique(chosen, return_counts=True)
        if len(taken) == 1:
            return project(units, int(taken[0]))
        order = np.argsort(chosen, kind="stable")
        places = torch.from_numpy(np.stack([order, np.argsort(order)])).to(units.device)
        parts = units.index_select(0, places[0]).split(sizes.tolist())
        found = [project(part, int(which)) for part, which in zip(parts, taken, strict=True)]
        return torch.cat(found).index_select(0, places[1])

    def settle(self) -> None:
        """What was taken since the last step stays taken."""
        self._fresh = {}

    @torch.no_grad()
    def undo(self) -> None:
        """Give back what was taken since the last step."""
        for name, slots in self._fresh.items():
            keys: Any = self.eproj_keys[name]
            keys.used.sub_(len(slots))
            for own, stack in self.stacked(name).items():
                stack.data[slots] = self.base_layer.get_parameter(own).detach().to(stack.dtype)
            for key in (keys.image, keys.instruction):
                key.data[slots] = 0.0
        self._fresh = {}

    def _unknown(self, what: str) -> UserError:
        return UserError(
            f"the projector {what}",
            where=self.key,
            fix="eproj works where features are joined as projected (LLaVA, Gemma 3, InternVL, Qwen2.5-VL); take lora",
        )


def _per(first: torch.Tensor) -> int:
    """Image tokens that are projected together: those of a picture or tile [N, T, D], or one [N, D]."""
    return first.shape[1] if first.dim() == 3 else 1


def _flat(name: str) -> str:
    """A parameter's name as a key: without dots."""
    return name.replace(".", "__")


def _cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.cosine_similarity(a, b, dim=-1)
