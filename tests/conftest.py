"""Puts this folder on the path, so that every test can import `running`, with asserts that show what they compared."""

import pytest

pytest.register_assert_rewrite("running")
