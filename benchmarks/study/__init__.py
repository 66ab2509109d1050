"""The papers' claims side by side at a small size: see docs/evidence.md."""
