"""One tree of settings; every file in pipelines/ validates against it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_serializer, model_validator

from streamcvit.arriving import FollowConfig, check_follow
from streamcvit.data.formats import BAD_SHARE
from streamcvit.explain import NAME, NAME_RULE
from streamcvit.guarding import GuardConfig, check_guard
from streamcvit.published import PublishedTable, check_published
from streamcvit.sections import OWN, ClusterConfig, EvaluationConfig, MonitorConfig, Section, Seeds, Sweep
from streamcvit.sharing import check_learners

OWN_CODE = "own_code"
"""The setting that notes such files, and the folder of a run that holds their copies."""
_TAKEN = ("stream", "config.yaml", "lock.json", "report.html", "run.log", "wandb", "traces", OWN_CODE)
"""What else a run's folder holds."""


class TaskFiles(Section):
    """Where one task's samples lie and how it is judged (source `files`)."""

    train: str = Field(
        "",
        description="training file, folder or pattern (`train-*.parquet`), relative to stream.data; empty: tested only",
    )
    test: str = Field(description="the same for the test set")
    format: str = Field(
        "llava", description="format of the training file, a name in streamcvit.data.formats.FORMATS, or `my.py:Mine`"
    )
    test_format: str = Field("qa", description="format of the test file")
    images: str = Field("", description="image root, relative to stream.data")
    test_images: str = Field("", description="image root of the test file; empty: `images`")
    scorer: str = Field("exact", description="strict scorer, a name in streamcvit.evaluation.SCORERS, or `my.py:Mine`")
    strcvit: str = Field("", description="published scorer beside it, a name in STRCVIT_SCORERS; empty: none")
    follow: str = Field("single_word", description="instruction-following rule, a name in FOLLOW_RULES")
    max_new_tokens: int = Field(16, ge=1, le=4096, description="tokens at which an answer ends at the latest")
    in_average: bool = Field(True, description="whether AP and its kin hold this task")
    instructions: list[str] = Field(
        default_factory=list, description="wordings of the instruction: the one a prompt ends or starts with is its own"
    )
    wording: Literal["given", "single", "drawn"] = Field(
        "given",
        description="`given`: each row's own; `single`, `drawn`: the first of `instructions`, or one drawn by the "
        "sample's id, stands in the place of each row's own, or behind its prompt",
    )
    instruction_field: str = Field("", description="key of the rows whose text is the instruction")
    guess_instruction: bool = Field(False, description="take the last line of a prompt of several lines for it")
    split_turns: bool = Field(
        False, description="make one sample of each question of a conversation, with the turns before it"
    )


class ScenarioConfig(Section):
    """Which task gives how many samples to which chunk."""

    preset: str = Field(
        "embedded",
        description="`embedded`, `generate`, `task-incremental`, a published plan, or of source `benchmark` (and its "
        "default) `benchmark`: its own",
    )
    chunks: int | None = Field(
        None, ge=1, le=10_000, description="null: the preset's own number; embedded and generate: 15"
    )
    samples_per_chunk: int = Field(0, ge=0, description="0: the preset's own, or all samples there are")
    tasks_per_chunk: int = Field(3, ge=1, description="tasks that a chunk mixes (`generate`)")
    recurrence_gap: int = Field(2, ge=0, description="chunks that pass before a task comes back (`generate`)")


