"""Many runs and what is read off them: plan, launch, search, tables, figures, tests and reports, for any benchmark."""
