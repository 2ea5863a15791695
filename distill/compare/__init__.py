"""Which teachers a student should learn from: one student a subset of them, and what they show."""
