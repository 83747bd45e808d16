"""What a run means: from a run folder to tidy tables; runs no network."""
