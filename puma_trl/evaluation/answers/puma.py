"""The rule of the original Math-PUMA project for MathVerse."""

PUMA_MARKERS = ("answer:", "Answer:", "therefore,", "so,", "Therefore,", "So,", "Thus,", "thus,")


def puma_mathverse(reply: str) -> str:
    """
    Returns what the rule of the original project takes from a MathVerse reply.

    After the removal of `[UNUSED_TOKEN_145]`: everything after the last "†", untrimmed; else the trimmed text after
    the rightmost of `PUMA_MARKERS`, which need no word boundary; else the trimmed reply.
    """
    reply = reply.replace("[UNUSED_TOKEN_145]", "")
    if "†" in reply:
        return reply.rpartition("†")[2]
    ends = [reply.rfind(marker) + len(marker) for marker in PUMA_MARKERS if marker in reply]
    return reply[max(ends, default=0) :].strip()
