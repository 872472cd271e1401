"""The layers and vectors that methods put into a frozen model; they need torch, which a recipe is read without."""
