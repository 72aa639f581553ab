"""Write Ogg-Opus files whose bytes depend on the audio alone.

libsndfile gives every Ogg stream a random serial number; here it is replaced by zero and the page checksums are made
again, so that the same audio has the same sha256 on every run.
"""

import io

import numpy as np

SAMPLE_RATE = 16_000
CAPTURE = b"OggS"
# libsndfile maps 0 to the highest and 1 to the lowest bitrate; this is about 24 kbit/s for mono speech
COMPRESSION = 0.94


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


CRC_TABLE = _crc_table()


def _crc(page: bytes) -> int:
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ CRC_TABLE[(value >> 24) ^ byte]
    return value


def without_serial(data: bytes) -> bytes:
    """The Ogg stream `data` with serial number zero."""
    pages, start = [], 0
    while start < len(data):
        if data[start : start + 4] != CAPTURE:
            raise ValueError("not an Ogg page")
        segments = data[start + 26]
        size = 27 + segments + sum(data[start + 27 : start + 27 + segments])
        page = bytearray(data[start : start + size])
        page[14:18] = page[22:26] = bytes(4)
        page[22:26] = _crc(bytes(page)).to_bytes(4, "little")
        pages.append(bytes(page))
        start += size
    return b"".join(pages)


def encode(audio: np.ndarray) -> bytes:
    """Mono 16 kHz `audio` as the bytes of an Ogg-Opus file."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, audio, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION)
    return without_serial(buffer.getvalue())