class StreamConfig(Section):
    """What arrives."""

    source: Literal["embedded", "files", "benchmark", "shards", "follow"] = Field(
        "embedded",
        description="the built-in benchmark, task files, a published benchmark in its own layout (docs/data.md), or a "
        "stream folder, which may be a URL; `follow`: a stream that goes on (docs/streams.md)",
    )
    benchmark: str = Field("", description="of source `benchmark`: a name in streamcvit.data.layouts.LAYOUTS")
    data: str = Field(
        "",
        description="root folder of the task files or the benchmark, a stream folder made by `streamcvit shard`, or "
        "where shards arrive",
    )
    tasks: dict[str, TaskFiles] = Field(
        default_factory=dict,
        description="the tasks of source `files`, by name; of source `benchmark` those settings that shall be others",
    )
    scenario: ScenarioConfig = Field(ScenarioConfig(), description="which task comes when")
    follow: FollowConfig = Field(FollowConfig(), description="how a stream that goes on is taken in")
    wordings: Literal["single", "five"] = Field("single", description="instruction wordings per task (embedded)")
    conventions: Literal["shared", "own"] = Field(
        "shared", description="whether tasks under one instruction share their answer format (embedded)"
    )
    returns: Literal["same", "changed"] = Field(
        "same",
        description="`changed`: each task leaves and comes back under other rules, as a variant of its own "
        "(embedded; docs/architecture.md)",
    )
    test_samples: int = Field(
        0, ge=0, description="test samples a task, drawn by the seed; 0: all there are (embedded: 100)"
    )
    bad_share: float = Field(
        BAD_SHARE, ge=0, le=1, description="a task of which more rows or samples cannot be used stops the run"
    )
    samples_per_shard: int = Field(2000, ge=1, description="a new tar begins after so many")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, tree: Any) -> Any:
        """A benchmark's own tasks and plan, where a tree names no others."""
        if not isinstance(tree, dict) or tree.get("source") != "benchmark":
            return tree
        from streamcvit.data.layouts import LAYOUTS

        name, given, plan = (tree.get(key) for key in ("benchmark", "tasks", "scenario"))
        if name not in LAYOUTS:
            raise ValueError(f"stream.benchmark: unknown name {name!r}; allowed: {', '.join(sorted(LAYOUTS))}")
        if not isinstance(given, dict | None) or not isinstance(plan, dict | None):
            return tree
        own = LAYOUTS[name].tasks
        if unknown := sorted(map(str, (given or {}).keys() - own.keys())):
            raise ValueError(f"stream.tasks: {name} has no task {unknown[0]!r}; its tasks: {', '.join(own)}")
        tasks = {task: {**asdict(files), **((given or {}).get(task) or {})} for task, files in own.items()}
        return {**tree, "tasks": tasks, "scenario": {"preset": "benchmark", **(plan or {})}}

    @model_validator(mode="after")
    def _check_source(self) -> StreamConfig:
        if self.source == "files" and not self.tasks:
            raise ValueError("source `files` needs at least one entry under stream.tasks")
        if self.benchmark and self.source != "benchmark":
            raise ValueError(f"stream.benchmark is read by source `benchmark`, not {self.source!r}")
        if self.source == "shards":
            from streamcvit.data.locations import check_location

            check_location(self.data)  # before a password in it could be saved with the run
        if self.tasks:
            from streamcvit.data.formats import FORMATS
            from streamcvit.data.sample import TaskSpec
            from streamcvit.data.shards.check import check_task
            from streamcvit.evaluation import FOLLOW_RULES, SCORERS, STRCVIT_SCORERS

            kinds: dict[str, Collection[str]] = {
                "format": FORMATS,
                "test_format": FORMATS,
                "scorer": SCORERS,
                "strcvit": {*STRCVIT_SCORERS, ""},
                "follow": FOLLOW_RULES,
            }
            for name, task in self.tasks.items():
                try:
                    check_task(TaskSpec(name, task.scorer, task.follow))
                except ValueError as error:
                    raise ValueError(f"stream.tasks: {error}") from None
                for key, allowed in kinds.items():
                    own = key in ("format", "test_format", "scorer") and OWN.fullmatch(getattr(task, key))
                    if (value := getattr(task, key)) not in allowed and not own:
                        names = ", ".join(sorted(filter(None, allowed)))
                        names += ", or my.py:Mine" if key in ("format", "test_format", "scorer") else ""
                        raise ValueError(f"stream.tasks.{name}.{key}: unknown name {value!r}; allowed: {names}")
        return self


