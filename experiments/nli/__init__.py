"""Natural-language inference beyond GLUE: SNLI, SciTail, SICK, ANLI and CommitmentBank."""
