"""A chat template of one's own takes the place of the model's, and goes with the run as text."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from models import save, tiny_llava, tiny_samples

from streamcvit.errors import UserError
from streamcvit.models.base import load_base
from streamcvit.models.collate import Collator
from streamcvit.models.templatefile import template_text
from streamcvit.pipeline import builtin, load_config
from streamcvit.run.loading import collation
from streamcvit.run.resume import changes, refuse

OWN = (
    "{% for message in messages %}{{ '<<' + message['role'] + '>>' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<<assistant>>{% endif %}"
)


def config(tmp_path: Path, *settings: str, name: str = "r"):
    return load_config(builtin("embedded"), [f"out={tmp_path / 'runs'}", *settings], name=name)


def test_learner_and_evaluator_write_conversations_as_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(OWN)
    folder = save(tiny_llava(), tmp_path / "model")
    given = collation(config(tmp_path, f"model.chat_template={tmp_path / 'own.jinja'}", f"model.name_or_path={folder}"))
    samples = tiny_samples(2)
    collator = Collator.from_pretrained(folder, **given)
    base = load_base(folder, device="cpu", **given)
    for one in (collator, pickle.loads(pickle.dumps(collator)), base.collator):
        ids = one.train(samples).tensors["input_ids"][0].tolist()
        text = one.tokenizer.decode([token for token in ids if token != one.image_token_id])
        assert text.startswith("<<user>>What is ") and "<<assistant>>red<eos>" in text
    assert base.processor.chat_template != OWN


def test_the_run_keeps_the_templates_text_and_goes_on_with_no_other(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(OWN)
    own = config(tmp_path, f"model.chat_template={file}")
    own.folder().mkdir(parents=True)
    saved = own.folder() / "config.yaml"
    saved.write_text(own.dump())
    file.write_text(OWN.replace("<<", "[["))
    assert load_config(saved).model.chat_template == own.model.chat_template == OWN
    other = config(tmp_path, f"model.chat_template={file}")
    with pytest.raises(UserError, match="--allow-change model.chat_template") as caught:
        refuse(changes(other, "", ""), (), own.folder())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (None, "own.jinja cannot be read as text (No such file"),
        (b"\xff\xfe{% if", "own.jinja cannot be read as text ('utf-8'"),
        (b"{% for message in messages %}", "own.jinja is no chat template: line 1: Unexpected end of template"),
        (b"Answer: {{ answer }}", "own.jinja is no chat template: it reads no `messages`"),
        (b"plain words", "own.jinja is no chat template: it reads no `messages`"),
    ],
)
def test_a_file_that_is_no_chat_template_is_refused_in_one_line(tmp_path: Path, held: bytes | None, said: str) -> None:
    if held is not None:
        (tmp_path / "own.jinja").write_bytes(held)
    with pytest.raises(UserError) as caught:
        config(tmp_path, f"model.chat_template={tmp_path / 'own.jinja'}")
    assert "model.chat_template: " in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_stands_for_itself_and_nothing_for_the_models_own() -> None:
    assert template_text(OWN) == OWN
    assert template_text(" ") == ""
