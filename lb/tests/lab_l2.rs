//! Three LB nodes on one segment share its VIP addresses: each has one owner, and another when that one is gone.

#![allow(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod lab_support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lab::{Capture, Client, Proto, Topology, require_root};
use lab_support::{Bed, Daemon, LbFile, eventually, vip_v4, vip_v6, vipline};
use nix::sys::signal::Signal;

/// VIP addresses of each family.
const ADDRESSES: u8 = 12;

struct Site {
    bed: Bed,
}

fn vips() -> Vec<SocketAddr> {
    let v4 = (1..=ADDRESSES).map(|last| vip_v4(last, 80));
    v4.chain((1..=ADDRESSES).map(|last| vip_v6(last.into(), 80))).collect()
}

/// Three LB nodes, two workers and a client, all on one segment.
fn site() -> Result<Site> {
    let topology = Topology::builder().lbs(3).workers(2).client_on_link().build()?;
    let members = topology
        .lbs()
        .iter()
        .map(|lb| format!("{}: {}", lb.name(), lb.addr_v4()));
    let members = members.collect::<Vec<_>>().join(", ");
    let bed = Bed::start(topology, |topology, lb| {
        let vips: Vec<_> = vips()
            .into_iter()
            .flat_map(|vip| [(Proto::Tcp, vip), (Proto::Udp, vip)])
            .collect();
        LbFile::new(topology, lb).vips(&vips, "v4").more(&format!(
            "l2: {{ owned: [203.0.113.0/24, \"2001:db8:f00d::/64\"], group: {{ name: {}, members: {{ {members} }} }} }}",
            lb.name()
        ))
    })?;
    let site = Site { bed };
    site.wait_for(&[0, 1, 2])?;
    Ok(site)
}

impl Site {
    fn lb(&self, index: usize) -> &Daemon {
        &self.bed.lbs[index]
    }

    fn client(&self) -> &Client {
        self.bed.topology.client()
    }

    /// Addresses that each of these says it answers for.
    fn owned(&self, lbs: &[usize]) -> Result<Vec<usize>> {
        let owned = lbs.iter().map(|index| {
            let status = self.lb(*index).status()?;
            Ok(status.group.context("it is in a group")?.owned)
        });
        owned.collect()
    }

    /// These are all who are heard, and between them answer for all addresses.
    fn wait_for(&self, lbs: &[usize]) -> Result<Duration> {
        let owned = eventually("each address has one owner", || {
            let mut heard = true;
            for index in lbs {
                let group = self.lb(*index).status()?.group.context("it is in a group")?;
                let others = group.others.iter().filter(|other| other.heard).count();
                heard &= !group.waits && others == lbs.len() - 1;
            }
            Ok(heard && self.owned(lbs)?.iter().sum::<usize>() == vips().len())
        });
        let logs = |index: &usize| -> Result<String> {
            Ok(format!(
                "{:#?}\n{}",
                self.lb(*index).status()?.group,
                self.lb(*index).log()?
            ))
        };
        owned.with_context(|| {
            let logs = lbs.iter().map(logs).collect::<Result<Vec<_>>>();
            logs.map_or_else(|error| format!("{error:#}"), |logs| logs.join("\n"))
        })
    }

    /// Whom the segment says has each address: the MAC address of everybody who answers a question for it.
    fn answers(&self) -> Result<BTreeMap<IpAddr, BTreeSet<String>>> {
        let ns = self.client().ns();
        let capture = Capture::start(ns, "eth0", "arp or icmp6")?;
        ns.sh("ip neigh flush dev eth0")?;
        ns.run(|| {
            for vip in vips() {
                let any: SocketAddr = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
                UdpSocket::bind(any)?.send_to(b"who has it?", vip)?;
            }
            Ok(())
        })?;
        eventually("all are answered for", || {
            let known = ns.sh("ip neigh show dev eth0")?;
            let is_known = |vip: &SocketAddr| {
                let start = format!("{} lladdr ", vip.ip());
                known.lines().any(|line| line.starts_with(&start))
            };
            Ok(vips().iter().all(is_known))
        })?;
        // A second answer is as quick as the first.
        thread::sleep(Duration::from_millis(200));
        let captured = capture.stop()?;
        let mut answers: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        let arp = captured.fields("arp.opcode == 2", &["arp.src.proto_ipv4", "arp.src.hw_mac"])?;
        let nd = captured.fields(
            "icmpv6.type == 136",
            &["icmpv6.nd.na.target_address", "icmpv6.opt.linkaddr"],
        )?;
        for line in arp.into_iter().chain(nd) {
            let address: IpAddr = line[0].parse()?;
            if vips().iter().any(|vip| vip.ip() == address) {
                answers.entry(address).or_default().insert(line[1].clone());
            }
        }
        Ok(answers)
    }

