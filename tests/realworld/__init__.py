"""Tests against real gateways, which `scripts/realworld` installs; the other tests do without."""
