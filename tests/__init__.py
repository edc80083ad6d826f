"""Tests, in packages that mirror the code they test."""
