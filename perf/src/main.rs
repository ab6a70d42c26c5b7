//! The vipline command.
fn main() {}
