//! Next hops under a real kernel: every change of routes, links and neighbours reaches the view, and in what time.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::IpAddr,
    process::{ChildStdin, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{End, Netns, Process, Veth, require_root};
use lb::nexthop::NextHopDriver;
use lb_core::{
    desired::{BackendId, NextHop, Via},
    nexthop::{NextHopView, Settings, Sources},
};
use tokio::sync::watch;

const LB_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 1, 1]];
const GW_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 1, 2]];
/// More than a change may take on a machine that does much else; what it takes is printed.
const SOON: Duration = Duration::from_secs(2);

/// An LB node with two interfaces, `eth0` and `eth1`, and a gateway behind each, .2 and ::2 of 10.0.N.0/24 and fd00:N::/64.
struct Bed {
    lb: Netns,
    gateways: [Netns; 2],
    /// `ip -batch -` in the LB node's namespace: changes without the time it takes to start a program.
    ip: ChildStdin,
    _ip: Process,
}

impl Bed {
    fn new() -> Result<Self> {
        let lb = Netns::new("lb")?;
        let gateways = [Netns::new("gateway-0")?, Netns::new("gateway-1")?];
        for (n, gateway) in (0_u8..).zip(&gateways) {
            let end = |ns: &Netns, name: &str, mac, host| End {
                ns: ns.clone(),
                name: format!("{name}{n}"),
                mac,
                v4: Some(([10, 0, n, host].into(), 24)),
                v6: Some(([0xfd00, n.into(), 0, 0, 0, 0, 0, host.into()].into(), 64)),
            };
            let at = usize::from(n);
            Veth::new(
                end(&lb, "eth", LB_MACS[at], 1),
                end(gateway, "gw", GW_MACS[at], 2),
                1500,
                1,
            )?;
        }
        // The kernel brings a new link to work within a second; until then it drops what is sent.
        for (ns, links) in [(&lb, 2), (&gateways[0], 1), (&gateways[1], 1)] {
            let start = Instant::now();
            while ns.ip(&["-br", "link", "show", "up"])?.matches(" UP ").count() < links {
                ensure!(start.elapsed() < SOON, "links of {} do not come up", ns.name());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let mut command = lb.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped());
        let mut process = Process::start(command)?;
        let ip = process.child().stdin.take().context("ip has no standard input")?;
        Ok(Self {
            lb,
            gateways,
            ip,
            _ip: process,
        })
    }

    /// Starts a driver in the LB node's namespace, with both interfaces.
    fn start(&self, backends: &[(&str, &str)]) -> Result<Followed> {
        self.start_with(&["eth0", "eth1"], Sources::default(), backends)
    }

    fn start_with(&self, interfaces: &[&str], sources: Sources, backends: &[(&str, &str)]) -> Result<Followed> {
        let interfaces = interfaces.iter().map(|name| (*name).into()).collect();
        let settings = Settings { interfaces, sources };
        let backends = set(backends)?;
        let (driver, view) = self.lb.run(|| Ok(NextHopDriver::start(settings, backends)?))?;
        let mut followed = Followed { driver, view };
        followed.until("complete", |view| view.complete)?;
        Ok(followed)
    }

    /// Gives a command to `ip` in the LB node's namespace and does not wait for it.
    fn ip(&mut self, line: &str) -> Result<()> {
        writeln!(self.ip, "{line}")?;
        Ok(self.ip.flush()?)
    }

    fn gateway_mac(&self, mac: &str) -> Result<()> {
        self.gateways[0].ip(&["link", "set", "gw0", "address", mac]).map(drop)
    }

    /// Makes the LB node's neighbour timers short: confirmed for about a second, garbage after another. The delay before a
    /// probe must be below that, or the kernel takes a confirmation for a use and confirms for ever.
    fn hurry(&self) -> Result<()> {
        for family in ["ipv4", "ipv6"] {
            for (key, value) in [
                ("base_reachable_time_ms", "1000"),
                ("gc_stale_time", "1"),
                ("delay_first_probe_time", "0"),
            ] {
                self.lb.sysctl(&format!("net/{family}/neigh/eth0/{key}"), value)?;
            }
        }
        Ok(())
    }
}

/// A driver at work.
struct Followed {
    driver: NextHopDriver,
    view: watch::Receiver<NextHopView>,
}

impl Followed {
    /// Waits until the view is as wished; how long that took.
    fn until(&mut self, what: &str, holds: impl Fn(&NextHopView) -> bool) -> Result<Duration> {
        self.until_within(SOON, what, holds)
    }

