"""Classification of texts: BoolQ, TREC, AG News, MR and SST-5."""
