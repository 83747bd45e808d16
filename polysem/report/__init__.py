"""How a run is read: pictures and pages made from a run folder alone, without torch."""
