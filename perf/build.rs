//! Builds the benchmark's eBPF wrapper with this crate, so that it is never stale.

#[path = "../xdp-prog/build-object.rs"]
mod build_object;

fn main() -> anyhow::Result<()> {
    build_object::build(&["bench"])
}
