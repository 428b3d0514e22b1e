"""The bytes behind the pieces of byte-level vocabularies (GPT-2 and all that follow it).

Each byte is spelled as one printable character, so that a piece is text even where it is only part
of a character. Does not cover: other kinds of vocabularies (``text.token_bytes``).
"""

from __future__ import annotations


def byte_level_bytes(piece: str) -> bytes:
    """As the decoder of such vocabularies does it: a piece with other characters stands for
    itself."""
    values = [_BYTE_OF.get(character) for character in piece]
    known = [value for value in values if value is not None]
    return bytes(known) if len(known) == len(values) else piece.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself if printable, else one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + number): byte for number, byte in enumerate(others)}
    return alphabet


_BYTE_OF = _byte_alphabet()
