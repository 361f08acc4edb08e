"""What comes after training: a model found, answering, merged with proof, served, shown to others."""