    fn mac(&self, index: usize) -> String {
        let mac = self.bed.topology.lb(index).mac();
        mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// Exactly one of these answers for each address.
    fn assert_one_owner(&self, lbs: &[usize]) -> Result<BTreeMap<IpAddr, String>> {
        let answers = self.answers()?;
        assert_eq!(answers.len(), vips().len(), "{answers:?}");
        let macs: BTreeSet<String> = lbs.iter().map(|index| self.mac(*index)).collect();
        let mut owners = BTreeMap::new();
        for (address, by) in answers {
            assert_eq!(by.len(), 1, "{address}: {by:?}");
            assert!(by.is_subset(&macs), "{address}: {by:?} of {macs:?}");
            owners.insert(address, by.into_iter().next().unwrap_or_default());
        }
        let distinct: BTreeSet<&String> = owners.values().collect();
        assert_eq!(distinct.len(), lbs.len(), "all have a part: {owners:?}");
        Ok(owners)
    }

    /// The router's end of an LB node's link.
    fn port(&self, index: usize) -> &str {
        &self.bed.topology.lb(index).eth0().peer
    }

    fn router(&self, line: &str) -> Result<String> {
        self.bed.topology.router().ns().sh(line)
    }
}

/// Asks a VIP all the time; the longest time without an answer.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(usize, Duration)>>,
}

impl Watch {
    fn start(client: &Client, vip: SocketAddr) -> Self {
        Self::start_with(client, vip, Duration::from_millis(100))
    }

    /// An answer that does not come is waited for so long.
    fn start_with(client: &Client, vip: SocketAddr, patience: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, client) = (Arc::clone(&stop), client.with_timeout(patience));
        let thread = thread::spawn(move || {
            let (mut answered, mut last, mut longest) = (0, Instant::now(), Duration::ZERO);
            while !told.load(Ordering::Relaxed) {
                if client.try_udp_get(vip, 1)?.iter().all(Result::is_ok) {
                    answered += 1;
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                thread::sleep(Duration::from_millis(5));
            }
            Ok((answered, longest.max(last.elapsed())))
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<(usize, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(seen) => seen,
            Err(_) => bail!("the thread that asked all the time panicked"),
        }
    }
}

/// A VIP whose address this LB node has.
fn one_of(owners: &BTreeMap<IpAddr, String>, mac: &str) -> Result<SocketAddr> {
    let found = vips().into_iter().find(|vip| owners[&vip.ip()] == mac);
    found.context("it has none")
}

#[test]
fn addresses_are_spread_over_the_group_and_move_when_a_daemon_is_killed_and_back_again() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut site = site()?;
    let before = site.assert_one_owner(&[0, 1, 2])?;
    let victim = site.mac(1);
    let vip = one_of(&before, &victim)?;
    let said = site.lb(0).cli(&["status"])?;
    assert!(
        said.contains("l2 group") && said.contains("lb-2 (10.40.0.3) is heard"),
        "{said}"
    );

    // What is pinned forwards what still comes to the dead one; new neighbours are answered by others.
    let watch = Watch::start(site.client(), vip);
    let killed = Instant::now();
    site.bed.lbs[1].end(Signal::SIGKILL)?;
    site.wait_for(&[0, 2])?;
    println!("kill -9: others answer for all after {:?}", killed.elapsed());
    let after = site.assert_one_owner(&[0, 2])?;
    let (answered, longest) = watch.stop()?;
    println!("kill -9: longest time without an answer {longest:?}, {answered} answered");
    assert!(answered > 0 && longest < Duration::from_secs(1), "{longest:?}");
    for (address, owner) in &before {
        assert_eq!(
            after[address] == *owner,
            *owner != victim,
            "{address}: only those of the dead one move"
        );
    }

    site.bed.lbs[1].start_again()?;
    site.wait_for(&[0, 1, 2])?;
    assert_eq!(site.assert_one_owner(&[0, 1, 2])?, before, "as it was");
    Ok(())
}

#[test]
fn an_lb_node_whose_link_is_cut_is_replaced_within_a_second_and_takes_its_part_again() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = site()?;
    let before = site.assert_one_owner(&[0, 1, 2])?;
    let vip = one_of(&before, &site.mac(2))?;
    let watch = Watch::start(site.client(), vip);
    thread::sleep(Duration::from_millis(1500));
    let cut = Instant::now();
    site.router(&format!("ip link set {} down", site.port(2)))?;
    site.wait_for(&[0, 1])?;
    println!("link down: others answer for all after {:?}", cut.elapsed());
    let group = |index: usize| -> Result<_> { site.lb(index).status()?.group.context("it is in a group") };
    eventually("who is cut off gives up what it has", || {
        Ok(group(2)?.owned == 0 && group(2)?.waits)
    })?;
    eventually("the VIP answers again", || {
        Ok(site.client().try_udp_get(vip, 1)?.iter().all(Result::is_ok))
    })?;
    let (answered, longest) = watch.stop()?;
    println!("link down: longest time without an answer {longest:?}, {answered} answered");
    // The bridge floods what it has no port for any more, and XDP takes it whoever it is for: others forward it before they own it.
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    site.router(&format!("ip link set {} up", site.port(2)))?;
    site.wait_for(&[0, 1, 2])?;
    assert_eq!(site.assert_one_owner(&[0, 1, 2])?, before);
    Ok(())
}

