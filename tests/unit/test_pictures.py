"""What a picture may take: bounds on pixels and tokens, and the processor's own settings."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarking import ROOT, load_benchmark
from families import FAMILIES
from familychecks import learner
from models import picture, save, tiny_samples
from PIL import Image

from streamcvit.config import RunConfig
from streamcvit.data.sample import Picture, Sample
from streamcvit.errors import UserError
from streamcvit.evaluation.generate import Generator
from streamcvit.export import export
from streamcvit.footprint import picture_lines
from streamcvit.launch import execute
from streamcvit.learning import read_ledger
from streamcvit.models.base import Base, load_base
from streamcvit.models.batch import Batch
from streamcvit.models.collate import Collator, UnusableSamples
from streamcvit.models.pictures import Bounds, PictureRules
from streamcvit.models.processor import image_token_of, load_processor
from streamcvit.pipeline import builtin, load_config
from streamcvit.predict import predictor_of
from streamcvit.preflight import check_settings
from streamcvit.run.loading import collation
from streamcvit.run.stream import prepare_stream

BOUNDS = {
    "llava_next": 56,
    "llava_onevision": 40,
    "internvl": 6,
    "qwen2_vl": 10,
    "smolvlm": 14,
    "idefics3": 12,
    "gemma3": 4,
}
"""Image tokens that each tiny family can keep to, all but Gemma-3 fewer than a 640x480 picture takes by itself."""
SIZES = ((640, 480), (480, 640), (300, 300), (640, 200), (31, 90))


@pytest.fixture(scope="module")
def built() -> dict[str, tuple[Any, Any]]:
    return {name: FAMILIES[name]() for name in BOUNDS}


def collator_of(pair: tuple[Any, Any], **rules: Any) -> Collator:
    return Collator(pair[1], image_token_id=image_token_of(pair[0].config), pictures=PictureRules(**rules))


def seen(*sizes: tuple[int, int]) -> list[Sample]:
    return tiny_samples(len(sizes), sizes=sizes)


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_pictures_keep_to_a_bound_on_tokens_and_a_batch_gives_what_each_gives_alone(name: str, built) -> None:
    bound = BOUNDS[name]
    free, bounded = collator_of(built[name]), collator_of(built[name], max_tokens=bound)
    samples = seen(*SIZES)
    before = [counts[0] for counts in free.prompts(samples).pictures]
    whole = bounded.train(samples)
    after = [counts[0] for counts in whole.pictures]
    assert all(0 < count <= bound for count in after)
    assert all(now <= was for now, was in zip(after, before, strict=True))
    assert name == "gemma3" or max(before) > bound
    alone = [bounded.train([sample]) for sample in samples]
    for k, one in enumerate(alone):
        width = one.image_mask.shape[1]
        assert one.pictures[0] == whole.pictures[k]
        assert torch.equal(whole.tensors["input_ids"][k, :width], one.tensors["input_ids"][0])
    assert torch.equal(whole.tensors["pixel_values"], bounded.prompts(samples).tensors["pixel_values"])


@pytest.mark.parametrize("name", ["internvl", "qwen2_vl"])
def test_learner_and_evaluator_see_the_same_pixels_under_a_bound(name: str, built, tmp_path: Path) -> None:
    rules = PictureRules(max_pixels=90_000, max_tokens=BOUNDS[name])
    folder = save(built[name], tmp_path)
    base = load_base(folder, device="cpu", max_length=300, pictures=rules)
    ingest = pickle.loads(pickle.dumps(Collator.from_pretrained(folder, 300, pictures=rules)))
    samples = seen((640, 480), (300, 500))
    learned, asked = ingest.train(samples), base.collator.prompts(samples)
    assert torch.equal(learned.tensors["pixel_values"], asked.tensors["pixel_values"])
    own = learner(base, "smolora")
    report = own.learn(Batch(0, 2, 0, tuple(samples), (), learned))
    assert report is not None and torch.isfinite(report.loss).all()
    own.model.eval()
    texts = [Generator(base, batch_size=size) for size in (2, 1)]
    assert len({tuple(one.answer(own.model, one.prepare(samples), 4)) for one in texts}) == 1


def test_a_larger_picture_is_scaled_down_to_the_pixels_it_may_have() -> None:
    bounds = Bounds(PictureRules(max_pixels=10_000), None)  # type: ignore[arg-type]
    assert bounds.size((100, 100)) == (100, 100)
    assert bounds.size((400, 100)) == (200, 50)
    for size in ((640, 480), (4000, 3), (3, 4000), (101, 100), (20_000, 100)):
        width, height = bounds.size(size)
        assert 0 < width * height <= 10_000
        assert abs(width / height / (size[0] / size[1]) - 1) < 0.03 or min(width, height) < 9
    image = Image.effect_noise((640, 480), 50).convert("RGB")
    assert bounds(image).size == (115, 86)
    assert bounds(image).tobytes() == bounds(image.copy()).tobytes()


def test_without_bounds_nothing_changes(built) -> None:
    samples = tiny_samples(3)
    plain = Collator(built["qwen2_vl"][1]).train(samples)
    wide = collator_of(built["qwen2_vl"], max_pixels=10**9, max_tokens=10**6).train(samples)
    assert plain.tensors.keys() == wide.tensors.keys()
    assert all(torch.equal(tensor, wide.tensors[name]) for name, tensor in plain.tensors.items())


def test_every_picture_of_a_sample_keeps_to_the_bound(built) -> None:
    collator = collator_of(built["qwen2_vl"], max_tokens=10)
    two = replace(seen((640, 480))[0], pictures=tuple(Picture(picture(k, (640, 480))) for k in range(2)))
    (counts,) = collator.train([two]).pictures
    assert len(counts) == 2 and max(counts) <= 10


def test_settings_of_the_processor_hold_in_every_call_and_leave_the_given_one_alone(built) -> None:
    pair = built["internvl"]
    wide = seen((640, 200))
    assert collator_of(pair).prompts(wide).pictures == ((16,),)
    assert collator_of(pair, options={"max_patches": 2}).prompts(wide).pictures == ((12,),)
    assert collator_of(pair, options={"crop_to_patches": False}).prompts(wide).pictures == ((4,),)
    assert pair[1].image_processor.max_patches == 3
    assert collator_of(pair, options={"max_patches": 2}).changed_settings() == {"max_patches": 2}


def test_what_the_models_config_knows_too_follows_the_processor(built) -> None:
    model, processor = FAMILIES["llava_next"]()
    grid = [[32, 64]]
    base = Base(model, processor, pictures=PictureRules(options={"image_grid_pinpoints": grid}))
    samples = seen((640, 480), (64, 64))
    generator = Generator(base, batch_size=2)
    assert base.model.config.image_grid_pinpoints == grid
    assert len(generator.answer(base.model, generator.prepare(samples), 2)) == 2


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("internvl", {"max_patch": 4}, "model.processor_options.max_patch: the processor's picture half (GotOcr2"),
        (
            "internvl",
            {"max_patches": "many"},
            "model.processor_options.max_patches: the processor cannot work with 'many'",
        ),
        (
            "internvl",
            {"max_patches": 2, "size": {"height": 0, "width": 0}},
            "model.processor_options.size: the processor",
        ),
        ("qwen2_vl", {"return_tensors": "pt"}, "model.processor_options.return_tensors: "),
        ("qwen2_vl", {"patch_size": 0}, "model.processor_options.patch_size: the processor cannot work with 0"),
        ("idefics3", {"size": {"wide": 3}}, "model.processor_options.size: the processor cannot work with {'wide': 3}"),
    ],
)
def test_a_setting_that_the_processor_does_not_have_is_one_line(built, name: str, options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        collator_of(built[name], options=options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_bound_that_no_picture_can_keep_names_the_least_it_can_be(built) -> None:
    with pytest.raises(UserError) as caught:
        collator_of(built["gemma3"], max_tokens=3)
    assert "model.max_picture_tokens: a picture takes at least 4 tokens with this processor" in str(caught.value)
    assert "Set it to 4 or more, or set the processor itself in model.processor_options" in str(caught.value)


def test_a_picture_of_a_shape_that_cannot_keep_to_the_bound_is_left_out_with_its_size(built) -> None:
    collator = collator_of(built["llava_next"])
    collator._reader.fit = Bounds(PictureRules(max_tokens=30), collator._asking())
    narrow, usual = tiny_samples(2, sizes=((20, 900), (640, 480)))
    with pytest.raises(UnusableSamples) as caught:
        collator.prompts([narrow, usual])
    said = "a picture of 640x480 takes at least 44 tokens, max_picture_tokens is 30"
    assert caught.value.reasons == {usual.sample_id: ("length", said)}
    assert collator.prompts([narrow]).pictures[0][0] <= 30


def config_of(folder: Path | str, **model: Any) -> RunConfig:
    return RunConfig.model_validate({"model": {"name_or_path": str(folder), **model}, "stream": {"source": "embedded"}})


def test_preflight_says_what_a_picture_takes_and_refuses_one_that_fits_no_row(built, tmp_path: Path) -> None:
    folder = save(built["llava_next"], tmp_path / "model")
    rows = [{"id": str(k), "image": "a.png", "text": "?", "answer": "a"} for k in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "a.png").write_bytes(picture(0, (640, 480)))
    task = {"train": "rows.json", "test": "rows.json", "format": "qa"}

    def lines(**model: Any) -> list[str]:
        tree = {
            "model": {"name_or_path": str(folder), **model},
            "stream": {"source": "files", "data": str(tmp_path), "tasks": {"t": task}},
        }
        config = RunConfig.model_validate(tree)
        return picture_lines(config, Collator.from_pretrained(folder, **collation(config)))

    (said,) = lines(max_length=90)
    assert said == "a 640x480 picture (the middle one of 4 looked at) takes 70 tokens; model.max_length is 90"
    with pytest.raises(UserError) as caught:
        lines(max_length=73)
    assert "model.max_length: a picture of 640x480 takes 70 tokens and its row 74" in str(caught.value)
    assert "Set it to 256, or model.max_picture_tokens to" in str(caught.value)
    bound = int(str(caught.value).rsplit(" ", 1)[1].rstrip("."))
    (said,) = lines(max_length=73, max_picture_tokens=bound)
    assert "takes" in said
    (tmp_path / "a.png").unlink()
    (said,) = lines(max_length=90)
    assert "640x480 picture (a usual one, as none of the stream is known) takes 70 tokens" in said
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "0", "text": "?", "answer": "a"}]))
    (said,) = lines(max_length=20)  # what has no picture is not refused for one
    assert "640x480 picture (a usual one, as no row looked at has one) takes 70 tokens" in said


def test_pictures_of_shards_are_looked_at(tmp_path: Path) -> None:
    few = ["stream.scenario.chunks=1", "stream.scenario.samples_per_chunk=8", "stream.test_samples=1"]
    prepare_stream(load_config(builtin("embedded"), few, name="r"), tmp_path / "stream")
    config = RunConfig.model_validate({"stream": {"source": "shards", "data": str(tmp_path / "stream")}})
    (said,) = picture_lines(config, Collator.from_pretrained("embedded", **collation(config)))
    assert said == "a 32x32 picture (the middle one of 8 looked at) takes 16 tokens; model.max_length is 2048"


def test_a_run_says_what_its_pictures_take(tmp_path: Path) -> None:
    lines = check_settings(RunConfig(), local=True)
    assert "a 32x32 picture (the stream's own size) takes 16 tokens; model.max_length is 2048" in lines
    with pytest.raises(UserError, match="model.processor_options.size_of: the processor's picture half"):
        check_settings(config_of("embedded", processor_options={"size_of": 3}), local=True)
    with pytest.raises(UserError, match="at least 16 tokens with this processor"):
        check_settings(config_of("embedded", max_picture_tokens=5), local=True)


def test_pictures_that_the_tower_is_not_made_for_are_refused_before_anything_is_learned(tmp_path: Path, built) -> None:
    folder = save(built["gemma3"], tmp_path)
    rules = PictureRules(options={"size": {"height": 64, "width": 64}})
    with pytest.raises(UserError, match="model.processor_options: the model cannot work with pictures"):
        load_base(folder, device="cpu", pictures=rules)


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ("processor_config.json", "the folder holds no processor settings (preprocessor_config.json or processor_conf"),
        ("tokenizer.json", "the folder holds no tokenizer (tokenizer.json or tokenizer.model)"),
    ],
)
def test_a_folder_without_a_part_of_its_processor_is_refused_in_one_line(
    tmp_path: Path, built, absent: str, said: str
) -> None:
    folder = save(built["llava_next"], tmp_path)
    (folder / absent).unlink()
    with pytest.raises(UserError) as caught:
        load_processor(folder)
    assert str(caught.value).startswith(f"{folder}: {said}") and "\n" not in str(caught.value)


def test_a_run_learns_under_a_bound_what_it_leaves_out_and_says_without_one(built, tmp_path: Path, capsys) -> None:
    folder = save(built["internvl"], tmp_path / "model")
    rows = [{"id": str(k), "image": f"{k}.png", "text": "?", "answer": "a"} for k in range(6)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for k in range(6):
        (tmp_path / f"{k}.png").write_bytes(picture(k, (64, 64) if k else (640, 200)))
    task = {"train": "rows.json", "test": "rows.json", "format": "qa", "max_new_tokens": 2}

    def run(name: str, resume: bool = False, **model: Any) -> Path:
        tree = {
            "name": name,
            "out": str(tmp_path / "runs"),
            "model": {"name_or_path": str(folder), "max_length": 20, **model},
            "stream": {
                "source": "files", "data": str(tmp_path), "tasks": {"t": task}, "bad_share": 1,
                "scenario": {"preset": "generate", "chunks": 1, "tasks_per_chunk": 1, "recurrence_gap": 0},
            },
            "learner": {"batch_size": 3},
            "methods": {"a": {"adapter": "lora", "options": {"r": 2}}},
        }  # fmt: skip
        return execute(RunConfig.model_validate(tree), local=True, resume=resume).parent / "a"

    free = run("free")
    said = " ".join(capsys.readouterr().out.split())
    assert "5 samples" in said and "1 left out, the first: length: 24 tokens are more than max_length=20, 16 of" in said
    assert "1 too long: raise model.max_length, or set model.max_picture_tokens" in said
    assert "t: 1 test samples left out, the first: 0: length: 22 tokens are more than max_length=20" in said
    assert "a 64x64 picture (the middle one of 6 looked at) takes 4 tokens; model.max_length is 20; the largest" in said
    template = built["internvl"][1].chat_template + "{# own #}"
    bounded = run("bounded", max_picture_tokens=12, max_pixels=60_000, chat_template=template)
    said = " ".join(capsys.readouterr().out.split())
    assert "6 samples" in said and "left out" not in said
    assert "model.max_picture_tokens 12: the processor's max_patches 3 -> 1" in said
    counts = [len(read_ledger(one / "ledger")) for one in (free, bounded)]
    assert counts == [5, 6]
    predictor = predictor_of(bounded.parent, device="cpu")
    assert predictor.bench.base.collator.rules == PictureRules(60_000, 12)
    list(export(bounded.parent, tmp_path / "whole", "a", merged=True))
    assert load_processor(tmp_path / "whole").image_processor.max_patches == 1
    assert (tmp_path / "whole" / "chat_template.jinja").read_text() == template
    assert "`max_pixels=60000`, `max_picture_tokens=12`" in (tmp_path / "whole" / "README.md").read_text()
    with pytest.raises(UserError) as caught:
        run("bounded", resume=True, max_picture_tokens=13, processor_options={"max_patches": 2})
    for key in ("max_pixels: 60000 -> 0", "max_picture_tokens: 12 -> 13", "processor_options.max_patches: absent -> 2"):
        assert f"model.{key}" in str(caught.value)


def test_the_page_on_models_holds_the_table_that_the_benchmark_prints() -> None:
    benchmark = load_benchmark("pictures")
    record = json.loads(benchmark.RESULT.read_text())
    assert benchmark.table(record) in (ROOT / "docs" / "models.md").read_text()
    name, processor = next(benchmark.processors())
    assert benchmark.measure(processor) == record[name]
