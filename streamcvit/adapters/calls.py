"""What a training or evaluation loop calls on a PEFT model, whichever adapter it holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from streamcvit.adapters.routing import RoutingInputs
from streamcvit.adapters.smolora.model import SMoLoraModel
from streamcvit.adapters.tuner import ExpertTuner
from streamcvit.adapters.usage import ExpertUsage


def tuner_of(peft_model: Any) -> Any:
    """The routed tuner inside a PEFT model; None for any other model (stock LoRA, a bare model)."""
    peft_model = uncompiled(peft_model)
    tuner = peft_model.base_model if isinstance(peft_model, PeftModel) else peft_model
    return tuner if isinstance(tuner, ExpertTuner) else None


def uncompiled(model: Any) -> Any:
    """The model inside one that `torch.compile` gave; any other as it is."""
    return getattr(model, "_orig_mod", model)


def learning_mode(peft_model: PeftModel) -> None:
    """Training mode for the adapter and for what is trained whole, eval mode for all that is frozen.

    `model.train()` would let the frozen half's dropout and drop path act and its batch norms drift. Batch norms stand
    still in what is trained, too: a sample's loss does not depend on its batch. Blocks with gradient checkpointing,
    which acts in training mode only, are in it themselves, what they hold is not.
    """
    peft_model.eval()
    for module in peft_model.modules():
        if isinstance(module, PeftModel | BaseTuner | BaseTunerLayer):
            module.training = True
        if isinstance(module, BaseTunerLayer):
            for name, child in module.named_children():
                if name != "base_layer":
                    child.train()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            for name, child in module.named_children():
                if name != "original_module":
                    child.train()
        elif getattr(module, "gradient_checkpointing", False):
            module.training = True
    for module in peft_model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            module.eval()


def routing_kwargs(peft_model: Any, routing: RoutingInputs | None) -> dict[str, Any]:
    """Keywords that hand `routing` to a model that routes, none to one that does not."""
    tuner = tuner_of(peft_model)
    return {} if tuner is None or not tuner.needs_routing or routing is None else {"routing": routing}


def begin_chunk(peft_model: Any, chunk: int) -> None:
    """To be called before the first batch of chunk `chunk` (from 0), and again on resuming inside it.

    What an adapter does by the chunk, such as StrLoRA's `freeze_after_chunk`, depends on it alone.
    """
    tuner = tuner_of(peft_model)
    if tuner is not None:
        tuner.begin_chunk(chunk)


def after_step(peft_model: Any) -> None:
    """To be called after each optimizer step: routers apply what they learned from its batches."""
    tuner = tuner_of(peft_model)
    if tuner is not None:
        tuner.step()


def undo_step(peft_model: Any) -> None:
    """To be called instead of `after_step` where a step is not taken: routers forget the batches since the last one."""
    tuner = tuner_of(peft_model)
    if tuner is not None:
        tuner.undo()


def expert_parameters(peft_model: Any) -> list[torch.nn.Parameter]:
    """The trainable parameters that stack experts along their first axis, A [E, r, I] and B [E, r, O] of every layer.

    Empty for any model without experts. For optimizers that treat each expert as a parameter of its own.
    """
    tuner = tuner_of(peft_model)
    return [] if tuner is None else tuner.expert_parameters()


def auxiliary_loss(peft_model: Any) -> torch.Tensor | None:
    """What the adapter adds to the loss of the last training forward (StrLoRA's distillation); None if nothing."""
    tuner = tuner_of(peft_model)
    return None if tuner is None else tuner.auxiliary_loss()


def expert_usage(peft_model: Any, reset: bool = True) -> dict[str, ExpertUsage]:
    """Use of the experts in training since the last reset, per bank, overall and by layer.

    Banks that choose per sample (`visual`, `instruction`) give shares of the samples that took an expert; the bank
    `token` (StrLoRA's token router, MoELoRA) shares of the tokens' weights, without padding
    (`RoutingInputs.token_mask`, for MoELoRA the model's `attention_mask`). Empty where nothing was routed. Counted once
    a forward with gradients in training mode, also with gradient checkpointing; not part of the saved adapter. Reading
    waits for the device, counting does not.
    """
    tuner = tuner_of(peft_model)
    return {} if tuner is None else tuner.usage(reset)


def take_usage(peft_model: Any) -> list[list[Any]]:
    """The counts behind `expert_usage` as JSON values, and reset them; empty where nothing was routed."""
    tuner = tuner_of(peft_model)
    return [] if tuner is None else tuner._usage.take()


def put_usage(peft_model: Any, taken: list[list[Any]]) -> None:
    """Count what `take_usage` gave of the same adapter elsewhere, such as on another rank."""
    tuner = tuner_of(peft_model)
    if tuner is not None:
        tuner._usage.put(taken)


def checkpointing_kwargs(peft_model: Any) -> dict[str, Any]:
    """`gradient_checkpointing_kwargs` under which a recomputed block sees the routing inputs of its own forward."""
    tuner = tuner_of(peft_model)
    kwargs: dict[str, Any] = {"use_reentrant": False}
    if tuner is not None:
        kwargs["context_fn"] = tuner.routing.checkpoint_contexts
    return kwargs


def shares_routes(peft_model: Any) -> bool:
    """Whether a batch's routes are decided once for all layers, by prototypes, which `decide_routes` then does."""
    tuner = tuner_of(peft_model)
    if not isinstance(tuner, SMoLoraModel):
        return False
    config: Any = tuner.peft_config[tuner.active_adapters[0]]
    return config.router == "prototype"


def decide_routes(peft_model: Any, routing: RoutingInputs) -> RoutingInputs:
    """Decide a whole batch's routes now, so that its micro-batches, or the ranks that share it, can be run with slices.

    In training mode new prototypes may spawn, as in a forward; a forward given the result decides nothing. Returned
    unchanged for tuners that decide per layer.
    """
    if not shares_routes(peft_model):
        return routing
    tuner = tuner_of(peft_model)
    name = tuner.active_adapters[0]
    return replace(routing, routes=tuner.decide(name, routing, tuner.training and torch.is_grad_enabled()))


def cluster_assignments(peft_model: Any, routing: RoutingInputs) -> dict[str, torch.Tensor]:
    """Expert [B] of each sample per bank as the prototypes stand, for reporting how experts and tasks coincide.

    Empty for routers without prototypes. Changes nothing.
    """
    if not shares_routes(peft_model):
        return {}
    tuner = tuner_of(peft_model)
    name = tuner.active_adapters[0]
    config: Any = tuner.peft_config[name]
    routes = tuner.decide(name, replace(routing, routes=None), learning=False)
    return {label: routes[:, bank.columns].squeeze(1) - bank.first for label, bank in tuner.banks(config).items()}
