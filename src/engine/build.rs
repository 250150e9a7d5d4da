//! Finds libtorch through the link that `make setup` leaves, and compiles the C++ seam.

fn main() {}
