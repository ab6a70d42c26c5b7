//! What the lab tests share: the real `vipline` as processes in lab namespaces, its files, and crafted packets. Never a test.

#![allow(
    dead_code,
    unused_imports,
    reason = "every test binary includes all of it and uses a part"
)]

mod bed;
mod caller;
mod crafted;
mod daemon;
mod files;
mod kube;
mod packets;
mod scrape;
mod silence;
mod wire;

pub(crate) use bed::{Bed, assert_spread, count_servers};
pub(crate) use caller::Caller;
pub(crate) use crafted::{behind, fragment, fragments, with_options};
pub(crate) use daemon::{Counted, Daemon, Slow, vipline};
pub(crate) use files::{LbFile, NodeFile, SEED, Vip, word};
pub(crate) use kube::{Cluster, FINGERPRINT, NAMESPACE, table};
pub(crate) use packets::{Datagram, framed, tunnelled};
pub(crate) use scrape::{METRICS, Scrape};
pub(crate) use silence::Silence;
pub(crate) use wire::Wire;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// More than anything here should take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A VIP of `203.0.113.0/24`.
pub(crate) fn vip_v4(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new([203, 0, 113, last].into(), port)
}

/// A VIP of `2001:db8:f00d::/64`.
pub(crate) fn vip_v6(last: u16, port: u16) -> SocketAddr {
    SocketAddr::new([0x2001, 0xdb8, 0xf00d, 0, 0, 0, 0, last].into(), port)
}

/// Waits until `holds`; fails with `what` when that takes longer than [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !holds()? {
        if start.elapsed() > PATIENCE {
            bail!("not within {PATIENCE:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(start.elapsed())
}
