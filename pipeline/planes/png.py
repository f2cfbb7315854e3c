"""Frees a PNG file of what its pixels do not need, for a reader that stumbles over the rest."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FRAME = 12  # bytes of a chunk beside its data: length, name, checksum


def without_extras(data: bytes) -> bytes | None:
    """The critical chunks alone: no texts, profiles, dates. None if it is no PNG or has no others.

    Viewers show an image whose text has a wrong checksum, or whose profile is very large. The bit
    of value 32 in the first letter of a name says that a chunk may be passed over.
    """
    if not data.startswith(SIGNATURE):
        return None
    kept, at, dropped = [SIGNATURE], len(SIGNATURE), False
    while at + 8 <= len(data):
        end = at + _FRAME + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4] & 32:
            dropped = True
        else:
            kept.append(data[at:end])
        at = end
    return b"".join(kept) if dropped else None
