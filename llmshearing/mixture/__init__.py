"""Which rows a run trains on, and in what order: numpy only, a pure function of seed and plan."""
