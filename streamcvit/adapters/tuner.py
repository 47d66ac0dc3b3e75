"""What all routed tuners share: their place in PEFT, the routing context, and refusing what routing forbids."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, register_peft_method
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_module_registration_hook

from streamcvit.adapters.config import ExpertConfig, peft_type
from streamcvit.adapters.routing import RoutingCall, RoutingContext, RoutingInputs
from streamcvit.adapters.usage import Bank, ExpertUsage, UsageCounter
from streamcvit.errors import UserError


def register_tuner(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Make a tuner known to PEFT under `name`; its configuration's `peft_type` is the name in capitals."""
    peft_type(name.upper())
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls, prefix=f"{name}_")


class ExpertLayer(nn.Module, BaseTunerLayer):
    """A linear layer with a bank of low-rank experts: A [E, r, I], B [E, r, O] (B transposed, ready to be gathered).

    Subclasses name their parameters in `adapter_layer_names`, make them in `update_layer` and add the experts' output
    in `mix`.
    """

    other_param_names: tuple[str, ...] = ("r", "scaling", "dropout")
    in_features: int
    out_features: int

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: Any, routing: RoutingContext, key: str
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        base: Any = self.get_base_layer()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.dropout: dict[str, float] = {}
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.routing, self.key = routing, key
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add the weights of an adapter."""
        self.r[adapter_name], self.scaling[adapter_name] = config.r, config.scaling
        self.dropout[adapter_name] = config.lora_dropout
        for name, parameter in self.new_parameters(config).items():
            getattr(self, name)[adapter_name] = parameter
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def new_parameters(self, config: Any) -> dict[str, nn.Parameter]:
        """Fresh weights by attribute name."""
        raise UserError("this layer has no weights", where=type(self).__name__)

    def new_experts(self, config: ExpertConfig, experts: int) -> tuple[nn.Parameter, nn.Parameter]:
        """A as LoRA starts it and B at zero (or drawn)."""
        a = nn.init.kaiming_uniform_(torch.empty(experts * config.r, self.in_features), a=5**0.5)
        b = torch.zeros(experts, config.r, self.out_features)
        if not config.init_weights:
            nn.init.normal_(b, std=config.r**-0.5)
        return nn.Parameter(a.view(experts, config.r, self.in_features)), nn.Parameter(b)

    def new_router(self, config: ExpertConfig, label: str, *shape: int) -> nn.Parameter:
        """Uniform in +-1/sqrt(last dimension), as a linear layer starts; drawn from the seed and this layer's name."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{config.seed}/{self.key}/{label}".encode()))
        return nn.Parameter((torch.rand(*shape, generator=generator, device="cpu") * 2 - 1) * shape[-1] ** -0.5)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's output plus that of the active adapters; x [B, S, I]."""
        out = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters:
            return out
        # The base layer says which type to compute in: bfloat16 under autocast, or what a quantised layer gives.
        if x.dtype != out.dtype:
            x = x.to(out.dtype)
        with without_autocast(x.device.type):
            for name in self.active_adapters:
                if name in self.r:
                    out = self.mix(name, x, out)
        return out

    def dropped(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """What the experts of adapter `name` see of x: x itself where nothing is dropped."""
        rate = self.dropout[name]
        return F.dropout(x, rate) if rate and self.training else x

    def mix(self, name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`out` plus the output of adapter `name` for x."""
        raise UserError("this layer has no experts", where=type(self).__name__)

    def experts(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [E, r, I] and B [E, r, O] of adapter `name`."""
        a, b = self.adapter_layer_names[:2]
        return getattr(self, a)[name], getattr(self, b)[name]

    def expert_weights(
        self, name: str, call: RoutingCall, x: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """How much of each expert samples take, by bank [B, E], without gradients and without noting anything.

        Where tokens weigh experts, the mean over those of a sample by `mask` [B, S], which sums to 1; x [B, S, I].
        """
        raise UserError("this layer has no experts", where=type(self).__name__)

    def flattened(self, name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`mix` where a model flattens what its attention saw as [B, S, I] (OPT does before `fc1`); x [B S, I].

        Raises:
            UserError: other rows than all tokens of all samples, such as a vision tower's or those of a sparse model.
        """
        call = self.routing.current()
        if x.dim() != 2 or not call.tokens or x.shape[0] != call.tokens[0] * call.tokens[1]:
            raise UserError(
                f"routing is per sample and needs [batch, positions, features], the layer was given {tuple(x.shape)}",
                where=self.key,
                fix=f"Leave it out: exclude_modules: [{'.'.join(self.key.split('.')[-2:])}]",
            )
        return self.mix(name, x.unflatten(0, call.tokens), out.unflatten(0, call.tokens)).flatten(0, 1)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: see `merge_error`."""
        raise merge_error()

    def unmerge(self) -> None:
        """Refused: see `merge_error`."""
        raise merge_error()


def without_autocast(device_type: str) -> AbstractContextManager:
    """Autocast off, at no cost where it is not on: layers cast by themselves, once."""
    on = device_type != "meta" and torch.is_autocast_enabled(device_type)  # meta has none, and torch asks no further
    return torch.autocast(device_type, enabled=False) if on else nullcontext()


def merge_error() -> UserError:
    """The answer to every request to merge."""
    return UserError(
        "experts cannot be merged into the base weights: which expert acts depends on the input",
        fix="Keep the adapter as it is, or drop it with unload()",
    )


class PendingLosses(dict):
    """Losses that still hang on a forward's graph, which copies and pickles of the model leave behind."""

    def __deepcopy__(self, memo: dict) -> PendingLosses:
        return PendingLosses()

    def __reduce__(self) -> tuple:
        return PendingLosses, ()


class ExpertTuner(BaseTuner):
    """PEFT plumbing of a routed tuner; subclasses set `prefix` and `tuner_layer_cls`.

    Attributes:
        routing: the context all layers share.
        routed: routes [B, columns] of the last training forward, the first layer's where layers decide for themselves;
            None where nothing is routed by sample.
        needs_task: it is told the task of each sample (`RoutingInputs.task`), to train and to answer, and reads nothing
            else of it.
    """

    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    needs_routing: ClassVar[bool] = True
    needs_task: ClassVar[bool] = False
    loss_of: ClassVar[str] = "tokens"  # what `auxiliary_loss` is a mean over
    uses_shared_state: bool = True  # so that PEFT refuses to inject layers into a model that could not route them

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if "routing" not in self.__dict__:
            self.routing = RoutingContext(self._open, self._end)
            self._usage = UsageCounter()
            self._enabled = True
            self._losses = PendingLosses()
            self.routed: torch.Tensor | None = None

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer_cls: Any = self.tuner_layer_cls
        peft_config = peft_config.of_layer(current_key)
        if isinstance(target, layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear):
            raise UserError(
                f"only linear layers can be adapted, this is a {type(base).__name__}",
                where=current_key,
                fix="Narrow target_modules",
            )
        layer = layer_cls(target, adapter_name, peft_config, self.routing, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's also moves weights, which our layers did, and stumbles over a whole projector in modules_to_save.
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # PEFT puts the cast tensors into the ParameterDict as new parameters, which makes frozen ones trainable.
        layers = [module for module in self.model.modules() if isinstance(module, ExpertLayer)]
        trained = [[p.requires_grad for p in layer.parameters()] for layer in layers]
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer, flags in zip(layers, trained, strict=True):
            for parameter, flag in zip(layer.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)

    def _check_merge_allowed(self) -> None:
        raise merge_error()

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the experts and routers of two adapters have nothing to do with each other."""
        raise UserError(
            "adapters with experts cannot be combined into one", fix="Choose among them with set_adapter(name)"
        )

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        self._enabled = enabled

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT calls this around forward and generate with the caller's keywords."""
        if kwargs.get("adapter_names") is not None:
            raise UserError(
                "adapters with experts cannot be mixed within a batch",
                where="adapter_names",
                fix="Choose one with set_adapter(name), and call the model once for each",
            )
        inputs = kwargs.get("routing")
        if inputs is None and not self.needs_routing:
            mask = kwargs.get("attention_mask")  # some models take several, or one with more axes
            inputs = RoutingInputs(token_mask=mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None)
        if inputs is None or not self._enabled:
            yield
            return
        with self.routing.using(inputs, learning=self.training and torch.is_grad_enabled()):
            yield

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adapt `model`; PEFT calls this for the first adapter and for every further one."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._blocks = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]

    def _open(self, call: RoutingCall) -> None:
        if torch.is_grad_enabled():
            for block in self._blocks:
                if block.gradient_checkpointing:
                    self.routing.restore_in(block, self.needs_routing)
        self._begin(call)

    def _begin(self, call: RoutingCall) -> None:
        """Decide routes that all layers share."""

    def _end(self, call: RoutingCall) -> None:
        """Keep a training call's losses and count its routes and weights."""
        if not call.learning:
            return
        self._losses = PendingLosses(call.losses)
        for name in self.active_adapters[:1]:
            config: Any = self.peft_config[name]
            decided = {layer: route for (adapter, layer), route in call.routes.items() if adapter == name}
            routes = {"": call.shared[name]} if name in call.shared else decided
            self.routed = next(iter(routes.values()), None)
            if routes:
                self._usage.add_routes(routes, self.banks(config))
            weights = {layer: weight for (adapter, layer), weight in call.weights.items() if adapter == name}
            if weights:
                label, mask = self.weighted_bank(config), call.inputs.token_mask
                self._usage.add_weights(label, weights, decided, config.total_experts, mask)

    def banks(self, config: Any) -> dict[str, Bank]:
        """Where in a route each bank's decision stands; empty where nothing is routed per sample."""
        return {}

    def expert_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters stacked by expert; see `expert_parameters`."""
        names = (f"{self.prefix}A", f"{self.prefix}B")
        layers = [layer for layer in self.model.modules() if isinstance(layer, ExpertLayer)]
        return [p for layer in layers for name in names for p in getattr(layer, name).values() if p.requires_grad]

    def weighted_bank(self, config: Any) -> str:
        """Name of the bank whose weights layers leave in `RoutingCall.weights`."""
        return "token"

    def auxiliary_loss(self) -> torch.Tensor | None:
        """Mean over layers of what they add to the loss of the last training forward, once; None if nothing."""
        losses, self._losses = list(self._losses.values()), PendingLosses()
        return torch.stack(losses).mean() if losses else None

    def begin_chunk(self, chunk: int) -> None:
        """Do what this adapter does at the start of chunk `chunk`; see `streamcvit.adapters.begin_chunk`."""

    def step(self) -> None:
        """Apply what routers learned from the batches since the last optimizer step."""

    def undo(self) -> None:
        """Forget what routers learned from the batches since the last optimizer step."""

    def usage(self, reset: bool) -> dict[str, ExpertUsage]:
        """Use of the experts per bank; see `expert_usage`."""
        return self._usage.read(reset)


def _accept_routing(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if isinstance(child, ExpertTuner) and isinstance(parent, PeftModel):
        parent.special_peft_forward_args = parent.special_peft_forward_args | {"routing"}


# PeftModel drops the keywords it lists before it calls the base model, and a tuner is never told which PeftModel holds
# it; torch tells us when one takes a tuner in.
register_module_module_registration_hook(_accept_routing)
