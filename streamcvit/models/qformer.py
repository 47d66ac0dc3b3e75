"""BLIP-2 and InstructBLIP: a Q-Former between vision tower and language model, which in InstructBLIP reads the prompt.

The stock models want pixels in every forward, also while decoding, and the stock processors put the image tokens in
front by themselves. Here both are called as the rest are: features computed beforehand, logits of chosen places alone,
a key-value cache in the output, and a mark for the picture in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutputWithPooling

from streamcvit.errors import UserError
from streamcvit.models.batch import TOWER_TEXT

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% else %}{{ ' ' + message['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The conversation where processor and tokenizer have no template: the instruction and, after a space, the answer, as
both families were trained, without words for roles."""
_LONGEST = 512  # places that BERT, from which every published Q-Former starts, has for tokens


class _Model:
    """What both models are given; in front of the stock class, so that names, weights and files stay its own."""

    def forward(
        self: Any,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """The language model's forward, with features of pictures in place of their tokens.

        Args:
            input_ids, attention_mask: [B, S].
            pixel_values: [pictures, 3, H, W], with what else `get_image_features` reads; or
            mm_encoder_outputs: `image` -> what `get_image_features` gave. Neither where there is no picture.
            inputs_embeds: [B, S, D] in place of `input_ids`, pictures included.
            labels: [B, S], -100 where no loss is wanted.
            logits_to_keep: the last so many places, or a mask [B, S]; the output head runs on these alone.
            kwargs: of the language model (`past_key_values`, `position_ids`, `use_cache` ...).

        Returns:
            The language model's own output, its key-value cache included.
        """
        read = {name: kwargs.pop(name) for name in (TOWER_TEXT, "qformer_input_ids", "qformer_attention_mask")
                if name in kwargs}  # fmt: skip
        outputs = (mm_encoder_outputs or {}).get("image")
        if outputs is None and pixel_values is not None:
            outputs = self.get_image_features(pixel_values, **read)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if outputs is not None:
                places = (input_ids == self.config.image_token_id).unsqueeze(-1)
                features = outputs.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
                inputs_embeds = inputs_embeds.masked_scatter(places, features)
        return self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, logits_to_keep=logits_to_keep,
            **kwargs,
        )  # fmt: skip

    def _queried(self: Any, pixel_values: torch.Tensor, query: Any, interpolate_pos_encoding: bool) -> Any:
        """What `query(query_tokens, encoder_hidden_states, encoder_attention_mask)` gives of each picture, projected.

        The trained copy of a module (PEFT's `modules_to_save`) wants its first argument without a keyword.
        """
        seen = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding).last_hidden_state
        # The Q-Former is kept in float32 in BLIP-2, and may be where it is trained.
        seen = seen.to(self.qformer.dtype)
        queries = self.query_tokens.expand(len(seen), -1, -1)
        found = query(queries, seen, torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device))
        found = found.last_hidden_state[:, : queries.shape[1]]
        projected = self.language_projection(found.to(self.language_projection.weight.dtype))
        return BaseModelOutputWithPooling(pooler_output=projected)


