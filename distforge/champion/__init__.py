"""The embedded champion: the small model that step 1 starts from where there is no other."""