#[test]
fn an_orderly_stop_is_noticed_at_once_and_loses_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut site = site()?;
    let before = site.assert_one_owner(&[0, 1, 2])?;
    let vip = one_of(&before, &site.mac(0))?;
    let mut connection = site.client().connect(vip)?;
    let server = connection.get()?.server;
    let stopped = Instant::now();
    assert!(site.bed.lbs[0].end(Signal::SIGTERM)?.success());
    site.wait_for(&[1, 2])?;
    println!("SIGTERM: others answer for all after {:?}", stopped.elapsed());
    assert_eq!(
        connection.get()?.server,
        server,
        "by another LB node, or by what is pinned"
    );
    site.assert_one_owner(&[1, 2])?;
    assert_eq!(connection.get()?.server, server);
    Ok(())
}

#[test]
fn a_drained_lb_node_gives_its_addresses_to_the_others_and_the_last_one_only_by_force() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut site = site()?;
    let before = site.assert_one_owner(&[0, 1, 2])?;
    let vip = one_of(&before, &site.mac(0))?;
    let mut connection = site.client().connect(vip)?;
    let server = connection.get()?.server;
    // One packet that is lost is a second without an answer; a busy machine is not.
    let watch = Watch::start_with(site.client(), vip, Duration::from_secs(1));
    let started = Instant::now();
    let said = site.lb(0).cli(&["drain", "node"])?;
    println!("drain: {said} after {:?}", started.elapsed());
    site.wait_for(&[1, 2])?;
    let after = site.assert_one_owner(&[1, 2])?;
    let (answered, longest) = watch.stop()?;
    println!("drain: longest time without an answer {longest:?}, {answered} answered");
    assert!(
        answered > 0 && longest < Duration::from_secs(1),
        "none was lost: {longest:?}"
    );
    for (address, owner) in &before {
        assert_eq!(after[address] == *owner, *owner != site.mac(0), "{address}");
    }
    assert_eq!(connection.get()?.server, server);

    // It stays drained over a restart, and its data plane's end harms nobody.
    assert!(site.bed.lbs[0].end(Signal::SIGTERM)?.success());
    site.bed.lbs[0].start_again()?;
    assert_eq!(site.owned(&[0])?, [0]);
    site.assert_one_owner(&[1, 2])?;

    site.lb(1).cli(&["drain", "node"])?;
    site.wait_for(&[2])?;
    let socket = site.lb(2).socket();
    let refused = vipline(&["drain", "node", "--socket", socket.to_str().context("a path")?])?;
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && words.contains("--force"), "{words}");
    assert_eq!(site.owned(&[2])?, [vips().len()]);
    let forced = site.lb(2).cli(&["drain", "node", "--force", "--no-wait"])?;
    assert!(forced.contains("NOBODY ELSE answers for"), "{forced}");
    assert_eq!(site.owned(&[0, 1, 2])?, [0, 0, 0]);

    for index in [2, 1, 0] {
        site.lb(index).cli(&["drain", "node", "--undo"])?;
    }
    site.wait_for(&[0, 1, 2])?;
    assert_eq!(site.assert_one_owner(&[0, 1, 2])?, before, "as it was");
    assert_eq!(connection.get()?.server, server);
    Ok(())
}

#[test]
fn members_that_do_not_hear_one_another_all_answer_and_one_remains_when_they_do() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = site()?;
    let all = vips().len();
    let before = site.assert_one_owner(&[0, 1, 2])?;
    let isolated = |whether: &str| -> Result<()> {
        for index in 0..3 {
            site.router(&format!("bridge link set dev {} isolated {whether}", site.port(index)))?;
        }
        Ok(())
    };
    isolated("on")?;
    eventually("each takes all", || Ok(site.owned(&[0, 1, 2])? == [all; 3]))?;
    let answers = site.answers()?;
    assert!(answers.values().all(|by| by.len() == 3), "the price: {answers:?}");

    isolated("off")?;
    let group = |index: usize| -> Result<_> { site.lb(index).status()?.group.context("it is in a group") };
    eventually("they hear one another", || {
        Ok((0..3).any(|index| group(index).is_ok_and(|group| group.others.iter().any(|other| other.heard))))
    })?;
    let healed = Instant::now();
    let mut least = usize::MAX;
    eventually("one owner remains", || {
        let sum = site.owned(&[0, 1, 2])?.iter().sum::<usize>();
        least = least.min(sum);
        Ok(sum == all)
    })?;
    println!("after a partition: more than one owner for {:?}", healed.elapsed());
    assert_eq!(least, all, "at no moment has an address none");
    assert_eq!(site.assert_one_owner(&[0, 1, 2])?, before);
    Ok(())
}
