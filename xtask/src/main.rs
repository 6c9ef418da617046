//! Set-up, build, test, demo and benchmark of this repository.
fn main() {}
