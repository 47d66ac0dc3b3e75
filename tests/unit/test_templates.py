"""Chat templates of all sorts: what is prompt and what is learned, thoughts, and templates that cannot be served."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from streamcvit.data.sample import PICTURE, Picture, Sample, TaskSpec, Turn
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.evaluation import SCORERS, Evaluator
from streamcvit.evaluation.generate import Generator
from streamcvit.models.base import Base
from streamcvit.models.collate import Collator, UnusableSamples
from streamcvit.models.processor import resolve
from streamcvit.models.thoughts import drop_thoughts
from tests.models import CHAT_TEMPLATE, picture, tiny_llava, tiny_samples

PARTS = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
)
# As Qwen3's: thoughts of earlier turns are left out, the last answer has a thinking block, empty if need be.
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}\n{% if message['role'] == 'assistant' %}"
    "{% set text = message['content'][0]['text'] %}{% set thought = '' %}"
    "{% if '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ text }}"
    "{% else %}" + PARTS + "{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# As thinking-only checkpoints': the generation prompt opens the block.
OPENS = (
    QWEN3.partition("{% if add_gen")[0] + "{% if add_generation_prompt %}{{ '<|assistant|>\n<think>\n' }}{% endif %}"
)
# As DeepSeek-R1's: it opens the block too, but finished turns have none.
STRIPS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if message['role'] == 'assistant' %}"
    "{{ message['content'][0]['text'].split('</think>')[-1] }}{% else %}" + PARTS + "{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
THOUGHT = "<think>\nIt glows.\n</think>\n\nred"


def collator(template: str | None, **kwargs) -> Collator:
    processor = tiny_llava()[1]
    processor.chat_template = template
    return Collator(processor, **kwargs)


def sample(answer: str = "red", **changes) -> Sample:
    return replace(tiny_samples(1)[0], question="Which colour?", instruction="", answers=(answer,), **changes)


def halves(made: Collator, one: Sample) -> tuple[str, str]:
    """What stands before the last answer, and that answer, with special tokens; one `<image>` a picture."""
    prompt, inputs = made.prompts([one]), made.train([one])
    length = int(prompt.tensors["attention_mask"].sum())
    ids = inputs.tensors["input_ids"][0].tolist()
    assert ids[:length] == prompt.tensors["input_ids"][0].tolist()
    assert (
        inputs.answer_mask[0, length:].all()
        and not (inputs.answer_mask & ~inputs.tensors["attention_mask"].bool()).any()
    )
    decode = made.tokenizer.decode
    return decode(ids[:length]).replace("<image>" * 16, "<image>"), decode(ids[length:])


@pytest.mark.parametrize(
    ("template", "options", "answer", "prompt", "learned"),
    [
        (QWEN3, {}, "red", "<|assistant|>\n<think>\n\n</think>\n\n", "red<|end|>"),
        (QWEN3, {"enable_thinking": False}, "red", "<|assistant|>\n<think>\n\n</think>\n\n", "red<|end|>"),
        (QWEN3, {"enable_thinking": True}, "red", "<|assistant|>\n", "<think>\n\n</think>\n\nred<|end|>"),
        (QWEN3, {}, THOUGHT, "<|assistant|>\n", THOUGHT + "<|end|>"),
        (QWEN3, {"enable_thinking": True}, THOUGHT, "<|assistant|>\n", THOUGHT + "<|end|>"),
        (OPENS, {}, "red", "<|assistant|>\n<think>\n\n</think>\n\n", "red<|end|>"),
        (OPENS, {}, THOUGHT, "<|assistant|>\n<think>\n", "It glows.\n</think>\n\nred<|end|>"),
        (STRIPS, {}, "red", "<|assistant|>", "red<|end|>"),
        (STRIPS, {}, THOUGHT, "<|assistant|><think>\n", "It glows.\n</think>\n\nred<|end|>"),
        (CHAT_TEMPLATE.replace("IMAGE", "'<image>'"), {}, THOUGHT, "<|assistant|>", THOUGHT + "<|end|>"),
    ],
)  # fmt: skip
def test_no_answer_is_learned_inside_an_open_thinking_block_and_no_empty_block_is_learned(
    template, options, answer, prompt, learned
):
    before, after = halves(collator(template, template_options=options), sample(answer))
    assert before.rpartition("<|end|>")[2].lstrip("\n") == prompt and after == learned


@pytest.mark.parametrize("template", [QWEN3, OPENS, STRIPS])
def test_earlier_turns_read_as_the_template_writes_them_without_their_thoughts(template):
    turns = (Turn(PICTURE + "Hot?", "<think>\nWell.\n</think>\n\nyes"), Turn("Sure?", "yes"))
    one = sample(turns=turns)
    made = collator(template)
    before, _ = halves(made, one)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hot?"}]}]
    messages += [{"role": "assistant", "content": [{"type": "text", "text": turns[0].answer}]}]
    messages += [{"role": "user", "content": [{"type": "text", "text": "Sure?"}]}]
    messages += [{"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    messages += [{"role": "user", "content": [{"type": "text", "text": "Which colour?"}]}]
    whole = made.processor.apply_chat_template([messages], add_generation_prompt=True)[0]
    assert before.startswith(whole.removesuffix("<think>\n")) and "Well" not in before
    inputs = made.train([one])
    ids = inputs.tensors["input_ids"][0][inputs.answer_mask[0]].tolist()
    assert made.tokenizer.decode(ids) == "yes<|end|>yes<|end|>red<|end|>"


@pytest.mark.parametrize("lead", ["", "<think>\n\n</think>\n\n"])
def test_a_model_that_learned_its_targets_to_the_letter_has_full_points(tmp_path: Path, lead: str):
    folder = Path(shutil.copytree(resolve("embedded"), tmp_path / "base"))
    template = (folder / "chat_template.jinja").read_text()
    written = template.replace("{% else %}<answer>", "{% else %}<answer>" + lead)
    assert written.count(lead) or not lead
    (folder / "chat_template.jinja").write_text(written)
    samples = embedded.test_samples("colour", 3)
    made = Collator.from_pretrained(folder)
    inputs = made.train(samples)
    rows = [ids[mask].tolist() for ids, mask in zip(inputs.tensors["input_ids"], inputs.answer_mask, strict=True)]
    assert SCORERS["exact"](made.decode(rows), samples).mean() == 100
    assert (lead.strip() in made.tokenizer.decode(made.prompts(samples).tensors["input_ids"][0])) or not lead


def test_the_cases_of_thinking_templates_have_full_points(shared_dir: Path, tmp_path: Path):
    samples = embedded.test_samples("colour", 3)
    found = sorted((shared_dir / "cases").glob("14-*/*.jinja"))
    for k, template in enumerate(found):
        folder = Path(shutil.copytree(resolve("embedded"), tmp_path / f"{k}"))
        shutil.copy(template, folder / "chat_template.jinja")
        made = Collator.from_pretrained(folder)
        inputs = made.train(samples)
        rows = [ids[mask].tolist() for ids, mask in zip(inputs.tensors["input_ids"], inputs.answer_mask, strict=True)]
        assert SCORERS["exact"](made.decode(rows), samples).mean() == 100, template.name
    assert found


def test_a_settings_travel_with_a_collator_to_another_process(tmp_path: Path):
    folder = Path(shutil.copytree(resolve("embedded"), tmp_path / "base"))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + QWEN3.replace("<|end|>", "{{ eos_token }}"))
    made = Collator.from_pretrained(folder, 500, turns="last", template_options={"enable_thinking": True})
    for sent in (
        pickle.loads(pickle.dumps(made)),
        pickle.loads(pickle.dumps(Collator(made.processor, *made._given[1:]))),
    ):
        assert (sent.max_length, sent.turns, sent.template.options) == (500, "last", {"enable_thinking": True})


def test_an_option_that_the_template_does_not_read_is_refused():
    with pytest.raises(UserError, match="reads no 'enable_thinkin'") as caught:
        collator(QWEN3, template_options={"enable_thinkin": False})
    assert caught.value.where == "model.template_options"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if messages | length > 1 %}{{ raise_exception('must alternate') }}{% endif %}x", "must alternate"),
        ("{% for message in messages %}{{ message['content'].no.thing }}{% endfor %}", "refuses"),
        ("{% if %}", "refuses"),
        ("{{ messages | length }}", "drops the picture"),
        (CHAT_TEMPLATE.replace("IMAGE", "'<image>'").replace("{% for message in", "{% for message in [messages[0]] if"),
         "drops the answer|refuses"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_served_is_refused_in_one_line(template, message):
    with pytest.raises(UserError, match=message) as caught:
        collator(template)
    assert "\n" not in str(caught.value) and caught.value.fix


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% for part in m['content'] if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    ],
    ids=["text", "no-pictures"],
)
def test_templates_of_texts_only_get_the_picture_in_the_text(template):
    made = collator(template)
    assert halves(made, sample()) == ("<|user|><image>\nWhich colour?<|end|><|assistant|>", "red<|end|>")
    two = sample(pictures=(Picture(picture(1)), Picture(picture(2))), whole=f"Is {PICTURE} like {PICTURE}?")
    assert halves(made, two)[0] == "<|user|>Is <image> like <image>?<|end|><|assistant|>"


def test_templates_that_put_pictures_in_front_leave_them_where_the_text_has_them():
    from tests.unit.test_collate import TEMPLATES

    made = collator(TEMPLATES["llava-1.5"])
    assert halves(made, sample())[0] == "USER: <image>\nWhich colour? ASSISTANT: "
    marked = sample(whole=f"Is {PICTURE} red?")
    assert halves(made, marked)[0] == "USER: Is <image> red? ASSISTANT: "


def test_a_system_prompt_without_a_role_stands_before_the_first_prompt():
    made = Collator.from_pretrained("embedded")  # its template writes any other role as an answer
    one = replace(embedded.test_samples("colour", 1)[0], system="You are brief.")
    assert "<image>You are brief.\nWhat color" in halves_of_embedded(made, one)
    strict = collator(TEMPLATE_WITHOUT_SYSTEM)
    assert (
        halves(strict, sample(system="Be brief."))[0] == "<|user|>Be brief.\n<image>Which colour?<|end|><|assistant|>"
    )
    assert halves(collator(CHAT_TEMPLATE.replace("IMAGE", "'<image>'")), sample(system="Be brief."))[0].startswith(
        "<|system|>Be brief.<|end|><|user|><image>"
    )
    text = "{% if messages[0]['role'] == 'system' %}{{ '[' + messages[0]['content'] + ']' }}"
    made = collator(text + "{% set messages = messages[1:] %}{% endif %}" + CHAT_TEMPLATE.replace("IMAGE", "'<image>'"))
    assert halves(made, sample(system="Be brief."))[0].startswith("[Be brief.]<|user|><image>")


TEMPLATE_WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHAT_TEMPLATE.replace("IMAGE", "'<image>'")
)


def halves_of_embedded(made: Collator, one: Sample) -> str:
    return made.tokenizer.decode(made.prompts([one]).tensors["input_ids"][0]).replace("<image>" * 16, "<image>")


def test_a_conversation_that_the_template_refuses_is_named_and_the_others_are_kept():
    two_turns = "{% if messages | length > 2 %}{{ raise_exception('one question, please') }}{% endif %}"
    made = collator(two_turns + CHAT_TEMPLATE.replace("IMAGE", "'<image>'"))
    long = sample(sample_id="long", turns=(Turn("Hot?", "yes"),))
    with pytest.raises(UnusableSamples, match="one question, please") as caught:
        made.train([sample(), long])
    assert {name: kind for name, (kind, _) in caught.value.reasons.items()} == {"long": "template"}


def test_without_a_chat_template_of_the_processor_the_tokenizers_is_used():
    processor = tiny_llava(chat=False)[1]
    processor.tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] + ']' }}{% endfor %}"
    assert halves(Collator(processor), sample())[0] == "[<image>\nWhich colour?]["
    processor.tokenizer.chat_template = CHAT_TEMPLATE.replace("IMAGE", "'<image>'")
    assert halves(Collator(processor), sample())[0] == "<|user|><image>Which colour?<|end|><|assistant|>"
    processor.tokenizer.chat_template = None
    turns = sample(turns=(Turn(PICTURE + "Hot?", "yes"),), system="Be brief.")
    assert halves(Collator(processor), turns)[0] == (
        "Be brief. USER: <image>\nHot? ASSISTANT: yes<eos>USER: Which colour? ASSISTANT: "
    )


def test_thoughts_are_taken_off():
    assert drop_thoughts(THOUGHT) == "red" and drop_thoughts(" red ") == "red"
    assert drop_thoughts("It glows.\n</think>\n\nred", opened=True) == "red"
    assert drop_thoughts("<think>\nIt gl") == "" and drop_thoughts("It gl", opened=True) == ""
    assert drop_thoughts("[THINK]a[/THINK]red") == "red"


@pytest.mark.parametrize("special", [False, True])
def test_answers_are_scored_on_what_follows_their_thoughts(special, monkeypatch):
    model, processor = tiny_llava()
    if special:  # as in Magistral's tokenizer; decoding leaves special tokens out
        processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]})
    processor.chat_template = OPENS
    base = Base(model, processor)
    assert base.collator.decode([base.tokenizer(THOUGHT)["input_ids"]]) == [THOUGHT]
    asked = [sample("red", sample_id="a"), sample(THOUGHT, sample_id="b"), sample("red", sample_id="c")]
    said = ["red", "It glows.\n</think>\n\nred", "<think>hm"]
    tasks = {"tiny": TaskSpec("tiny", "exact", "single_word")}
    monkeypatch.setattr(Generator, "_tokens", lambda self, model, requests, n: [
        base.tokenizer(said["abc".index(request.sample.sample_id)])["input_ids"] for request in requests
    ])  # fmt: skip
    evaluator = Evaluator(base, tasks, {"tiny": asked})
    texts = evaluator.evaluate(model, "tiny").texts
    assert texts == ("red", "red", "") and SCORERS["exact"](texts, evaluator.samples["tiny"]).tolist() == [100, 100, 0]
    kept = Evaluator(base, tasks, {"tiny": asked}, thoughts="keep")
    assert kept.evaluate(model, "tiny").texts == tuple(said)
    assert [one.answer for one in kept.samples["tiny"]] == ["red", THOUGHT, "red"]
