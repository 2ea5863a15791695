"""report.html of a run, and the pictures in it."""
