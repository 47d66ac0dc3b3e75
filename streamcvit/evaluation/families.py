"""The families of rules by name, and which strict and published rules judge the same kind of task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.evaluation.follow import FOLLOW_RULES, FollowRule
from streamcvit.evaluation.mcitlib import MCITLIB_SCORERS
from streamcvit.evaluation.needs import needing, needs_of
from streamcvit.evaluation.scorers import SCORERS, Scorer
from streamcvit.evaluation.strcvit import STRCVIT_SCORERS


def _as_points(rule: FollowRule) -> Scorer:
    def scorer(predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
        return 100.0 * np.asarray(rule(predictions, samples), dtype=np.float64)

    return needing(*needs_of(rule))(scorer)


# What MCITlib shares with others; `ucit` is eval_deepseek_r1, whose request to a judge is commented out.
_SHARED = {name: STRCVIT_SCORERS[name] for name in ("ai2d", "finvis", "vizwiz", "ocrvqa", "grounding", "textvqa")}
_SHARED |= {"ucit": STRCVIT_SCORERS["smolora_vqav2"], "vqav2": STRCVIT_SCORERS["smolora_vqav2"]}
_SHARED |= {"imagenet": STRCVIT_SCORERS["coin_imagenet"]}

FAMILIES: dict[str, dict[str, Scorer]] = {
    "strict": SCORERS,
    "strcvit": STRCVIT_SCORERS,
    "mcitlib": MCITLIB_SCORERS | _SHARED,
    "follow": {name: _as_points(rule) for name, rule in FOLLOW_RULES.items()},
}

# Published rule: strict rule. A published rule that is not named here is held against `exact`.
_STRICT = {
    **dict.fromkeys(("textvqa", "vqa_official"), "vqa"),
    **dict.fromkeys(("imagenet", "smolora_imagenet", "coin_imagenet"), "classification"),
    **dict.fromkeys(("textcaps", "flickr30k", "smolora_flickr30k", "caption", "caption_no_meteor"), "cider"),
    "scienceqa": "choice",
    "chartqa": "number",
    "grounding": "grounding",
}
# Strict rule: published rule.
_PUBLISHED = {
    "exact": "vqav2",
    "vqa": "textvqa",
    "classification": "imagenet",
    "choice": "scienceqa",
    "number": "chartqa",
    "grounding": "grounding",
    "cider": "textcaps",
}


def find_rule(name: str) -> tuple[str, str, Scorer]:
    """(family, name, scorer) of a rule that is named FAMILY/NAME.

    Raises:
        UserError: there is none of that name.
    """
    family, _, rule = name.partition("/")
    if family not in FAMILIES:
        fix = f"Write FAMILY/NAME, the family being one of {', '.join(FAMILIES)}"
        raise UserError(f"there is no family of rules {family!r:.80}", where="--rule", fix=fix)
    if rule not in FAMILIES[family]:
        fix = f"Choose one of {', '.join(FAMILIES[family])}"
        raise UserError(f"the family {family} has no rule {rule!r:.80}", where="--rule", fix=fix)
    return family, rule, FAMILIES[family][rule]


def counterpart(family: str, rule: str) -> str | None:
    """FAMILY/NAME of the rule that judges the same kind of task in the other family; None where there is none."""
    if family == "strict":
        return f"strcvit/{_PUBLISHED[rule]}" if rule in _PUBLISHED else None
    return None if family == "follow" else f"strict/{_STRICT.get(rule.removeprefix('mcitlib_'), 'exact')}"
