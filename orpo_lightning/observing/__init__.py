"""What a run's figures say: of plain numbers, without a model."""