class Blip2ForConditionalGeneration(_Model, transformers.Blip2ForConditionalGeneration):
    """BLIP-2 with a decoder-only language model (OPT)."""

    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Projected query features of each picture, [pictures, queries, D], as `pooler_output`."""

        def query(queries: torch.Tensor, seen: torch.Tensor, mask: torch.Tensor) -> Any:
            return self.qformer(queries, encoder_hidden_states=seen, encoder_attention_mask=mask)

        return self._queried(pixel_values, query, interpolate_pos_encoding)


class InstructBlipForConditionalGeneration(_Model, transformers.InstructBlipForConditionalGeneration):
    """InstructBLIP with a decoder-only language model (Vicuna): the queries read the prompt beside the picture."""

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        tower_text_ids: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Projected query features of each picture under its prompt, [pictures, queries, D], as `pooler_output`.

        Args:
            pixel_values: [pictures, 3, H, W].
            tower_text_ids: [pictures, 2, Q], ids and mask of the prompt in the Q-Former's own tokens; or, as the stock
                model takes them,
            qformer_input_ids, qformer_attention_mask: [pictures, Q].
            interpolate_pos_encoding: for pictures of another size than the tower's.
            kwargs: not read.
        """
        if tower_text_ids is not None:
            qformer_input_ids, qformer_attention_mask = tower_text_ids.unbind(1)
        if qformer_input_ids is None:
            raise ValueError("the Q-Former wants the prompt's tokens")
        if qformer_attention_mask is None:
            qformer_attention_mask = torch.ones_like(qformer_input_ids)

        def query(queries: torch.Tensor, seen: torch.Tensor, mask: torch.Tensor) -> Any:
            own = torch.cat([qformer_attention_mask.new_ones(queries.shape[:-1]), qformer_attention_mask], 1)
            return self.qformer(
                qformer_input_ids, attention_mask=own, query_embeds=queries, encoder_hidden_states=seen,
                encoder_attention_mask=mask,
            )  # fmt: skip

        return self._queried(pixel_values, query, interpolate_pos_encoding)

    def generate(self, *args: Any, tower_text_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """The stock `generate`, which may be given `tower_text_ids` [pictures, 2, Q] as well."""
        if tower_text_ids is not None:
            kwargs["qformer_input_ids"], kwargs["qformer_attention_mask"] = tower_text_ids.unbind(1)
        return super().generate(*args, **kwargs)


class _Processor:
    """What both processors are given: a picture where the text has its mark, and where the text's tokens come from."""

    def __call__(self: Any, images: Any = None, text: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Unpadded token rows, the image tokens in front, and pixels.

        Args:
            images: a list of one picture for each text; None where there is none.
            text: texts, each with one mark for its picture; what else there is to a text is tokenised without it.
            kwargs: of the tokenizer, lists only; `return_text_replacement_offsets` adds what became of the mark.

        Raises:
            ValueError: a text with another number of pictures or marks than one; a prompt longer than the Q-Former
                reads.
            UserError: the Q-Former would read earlier answers that are learned.
        """
        swaps_wanted = kwargs.pop("return_text_replacement_offsets", False)
        texts = [text] if isinstance(text, str) else list(text)
        given = [images] * len(texts) if images is None else [own if isinstance(own, list) else [own] for own in images]
        bare, swaps = [], []
        for one, own in zip(texts, given, strict=True):
            plain, swap = (one, []) if own is None else self._without_mark(one, len(own))
            bare.append(plain)
            swaps.append(swap)
        output = self._read(bare, pictures=images is not None, **kwargs)
        if images is None:
            return output | ({"text_replacement_offsets": swaps} if swaps_wanted else {})
        count, length = self.num_query_tokens, len(self.image_token)
        front = {"input_ids": [self.image_token_id] * count, "attention_mask": [1] * count}
        for name, rows in output.items():
            if name == "offset_mapping":
                for k, row in enumerate(rows):
                    # As in the text with the mark's replacement in the mark's place.
                    at, grown = swaps[k][0]["span"][0], count * length
                    own = [(at + i * length, at + (i + 1) * length) for i in range(count)]
                    rows[k] = own + [(a + grown, b + grown) if a >= at and b > a else (a, b) for a, b in row]
            elif name in front:
                output[name] = [front[name] + row for row in rows]
        pixels = self.image_processor([picture for own in given for picture in own or ()])
        return output | dict(pixels) | ({"text_replacement_offsets": swaps} if swaps_wanted else {})

    def _read(self: Any, texts: list[str], pictures: bool, **kwargs: Any) -> dict[str, Any]:
        return {name: list(rows) for name, rows in self.tokenizer(texts, **kwargs).items() if name != "token_type_ids"}

    def _without_mark(self: Any, text: str, pictures: int) -> tuple[str, list[dict[str, Any]]]:
        """A text without its picture's mark, and the place of that; the line that a mark stands on goes with it."""
        marks = text.count(self.image_token)
        if pictures != 1 or marks != 1:
            raise ValueError(f"it takes one picture a question, and here are {max(pictures, marks)}")
        start = text.index(self.image_token)
        stop = start + len(self.image_token)
        stop += text.startswith("\n", stop)
        longer = self.image_token * self.num_query_tokens
        swap = {"span": (start, stop), "new_span": (start, start + len(longer)), "replacement": longer}
        return text[:start] + text[stop:], [swap]


class Blip2Processor(_Processor, transformers.Blip2Processor):
    """BLIP-2's processor."""


class InstructBlipProcessor(_Processor, transformers.InstructBlipProcessor):
    """InstructBLIP's processor: the prompt also as the Q-Former reads it."""

    def _read(self: Any, texts: list[str], pictures: bool, **kwargs: Any) -> dict[str, Any]:
        if pictures and kwargs.get("return_offsets_mapping"):
            # Its attention goes both ways: features in front of an answer would tell of it.
            raise UserError(
                "InstructBLIP's Q-Former reads the whole prompt: answers of earlier turns cannot be learned",
                fix="Set learner.turns to last",
            )
        output = super()._read(texts, pictures, **kwargs)
        return output | {TOWER_TEXT: self._prompts(texts)} if pictures else output

    def _prompts(self: Any, texts: Sequence[str]) -> torch.Tensor:
        """[B, 2, Q] int64: tokens of the Q-Former's own, right-padded with 0, and 1 where they are."""
        bos = self.tokenizer.bos_token or ""
        rows: list[list[int]] = self.qformer_tokenizer([text.removeprefix(bos) for text in texts], verbose=False)[
            "input_ids"
        ]
        longest = max(map(len, rows))
        limit = min(self.qformer_tokenizer.model_max_length, _LONGEST)
        if longest > limit:
            raise ValueError(f"a prompt of {longest} tokens; the Q-Former reads {limit}")
        read = torch.zeros(len(rows), 2, longest, dtype=torch.long)
        for row, own in zip(rows, read, strict=True):
            own[0, : len(row)] = torch.tensor(row)
            own[1, : len(row)] = 1
        return read


_FITTED: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        Blip2ForConditionalGeneration,
        Blip2Processor,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
    )  # fmt: skip
}


