"""What is recorded: hooks, streaming statistics and the probe that joins them."""
