//! What is measured: one row per line of the report.
//!
//! Never says how. A row is the tables, the packets, and what every packet must come to.

use lb_core::schedule::Scheduler;
use xdp_prog::{abi::feature, verdict::Verdict};

use super::{
    tables::{ALL_KINDS, DEFAULT_FEATURES, Shape},
    wrapper::{choice, kind},
};

/// One line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Heading that it stands under.
    pub(crate) group: &'static str,
    /// What it says.
    pub(crate) name: String,
    /// Tables.
    pub(crate) shape: Shape,
    /// Packets.
    pub(crate) traffic: Traffic,
    /// What every packet must come to, or nothing is reported.
    pub(crate) verdict: Verdict,
    /// What is done to the caches.
    pub(crate) caches: Caches,
    /// The design's goal, in ns over `XDP_TX`.
    pub(crate) goal: Option<f64>,
    /// Part of `--quick`.
    pub(crate) quick: bool,
    /// Shown by `make demo`, which asks for `--filter demo`.
    pub(crate) demo: bool,
}

/// Packets of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Traffic {
    /// Bits of [`kind`].
    pub(crate) kind: u64,
    /// Which flow is next.
    pub(crate) flows: Flows,
    /// Flags of a TCP header.
    pub(crate) tcp_flags: u64,
}

/// How flows follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flows {
    /// One of this many, a power of two, at random.
    Random(u32),
    /// One of this many, as often as the reciprocal of its rank says.
    Zipf(u32),
    /// None comes twice.
    New,
}

impl Flows {
    /// See [`choice`].
    pub(crate) fn choice(self) -> u64 {
        match self {
            Self::Random(_) => choice::RANDOM,
            Self::Zipf(_) => choice::TABLE,
            Self::New => choice::SEQUENCE,
        }
    }

    /// As a table writes it.
    pub(crate) fn label(self) -> String {
        match self {
            Self::Random(count) => short(count),
            Self::Zipf(count) => format!("{} Zipf", short(count)),
            Self::New => "all new".to_owned(),
        }
    }
}

/// What is done to the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caches {
    /// Nothing: they hold what the packets before left.
    Hot,
    /// Before each packet, random lines of 4 MiB are read: more than an L2 holds.
    L2Polluted,
    /// The same of 64 MiB: more than this machine's last level holds.
    LlcPolluted,
    /// A burst comes to caches that others have used for 20 ms, after 64 MiB were written.
    Cold,
}

impl Caches {
    /// Cache lines that are read from before each packet.
    pub(crate) const fn polluting_lines(self) -> u32 {
        match self {
            Self::Hot | Self::Cold => 0,
            Self::L2Polluted => (4 << 20) / 64,
            Self::LlcPolluted => (64 << 20) / 64,
        }
    }

    /// As a table writes it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::L2Polluted => "L2 polluted",
            Self::LlcPolluted => "LLC polluted",
            Self::Cold => "cold burst",
        }
    }
}

const ACK: u64 = 0x10;
const SYN: u64 = 0x02;
const MILLION: u32 = 1 << 20;

/// One VIP over 100 nodes, and the table that they get by default.
const BASE: Shape = Shape {
    vips: 1,
    kinds: V4,
    backends: 100,
    slots: 8_192,
    own: false,
    crossed: false,
    replaced: 0,
    scheduler: Scheduler::Maglev,
    remembers: false,
    features: DEFAULT_FEATURES,
};
const BASE_V6: Shape = Shape { kinds: V6, ..BASE };
/// The largest table.
const LARGE: Shape = Shape {
    backends: 1_000,
    slots: 65_536,
    ..BASE
};
const V4: &[u64] = &[0];
const V6: &[u64] = &[kind::V6];
const V4_UDP: &[u64] = &[kind::UDP];
const V6_UDP: &[u64] = &[kind::V6 | kind::UDP];
const V4_GOAL: f64 = 25.0;
const V6_GOAL: f64 = 32.0;
const TRANSIT_GOAL: f64 = 110.0;
const KINDS: [(&[u64], &str, f64); 4] = [
    (V4, "IPv4 TCP", V4_GOAL),
    (V4_UDP, "IPv4 UDP", V4_GOAL),
    (V6, "IPv6 TCP", V6_GOAL),
    (V6_UDP, "IPv6 UDP", V6_GOAL),
];

