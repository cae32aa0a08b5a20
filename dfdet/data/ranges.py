"""Single images of remote tars, without the rest of the tar."""

from __future__ import annotations

from dfdet.data.remote import Remote, open_filesystem, persist


def fetch_range(remote: Remote, start: int, size: int, retries: int) -> bytes | None:
    """Some bytes of an object as its storage gives them: fewer than asked, or others, if it was changed.

    Args:
        remote: The object.
        start: First byte.
        size: Number of bytes.
        retries: Times that a failed transfer is tried again.

    Returns:
        The bytes; None where the storage gives objects only whole.

    Raises:
        ObjectError: The object is gone.
        StorageError: Access is denied, or each try failed.
    """

    def transfer() -> bytes | None:
        filesystem = open_filesystem(remote.url)
        path = filesystem._strip_protocol(remote.url)
        try:
            # without a cache, which would read 5 MB ahead; with the size, which would be asked for
            with filesystem.open(path, "rb", size=remote.bytes, cache_type="none") as file:
                file.seek(start)
                found: bytes = file.read(size)
                return found
        except ValueError:  # fsspec's word for a server that ignores the range
            return None

    return persist(remote.url, transfer, retries)
