"""One dashboard for the tests of a module that only ask."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashing import Served, fill, served, settings_in


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("dashboard")
    asyncio.run(fill(folder))
    with served(settings_in(folder)) as found:
        yield found
