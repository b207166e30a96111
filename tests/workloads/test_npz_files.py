import zipfile
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.workloads.npz_files import npz_members, npz_names


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, load=np.arange(12.0).reshape(3, 4), about=np.array("{}"))
    return path


def test_arrays_by_name(archive: Path) -> None:
    assert npz_names(archive) == ["load", "about"]
    held = npz_members(archive)
    assert held["load"].tolist() == np.arange(12.0).reshape(3, 4).tolist()
    assert str(held["about"]) == "{}"


def encrypted(data: bytearray) -> None:
    """Flags of the first member, in its own header and in the directory."""
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1


def packed_otherwise(data: bytearray) -> None:
    """A method of compression that nobody has defined."""
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(signature) + offset] = 77


@pytest.mark.parametrize("spoil", [encrypted, packed_otherwise])
def test_members_that_cannot_be_unpacked(archive: Path, spoil) -> None:
    data = bytearray(archive.read_bytes())
    spoil(data)
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz: cannot be read \("):
        npz_members(archive)


def test_any_wrong_byte_gives_arrays_or_a_refusal(archive: Path) -> None:
    good, refused = archive.read_bytes(), 0
    for place in range(len(good)):
        archive.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            npz_members(archive)
        except DataError:
            refused += 1
    assert refused > len(good) / 2


def test_what_is_no_archive_of_plain_arrays(tmp_path: Path) -> None:
    single, objects, cut = tmp_path / "single.npz", tmp_path / "objects.npz", tmp_path / "cut.npz"
    with single.open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez(objects, a=np.array([{}], dtype=object))
    np.savez(cut, a=np.zeros(3))
    cut.write_bytes(cut.read_bytes()[:-30])
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    assert npz_members(tmp_path / "empty.npz") == {}
    for path in (single, objects, cut):
        with pytest.raises(DataError, match="cannot be read"):
            npz_members(path)
    with pytest.raises(DataError, match="no such file"):
        npz_names(tmp_path / "none.npz")
