//! Changes of the LB node's file while connections are open: what goes on, what moves, and what a bad file does.

#![expect(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod lab_support;

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use lab::{Conn, Load, LoadKind, LoadReport, Proto, Topology, require_root};
use lab_support::{Bed, LbFile, PATIENCE, SEED, assert_spread, count_servers, eventually, vip_v4, vip_v6};
use lb::{
    control::{ProtocolName, Request},
    datapath::holders,
};
use nix::sys::signal::Signal;

const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];
/// Connections that stay open while weights change.
const OPEN: u16 = 200;

fn vip() -> SocketAddr {
    vip_v4(1, 80)
}

fn bed(workers: u8) -> Result<Bed> {
    Bed::simple(workers, &BOTH.map(|proto| (proto, vip())))
}

/// What became of connections that were open when a file changed.
#[derive(Debug, Default)]
struct Fate {
    /// Their slot kept its backend, and they went on.
    kept: usize,
    /// Their slot kept its backend, and they broke or were answered by another: never.
    lost: usize,
    /// Their slot has another backend now: their packets go where nobody knows them.
    moved: usize,
    /// Of those that moved, how many went on all the same: none can.
    went_on: usize,
}

/// Opens connections, changes the file, and looks what became of each; then asks new ones who answers.
fn change(
    first: impl Fn(&mut LbFile),
    second: impl Fn(&mut LbFile),
    share: &[(&str, u32)],
) -> Result<(Fate, BTreeMap<String, usize>)> {
    let topology = Topology::builder().workers(4).build()?;
    let bed = Bed::start(topology, |topology, lb| {
        let mut file = LbFile::new(topology, lb).vips(&BOTH.map(|proto| (proto, vip())), "v4");
        first(&mut file);
        // What the tables say shows by what breaks; `lab_transit` has it on.
        file.more("transit: { enabled: false }")
    })?;
    let client = bed.topology.client().with_timeout(Duration::from_millis(700));
    let from = |port| SocketAddr::new(client.addr_v4().into(), port);
    let backend = |source| {
        let request = Request::Explain {
            protocol: ProtocolName::Tcp,
            source,
            destination: vip(),
        };
        bed.lb().explain(&request)?.backend.context("no backend")
    };
    let mut open = Vec::new();
    for port in 20_000..20_000 + OPEN {
        let mut connection = client.connect_from(from(port), vip())?;
        let reply = connection.get()?;
        assert_eq!(
            reply.server,
            backend(from(port))?,
            "explain says where port {port} goes"
        );
        open.push((connection, reply.server));
    }
    // The control: nothing happens, everything goes on.
    for (connection, server) in &mut open {
        assert_eq!(connection.get()?.server, *server);
    }

    let mut file = bed.file();
    second(&mut file);
    bed.lb().reload_lb(&file)?;
    let mut fate = Fate::default();
    let look = |(mut connection, server): (Conn, String)| {
        let stays = backend(connection.local_addr())? == server;
        let goes_on = connection.get().is_ok_and(|reply| reply.server == server);
        Ok((stays, goes_on))
    };
    for outcome in in_parallel(open, look)? {
        match outcome {
            (true, true) => fate.kept += 1,
            (true, false) => fate.lost += 1,
            (false, true) => fate.went_on += 1,
            (false, false) => {}
        }
        fate.moved += usize::from(!outcome.0);
    }
    let counts = count_servers(&bed.topology.client().http_get(vip(), 400)?);
    assert_spread("after the change", &counts, share);
    println!("{fate:?}, then {counts:?}");
    Ok((fate, counts))
}

/// The outcomes of `work` for all of `items`: broken connections take their time to be known as such.
fn in_parallel<T: Send, R: Send>(mut items: Vec<T>, work: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    std::thread::scope(|scope| {
        let work = &work;
        let mut threads = Vec::new();
        while !items.is_empty() {
            let part = items.split_off(items.len().saturating_sub(20));
            threads.push(scope.spawn(move || part.into_iter().map(work).collect::<Vec<_>>()));
        }
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a thread that does not panic"))
            .collect()
    })
}

const ALL: [&str; 4] = ["worker-1", "worker-2", "worker-3", "worker-4"];

