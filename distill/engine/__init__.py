"""The stage engine: one pass of frozen teachers that trains some students."""
