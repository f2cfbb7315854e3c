"""Seeds for everything that is drawn, each a well-mixed function of what it is for.

A run has one seed. What is drawn at a step must depend on (seed, step) alone, so that a resumed run
draws what an uninterrupted one would; and no two of those streams may be the same.
"""

_MASK = 2**64 - 1
_WEYL, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# What a seed is for
MASKS, AUGMENTATION, FIRST_FLIPS = 1, 2, 3


def mixed_seed(*parts: int) -> int:
    """64 bits that differ in about half of their places for any two lists of numbers, by the
    finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators").

    Torch's generator on the CPU takes no more than the low 32 bits of a seed; those are as well
    mixed as the others.
    """
    state = 0
    for part in parts:
        state = _finalised((state ^ (part & _MASK)) + _WEYL & _MASK)
    return state


def _finalised(x: int) -> int:
    x = (x ^ x >> 30) * _MIX_1 & _MASK
    x = (x ^ x >> 27) * _MIX_2 & _MASK
    return x ^ x >> 31