/// All rows, in the order of the report; neighbours share tables where they can.
pub(crate) fn all() -> Vec<Row> {
    [
        not_for_a_vip(),
        established(),
        new_flows(),
        in_transit(),
        always_recorded(),
        encapsulations(),
        large_table(),
        many_vips(),
        mixes(),
        polluted(),
        features(),
    ]
    .concat()
}

fn not_for_a_vip() -> Vec<Row> {
    let row = |name: &str, shape| {
        let row = Row::new("not for a VIP", name, shape, Flows::Random(MILLION)).goal(8.0);
        Row {
            verdict: Verdict::PassNotVip,
            ..row
        }
    };
    vec![
        row("IPv4 TCP", BASE).quick(),
        row("IPv6 TCP", BASE_V6).quick(),
        row("IPv4 TCP past 10k VIPs", Shape { vips: 10_000, ..BASE }),
        row(
            "IPv6 TCP past 10k VIPs",
            Shape {
                vips: 10_000,
                ..BASE_V6
            },
        ),
    ]
}

fn established() -> Vec<Row> {
    let mut rows = Vec::new();
    for (kinds, name, goal) in KINDS {
        for count in [1, 256, 1 << 16, MILLION] {
            let shape = Shape { kinds, ..BASE };
            let mut row = Row::new("established flows", name, shape, Flows::Random(count)).goal(goal);
            row.demo = count == MILLION;
            let quick = [V4, V6].contains(&kinds) && (count == 1 || count == MILLION);
            rows.push(if quick { row.quick() } else { row });
        }
    }
    rows
}

fn new_flows() -> Vec<Row> {
    let row = |name: &str, shape, goal| {
        let mut row = Row::new("new flows", name, shape, Flows::New).goal(goal);
        row.traffic.tcp_flags = SYN;
        row
    };
    vec![
        row("IPv4 TCP SYNs", BASE, V4_GOAL).quick(),
        row("IPv6 TCP SYNs", BASE_V6, V6_GOAL),
    ]
}

fn in_transit() -> Vec<Row> {
    let mut rows = Vec::new();
    for (kinds, name, _) in KINDS {
        for replaced in [5, 100] {
            let shape = Shape {
                kinds,
                replaced,
                ..BASE
            };
            let name = format!("{name}, {replaced} % of slots");
            rows.push(Row::new("slots in transit", &name, shape, Flows::Random(MILLION)).goal(TRANSIT_GOAL));
        }
    }
    let all = Shape { replaced: 100, ..BASE };
    let mut syns = Row::new("slots in transit", "IPv4 TCP SYNs, 100 % of slots", all, Flows::New);
    syns.traffic.tcp_flags = SYN;
    rows.push(syns);
    let mut again = Row::new(
        "slots in transit",
        "IPv4 TCP SYNs again, 100 % of slots",
        all,
        Flows::Random(MILLION),
    );
    again.traffic.tcp_flags = SYN;
    rows.push(again);
    rows
}

fn encapsulations() -> Vec<Row> {
    [("6in4", BASE_V6), ("4in6", BASE)]
        .map(|(name, shape)| {
            let shape = Shape { crossed: true, ..shape };
            Row::new("across families", name, shape, Flows::Random(MILLION))
        })
        .to_vec()
}

fn large_table() -> Vec<Row> {
    let mut rows = Vec::new();
    for (kinds, name, goal) in [KINDS[0], KINDS[2]] {
        for count in [1, 1 << 16, MILLION] {
            let shape = Shape { kinds, ..LARGE };
            rows.push(Row::new("largest table", name, shape, Flows::Random(count)).goal(goal));
        }
    }
    rows
}

