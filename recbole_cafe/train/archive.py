"""Seals on checkpoint files: a damaged one is told from a whole one before anything in it is used.

torch's files are zip archives whose checksums torch does not look at: a flipped bit in a weight would go unnoticed. The
archive's comment is free for use, so there the sha256 of the file without the comment stands. Any torch reads the file
as before.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from pathlib import Path
from typing import BinaryIO

MARK = b"recbole-cafe sha256 "
_BLOCK = 1 << 22


class DamagedError(ValueError):
    """The file is not what was written."""


def seal(file: BinaryIO) -> None:
    """Put the digest of an archive into its comment.

    Args:
        file: open for reading and writing, a zip archive without a comment.
    """
    comment = MARK + _digest(file, file.seek(0, 2)).encode()
    file.seek(-2, 2)
    file.write(len(comment).to_bytes(2, "little") + comment)


def verify(path: Path) -> bool:
    """Check that an archive is whole, and that it takes no more memory than its own size.

    Args:
        path: a zip archive; one without a seal, of RecBole or of an earlier version, is checked by zip's checksums.

    Returns:
        whether it is sealed.

    Raises:
        DamagedError: it is not whole, or holds compressed parts, which torch never writes.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members, comment = archive.infolist(), archive.comment
            names = Counter(member.filename for member in members)
            if twice := [name for name, times in names.items() if times > 1]:
                raise DamagedError(f"its part {twice[0]} is there twice")
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED:
                    raise DamagedError(f"its part {member.filename} is compressed, expected plain storage as by torch")
            sealed = comment.startswith(MARK)
            if not sealed and (bad := archive.testzip()) is not None:
                raise DamagedError(f"the checksum of its part {bad} is wrong")
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise DamagedError(str(error)) from error
    if sealed:
        with path.open("rb") as file:
            size = file.seek(0, 2) - len(comment)
            if _digest(file, size) != comment[len(MARK) :].decode("ascii", "replace"):
                raise DamagedError("its sha256 is not the one written in it")
    return sealed


def _digest(file: BinaryIO, size: int) -> str:
    """sha256 of the first `size` bytes, the last two, the length of the comment, as zeros.

    Raises:
        DamagedError: the file is shorter.
    """
    digest, rest = hashlib.sha256(), size - 2
    file.seek(0)
    while rest > 0:
        block = file.read(min(_BLOCK, rest))
        if not block:
            raise DamagedError("it ends too early")
        digest.update(block)
        rest -= len(block)
    digest.update(b"\0\0")
    return digest.hexdigest()
