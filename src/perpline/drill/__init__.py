"""Drills: one fault after another against a worker of its own, and a score that says whether anything was lost."""
