//! x
mod bpf;
fn main() {}
