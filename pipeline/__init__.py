"""The offline stage: source images in, spectral shards (FFCV .beton files) and a manifest out."""

__version__ = "0.1.0"
