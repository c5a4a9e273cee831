"""Checksums of the files of a directory."""

from pathlib import Path

from vqjax.runtime.files import atomic_file, file_checksum

CHECKSUMS_FILE = "SHA256SUMS"


def write_checksums(directory: Path) -> None:
    """Write the checksums of all files under a directory to ``SHA256SUMS``, in the format of ``sha256sum``.

    Args:
      directory: Directory to checksum; its files must not change afterwards.

    Raises:
      OSError: A file cannot be read, or the checksums cannot be written.

    Example:
      >>> import tempfile
      >>> directory = Path(tempfile.mkdtemp())
      >>> _ = (directory / "codes").write_text("1 2 3")
      >>> write_checksums(directory)
      >>> find_damage(directory)
      >>> _ = (directory / "codes").write_text("1 2 4")
      >>> find_damage(directory)
      'codes does not match its checksum'
    """
    lines = [f"{file_checksum(directory / name)}  {name}\n" for name in sorted(_files_below(directory))]
    with atomic_file(directory / CHECKSUMS_FILE) as file:
        file.writelines(line.encode() for line in lines)


def find_damage(directory: Path) -> str | None:
    """Compare the files under a directory with ``SHA256SUMS``.

    Args:
      directory: Directory with the checksums of :func:`write_checksums`.

    Returns:
      The first difference in words; None if there is none.

    Raises:
      OSError: ``SHA256SUMS`` or a file cannot be read.
    """
    expected = {}
    for line in (directory / CHECKSUMS_FILE).read_bytes().splitlines():
        checksum, separator, name = line.partition(b"  ")
        if not separator:
            return f"{CHECKSUMS_FILE} is malformed"
        expected[name.decode(errors="replace")] = checksum.decode(errors="replace")
    found = _files_below(directory)
    for name in sorted(expected.keys() | found):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} was added"
        if file_checksum(directory / name) != expected[name]:
            return f"{name} does not match its checksum"
    return None


def _files_below(directory: Path) -> set[str]:
    files = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return {name for name in files if name != CHECKSUMS_FILE}
