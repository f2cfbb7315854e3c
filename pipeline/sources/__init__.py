"""Where images come from: what a path holds that the user names, and the list of its images.

`layouts` has what people hold, `containers` the files and folders that images lie in; `scan` is the
list that a layout makes of a source, `index` and `splits` what becomes of it, `reading` the bytes.
"""

from pipeline.sources.recognise import recognise
from pipeline.sources.scan import Source

__all__ = ["Source", "recognise"]
