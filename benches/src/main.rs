//! The measuring bench: drop rates against traffic generators and peers, pipeline and store figures.

fn main() {}
