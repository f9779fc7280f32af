//! The command line of rdc.
fn main() {}
