//! The `deephold` binary.
fn main() {}
