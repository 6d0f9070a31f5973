"""How the storage says no: one typed error for what did not happen, another for what nobody can say."""

import errno


class StorageError(Exception):
    """The storage refused, and nothing was changed. `reason` is one line for people."""

    def __init__(self, reason: str) -> None:
        """Make the error that is told as `reason`."""
        super().__init__(reason)
        self.reason = reason


class FatalStorageError(Exception):
    """Journal, file and memory may disagree: the process must end; the next Journal.open repairs the file."""


def os_error(doing: str, error: OSError) -> StorageError:
    """Return the typed error, in words, for what the operating system answered while `doing` something."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StorageError(f"{doing}: the disk is full; make room")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return StorageError(f"{doing}: permission denied")
        case errno.ELOOP:
            return StorageError(f"{doing}: it is a symbolic link, and links are not followed")
        case errno.ENOTDIR:
            return StorageError(f"{doing}: a part of its path is a file or a symbolic link, not a directory")
        case errno.EISDIR:
            return StorageError(f"{doing}: it is a directory")
    return StorageError(f"{doing}: {error.strerror or error}")
