"""Pages for people to read: one self-contained HTML file each, made from numbers alone."""
