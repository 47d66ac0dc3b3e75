"""Watching a run while it learns: a page that follows it, and the essentials in a terminal; both read its folder."""

from streamcvit.monitoring.watch.follow import Follower, follower_of
from streamcvit.monitoring.watch.site import Site

__all__ = ["Follower", "Site", "follower_of"]
