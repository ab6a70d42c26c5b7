//! An LB node between two gateways, a driver in it, and ways to wait for what it says. Never asserts anything itself.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::IpAddr,
    process::{ChildStdin, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{End, Netns, Process, Veth};
use lb::nexthop::NextHopDriver;
use lb_core::{
    desired::{BackendId, NextHop, Via},
    nexthop::{NextHopView, Settings, Sources},
};
use tokio::sync::watch;

pub(crate) const LB_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 1, 1]];
pub(crate) const GW_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 1, 2]];
/// More than a change may take on a machine that does much else; what it takes is printed.
pub(crate) const SOON: Duration = Duration::from_secs(2);

/// An LB node with two interfaces, `eth0` and `eth1`, and a gateway behind each, .2 and ::2 of 10.0.N.0/24 and fd00:N::/64.
pub(crate) struct Bed {
    pub(crate) lb: Netns,
    pub(crate) gateways: [Netns; 2],
    /// `ip -batch -` in the LB node's namespace: changes without the time it takes to start a program.
    ip: ChildStdin,
    _ip: Process,
}

impl Bed {
    pub(crate) fn new() -> Result<Self> {
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
    pub(crate) fn start(&self, backends: &[(&str, &str)]) -> Result<Followed> {
        self.start_with(&["eth0", "eth1"], Sources::default(), backends)
    }

    pub(crate) fn start_with(
        &self,
        interfaces: &[&str],
        sources: Sources,
        backends: &[(&str, &str)],
    ) -> Result<Followed> {
        let interfaces = interfaces.iter().map(|name| (*name).into()).collect();
        let settings = Settings { interfaces, sources };
        let backends = set(backends)?;
        let (driver, view) = self.lb.run(|| Ok(NextHopDriver::start(settings, backends)?))?;
        let mut followed = Followed { driver, view };
        followed.until("complete", |view| view.complete)?;
        Ok(followed)
    }

    /// Gives a command to `ip` in the LB node's namespace and does not wait for it.
    pub(crate) fn ip(&mut self, line: &str) -> Result<()> {
        writeln!(self.ip, "{line}")?;
        Ok(self.ip.flush()?)
    }

    pub(crate) fn gateway_mac(&self, mac: &str) -> Result<()> {
        self.gateways[0].ip(&["link", "set", "gw0", "address", mac]).map(drop)
    }

    /// Makes the LB node's neighbour timers short: confirmed for about a second, garbage after another. The delay before a
    /// probe must be below that, or the kernel takes a confirmation for a use and confirms for ever.
    pub(crate) fn hurry(&self) -> Result<()> {
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
pub(crate) struct Followed {
    pub(crate) driver: NextHopDriver,
    pub(crate) view: watch::Receiver<NextHopView>,
}

impl Followed {
    /// Waits until the view is as wished; how long that took.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&NextHopView) -> bool) -> Result<Duration> {
        self.until_within(SOON, what, holds)
    }

    pub(crate) fn until_within(
        &mut self,
        limit: Duration,
        what: &str,
        holds: impl Fn(&NextHopView) -> bool,
    ) -> Result<Duration> {
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

    pub(crate) fn until_via(&mut self, backend: &str, mac: [u8; 6]) -> Result<Duration> {
        self.until(&format!("{backend} via {mac:02x?}"), |view| is_via(view, backend, mac))
    }

    pub(crate) fn until_reason(&mut self, backend: &str, label: &str) -> Result<Duration> {
        self.until(&format!("{backend}: {label}"), |view| {
            reason(view, backend) == Some(label)
        })
    }

    pub(crate) fn via(&self, backend: &str) -> Result<Via> {
        match self.view.borrow().next_hops.get(&id(backend)) {
            Some(NextHop::Via(via)) => Ok(*via),
            other => bail!("{backend}: {other:?}"),
        }
    }

    /// Watches for this long; fails should the view change.
    pub(crate) fn unchanged_for(&mut self, time: Duration) -> Result<()> {
        let before = self.view.borrow_and_update().clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let changed = async { tokio::time::timeout(time, self.view.changed()).await };
        match runtime.block_on(changed) {
            Err(_) => Ok(()),
            Ok(_) => bail!("the view changed\nfrom {before:#?}\nto {:#?}", *self.view.borrow()),
        }
    }
}

pub(crate) fn id(name: &str) -> BackendId {
    BackendId(name.into())
}

pub(crate) fn set(backends: &[(&str, &str)]) -> Result<BTreeMap<BackendId, IpAddr>> {
    backends
        .iter()
        .map(|(name, address)| Ok((id(name), address.parse()?)))
        .collect()
}

pub(crate) fn is_via(view: &NextHopView, backend: &str, mac: [u8; 6]) -> bool {
    matches!(view.next_hops.get(&id(backend)), Some(NextHop::Via(via)) if via.destination_mac == mac)
}

pub(crate) fn reason(view: &NextHopView, backend: &str) -> Option<&'static str> {
    view.unresolved.get(&id(backend)).map(|reason| reason.label())
}

#[expect(clippy::print_stderr, reason = "how long changes take is what these tests report")]
pub(crate) fn report(what: &str, took: Duration) {
    eprintln!("{what}: {:.1} ms", took.as_secs_f64() * 1e3);
}

pub(crate) const GATEWAYS: [(&str, &str); 4] = [
    ("v4", "192.0.2.1"),
    ("v6", "2001:db8::1"),
    ("link4", "10.0.0.2"),
    ("link6", "fd00:0::2"),
];

pub(crate) fn route_gateways(bed: &Bed) -> Result<()> {
    bed.lb
        .ip_batch("route add 192.0.2.0/24 via 10.0.0.2\nroute add 2001:db8::/32 via fd00:0::2\n")
}
