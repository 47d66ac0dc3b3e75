"""A method starts from an adapter that one already has: its weights, its options, checked, kept in the run, named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from running import StopAfter
from safetensors.torch import load_file, save_file

from streamcvit.adapters.build import attach
from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import Stopped, UserError
from streamcvit.export import export
from streamcvit.launch import execute
from streamcvit.learning import commit as commits
from streamcvit.models.base import Base, load_base
from streamcvit.models.batch import Batch
from streamcvit.models.snapshot import adapter_state, load_adapter_state
from streamcvit.models.vision import vision_dim
from streamcvit.pipeline import builtin, load_config
from streamcvit.run.evaluating import EvaluatorWorker
from streamcvit.run.folder import RunFolder, read_run
from streamcvit.run.loading import local_feed
from streamcvit.run.messages import Job
from streamcvit.run.origin import START, content_digest, keep, lines, other_bases
from streamcvit.run.origincheck import settled
from streamcvit.run.resume import changes, refuse
from streamcvit.run.scores import ZERO
from streamcvit.run.workers import LearnerWorker

TINY = ["stream.scenario.chunks=1", "stream.scenario.samples_per_chunk=24", "stream.test_samples=1",
        "evaluation.draws=10", "learner.batch_size=6"]  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 3, "lora_alpha": 12, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "smolora": {"r": 2, "router": "prototype", "num_experts_visual": 3},
    "gates": {"r": 2, "router": "frozen", "fusion": "learned", "pool": "prompt"},
    "strlora": {"r": 2, "num_experts": 3},
    "moelora": {"r": 2, "num_experts": 3},
}


def config_of(out: Path, methods: dict[str, Any], *settings: str) -> RunConfig:
    config = load_config(builtin("embedded"), [*TINY, f"out={out}", *settings], name="r")
    tree = config.model_dump(mode="json") | {"methods": methods}
    return RunConfig.model_validate(tree)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two methods; what they learned, exported, beside it."""
    root = tmp_path_factory.mktemp("origin")
    methods = {"lora": {"adapter": "lora", "options": {"r": 4}}, "smolora": {"adapter": "smolora"}}
    execute(config_of(root, methods), local=True)
    for method in methods:
        list(export(root / "r", root / f"exported-{method}", method))
    return root


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("embedded", device="cpu")


@pytest.fixture
def folder_of(base: Base, tmp_path: Path) -> Callable[[str], Path]:
    """Adapters with weights, averages and prototypes of noise, each in a folder as PEFT writes it."""

    def write(kind: str) -> Path:
        adapter = "smolora" if kind == "gates" else kind
        sizes = {"instruction_dim": base.model.get_input_embeddings().weight.shape[1]}
        sizes["visual_dim"] = vision_dim(base.model)
        model = attach(base.model, adapter, seed=7, options=OPTIONS[kind], sizes=sizes)
        torch.manual_seed(1)
        noise = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in adapter_state(model).items()}
        load_adapter_state(model, noise)
        folder = tmp_path / f"mine-{kind}"
        model.peft_config["default"].save_pretrained(str(folder))
        save_file(noise, folder / "adapter_model.safetensors")
        model.unload()
        return folder

    return write