    fn until_within(&mut self, limit: Duration, what: &str, holds: impl Fn(&NextHopView) -> bool) -> Result<Duration> {
        let start = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let view = &mut self.view;
        let wait = async {
            tokio::time::timeout(limit, view.wait_for(|view| holds(view)))
                .await
                .map(|seen| seen.is_ok())
        };
        match runtime.block_on(wait) {
            Ok(true) => Ok(start.elapsed()),
            Ok(false) => bail!("the driver ended while waiting for: {what}"),
            Err(_) => bail!("not within {limit:?}: {what}; the view is {:#?}", *self.view.borrow()),
        }
    }

    fn until_via(&mut self, backend: &str, mac: [u8; 6]) -> Result<Duration> {
        self.until(&format!("{backend} via {mac:02x?}"), |view| is_via(view, backend, mac))
    }

    fn until_reason(&mut self, backend: &str, label: &str) -> Result<Duration> {
        self.until(&format!("{backend}: {label}"), |view| {
            reason(view, backend) == Some(label)
        })
    }

    fn via(&self, backend: &str) -> Result<Via> {
        match self.view.borrow().next_hops.get(&id(backend)) {
            Some(NextHop::Via(via)) => Ok(*via),
            other => bail!("{backend}: {other:?}"),
        }
    }

    /// Watches for this long; fails should the view change.
    fn unchanged_for(&mut self, time: Duration) -> Result<()> {
        let before = self.view.borrow_and_update().clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let changed = async { tokio::time::timeout(time, self.view.changed()).await };
        match runtime.block_on(changed) {
            Err(_) => Ok(()),
            Ok(_) => bail!("the view changed\nfrom {before:#?}\nto {:#?}", *self.view.borrow()),
        }
    }
}

fn id(name: &str) -> BackendId {
    BackendId(name.into())
}

fn set(backends: &[(&str, &str)]) -> Result<BTreeMap<BackendId, IpAddr>> {
    backends
        .iter()
        .map(|(name, address)| Ok((id(name), address.parse()?)))
        .collect()
}

fn is_via(view: &NextHopView, backend: &str, mac: [u8; 6]) -> bool {
    matches!(view.next_hops.get(&id(backend)), Some(NextHop::Via(via)) if via.destination_mac == mac)
}

fn reason(view: &NextHopView, backend: &str) -> Option<&'static str> {
    view.unresolved.get(&id(backend)).map(|reason| reason.label())
}

#[expect(clippy::print_stderr, reason = "how long changes take is what these tests report")]
fn report(what: &str, took: Duration) {
    eprintln!("{what}: {:.1} ms", took.as_secs_f64() * 1e3);
}

const GATEWAYS: [(&str, &str); 4] = [
    ("v4", "192.0.2.1"),
    ("v6", "2001:db8::1"),
    ("link4", "10.0.0.2"),
    ("link6", "fd00:0::2"),
];

fn route_gateways(bed: &Bed) -> Result<()> {
    bed.lb
        .ip_batch("route add 192.0.2.0/24 via 10.0.0.2\nroute add 2001:db8::/32 via fd00:0::2\n")
}

