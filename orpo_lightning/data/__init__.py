"""From rows of any shape and origin to tokenised preference pairs."""
