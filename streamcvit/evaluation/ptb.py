"""The tokens that pycocoevalcap's PTB step leaves of a caption, without Java.

pycocoevalcap runs Stanford's PTBTokenizer (CoreNLP 3.4.1, lower-casing) and drops a list of punctuation tokens. The
rules here are the part of the Penn Treebank conventions that captions meet; docs/scoring.md says how often the two
differ on real text.
"""

from __future__ import annotations

import re

# What pycocoevalcap drops. Its list names the brackets in capitals, but they arrive lower-cased and stay ("-lrb-").
_DROPPED = frozenset(['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_ABBREVIATIONS = """
mr mrs ms dr prof gen col lt sgt cpl maj adm capt cmdr gov sen rep rev hon pres pvt messrs jr sr st ave blvd
rd ft mt dept univ inc co corp ltd bros assn intl mfg vs etc al cf est tel ext ph.d jan feb mar apr jun jul
aug sep sept oct nov dec mon tue tues wed thu thurs fri ala ariz calif colo conn fla ga ind kan kans ky mich
minn mo mont neb nev okla penn tenn va vt wis wyo
"""
_SPELLED = {"¢": " cents", "£": "#", "€": "$", "½": "1/2", "¼": "1/4", "¾": "3/4", "…": " ... ", "’": "'", "‘": "'"}
_SPELLED |= dict.fromkeys("“”", '"') | dict.fromkeys("–—―", "--")
_SPELL = str.maketrans(_SPELLED)
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"})

_LETTER = r"[^\W\d_]"
_CLITIC = "(?:s|m|d|re|ve|ll)"
_WORD = r"[^\W_]+(?:[-_][^\W_]+)*"
_TOKEN = re.compile(
    "|".join(
        [
            r"https?://\S+|www\.\S+",
            r"[^\s@]+@[^\s@]+\.\w+",
            r"</?[a-z][^<>]*>",
            r"[:;]-?[()]",
            r"'t(?=is\b|was\b)|can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|gim(?=me\b)|lem(?=me\b)",
            rf"{_LETTER}+(?=n't\b)|n't\b",
            rf"'{_CLITIC}\b",
            r"y'(?=all\b)",
            r"'(?:em|n'|\d0s)(?!\w)",
            rf"(?:{_LETTER}\.)+(?!\w)|(?:{_LETTER}\.)+{_LETTER}(?![\w.])",
            rf"(?:{'|'.join(map(re.escape, _ABBREVIATIONS.split()))})\.(?!\w)|no\.(?=\s*\d)",
            r"(?-i:[A-Z]+(?:&[A-Z]+)+)",
            rf"{_LETTER}+(?:'(?!{_CLITIC}\b){_LETTER}+)+",
            r"\d+:\d+",
            r"(?<![\w.])(?:\d+(?:[.,:/-]\d+)*|\.\d+)(?!-?[^\W_])",
            r"[-+](?:\d+(?:[.,:]\d+)*|\.\d+)",
            rf"[#@]{_LETTER}+|us\$",
            rf"{_WORD}(?:[./]{_WORD})*",
            r"\.\.\.|--|[?!]+|\*+|_+",
            # Characters beyond the basic plane (emoji) are no tokens at all.
            r"[^\s\U00010000-\U0010FFFF]",
        ]
    ),
    re.IGNORECASE,
)


def ptb_tokenise(text: str) -> str:
    """Tokens of a caption, lower-cased, punctuation dropped, joined by blanks."""
    tokens = _TOKEN.findall(text.translate(_SPELL))
    return " ".join(token.lower().translate(_BRACKETS) for token in tokens if token not in _DROPPED)
