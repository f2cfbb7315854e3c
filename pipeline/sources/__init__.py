"""A path that the user names in; what it is, and a list of its images, out.

One module a family of layouts, one class a layout; `recognise` finds out which one it is.
"""

from pipeline.sources.base import Source
from pipeline.sources.recognise import recognise

__all__ = ["Source", "recognise"]
