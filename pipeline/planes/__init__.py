"""The bytes of an image in, its spectral planes out, and back."""
