"""Segmentation heads: one function per architecture."""
