//! Harness for whole-program tests.
