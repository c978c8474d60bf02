"""Generated rooms and streets: what is in them, ray casting, and what sensors leave out."""
