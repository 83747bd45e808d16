"""What a unit is called: names for neurons, facets and heads, with evidence for each."""
