"""Adapted models under `torch.compile`: one graph, whatever the routes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapter_models import METHODS, adapted, batch, close, row
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from streamcvit.adapters import after_step, decide_routes, routing_kwargs, tuner_of
from tests.models import TINY, tiny_llama

SOME = r"(model\.)?(language_model\.)?layers\..*(q|down)_proj"


@pytest.fixture
def graphs() -> Any:
    """Every graph, forward or backward, that is compiled in the test."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def counting(graphs: list[Any]) -> Any:
    """A backend that runs graphs as they are and notes them."""

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=keep, bw_compiler=keep)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("method, training", [*((method, True) for method in METHODS), ("strlora", False)])
def test_whole_model_compiles_into_one_graph_and_new_routes_need_no_other(method, training, graphs):
    model = adapted(METHODS[method](target_modules=SOME), tiny_llama(layers=1))
    inputs, routing = batch([row("llama", seed) for seed in range(8)])
    model.train()(**inputs, **routing_kwargs(model, routing))
    after_step(model)
    model.train(training)
    compiled = torch.compile(model, fullgraph=True, backend=counting(graphs))
    for seed in range(2):
        inputs, routing = batch([row("llama", 10 * seed + k) for k in range(3)])
        keywords = {**inputs, **routing_kwargs(model, decide_routes(model, routing))}
        with torch.set_grad_enabled(training):
            got = compiled(**keywords)
            if training:
                got.loss.backward()
            ours = gradients(model)
            want = model(**keywords)
            if training:
                want.loss.backward()
            theirs = gradients(model)
        assert close(got.logits, want.logits)
        assert bool(theirs) == training
        assert ours.keys() == theirs.keys()
        assert all(close(ours[name], theirs[name]) for name in theirs)
    assert len(graphs) == 1 + training


@pytest.mark.parametrize(
    "family, method",
    [("llava", "prototype"), ("qwen25vl", "frozen"), ("gemma3", "moelora_top")],
)
def test_language_model_of_picture_models_compiles_into_one_graph(family, method, graphs):
    model = adapted(METHODS[method](target_modules=SOME), TINY[family](layers=1)[0]).train()
    language = model.get_base_model().model.language_model
    compiled = torch.compile(language, fullgraph=True, backend=counting(graphs))
    for seed in range(2):
        inputs, routing = batch([row(family, 10 * seed + 2 * k) for k in range(3)])
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        routing = decide_routes(model, routing)
        with tuner_of(model).routing.using(routing, learning=True):
            got = compiled(inputs_embeds=embedded, use_cache=False).last_hidden_state
        got.square().sum().backward()
        with tuner_of(model).routing.using(routing):
            want = language(inputs_embeds=embedded, use_cache=False).last_hidden_state
        assert close(got, want)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert len(graphs) == 2
