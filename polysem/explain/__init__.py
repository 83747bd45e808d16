"""Why a class, a neuron or a head fired: maps of what in the image contributed."""
