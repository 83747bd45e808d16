"""What is kept: the run folder, its layout and how it is opened; knows no model."""
