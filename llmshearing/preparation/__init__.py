"""Raw text to MDS: reading, tokenizing, packing and splitting by document."""