#[test]
fn gateways_and_on_link_backends_of_both_families_resolve() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    route_gateways(&bed)?;
    bed.lb.ip_batch(
        "route add 198.51.100.0/24 via 10.0.1.2 mtu 1400\nroute add blackhole 198.18.0.0/24\n\
         route add unreachable 198.18.1.0/24\nroute add prohibit 198.18.2.0/24\n\
         route add blackhole 2001:db8:b::/48\nroute add unreachable 2001:db8:c::/48\nroute add prohibit 2001:db8:d::/48\n\
         route add 198.51.101.0/24 via inet6 fd00:1::2 dev eth1\n",
    )?;
    let others = [
        ("mtu", "198.51.100.1"),
        ("mixed", "198.51.101.1"),
        ("self4", "10.0.0.1"),
        ("self6", "fd00:1::1"),
        ("black4", "198.18.0.1"),
        ("unreach4", "198.18.1.1"),
        ("prohibit4", "198.18.2.1"),
        ("black6", "2001:db8:b::1"),
        ("unreach6", "2001:db8:c::1"),
        ("prohibit6", "2001:db8:d::1"),
        ("broadcast", "10.0.0.255"),
        ("nowhere4", "203.0.113.1"),
        ("nowhere6", "2001:dead::1"),
    ];
    let start = Instant::now();
    let mut followed = bed.start(&[&GATEWAYS[..], &others].concat())?;
    for backend in ["v4", "v6", "link4", "link6"] {
        followed.until_via(backend, GW_MACS[0])?;
    }
    followed.until_via("mtu", GW_MACS[1])?;
    followed.until_via("mixed", GW_MACS[1])?;
    report("from start to all resolved, ARP and NDP included", start.elapsed());
    let via = followed.via("v4")?;
    ensure!((via.port, via.source_mac, via.mtu) == (0, LB_MACS[0], 1500), "{via:?}");
    ensure!(via.source == "10.0.0.1".parse::<IpAddr>()?, "{via:?}");
    ensure!(followed.via("v6")?.source == "fd00::1".parse::<IpAddr>()?);
    ensure!((followed.via("mtu")?.port, followed.via("mtu")?.mtu) == (1, 1400));
    let view = followed.view.borrow().clone();
    for local in ["self4", "self6"] {
        ensure!(
            view.next_hops[&id(local)] == NextHop::Local,
            "{local}: {:?}",
            view.next_hops[&id(local)]
        );
    }
    for (backend, label) in [
        ("black4", "route_blackhole"),
        ("black6", "route_blackhole"),
        ("unreach4", "route_unreachable"),
        ("unreach6", "route_unreachable"),
        ("prohibit4", "route_prohibited"),
        ("prohibit6", "route_prohibited"),
        ("broadcast", "not_unicast"),
        ("nowhere4", "no_route"),
        ("nowhere6", "no_route"),
    ] {
        ensure!(
            reason(&view, backend) == Some(label),
            "{backend}: {:?}",
            view.unresolved.get(&id(backend))
        );
    }
    let own: Vec<String> = view.own_addresses.iter().map(ToString::to_string).collect();
    ensure!(own == ["10.0.0.1", "10.0.1.1", "fd00::1", "fd00:1::1"], "{own:?}");
    Ok(())
}

#[test]
fn egress_must_be_a_configured_interface() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    let mut followed = bed.start_with(&["eth1"], Sources::default(), &[("b", "10.0.0.2"), ("c", "10.0.1.2")])?;
    followed.until_via("c", GW_MACS[1])?;
    let text = followed.view.borrow().unresolved[&id("b")].to_string();
    ensure!(text == "egress interface eth0 is not in interfaces", "{text}");
    followed.driver.set_settings(Settings {
        interfaces: vec!["eth1".into(), "eth0".into()],
        sources: Sources::node(Some([10, 0, 1, 1].into()), None),
    });
    followed.until_via("b", GW_MACS[0])?;
    let via = followed.via("b")?;
    ensure!((via.port, via.source) == (1, "10.0.1.1".parse()?), "{via:?}");
    Ok(())
}

#[test]
fn rules_on_the_source_address_are_honoured() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::new()?;
    route_gateways(&bed)?;
    let sources = Sources::node(Some([10, 0, 1, 1].into()), None);
    let mut followed = bed.start_with(&["eth0", "eth1"], sources, &GATEWAYS)?;
    followed.until_via("v4", GW_MACS[0])?;
    bed.lb.ip_batch("route add 192.0.2.0/24 via 10.0.1.2 table 7\n")?;
    followed.unchanged_for(Duration::from_millis(200))?;
    bed.ip("rule add from 10.0.1.1 lookup 7")?;
    report("policy rule added", followed.until_via("v4", GW_MACS[1])?);
    bed.ip("rule del from 10.0.1.1 lookup 7")?;
    report("policy rule removed", followed.until_via("v4", GW_MACS[0])?);
    Ok(())
}

