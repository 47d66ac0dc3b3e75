"""The field's names for the metrics, and what each is here."""

from __future__ import annotations

ALIASES = {
    "Last": "mfn",
    "AA": "mfn",
    "MFN": "mfn",
    "ACC": "ap",
    "AP": "ap",
    "Avg": "map",
    "MAA": "map",
    "MAP": "map",
    "MFT": "mft",
    "BWT": "bwt_first",
    "MIF": "mif",
    "bwt_max": "bwt_max",
    "MAF": "maf_best",
}
"""The field's name: ours. Last, Avg: HiDe-LLaVA, UCIT; MFT, MFN, MAA: MLLM-CL; AA, bwt_max: He et al.; ACC: CoIN's
followers; AP, MAP, BWT, MIF: SMoLoRA; MAF: StrLoRA, which gives no formula. CF-Router's text swaps MFT and MFN."""

AVALANCHE = {"StreamForgetting": ("bwt_first", -1.0), "StreamBWT": ("bwt_first", 1.0)}
"""Avalanche's stream metrics, where each task comes once: ours, and the factor on it. Its forgetting is first less
last, over the tasks before the last, and its BWT the same with the other sign."""


def ours(name: str) -> str:
    """Our name of a metric that may be called by one of the field's; the name itself where it is ours or unknown."""
    return ALIASES.get(name, name)


def theirs(name: str) -> list[str]:
    """The field's other names of one of our metrics."""
    return [alias for alias, own in ALIASES.items() if own == name and alias.lower() != name]
