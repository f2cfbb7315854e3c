"""What may be chosen for a preparation; of each, the first is taken where nothing is said; and the
splits that there are.
"""

SPLITS = ("train", "calib", "val", "test")  # of all data sets, in this order
TRANSFORMS = ("dct2", "dct", "none")
LAYOUTS = ("phase", "block")
RESIZES = ("squash", "crop", "shortest")
CODECS = ("zstd", "raw", "jpeg")  # of planes zstd or raw, of whole images jpeg or raw
CALIB = 0.02  # share of train
IMAGE_SECONDS = 60.0  # that one image may take


def default_codec(splits: int) -> str:
    """Of planes, or of whole images."""
    return "zstd" if splits > 1 else "jpeg"
