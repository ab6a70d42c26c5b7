//! What is measured: one row per line of the report.

use xdp_prog::verdict::Verdict;

use super::{
    tables::{DEFAULT_FEATURES, Shape},
    wrapper::{choice, kind},
};

/// One line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What it says.
    pub(crate) name: String,
    /// Tables.
    pub(crate) shape: Shape,
    /// Packets.
    pub(crate) traffic: Traffic,
    /// What every packet must come to, or nothing is reported.
    pub(crate) verdict: Verdict,
    /// The design's goal, in ns over `XDP_TX`.
    pub(crate) goal: Option<f64>,
    /// Part of `--quick`.
    pub(crate) quick: bool,
}

/// Packets of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    /// Bits of [`kind`].
    pub(crate) kind: u64,
    /// See [`choice`].
    pub(crate) choice: u64,
    /// Number of flows, a power of two; `None`: no flow comes twice.
    pub(crate) flows: Option<u64>,
    /// Flags of a TCP header.
    pub(crate) tcp_flags: u64,
}

const ACK: u64 = 0x10;
const SYN: u64 = 0x02;

const ONE_VIP: Shape = Shape { vips: 1, backends: 1_000, slots: 65_536, own: false, features: DEFAULT_FEATURES };

/// All rows, in the order of the report.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, family) in [(0, "IPv4"), (kind::V6, "IPv6")] {
        rows.push(Row {
            name: format!("{family} TCP, not for a VIP"),
            shape: ONE_VIP,
            traffic: flows(kind, 1 << 20),
            verdict: Verdict::PassNotVip,
            goal: Some(8.0),
            quick: true,
        });
    }
    for (kind, name, goal) in [
        (0, "IPv4 TCP", 25.0),
        (kind::UDP, "IPv4 UDP", 25.0),
        (kind::V6, "IPv6 TCP", 32.0),
        (kind::V6 | kind::UDP, "IPv6 UDP", 32.0),
    ] {
        for count in [1, 256, 1 << 16, 1 << 20] {
            rows.push(forwarded(format!("{name}, {count} flows"), ONE_VIP, flows(kind, count), goal));
        }
    }
    for row in &mut rows {
        row.quick |= row.name.contains("TCP, 1 ") || row.name.contains("TCP, 1048576");
    }
    let syns = Traffic { kind: 0, choice: choice::SEQUENCE, flows: None, tcp_flags: SYN };
    rows.push(forwarded("IPv4 TCP SYNs that never repeat".into(), ONE_VIP, syns, 25.0));
    let syns = Traffic { kind: kind::V6, ..syns };
    rows.push(forwarded("IPv6 TCP SYNs that never repeat".into(), ONE_VIP, syns, 32.0));
    let many = Shape { vips: 10_000, ..ONE_VIP };
    rows.push(Row { quick: true, ..forwarded("IPv4 TCP, 10k VIPs, one table".into(), many, flows(0, 1 << 20), 38.0) });
    let own = Shape { vips: 512, own: true, backends: 10, slots: 1_024, ..ONE_VIP };
    rows.push(Row { quick: true, ..forwarded("IPv4 TCP, own tables".into(), own, flows(0, 1 << 20), 40.0) });
    let own = Shape { backends: 1_000, slots: 65_536, ..own };
    rows.push(Row { quick: true, ..forwarded("IPv4 TCP, own tables".into(), own, flows(0, 1 << 20), 110.0) });
    rows
}

fn flows(kind: u64, count: u64) -> Traffic {
    Traffic { kind, choice: choice::RANDOM, flows: Some(count), tcp_flags: ACK }
}

fn forwarded(name: String, shape: Shape, traffic: Traffic, goal: f64) -> Row {
    Row { name, shape, traffic, verdict: Verdict::ForwardTx, goal: Some(goal), quick: false }
}
