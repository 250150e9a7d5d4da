//! Entry point of `luthier`.

fn main() {}
