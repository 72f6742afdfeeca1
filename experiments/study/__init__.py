"""Many runs, planned, launched and read into tables, figures, tests and reports; for any benchmark."""
