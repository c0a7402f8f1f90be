"""Where rows come from: one reader a kind of input, all of them give `Piece`s that parse to `Block`s."""