class ModelConfig(Section):
    """The frozen base model."""

    name_or_path: str = Field(
        "embedded", description="`embedded`, a folder that save_pretrained wrote, or a Hugging Face model's name"
    )
    architecture: str = Field(
        "", description="`model_type` of the base that a recipe is for, as in its config.json: what `--dry-run` builds"
    )
    revision: str = Field("", description="branch, tag or commit of a Hugging Face model; empty: its main branch")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0 ...; auto takes CUDA where there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the base's weights; auto: bfloat16 on a CUDA device that has it, else float32"
    )
    quantize: Literal["none", "8bit", "4bit"] = Field(
        "none", description="hold the language model's linear layers in fewer bits (needs `streamcvit[quantize]`)"
    )
    compile: bool = Field(
        False, description="learn with compiled layers (torch.compile): faster on a GPU after the first minutes"
    )
    attention: str = Field(
        "sdpa",
        min_length=1,
        description="transformers' attention implementation: sdpa, eager, or on a GPU flash_attention_2, "
        "flex_attention ...",
    )
    max_length: int = Field(2048, ge=16, description="tokens; a longer sample is quarantined")
    max_pixels: int = Field(
        0, ge=0, description="of a picture; a larger one is scaled down before the processor sees it; 0: no bound"
    )
    max_picture_tokens: int = Field(
        0,
        ge=0,
        description="image tokens of a picture: it is scaled down, or the processor set lower, until it keeps to "
        "them; 0: no bound",
    )
    processor_options: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of the processor's picture half in the place of its own, such as `max_patches: 4`",
    )
    chat_template: str = Field(
        "",
        description="file of a chat template (Jinja) in the place of the model's own; a run keeps its text, which may "
        "stand here too",
    )
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the chat template, such as `enable_thinking: false`"
    )
    instruction_encoder: str = Field(
        "tokens",
        min_length=1,
        description="`tokens`: mean of the base's token embeddings; or a sentence-transformers model's folder or name",
    )

    @field_validator("chat_template")
    @classmethod
    def _template_is_read(cls, text: str) -> str:
        if not text.strip():
            return ""
        from streamcvit.models.templatefile import template_text

        return template_text(text)


Decay = Annotated[float, Field(ge=0, lt=1)]


class LearnerConfig(Section):
    """The update."""

    batch_size: int = Field(8, ge=1, description="samples a step")
    micro_batch: int = Field(
        0,
        ge=0,
        description="samples whose forward and backward run at a time, for the update of the whole batch "
        "(dropout's numbers aside); 0: all",
    )
    group_by_length: bool = Field(
        False,
        description="batches of samples of like length, in a drawn order within each chunk: less padding, but not the "
        "order of the stream (docs/methods.md)",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="keep no activations inside the layers, compute them again in backward: less memory, more time",
    )
    turns: Literal["all", "last"] = Field("all", description="which answers of a conversation are learned")
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False, description="rate of methods that name none of their own")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="decoupled, of AdamW")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="decay of AdamW's two moments")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up; the rate is constant after them")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to it")
    max_skipped_steps: int = Field(
        5, ge=1, description="so many steps in a row whose loss or gradient is not finite stop the run"
    )
    threads: int = Field(
        1, ge=1, description="CPU threads of learner and evaluators; other counts give other roundings"
    )
    commit_every: int = Field(0, ge=0, description="steps between commits inside a chunk; 0: chunk boundaries only")
    keep_commits: int = Field(
        2, ge=2, description="newest commits kept resumable, one of them to fall back to; older ones keep the adapter"
    )
    drift_samples: int = Field(
        4,
        ge=0,
        description="test samples of each task by which drift of routes and experts is measured at chunk ends; 0: none",
    )


class TrainConfig(Section):
    """Which parts of the model learn, in every method that names none of its own."""

    modules: str | list[str] = Field(
        "all-linear",
        description="where the adapter goes: `all-linear` of the language model, names (`[q_proj, v_proj]`), or a "
        "regular expression of whole names; refused beside a method's own `options` of the same meaning",
    )
    exclude: str | list[str] = Field("", description="names or a regular expression of modules to leave out of these")
    layers: int | str | list[int] = Field(
        "", description="of the language model: numbers from 0, ranges (`0-7, 12`), or `last 8`; empty: all"
    )
    projector: Literal["none", "whole", "adapter"] = Field(
        "none", description="what joins pictures to the language model: trained whole, or with adapters (lora only)"
    )
    tower: Literal["none", "whole", "adapter"] = Field("none", description="the vision tower, in the same words")

    @field_validator("layers")
    @classmethod
    def _layers_are_named(cls, layers: int | str | list[int]) -> int | str | list[int]:
        from streamcvit.adapters.selection import check_layers

        check_layers(layers)
        return layers


