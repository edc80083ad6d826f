"""Beam jobs that the components run; imports no TFX."""
