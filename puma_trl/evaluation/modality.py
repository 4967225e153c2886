"""The levels of modality of a problem, after the five versions of MathVerse."""

# From words to picture. The benchmark's names are those of `benchmarks.mathverse.VERSIONS`.
MODALITIES = ("text_dominant", "text_lite", "vision_intensive", "vision_dominant", "vision_only")


def modality_rank(value: object) -> tuple[int, str]:
    """Returns what to sort levels by: those of `MODALITIES` in their order, then any other value as text."""
    return (MODALITIES.index(value) if value in MODALITIES else len(MODALITIES), str(value))
