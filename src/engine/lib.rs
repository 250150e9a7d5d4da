//! The Luthier engine: the only crate that links libtorch.
