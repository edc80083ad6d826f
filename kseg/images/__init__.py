"""Read, decode, resize, draw and write images and videos."""
