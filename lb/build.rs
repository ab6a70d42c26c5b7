//! Builds the eBPF objects with this crate, so that it is never stale.

#[path = "../xdp-prog/build-object.rs"]
mod build_object;

fn main() -> anyhow::Result<()> {
    build_object::build(&["lb", "decap", "clock"])
}
