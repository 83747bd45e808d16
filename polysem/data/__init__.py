"""What a network is shown: readers for images in files, tables and archives, and drawn images."""