class MethodConfig(Section):
    """One way of learning the stream: an adapter, a strategy, and its learning rate."""

    adapter: str = Field("smolora", description="a name in streamcvit.adapters.ADAPTERS, or `none` (zero-shot)")
    options: dict[str, Any] = Field(default_factory=dict, description="the adapter's own settings")
    start: str = Field(
        "",
        alias="from",
        description="folder of an adapter to start from (docs/predict.md); `options` that are not set are its own",
    )
    train: TrainConfig | None = Field(None, description="what learns here, all of it; null: the run's own `train`")
    strategy: str = Field("sequential", description="a name in streamcvit.learning.STRATEGIES, or `my.py:Mine`")
    strategy_options: dict[str, Any] = Field(default_factory=dict, description="the strategy's own settings")
    order: Literal["stream", "joint"] = Field("stream", description="joint: the whole stream shuffled (upper bound)")
    lr: float | None = Field(None, gt=0, allow_inf_nan=False, description="this method's rate; null: learner.lr")
    lrs: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="rates of groups of parameters, by group (`adapter`, `A`, `B`, `routers`, `whole`, `projector`, "
        "`tower`) or by a regular expression found in their names; the first that fits a parameter holds",
    )

    @model_serializer(mode="wrap")
    def _named_as_it_is_read(self, dump: Any) -> dict[str, Any]:
        return {MethodConfig.model_fields[name].alias or name: value for name, value in dump(self).items()}


class RunConfig(Section):
    """A whole run: one stream, one base model, and the methods that learn it, one after another."""

    name: str = Field("run", pattern=NAME, description="of the run's folder beneath `out`")
    out: str = Field("runs", description="folder that run folders go to")
    seed: int = Field(0, ge=0, description="of stream, adapters, strategies and intervals")
    seeds: Seeds = Field(
        default_factory=list,
        description="a run for each of these in the place of `seed`: `0-9`, or a list; empty: one run",
    )
    sweep: Sweep = Field(
        default_factory=dict, description="a run for each value of a setting, such as `learner.lr: [1e-4, 3e-4]`"
    )
    stream: StreamConfig = Field(StreamConfig(), description="what arrives")
    model: ModelConfig = Field(ModelConfig(), description="the frozen base")
    learner: LearnerConfig = Field(LearnerConfig(), description="the update")
    train: TrainConfig = Field(TrainConfig(), description="what learns")
    methods: dict[str, MethodConfig] = Field(
        default_factory=lambda: {"smolora": MethodConfig()}, description="ways of learning the stream, by name"
    )
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="the scoring")
    cluster: ClusterConfig = Field(ClusterConfig(), description="the actors")
    monitor: MonitorConfig = Field(MonitorConfig(), description="the endpoint")
    guard: GuardConfig = Field(GuardConfig(), description="what is done when forgetting is confirmed")
    own_code: dict[str, str] = Field(
        default_factory=dict,
        description="SHA-256 of each file of your own that a setting names (`my.py:Mine`); filled in by itself",
    )
    published: list[PublishedTable] = Field(
        default_factory=list, description="tables of papers to compare with; nothing of a run depends on them"
    )

    @model_validator(mode="after")
    def _published_fits(self) -> RunConfig:
        check_published(self.published, self.stream.tasks)
        return self

    @model_validator(mode="after")
    def _methods_are_known(self) -> RunConfig:
        if not self.methods:
            raise ValueError("methods: name at least one method")
        from streamcvit.adapters import ADAPTERS
        from streamcvit.learning import STRATEGIES

        for name, method in self.methods.items():
            if not re.match(NAME, name) or name in _TAKEN:
                taken = f", and none of {', '.join(_TAKEN)}"
                raise ValueError(f"methods.{name}: the name {NAME_RULE}{taken}: it becomes a folder's")
            if method.adapter not in {*ADAPTERS, "none"}:
                raise ValueError(
                    f"methods.{name}.adapter: unknown adapter {method.adapter!r}; "
                    f"allowed: none, {', '.join(sorted(ADAPTERS))}"
                )
            if method.strategy not in STRATEGIES and not OWN.fullmatch(method.strategy):
                raise ValueError(
                    f"methods.{name}.strategy: unknown strategy {method.strategy!r}; "
                    f"allowed: {', '.join(sorted(STRATEGIES))}, or my.py:Mine"
                )
        check_guard(self.guard, self.methods, self.learner.batch_size)
        check_learners(self.cluster, self.learner, self.methods)
        if self.stream.source == "follow":
            if self.cluster.learners > 1:
                raise ValueError("cluster.learners: a stream that goes on is learned by one learner; set it to 1")
            orders = {name: method.order for name, method in self.methods.items()}
            check_follow(self.stream.data, self.evaluation.unseen, orders)
        return self

    def folder(self, method: str | None = None) -> Path:
        """Folder of the run, or of one method's run inside it."""
        root = Path(self.out) / self.name
        return root if method is None else root / method

    def dump(self) -> str:
        """The resolved tree as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