/// A file whose set has these weights; 0 for a worker that is not in it.
fn weights(weights: [u32; 4]) -> impl Fn(&mut LbFile) {
    move |file| {
        for (name, weight) in ALL.into_iter().zip(weights) {
            file.weight("v4", name, weight);
        }
        file.members("v4").retain(|member| member.2 > 0);
    }
}

/// Asserts that connections on slots that stay went on, and that no more moved than `share` of all slots, with some room for how
/// connections happened to fall and for what Maglev moves beyond the least.
fn assert_minimal(fate: &Fate, share: f64) {
    assert_eq!((fate.lost, fate.went_on), (0, 0), "{fate:?}");
    assert_eq!(fate.kept + fate.moved, usize::from(OPEN), "{fate:?}");
    let ideal = f64::from(OPEN) * share;
    let room = 4.0 * ideal.sqrt() + 0.05 * f64::from(OPEN);
    assert!(fate.moved as f64 <= ideal + room, "{fate:?}: ideal {ideal:.0}");
    assert!(fate.moved > 0, "{fate:?}: nothing moved, so nothing was tried");
}

#[test]
fn a_smaller_weight_moves_only_the_slots_it_must() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let share = [("worker-1", 1), ("worker-2", 2), ("worker-3", 2), ("worker-4", 2)];
    let (fate, _) = change(|_| {}, |file| file.weight("v4", "worker-1", 50), &share)?;
    // From 1/4 to 1/7 of all slots.
    assert_minimal(&fate, 1.0 / 4.0 - 1.0 / 7.0);
    Ok(())
}

#[test]
fn a_backend_that_joins_takes_its_share_and_no_more() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (fate, _) = change(
        weights([100, 100, 100, 0]),
        |file| *file = with_all(file),
        &ALL.map(|name| (name, 1)),
    )?;
    assert_minimal(&fate, 1.0 / 4.0);
    Ok(())
}

/// The same file with all four workers.
fn with_all(file: &LbFile) -> LbFile {
    let mut file = file.clone();
    let address = |index: u8| [10, 30, index, 2].into();
    *file.members("v4") = (1..=4)
        .map(|index| (format!("worker-{index}"), address(index), 100))
        .collect();
    file
}

#[test]
fn a_backend_that_leaves_takes_only_its_own_connections_along() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let share = [("worker-1", 1), ("worker-2", 1), ("worker-4", 1)];
    let (fate, counts) = change(|_| {}, weights([100, 100, 0, 100]), &share)?;
    assert_minimal(&fate, 1.0 / 4.0);
    assert!(!counts.contains_key("worker-3"));
    Ok(())
}

#[test]
fn a_change_of_names_moves_connections() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // The twin of the tests above: a change that must break connections is seen to do so.
    let turn = |file: &mut LbFile| {
        let addresses: Vec<_> = file.members("v4").iter().map(|member| member.1).collect();
        for (position, member) in file.members("v4").iter_mut().enumerate() {
            member.1 = addresses[(position + 1) % addresses.len()];
        }
    };
    let topology = Topology::builder().build()?;
    let bed = Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb).vips(&[(Proto::Tcp, vip())], "v4")
    })?;
    let load = Load::start(bed.topology.client(), vip(), LoadKind::KeepAlive, 6)?;
    load.wait_for(50, PATIENCE)?;
    let mut file = bed.file();
    turn(&mut file);
    bed.lb().reload_lb(&file)?;
    load.wait_for(50, PATIENCE)?;
    let report = load.stop()?;
    assert!(
        report.failed >= 6,
        "every connection's packets go to another node now: {report:?}"
    );
    Ok(())
}

/// New connections, open ones, and datagrams of one flow, all at once.
struct Traffic(Vec<(LoadKind, Load)>);

impl Traffic {
    fn start(bed: &Bed) -> Result<Self> {
        let kinds = [LoadKind::NewConnections, LoadKind::KeepAlive, LoadKind::DatagramFlow];
        // The timeout is what makes a lost datagram a failure.
        let client = bed.topology.client().with_timeout(Duration::from_secs(1));
        let start = |kind| Ok((kind, Load::start(&client, vip(), kind, 2)?));
        let traffic = Self(kinds.into_iter().map(start).collect::<Result<_>>()?);
        traffic.goes_on()?;
        Ok(traffic)
    }

    fn goes_on(&self) -> Result<()> {
        self.0
            .iter()
            .try_for_each(|(kind, load)| load.wait_for(40, PATIENCE).with_context(|| format!("{kind:?}")))
    }

