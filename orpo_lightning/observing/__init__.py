"""What a run tells of itself while it trains: its curves, facts, pairs and answers, in files and in words."""
