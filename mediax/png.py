"""PNG files with their pixels unpacked, which leaves a decoder of PNG less than half of its work."""

import struct

from isal import isal_zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
LARGEST_BLOCK = 2**16 - 1  # bytes that DEFLATE stores at once


def unpacked(data: bytes) -> bytes:
    """A PNG file of the same pixels, filters and other chunks, its DEFLATE stream stored instead of compressed.

    Most of the time of decoding goes into inflating, and ISA-L inflates in 0.4 of zlib's time. A file that is damaged
    or unusual (interlaced, with bytes to spare) is returned as it came: the decoder then says what is wrong with it.
    """
    try:
        width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, len(SIGNATURE) + 8)
        start, end = _extent(data)
        expected = height * (1 + (width * bits * CHANNELS[colour] + 7) // 8)  # a byte for the filter of each row
        inflater = isal_zlib.decompressobj()
        rows = inflater.decompress(_content(data, start, end), expected + 1)
    except (struct.error, LookupError, ValueError, isal_zlib.error):
        return data
    # At its end the stream's own checksum was right.
    if interlaced or len(rows) != expected or not inflater.eof or inflater.unused_data:
        return data
    content = _stored(rows)
    checksum = isal_zlib.crc32(content, isal_zlib.crc32(b"IDAT"))
    return b"".join(
        [data[:start], struct.pack(">I", len(content)), b"IDAT", content, struct.pack(">I", checksum), data[end:]]
    )


def _extent(data: bytes) -> tuple[int, int]:
    """Where the chunks of pixels begin and end, which follow each other; struct.error if there are none."""
    position, start = len(SIGNATURE), None
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT" and start is None:
            start = position
        elif kind != b"IDAT" and start is not None:
            return start, position
        position += 12 + length


def _content(data: bytes, start: int, end: int) -> bytes:
    """What the chunks between two positions hold; ValueError if one of their checksums is wrong."""
    contents, view = [], memoryview(data)
    while start < end:
        (length,) = struct.unpack_from(">I", data, start)
        (checksum,) = struct.unpack_from(">I", data, start + 8 + length)
        if isal_zlib.crc32(view[start + 4 : start + 8 + length]) != checksum:
            raise ValueError("a checksum is wrong")
        contents.append(view[start + 8 : start + 8 + length])
        start += 12 + length
    return b"".join(contents)


def _stored(rows: bytes) -> bytes:
    """A DEFLATE stream, in zlib's envelope, of bytes that are not compressed."""
    parts, view = [b"\x78\x01"], memoryview(rows)
    for first in range(0, len(rows), LARGEST_BLOCK):
        block = view[first : first + LARGEST_BLOCK]
        last = first + len(block) == len(rows)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join([*parts, struct.pack(">I", isal_zlib.adler32(rows))])