    fn stop(self) -> Result<Vec<(LoadKind, LoadReport)>> {
        self.0
            .into_iter()
            .map(|(kind, load)| Ok((kind, load.stop()?)))
            .collect()
    }

    fn assert_nothing_lost(self, what: &str) -> Result<()> {
        self.goes_on()?;
        for (kind, report) in self.stop()? {
            println!("{what}: {kind:?}: {} answers", report.ok);
            assert_eq!(
                (report.failed, report.moved),
                (0, 0),
                "{what}: {kind:?}: {:?}",
                report.errors
            );
        }
        Ok(())
    }
}

#[test]
fn reloads_that_change_nothing_or_add_something_lose_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(3)?;
    let traffic = Traffic::start(&bed)?;
    traffic.goes_on()?;
    traffic.assert_nothing_lost("the control: no reload")?;

    let traffic = Traffic::start(&bed)?;
    for _ in 0..5 {
        bed.lb().reload_lb(&bed.file())?;
        traffic.goes_on()?;
    }
    traffic.assert_nothing_lost("five times nothing new")?;

    let traffic = Traffic::start(&bed)?;
    let mut file = bed.file();
    for last in 10..40 {
        file = file.vips(
            &[(Proto::Tcp, vip_v4(last, 80)), (Proto::Udp, vip_v6(last.into(), 53))],
            "v4",
        );
        let yaml = file.yaml(&bed.lb().socket());
        if last % 10 == 0 {
            bed.lb().reload_by_itself(&yaml)?
        } else {
            bed.lb().reload(&yaml)?
        }
    }
    assert_eq!(bed.lb().status()?.vips, 62);
    assert!(
        bed.lb().vips()?.iter().all(|vip| vip.shared_by == 62),
        "one table for all of them"
    );
    traffic.assert_nothing_lost("thirty reloads that add VIPs")?;

    // The twin: a file without the VIP is seen to lose.
    let traffic = Traffic::start(&bed)?;
    file.vips.retain(|other| other.at != vip());
    bed.lb().reload_lb(&file)?;
    // Longer than the client waits: a SYN is sent again after a second.
    std::thread::sleep(Duration::from_millis(1500));
    bed.lb().reload_lb(&bed.file())?;
    for (kind, report) in traffic.stop()? {
        assert!(kind == LoadKind::KeepAlive || report.failed > 0, "{kind:?}: {report:?}");
    }
    Ok(())
}

#[test]
fn a_file_that_needs_another_program_gets_it_in_place_and_nothing_is_lost() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed(3)?;
    let ns = bed.topology.lb(0).ns().clone();
    let program = || ns.run(|| Ok(holders("eth0")?[0].program_id));
    let traffic = Traffic::start(&bed)?;
    let changes = [
        (", limits: { packets_per_second_per_cpu: 1000000 }", ""),
        (", allowed_sources: [10.10.0.0/16]", ""),
        (", allowed_sources: [10.10.0.0/16]", "capacity: { vips: 5000 }"),
        ("", "protection: { denied_sources: [192.0.2.0/24] }"),
        ("", ""),
    ];
    for (position, (options, more)) in changes.into_iter().cycle().take(8).enumerate() {
        let (id, counted) = (program()?, bed.lb().counted()?);
        let vips = bed.lb().vips()?;
        let mut file = bed.file().more(more);
        for vip in &mut file.vips {
            vip.options = options.to_owned();
        }
        bed.lb().reload_lb(&file)?;
        assert_ne!(program()?, id, "reload {position}: another program is at the same link");
        let now = bed.lb().counted()?;
        assert!(
            now.0.iter().all(|(verdict, count)| *count >= counted.of(verdict)),
            "counts go on"
        );
        for (before, after) in vips.iter().zip(bed.lb().vips()?) {
            assert!(
                after.packets >= before.packets,
                "counts of VIPs go on: {before:?} {after:?}"
            );
        }
        traffic.goes_on()?;
    }
    traffic.assert_nothing_lost("eight programs")?;

    // The twin: the same by starting the daemon again, with nothing pinned.
    bed.unpin()?;
    let traffic = Traffic::start(&bed)?;
    for _ in 0..2 {
        bed.lbs[0].end(Signal::SIGTERM)?;
        bed.lbs[0].start_again()?;
        traffic.goes_on()?;
    }
    let lost: u64 = traffic.stop()?.iter().map(|(_, report)| report.failed).sum();
    println!("two restarts instead: {lost} lost");
    assert!(lost > 0);
    Ok(())
}

