"""The pictures of a report: each is kept once, however often it is shown."""

from __future__ import annotations

import base64
import hashlib

from PIL import Image

from protoserve.pages.crops import webp

QUALITY = 55


class PictureStore:
    """Pictures by number, encoded as WebP in base64. Equal pictures have one number."""

    def __init__(self) -> None:
        self._number_of: dict[bytes, int] = {}
        self.encoded: list[str] = []

    def add(self, picture: Image.Image, side: int | None = None, *, quality: int = QUALITY) -> int:
        """Keep a picture and return its number; `side` is the longest side to keep, in pixels, None for all of it."""
        plain = picture.convert("RGB")
        if side is not None and max(plain.size) > side:
            scale = side / max(plain.size)
            size = max(1, round(plain.width * scale)), max(1, round(plain.height * scale))
            plain = plain.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        digest = hashlib.sha256(f"{plain.size} {quality} ".encode() + plain.tobytes()).digest()
        if digest not in self._number_of:
            self._number_of[digest] = len(self.encoded)
            self.encoded.append(base64.b64encode(webp(plain, quality)).decode("ascii"))
        return self._number_of[digest]
