"""One page to look at: a study's tables, pictures, runs and settings in a single HTML file."""
