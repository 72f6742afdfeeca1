"""The embedded default: a packaged encoder and a packaged real data set."""
