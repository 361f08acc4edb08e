"""What this machine can do, each thing looked at by itself, so that one that fails hides no other."""
