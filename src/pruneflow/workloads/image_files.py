"""Images that are too many to be held decoded: read from their files as they are needed."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.workloads.pictures import to_rgb, upright_size

if TYPE_CHECKING:  # imported when used: names and help must not wait for them
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Rows = NDArray[np.int64]

# Decoded pixels of a set that is held in memory, at the most. It is no share of the machine's
# memory: what is read how is the same everywhere.
IN_MEMORY_BYTES = 2 << 30


class ImageFiles:
    """Images (N, H, W, 3) of uint8 in files, of which as many are in memory as are asked for.

    An index array gives another of these; `numpy.asarray` decodes, in threads, to the same pixels
    as if all had been decoded before.
    """

    def __init__(
        self,
        files: Any,
        column: str,
        name: str,
        size: tuple[int, int],
        fit: bool,
        rows: Rows,
        hashes: NDArray[np.uint8],
    ) -> None:
        """Images of a table's rows; `size` is width and height, to which they are cut if `fit`."""
        import numpy as np

        self._files, self._column, self._name = files, column, name
        self.size, self._fit, self._rows, self._hashes = size, fit, rows, hashes
        self.shape = (len(rows), size[1], size[0], 3)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> ImageFiles:
        rows = self._rows[index]
        given = (self._files, self._column, self._name, self.size, self._fit)
        return ImageFiles(*given, rows, self._hashes)

    def contents(self) -> Iterator[bytes]:
        """A hash (16 bytes) of each image's file."""
        return (self._hashes[row].tobytes() for row in self._rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        import numpy as np

        images = np.empty(self.shape, dtype=np.uint8)

        def decode(place: int) -> None:
            images[place] = self._decoded(int(self._rows[place]))

        list(_threads().map(decode, range(len(self))))
        return images if dtype is None else images.astype(dtype)

    def _decoded(self, row: int) -> NDArray[np.uint8]:
        import numpy as np
        from PIL import ImageOps

        file = self._files[row][self._column]
        try:
            rgb = to_rgb(opened(file))
        except Exception as error:  # Pillow raises whatever a file's bytes lead it to
            where = place_of(file, self._name, row)
            raise ExperimentError(f"{where} cannot be decoded: {first_line(error)}") from None
        return np.asarray(ImageOps.fit(rgb, self.size) if self._fit else rgb)


def survey(
    table: Any, column: str, name: str, fit: tuple[int, int] | None
) -> tuple[ImageFiles, int] | None:
    """The images of a table as files, and how many have several frames; nothing is decoded.

    None if they are to keep their sizes (no `fit`) and those differ.

    Raises:
        InputError: a file that is no image, by its name.
    """
    import datasets
    import numpy as np

    files = table.cast_column(column, datasets.Image(decode=False))
    hashes = np.empty((len(files), 16), dtype=np.uint8)

    def look(row: int) -> tuple[tuple[int, int], int]:
        file = files[row][column]
        try:
            content = file["bytes"]
            if content is None:
                with open(file["path"], "rb") as stream:
                    content = stream.read()
            hashes[row] = np.frombuffer(hashlib.sha256(content).digest()[:16], dtype=np.uint8)
            picture = opened({"path": None, "bytes": content})
            return upright_size(picture), getattr(picture, "n_frames", 1)
        except Exception as error:  # Pillow raises whatever a file's bytes lead it to
            where = place_of(file, name, row)
            raise InputError(f"{where} cannot be decoded: {first_line(error)}") from None

    size, several = fit, 0
    for found, frames in _threads().map(look, range(len(files))):
        several += frames > 1
        size = size or found
        if fit is None and found != size:
            return None
    assert size is not None
    rows = np.arange(len(files))
    return ImageFiles(files, column, name, size, fit is not None, rows, hashes), several


def opened(file: Mapping[str, Any] | None) -> Image.Image:
    """A picture of the `datasets` library, not yet decoded."""
    from PIL import Image

    if file is None:
        raise ValueError("there is none")
    return Image.open(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"]))


def place_of(file: Mapping[str, Any] | None, name: str, row: int) -> str:
    """What a picture is called: its path, or its row where its bytes are in a table."""
    return str(file["path"]) if file and file["bytes"] is None else f"{name}, row {row}"


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads that decode: Pillow lets others run meanwhile."""
    from pruneflow.workloads.machine import cores

    return ThreadPoolExecutor(cores(), thread_name_prefix="decode")