fn many_vips() -> Vec<Row> {
    let row = |name: &str, shape, goal: Option<f64>| {
        let row = Row::new("many VIPs", name, shape, Flows::Random(MILLION));
        Row { goal, ..row }
    };
    let own = Shape {
        own: true,
        vips: 512,
        backends: 10,
        slots: 1_024,
        ..BASE
    };
    let own_large = Shape {
        backends: 1_000,
        slots: 65_536,
        ..own
    };
    vec![
        row("IPv4 TCP, one table", Shape { vips: 512, ..BASE }, Some(38.0)),
        row("IPv4 TCP, one table", Shape { vips: 10_000, ..BASE }, Some(38.0)).quick(),
        row(
            "IPv6 TCP, one table",
            Shape {
                vips: 10_000,
                ..BASE_V6
            },
            Some(38.0),
        ),
        row(
            "IPv4 TCP, one largest table",
            Shape { vips: 10_000, ..LARGE },
            Some(38.0),
        ),
        row("IPv4 TCP, own tables", own, Some(40.0)).quick(),
        row("IPv4 TCP, own tables", own_large, Some(110.0)).quick(),
        row("IPv4 TCP, own tables", Shape { vips: 10_000, ..own }, None),
    ]
}

fn mixes() -> Vec<Row> {
    let row = |name: &str, shape, flows| Row::new("mixes", name, shape, flows);
    let all_kinds = Shape {
        kinds: ALL_KINDS,
        ..BASE
    };
    let random_kinds = "v4/v6, TCP/UDP at random";
    vec![
        row("IPv4 TCP", BASE, Flows::Zipf(MILLION)).goal(V4_GOAL),
        row("IPv4 TCP", Shape { vips: 10_000, ..BASE }, Flows::Zipf(MILLION)).goal(38.0),
        row(random_kinds, all_kinds, Flows::Random(MILLION)),
        row(random_kinds, all_kinds, Flows::Zipf(MILLION)),
        row(
            random_kinds,
            Shape {
                vips: 2_500,
                ..all_kinds
            },
            Flows::Zipf(MILLION),
        ),
    ]
}

fn polluted() -> Vec<Row> {
    let mut rows = Vec::new();
    for caches in [Caches::L2Polluted, Caches::LlcPolluted, Caches::Cold] {
        let mut push = |name: &str, shape, verdict| {
            let row = Row::new("polluted caches", name, shape, Flows::Random(MILLION));
            rows.push(Row { caches, verdict, ..row });
        };
        push("IPv4 TCP, not for a VIP", BASE, Verdict::PassNotVip);
        push("IPv4 TCP", BASE, Verdict::ForwardTx);
        push("IPv4 TCP", LARGE, Verdict::ForwardTx);
        push("IPv4 TCP", Shape { vips: 10_000, ..BASE }, Verdict::ForwardTx);
    }
    rows
}

/// VIPs whose flows are recorded always.
fn always_recorded() -> Vec<Row> {
    let with = |scheduler, backends, remembers| Shape {
        scheduler,
        backends,
        remembers,
        features: DEFAULT_FEATURES | feature::SCHEDULERS | if remembers { feature::AFFINITY } else { 0 },
        ..BASE
    };
    let row = |name: &str, shape, flows, tcp_flags| {
        let mut row = Row::new("flows always recorded", name, shape, flows);
        row.traffic.tcp_flags = tcp_flags;
        row
    };
    let rr = with(Scheduler::RoundRobin, 100, false);
    let beside = Shape {
        scheduler: Scheduler::Maglev,
        ..rr
    };
    let sticky = with(Scheduler::Maglev, 100, true);
    let nq = with(Scheduler::NeverQueue, 10, false);
    vec![
        row("Maglev beside them, IPv4 TCP", beside, Flows::Random(MILLION), ACK),
        row("rr, IPv4 TCP without a record", rr, Flows::Random(MILLION), ACK),
        row("rr, IPv4 TCP recorded (SYNs again)", rr, Flows::Random(MILLION), SYN),
        row("the same, one flow", rr, Flows::Random(1), SYN),
        row("rr, IPv4 TCP SYNs", rr, Flows::New, SYN),
        row("nq of 10, IPv4 TCP SYNs", nq, Flows::New, SYN),
        row(
            "wlc of 100, IPv4 TCP SYNs",
            with(Scheduler::WeightedLeastConnections, 100, false),
            Flows::New,
            SYN,
        ),
        row("affinity, IPv4 TCP SYNs", sticky, Flows::New, SYN),
        row(
            "affinity, IPv4 TCP recorded (SYNs again)",
            sticky,
            Flows::Random(MILLION),
            SYN,
        ),
    ]
}

