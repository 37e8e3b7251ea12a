"""The system's Chromium, for tests of what a person sees: started once for the tests of a module."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from browsing import CHROMIUM, QUIET


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Any]:
    api = pytest.importorskip("playwright.async_api", reason="playwright is not installed: the extra [browser]")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    async with api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        await browser.close()