#[test]
fn routes_that_move_vanish_or_appear_are_followed() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::new()?;
    route_gateways(&bed)?;
    let mut followed = bed.start(&GATEWAYS)?;
    for (backend, prefix, gateways) in [
        ("v4", "192.0.2.0/24", ["10.0.0.2", "10.0.1.2"]),
        ("v6", "2001:db8::/32", ["fd00:0::2", "fd00:1::2"]),
    ] {
        followed.until_via(backend, GW_MACS[0])?;
        bed.ip(&format!("route replace {prefix} via {}", gateways[1]))?;
        report(
            &format!("{backend} route moved, new gateway not known yet"),
            followed.until_via(backend, GW_MACS[1])?,
        );
        ensure!(followed.via(backend)?.port == 1);
        bed.ip(&format!("route replace {prefix} via {}", gateways[0]))?;
        report(
            &format!("{backend} route moved back"),
            followed.until_via(backend, GW_MACS[0])?,
        );
        bed.ip(&format!("route del {prefix}"))?;
        report(
            &format!("{backend} route removed"),
            followed.until_reason(backend, "no_route")?,
        );
        bed.ip(&format!("route add {prefix} via {}", gateways[0]))?;
        report(
            &format!("{backend} route added"),
            followed.until_via(backend, GW_MACS[0])?,
        );
    }
    bed.ip("nexthop add id 5 via 10.0.0.2 dev eth0")?;
    bed.ip("route replace 192.0.2.0/24 nhid 5")?;
    followed.unchanged_for(Duration::from_millis(200))?;
    bed.ip("nexthop replace id 5 via 10.0.1.2 dev eth1")?;
    report("next-hop object replaced", followed.until_via("v4", GW_MACS[1])?);
    Ok(())
}

#[test]
fn interfaces_that_go_down_lose_their_carrier_or_vanish_are_followed() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::new()?;
    let mut followed = bed.start(&[("b", "10.0.0.2"), ("c", "fd00:1::2")])?;
    followed.until_via("b", GW_MACS[0])?;
    followed.until_via("c", GW_MACS[1])?;
    bed.ip("link set eth0 down")?;
    report(
        "interface set down",
        followed.until("b has no way", |view| reason(view, "b").is_some())?,
    );
    bed.ip("link set eth0 up")?;
    report("interface set up", followed.until_via("b", GW_MACS[0])?);
    // The kernel tells of carriers at most once a second.
    std::thread::sleep(Duration::from_millis(1_100));
    bed.gateways[0].ip(&["link", "set", "gw0", "down"])?;
    report("carrier lost", followed.until_reason("b", "egress_down")?);
    bed.gateways[0].ip(&["link", "set", "gw0", "up"])?;
    report("carrier back", followed.until_via("b", GW_MACS[0])?);
    bed.ip("link set eth0 mtu 1400")?;
    report(
        "MTU changed",
        followed.until("MTU 1400", |view| is_mtu(view, "b", 1400))?,
    );
    bed.ip("link del eth1")?;
    report(
        "interface deleted",
        followed.until("c has no way", |view| reason(view, "c").is_some())?,
    );
    let gone = "10.0.1.1".parse()?;
    followed.until("its address is not ours", |view| !view.own_addresses.contains(&gone))?;
    Ok(())
}

fn is_mtu(view: &NextHopView, backend: &str, mtu: u16) -> bool {
    matches!(view.next_hops.get(&id(backend)), Some(NextHop::Via(via)) if via.mtu == mtu)
}

#[test]
fn gateway_that_tells_its_new_mac_address_is_followed_at_once() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    // As a router does that takes over an address.
    bed.gateways[0].sysctl("net/ipv4/conf/gw0/arp_notify", "1")?;
    bed.gateways[0].sysctl("net/ipv6/conf/gw0/ndisc_notify", "1")?;
    // The kernel ignores a second MAC address within this time.
    bed.lb.sysctl("net/ipv4/neigh/eth0/locktime", "0")?;
    let mut followed = bed.start(&[("v4", "10.0.0.2"), ("v6", "fd00:0::2")])?;
    followed.until_via("v4", GW_MACS[0])?;
    followed.until_via("v6", GW_MACS[0])?;
    let start = Instant::now();
    bed.gateway_mac("02:00:00:00:00:99")?;
    followed.until_via("v4", [2, 0, 0, 0, 0, 0x99])?;
    report("gratuitous ARP with a new MAC address, `ip` included", start.elapsed());
    followed.until_via("v6", [2, 0, 0, 0, 0, 0x99])?;
    report("unsolicited neighbour advertisement, `ip` included", start.elapsed());
    Ok(())
}

#[test]
fn gateway_that_changes_its_mac_address_in_silence_is_found_out_without_traffic() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    bed.hurry()?;
    let mut followed = bed.start(&[("v4", "10.0.0.2"), ("v6", "fd00:0::2")])?;
    followed.until_via("v4", GW_MACS[0])?;
    followed.until_via("v6", GW_MACS[0])?;
    bed.gateway_mac("02:00:00:00:00:99")?;
    // Confirmed for up to 1.5 s, looked at every 5 s, probed for 3 s.
    let limit = Duration::from_secs(15);
    let new = [2, 0, 0, 0, 0, 0x99];
    report(
        "silent change of MAC address",
        followed.until_within(limit, "v4", |view| is_via(view, "v4", new))?,
    );
    followed.until_within(limit, "v6", |view| is_via(view, "v6", new))?;
    Ok(())
}