def worker_for(config: RunConfig, stream: Path, stop: Callable[[], bool] = lambda: False) -> LearnerWorker:
    """A learner that notes the weights it has when it is given its first batch."""
    feed = local_feed(config, str(stream))
    worker = LearnerWorker(config, str(stream), lambda *which: noting(feed(*which)), stop=stop)
    worker.first = None  # type: ignore[attr-defined]

    def noting(batches: Iterator[Batch]) -> Iterator[Batch]:
        if worker.first is None:  # type: ignore[attr-defined]
            worker.first = adapter_state(worker.model)  # type: ignore[attr-defined]
        yield from batches

    return worker


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_the_first_step_is_taken_from_the_folders_weights_and_options(
    finished: Path, folder_of: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    folder = folder_of(kind)
    adapter = "smolora" if kind == "gates" else kind
    config = settled(config_of(tmp_path, {"m": {"adapter": adapter, "from": str(folder)}}))
    named = {k: v for k, v in OPTIONS[kind].items() if k not in ("target_modules", "router") or v == "frozen"}
    assert config.methods["m"].options.items() >= named.items()
    assert keep(config, "m")["digest"] == content_digest(folder) == content_digest(config.folder("m") / START)
    worker = worker_for(config, finished / "r" / "stream", StopAfter(1))
    with pytest.raises(Stopped):
        worker.learn_chunk("m", 0)
    wanted, first = load_file(folder / "adapter_model.safetensors"), worker.first  # type: ignore[attr-defined]
    assert first.keys() == wanted.keys() and all(first[name].equal(wanted[name]) for name in wanted)
    assert worker.learner.step == 1 and any(not t.equal(wanted[n]) for n, t in adapter_state(worker.model).items())


def test_a_stock_lora_goes_where_its_weights_are_the_vision_tower_too(base: Base, tmp_path: Path) -> None:
    model = get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    wanted = adapter_state(model)
    model.save_pretrained(str(tmp_path / "stock"))
    model.unload()
    assert any("vision_tower" in name for name in wanted)
    config = settled(config_of(tmp_path, {"m": {"adapter": "lora", "from": str(tmp_path / "stock")}}))
    made = attach(base.model, "lora", options=config.methods["m"].options)
    assert adapter_state(made).keys() == wanted.keys()
    made.unload()


def test_a_run_goes_on_from_an_exported_adapter_names_it_and_scores_it_before_it_learns(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, run = finished / "exported-smolora", tmp_path / "r" / "m"
    digest = content_digest(source)
    config = config_of(tmp_path, {"m": {"adapter": "smolora", "from": str(source)}}, "evaluation.zero_shot=true")
    page = execute(config, local=True)
    start = read_run(run)["start"]
    assert (start["from"], start["digest"]) == (str(source), digest)
    assert f"m starts from {source} (digest {digest[:12]})" in " ".join(capsys.readouterr().out.split())
    assert digest in page.read_text()
    list(export(tmp_path / "r", tmp_path / "again", "m"))
    lineage = json.loads((tmp_path / "again" / "lineage.json").read_text())
    assert lineage["started_from"] == {"name": source.name, "digest": digest}
    card = (tmp_path / "again" / "README.md").read_text()
    assert f"| started from | `{source.name}`, digest `{digest}` |" in card
    # The row before any learning is the adapter's, and a commit's weights take their place and leave it again.
    worker = EvaluatorWorker(settled(config), str(tmp_path / "r" / "stream"))
    task, last = next(iter(worker.tasks)), commits.list_commits(run / "commits")[-1]
    note = commits.read_note(last)
    before = Job("m", ZERO, task, 0, digest, str(run / START))
    after = Job("m", 0, task, note["step"], note["digest"], str(last))
    for job in (before, after, before):
        assert worker.evaluate(job).digest == job.digest
    held, wanted = adapter_state(worker.model), load_file(source / "adapter_model.safetensors")
    assert all(held[name].equal(wanted[name]) for name in wanted)


def test_a_run_from_an_adapter_resumes_to_the_bit_without_the_original(finished: Path, tmp_path: Path) -> None:
    stream, source = finished / "r" / "stream", tmp_path / "source"
    shutil.copytree(finished / "exported-smolora", source)
    whole = settled(config_of(tmp_path / "whole", {"m": {"adapter": "smolora", "from": str(source)}}))
    parts = whole.model_copy(update={"out": str(tmp_path / "parts")})
    index = StreamIndex.open(stream)
    for config in (whole, parts):
        RunFolder(config, "m", index, index.plan.counts, "base")
    digest = worker_for(whole, stream).learn_chunk("m", 0).digest
    shutil.rmtree(source)
    worker_for(parts, stream, StopAfter(0))  # a life that ends before it learns anything
    for after in (2, 100):
        worker = worker_for(settled(parts), stream, StopAfter(after))
        try:
            found = worker.learn_chunk("m", 0).digest
        except Stopped:
            continue
    assert found == digest


def test_a_resume_is_refused_where_the_folder_holds_something_else(finished: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(finished / "exported-lora", source)
    config = settled(config_of(tmp_path, {"m": {"adapter": "lora", "from": str(source)}}))
    index = StreamIndex.open(finished / "r" / "stream")
    RunFolder(config, "m", index, index.plan.counts, "base")
    (config.folder() / "config.yaml").write_text(config.dump())
    assert settled(config_of(tmp_path, {"m": {"adapter": "lora", "from": str(source)}})) == config
    assert not changes(config, "base", index.digest)
    before = content_digest(source)
    weights = load_file(source / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, source / "adapter_model.safetensors")
    found = changes(config, "base", index.digest)
    assert found == {"methods.m.from": (before[:12], content_digest(source)[:12])}
    with pytest.raises(
        UserError,
        match=r"to go on: methods\.m\.from: \w{12} -> \w{12}\. Go on with the adapter",
    ):
        refuse(found, [], config.folder())
    refuse(found, ["methods.m.from"], config.folder())
    shutil.rmtree(source)
    assert not changes(config, "base", index.digest)
    copy = config.folder("m") / START / "adapter_model.safetensors"
    save_file({name: 3 * tensor for name, tensor in weights.items()}, copy)
    with pytest.raises(UserError, match="start: is not what the run started from"):
        worker_for(config, finished / "r" / "stream").learn_chunk("m", 0)


def spoiled(folder: Path, how: str) -> None:
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, tree = load_file(weights), json.loads(settings.read_text())
    first = min(tensors)
    if how == "bin":
        weights.rename(folder / "adapter_model.bin")
    elif how == "no weights":
        weights.unlink()
    elif how == "no settings":
        settings.unlink()
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "settings":
        settings.write_text("{")
    elif how == "nan":
        save_file({**tensors, first: torch.full_like(tensors[first], torch.nan)}, weights)
    elif how == "shape":
        save_file({**tensors, first: torch.zeros(4, 7)}, weights)
    elif how == "lacks":
        save_file({name: tensor for name, tensor in tensors.items() if name != first}, weights)
    elif how == "module":
        save_file({name.replace("layers.0", "layers.9"): tensor for name, tensor in tensors.items()}, weights)
    elif how == "gone":
        shutil.rmtree(folder)
    elif how == "encoder":
        (folder / "lineage.json").write_text(json.dumps({"encoder": "abc"}))
    elif how:
        settings.write_text(json.dumps(tree | json.loads(how)))


@pytest.mark.parametrize(
    ("how", "method", "said"),
    [
        ("gone", {}, "no such folder. Give a folder that `streamcvit adapters export`"),
        ("no settings", {}, "holds no adapter_config.json"),
        ("no weights", {}, "holds no adapter_model.safetensors"),
        ("bin", {}, "holds adapter_model.bin, a pickle, and nothing is unpickled here"),
        ("cut", {}, "cannot be read ("),
        ("settings", {}, "cannot be read ("),
        ("nan", {}, "lora_A.weight is not finite"),
        ("shape", {}, "has shape [4, 7] there, and [4, 256] on this model"),
        ("lacks", {}, "lacks 1 tensors that the method's adapter has"),
        ("module", {}, "is of modules that the model does not have (7 of 21, model.language_model.layers.9."),
        ("encoder", {}, "its routers were learned with another instruction encoder (abc)"),
        ("", {"adapter": "smolora"}, "holds an adapter of kind lora, the method's is smolora. Set methods.m.adapter"),
        ("", {"adapter": "none"}, "methods.m.from: the adapter 'none' learns nothing"),
        ("", {"options": {"r": 8}}, "r is 4 there and 8 here. Change methods.m.options.r, or leave it out"),
        ("", {"train": {"layers": "0"}}, "holds 28 tensors that the method's adapter does not have"),
        ('{"lora_alpha": 9}', {"options": {"lora_alpha": 8}}, "lora_alpha is 9 there and 8 here"),
        ('{"modules_to_save": 5}', {}, "methods.m.options.modules_to_save: 5 is no list of names"),
        ('{"peft_type": 1}', {}, "it names no peft_type"),
        ('{"r": 5}', {}, "has shape [4, 256] there, and [5, 256] on this model"),
    ],
)
def test_what_cannot_be_started_from_is_one_line_before_anything_is_written(
    finished: Path, tmp_path: Path, how: str, method: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(finished / "exported-lora", folder)
    spoiled(folder, how)
    config = config_of(tmp_path / "runs", {"m": {"adapter": "lora", "from": str(folder), **method}})
    with pytest.raises(UserError) as caught:
        execute(config, local=True)
    assert said in str(caught.value) and "methods.m." in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_an_adapter_of_another_base_is_said(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    shutil.copytree(finished / "exported-lora", folder)
    config = config_of(tmp_path, {"m": {"adapter": "lora", "from": str(folder)}})
    digest = json.loads((folder / "lineage.json").read_text())["base_digest"]
    assert list(other_bases(config, digest)) == []
    (said,) = other_bases(config, "0" * 64)
    assert f"another base (digest {digest[:12]}, here 000000000000)" in said
    (folder / "lineage.json").unlink()
    spoiled(folder, '{"base_model_name_or_path": "some/other-7b"}')
    (said,) = lines(config)
    assert said.endswith("it names another base, some/other-7b")


def test_a_commits_folder_can_be_started_from_and_is_checked_against_its_seal(finished: Path, tmp_path: Path) -> None:
    commit = commits.list_commits(finished / "r/smolora/commits")[0]
    method = {"adapter": "smolora", "from": str(commit)}
    assert settled(config_of(tmp_path, {"m": method})).methods["m"].options == {}
    shutil.copytree(commit, tmp_path / "c")
    weights = tmp_path / "c/adapter/adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="has another checksum than the commit was sealed with"):
        settled(config_of(tmp_path, {"m": {**method, "from": str(tmp_path / "c")}}))