#[test]
fn a_bad_file_changes_nothing_and_is_said_until_a_good_one_comes() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(2)?;
    let lb = bed.lb();
    let good = bed.file().yaml(&lb.socket());
    let traffic = Traffic::start(&bed)?;
    let before = (lb.status()?.revision, lb.vips()?.len());
    let other_seed = good.replace(SEED, &SEED.chars().rev().collect::<String>());
    for (bad, why) in [
        ("vips: [".to_owned(), "line"),
        (good.replace("port: 80", "port: 80000"), "vips[0].port"),
        (good.replace("weight: 100", "weight: -1"), "weight"),
        (good.clone() + "colour: blue\n", "colour"),
        (good.replace("backends: v4", "backends: no-such-set"), "no-such-set"),
        (other_seed, "seed"),
        (
            good.replace("interfaces: [eth0]", "interfaces: [eth1]"),
            "`interfaces` changed",
        ),
        (good.replace("control.sock", "other.sock"), "`control_socket` changed"),
        (String::new(), "empty"),
    ] {
        let error = lb
            .reload(&bad)
            .err()
            .with_context(|| format!("applied:\n{bad}"))?
            .to_string();
        assert!(error.contains(why), "no {why} in:\n{error}");
        let log = lb.log()?;
        let said = log.rsplit("configuration refused").next().context("the log")?;
        assert!(said.contains(why), "no {why} in the log:\n{said}");
        assert_eq!((lb.status()?.revision, lb.vips()?.len()), before);
        let status = lb.cli(&["status"])?;
        assert!(status.contains("REFUSED") && status.contains(why), "{status}");
    }
    // Noticed without a signal, too.
    let error = lb.reload_by_itself("vips: 7\n").expect_err("a bad file").to_string();
    assert!(error.contains("vips"), "{error}");

    // A file that is gone is no empty configuration.
    fs::remove_file(lb.config())?;
    lb.signal(Signal::SIGHUP)?;
    eventually("the daemon says so", || {
        Ok(lb
            .status()?
            .last_reload
            .error
            .is_some_and(|error| error.contains("No such file")))
    })?;
    traffic.assert_nothing_lost("bad files")?;

    lb.reload(&good)?;
    let status = lb.cli(&["status"])?;
    assert!(!status.contains("REFUSED"), "{status}");
    Ok(())
}

#[test]
fn a_vip_whose_backends_are_all_drained_says_so_and_comes_back() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(2)?;
    let lb = bed.lb();
    let client = bed.topology.client().with_timeout(Duration::from_millis(100));
    // Else datagrams go where their flows live until it is known which do.
    let mut drained = bed.file().more("transit: { enabled: false }");
    for name in ["worker-1", "worker-2"] {
        drained.weight("v4", name, 0);
    }
    lb.reload_lb(&drained)?;
    let before = lb.counted()?;
    assert!(client.try_udp_get(vip(), 20)?.iter().all(Result::is_err));
    assert_eq!(lb.counted()?.since(&before), BTreeMap::from([("slow no_backend", 20)]));
    assert!(
        lb.vips()?.iter().all(|vip| (vip.ready, vip.backends) == (0, 2)),
        "{:?}",
        lb.vips()?
    );
    assert!(lb.log()?.contains("no backend with a weight above 0"), "{}", lb.log()?);

    // One VIP without any backend, beside one that is served.
    let yaml = bed
        .file()
        .more("transit: { enabled: false }")
        .yaml(&lb.socket())
        .replacen(
            "protocol: udp, port: 80, backends: v4",
            "protocol: udp, port: 80, backends: []",
            1,
        );
    lb.reload(&yaml)?;
    client.http_get(vip(), 20)?;
    let before = lb.counted()?.of("slow no_backend");
    assert!(client.try_udp_get(vip(), 20)?.iter().all(Result::is_err));
    assert_eq!(lb.counted()?.of("slow no_backend") - before, 20);

    lb.reload_lb(&bed.file())?;
    client.udp_get(vip(), 20)?;
    client.http_get(vip(), 20)?;
    Ok(())
}
