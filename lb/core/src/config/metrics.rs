//! Where the daemon shows its metrics.
//!
//! Never opens a port.

use std::net::SocketAddr;

use super::{problem::Problem, read::At, words::Quoted};

/// `metrics.listen`.
pub(super) fn listen(at: &At<'_>) -> Option<SocketAddr> {
    at.fields(|fields| fields.required("listen").and_then(|at| socket_address(&at)))
}

fn socket_address(at: &At<'_>) -> Option<SocketAddr> {
    let text = at.text()?;
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Some(address),
        Ok(_) | Err(_) => at.fail(Problem::NotASocketAddress {
            value: Quoted::new(text),
        }),
    }
}