def fit(part: Any) -> None:
    """Gives a stock model or processor its class here, in place.

    Raises:
        UserError: a language model with an encoder (T5); a config without an image token, or a processor that does not
            say how many tokens a picture takes.
    """
    if hasattr(part, "tokenizer"):
        _fit_processor(part)
    else:
        check(part.config)
    part.__class__ = _FITTED[type(part).__name__]


def check(config: Any) -> None:
    """Raises a UserError where the language model is an encoder-decoder (T5), or no image token is named."""
    if not config.use_decoder_only_language_model:
        raise UserError(
            f"its language model ({config.text_config.model_type}) is an encoder-decoder; only decoders are learned",
            where=config.model_type,
            fix="Use its form with a decoder-only language model: OPT, Vicuna, Llama ...",
        )
    if config.image_token_id is None:
        raise UserError(
            "its config names no image token: pictures have no place in a text",
            where=config.model_type,
            fix="Set image_token_index in config.json",
        )


def _fit_processor(processor: Any) -> None:
    if not processor.num_query_tokens:
        raise UserError(
            f"the processor ({type(processor).__name__}) does not say how many tokens a picture takes",
            fix="Set num_query_tokens in processor_config.json to the number in the model's config.json",
        )
    processor.image_token = str(processor.image_token)
    processor.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    processor.image_token_ids = [processor.image_token_id]
    if not (processor.chat_template or processor.tokenizer.chat_template):
        processor.chat_template = CHAT_TEMPLATE.replace("IMAGE", processor.image_token)
