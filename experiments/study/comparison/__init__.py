"""Methods against their controls, over seeds and over dev examples."""
