"""`python -m common.data.build`: writes a data set out of folders, CSV files or CoOp's eleven sets, with a card that
says how. What only the writing of sets needs comes in here; it imports `common.data` and is imported by nothing."""
