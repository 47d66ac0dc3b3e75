"""EProj: projectors of their own for kinds of samples, chosen by keys."""

from streamcvit.adapters.eproj.config import EProjConfig
from streamcvit.adapters.eproj.layer import EProjLayer
from streamcvit.adapters.eproj.model import EProjModel, choosing_projectors, settle_projector
from streamcvit.adapters.tuner import register_tuner

__all__ = ["EProjConfig", "EProjLayer", "EProjModel", "choosing_projectors", "settle_projector"]

register_tuner("eproj", EProjConfig, EProjModel)
