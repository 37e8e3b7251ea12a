"""Where it is read what to do about an alarm."""

RUNBOOKS = "docs/runbooks"


def page_of(name: str, base: str = "") -> str:
    """Where a runbook is read: its path, or `base` (the setting runbook_url) with the name at its end or at {name}."""
    if not base:
        return f"{RUNBOOKS}/{name}.md"
    return base.replace("{name}", name) if "{name}" in base else f"{base.rstrip('/')}/{name}"
