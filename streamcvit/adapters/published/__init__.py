"""Adapters that the authors of SMoLoRA and StrLoRA saved, as adapters of this package."""

from streamcvit.adapters.published.conversion import Conversion, convert, import_adapter, load_published
from streamcvit.adapters.published.files import pattern_of
from streamcvit.adapters.published.layout import STRLORA_NAMES

__all__ = ["STRLORA_NAMES", "Conversion", "convert", "import_adapter", "load_published", "pattern_of"]
