"""Reading the body of an HTTP request, up to a limit."""

from __future__ import annotations

from aiohttp import hdrs, web

from core.errors import InvalidField

# A prompt of a million tokens as JSON array of ids has about 8 MB.
MAX_BODY_BYTES = 16 * 1024 * 1024


class UnsupportedEncoding(InvalidField):
    """The body is compressed; HTTP has a status of its own for that (415)."""

    def __init__(self, encoding: str) -> None:
        fix = "must be identity: send the body uncompressed and leave the header out"
        super().__init__(hdrs.CONTENT_ENCODING, encoding, fix, reason="UNSUPPORTED_ENCODING")


async def read_body(request: web.Request) -> bytes:
    """Raises HTTPException for another type than JSON, and for a body above the limit.

    Raises UnsupportedEncoding for a compressed body.

    No type at all is taken for JSON. Of a body that is too large no more than the limit is kept.
    """
    if "Content-Type" in request.headers and not _is_json(request.content_type):
        raise web.HTTPUnsupportedMediaType
    _check_encoding(request)
    size = request.content_length
    if size is not None and size > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(request.client_max_size, size)
    return await request.read()


def _check_encoding(request: web.Request) -> None:
    if hdrs.CONTENT_ENCODING not in request.headers:
        return
    encodings = ", ".join(request.headers.getall(hdrs.CONTENT_ENCODING))
    if encodings.strip().lower() not in ("", "identity"):
        raise UnsupportedEncoding(encodings)


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")
