"""What all tests share."""

from pathlib import Path

import pytest
from hypothesis import settings

# Compiling takes the first example of a test longer than any deadline; a failure must fail again on the next run.
settings.register_profile("moesim", derandomize=True, deadline=None)
settings.load_profile("moesim")

_REFERENCE_DATA = Path(__file__).resolve().parents[1] / "../shared/data"


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of measured data that is not part of the repository; tests that use it are marked `reference`."""
    folder = _REFERENCE_DATA.resolve()
    if not folder.is_dir():
        pytest.skip(f"needs the reference data, which are no part of the repository, in the folder {folder}")
    return folder
