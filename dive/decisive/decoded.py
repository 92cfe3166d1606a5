"""The text of token ids, with the characters of each."""

from typing import Any


def growing(tokenizer: Any, ids: list[int]) -> tuple[str, list[int]]:
    """The decoded text, and its length after each id.

    Decoding every prefix would take quadratic time; a window behind the last complete character
    gives the same text, as the text of a token does not depend on tokens far before it.
    """

    def decode(part: list[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    ends: list[int] = []
    text = ""
    # text is the decoding of ids[:known]; ids[anchor:known] are context for the first new one
    anchor = known = 0
    for count in range(1, len(ids) + 1):
        old = decode(ids[anchor:known])
        new = decode(ids[anchor:count])
        if new.endswith("�"):
            ends.append(len(text) + 1)  # part of a character whose other bytes are still to come
            continue
        text += new[len(old) :]
        anchor, known = known, count
        ends.append(len(text))
    if known < len(ids):
        text += decode(ids[anchor:])[len(decode(ids[anchor:known])) :]
    return text, [min(end, len(text)) for end in ends]
