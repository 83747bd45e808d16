"""How models are made: a recipe goes in; a model, its log and its model card come out."""
