"""Publishing a release on the Hub."""

from builder.hub.push import PushResult, push

__all__ = ["PushResult", "push"]