#[test]
fn neighbours_stay_fresh_without_traffic_and_only_because_they_are_kept() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    bed.hurry()?;
    // The twin: an entry that nobody keeps.
    bed.gateways[0].ip(&["addr", "add", "10.0.0.3/24", "dev", "gw0"])?;
    bed.lb.sh("ping -c1 -W1 10.0.0.3")?;
    let mut followed = bed.start(&[("v4", "10.0.0.2"), ("v6", "fd00:0::2")])?;
    followed.until_via("v4", GW_MACS[0])?;
    followed.until_via("v6", GW_MACS[0])?;
    let state = |address: &str| bed.lb.ip(&["neigh", "show", address]);
    ensure!(state("10.0.0.2")?.contains("managed"), "{}", state("10.0.0.2")?);
    // Many times what an entry stays confirmed, and twice the kernel's round over managed entries.
    followed.unchanged_for(Duration::from_secs(12))?;
    let confirmed_s = |address: &str| -> Result<Option<u64>> {
        let shown = bed.lb.ip(&["-s", "-j", "neigh", "show", address])?;
        let entries: serde_json::Value = serde_json::from_str(&shown)?;
        Ok(entries.pointer("/0/confirmed").and_then(serde_json::Value::as_u64))
    };
    for address in ["10.0.0.2", "fd00:0::2"] {
        let age = confirmed_s(address)?;
        ensure!(age.is_some_and(|age| age <= 8), "{address} was confirmed {age:?} s ago");
    }
    let age = confirmed_s("10.0.0.3")?;
    ensure!(
        age.is_none_or(|age| age >= 11),
        "the twin was confirmed {age:?} s ago: {}",
        state("10.0.0.3")?
    );
    // The gateway falls silent, and nobody sends: only what keeps the entries can find out.
    bed.gateways[0].ip(&["link", "set", "gw0", "arp", "off"])?;
    bed.gateways[0].ip(&["addr", "del", "fd00:0::2/64", "dev", "gw0"])?;
    let limit = Duration::from_secs(15);
    for backend in ["v4", "v6"] {
        let silent = |view: &NextHopView| reason(view, backend) == Some("neighbour_failed");
        report(
            &format!("{backend} gateway fell silent"),
            followed.until_within(limit, backend, silent)?,
        );
    }
    let twin = state("10.0.0.3")?;
    ensure!(
        !twin.contains("FAILED"),
        "for the twin it was noticed too, by something else: {twin}"
    );
    bed.gateways[0].ip(&["link", "set", "gw0", "arp", "on"])?;
    bed.gateways[0].ip(&["addr", "add", "fd00:0::2/64", "dev", "gw0", "nodad"])?;
    for backend in ["v4", "v6"] {
        let back = |view: &NextHopView| is_via(view, backend, GW_MACS[0]);
        report(
            &format!("{backend} gateway is back"),
            followed.until_within(limit, backend, back)?,
        );
    }
    Ok(())
}

#[test]
fn flushed_neighbours_change_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    let mut followed = bed.start(&[("v4", "10.0.0.2"), ("v6", "fd00:0::2")])?;
    followed.until_via("v4", GW_MACS[0])?;
    followed.until_via("v6", GW_MACS[0])?;
    for _ in 0..3 {
        bed.lb
            .ip_batch("neigh del 10.0.0.2 dev eth0\nneigh del fd00:0::2 dev eth0\n")?;
        followed.unchanged_for(Duration::from_millis(1_500))?;
        let entries = bed.lb.ip(&["neigh", "show", "dev", "eth0"])?;
        ensure!(
            entries.lines().filter(|line| line.contains("managed")).count() == 2,
            "kept again: {entries}"
        );
    }
    // The control: where the gateway is gone too, it does change.
    bed.gateways[0].ip(&["link", "set", "gw0", "arp", "off"])?;
    bed.lb.ip_batch("neigh del 10.0.0.2 dev eth0\n")?;
    followed.until_within(Duration::from_secs(6), "v4 fails", |view| reason(view, "v4").is_some())?;
    Ok(())
}