fn features() -> Vec<Row> {
    let one = |name: &str, features| {
        let shape = Shape { features, ..BASE };
        Row::new(
            "features, each beside the defaults",
            name,
            shape,
            Flows::Random(MILLION),
        )
    };
    let with = |name, feature| one(name, DEFAULT_FEATURES | feature);
    vec![
        one("all off", 0),
        one(
            "martians, source-is-VIP, slow path, transit (default)",
            DEFAULT_FEATURES,
        ),
        one("the same without transit", DEFAULT_FEATURES & !feature::TRANSIT),
        one("the same without the slow path", DEFAULT_FEATURES & !feature::SLOW_PATH),
        with("limits", feature::LIMITS),
        with("source ranges (258)", feature::SOURCE_RANGES),
        with("denied sources (256)", feature::DENIED_SOURCES),
        with("redirect", feature::REDIRECT),
        with("decapsulation", feature::DECAP),
        with("source prefix", feature::SOURCE_PREFIX),
        with("client affinity", feature::AFFINITY),
        one("all on", feature::ALL),
    ]
}

impl Row {
    /// Packets of the VIPs' kind, or of all kinds at random where there are several; all forwarded.
    fn new(group: &'static str, name: &str, shape: Shape, flows: Flows) -> Self {
        let kind = match shape.kinds {
            [kind] => *kind,
            _ => kind::MIXED,
        };
        Self {
            group,
            name: name.to_owned(),
            shape,
            traffic: Traffic {
                kind,
                flows,
                tcp_flags: ACK,
            },
            verdict: Verdict::ForwardTx,
            caches: Caches::Hot,
            goal: None,
            quick: false,
            demo: false,
        }
    }

    fn goal(mut self, goal: f64) -> Self {
        self.goal = Some(goal);
        self
    }

    fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    /// What `--filter` is matched with: group, packets, flows, VIPs, backends, caches.
    pub(crate) fn title(&self) -> String {
        format!(
            "{}: {}, {} flows, {} VIPs, {} backends, {}{}",
            self.group,
            self.name,
            self.traffic.flows.label(),
            self.shape.vips,
            self.shape.backends,
            self.caches.label(),
            if self.demo { ", demo" } else { "" }
        )
    }
}

fn short(count: u32) -> String {
    match count {
        count if count >= 1 << 20 => format!("{}M", count >> 20),
        count if count >= 1 << 10 => format!("{}k", count >> 10),
        count => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::all;

    #[test]
    fn every_row_has_a_title_of_its_own() {
        let rows = all();
        let titles: BTreeSet<String> = rows.iter().map(super::Row::title).collect();
        assert_eq!(titles.len(), rows.len());
    }

    #[test]
    fn quick_rows_are_few_and_cover_the_goals() {
        let rows = all();
        let quick: Vec<_> = rows.iter().filter(|row| row.quick).collect();
        assert!((6..=12).contains(&quick.len()), "{}", quick.len());
        let goals = |rows: &mut dyn Iterator<Item = &super::Row>| -> BTreeSet<u64> {
            rows.filter_map(|row| row.goal).map(|goal| goal as u64).collect()
        };
        assert_eq!(goals(&mut quick.iter().copied()), goals(&mut rows.iter()));
    }
}