#[test]
fn neighbours_are_let_go_at_the_end_and_permanent_ones_are_never_touched() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    bed.lb
        .ip_batch("neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent\n")?;
    let mut followed = bed.start(&[("v4", "10.0.0.2"), ("static", "10.0.0.9"), ("dead", "10.0.0.77")])?;
    followed.until_via("v4", GW_MACS[0])?;
    followed.until_via("static", [2, 0, 0, 0, 0, 9])?;
    let entries = || bed.lb.ip(&["neigh", "show", "dev", "eth0"]);
    ensure!(
        entries()?.contains("10.0.0.2 lladdr 02:00:00:00:00:02 managed extern_learn"),
        "{}",
        entries()?
    );
    followed
        .driver
        .set_backends(set(&[("static", "10.0.0.9"), ("dead", "10.0.0.77")])?);
    followed.until("v4 is gone", |view| !view.next_hops.contains_key(&id("v4")))?;
    let start = Instant::now();
    while entries()?.contains("10.0.0.2 lladdr 02:00:00:00:00:02 managed") {
        ensure!(start.elapsed() < SOON, "{}", entries()?);
    }
    let start = Instant::now();
    drop(followed);
    report("stop", start.elapsed());
    let left = entries()?;
    ensure!(left.contains("10.0.0.9 lladdr 02:00:00:00:00:09 PERMANENT"), "{left}");
    ensure!(!left.contains("managed") && !left.contains("extern_learn"), "{left}");
    Ok(())
}

#[test]
fn thousands_of_backends_behind_one_gateway_change_at_once() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::new()?;
    bed.lb
        .ip_batch("route add 198.18.0.0/15 via 10.0.0.2\nneigh add 10.0.1.2 lladdr 02:00:00:00:01:02 dev eth1\n")?;
    let addresses: Vec<_> = (0..10_000_u32)
        .map(|i| (i.to_string(), IpAddr::from((0xc612_0000 + i).to_be_bytes())))
        .collect();
    let backends = addresses.iter().map(|(name, address)| (id(name), *address)).collect();
    let mut followed = bed.start(&[])?;
    followed.driver.set_backends(backends);
    let all = |view: &NextHopView, mac| {
        view.next_hops.len() == 10_000 && (0..10_000).all(|i| is_via(view, &i.to_string(), mac))
    };
    report(
        "10,000 backends set, until all are resolved",
        followed.until("all", |view| all(view, GW_MACS[0]))?,
    );
    bed.ip("route replace 198.18.0.0/15 via 10.0.1.2")?;
    report(
        "10,000 backends, route moved",
        followed.until("all", |view| all(view, GW_MACS[1]))?,
    );
    bed.ip("route add 198.18.0.7/32 via 10.0.0.2")?;
    report(
        "10,000 backends, one moved",
        followed.until("one", |view| is_via(view, "7", GW_MACS[0]))?,
    );
    // A storm: more messages than the receive buffer takes.
    let storm: String = (0..30_000_u32)
        .map(|i| {
            format!(
                "route add {}/32 via 10.0.0.2\n",
                IpAddr::from((0x6440_0000 + i).to_be_bytes())
            )
        })
        .collect();
    for (part, lines) in storm.lines().collect::<Vec<_>>().chunks(1_500).enumerate() {
        bed.lb
            .ip_batch(&(lines.join("\n") + "\n"))
            .with_context(|| format!("part {part}"))?;
    }
    bed.ip("route replace 198.18.0.0/15 via 10.0.0.2")?;
    report(
        "the same after 30,000 routes",
        followed.until("all", |view| all(view, GW_MACS[0]))?,
    );
    Ok(())
}

#[test]
fn how_long_a_change_takes() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::new()?;
    route_gateways(&bed)?;
    let mut followed = bed.start(&[("v4", "192.0.2.1"), ("other", "10.0.1.2")])?;
    followed.until_via("other", GW_MACS[1])?;
    let mut times = Vec::new();
    for round in 0..100 {
        let to = (round + 1) % 2;
        // Not in step with the driver's gap between passes.
        std::thread::sleep(Duration::from_millis(11 + round % 7));
        bed.ip(&format!("route replace 192.0.2.0/24 via 10.0.{to}.2"))?;
        times.push(followed.until_via("v4", GW_MACS[usize::try_from(to)?])?);
    }
    times.sort_unstable();
    report("route moved, 100 times: median", times[50]);
    report("route moved, 100 times: 99th of 100", times[98]);
    report("route moved, 100 times: worst", times[99]);
    Ok(())
}
