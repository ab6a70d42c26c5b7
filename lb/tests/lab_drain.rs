//! `vipline drain backend`: real connections stay where they live, new ones go elsewhere, and a deadline ends what is left.

mod lab_support;

use std::{collections::BTreeMap, net::SocketAddr, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use lab::{Client, Conn, Proto, Topology, require_root};
use lab_support::{Bed, LbFile, assert_spread, count_servers, eventually, vip_v4, vipline};
use lb::control::{DrainCause, DrainView, UndrainView};
use nix::sys::signal::Signal;

const WORKERS: u8 = 3;
/// Connections, and UDP flows.
const OPEN: u16 = 120;
/// Timeouts so short that a test can wait for them.
const SHORT: &str = "transit: { tcp_idle_timeout_s: 4, udp_idle_timeout_s: 2 }";
const DRAIN: [&str; 3] = ["drain", "backend", "worker-2"];

fn vip() -> SocketAddr {
    vip_v4(1, 80)
}

fn bed(more: &str) -> Result<Bed> {
    let topology = Topology::builder().workers(WORKERS).build()?;
    Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb)
            .vips(&[(Proto::Tcp, vip()), (Proto::Udp, vip())], "v4")
            .more(more)
    })
}

fn client(bed: &Bed) -> Client {
    bed.topology.client().with_timeout(Duration::from_millis(700))
}

/// Open connections and UDP flows, each with who answers.
struct Open {
    connections: Vec<(Conn, String)>,
    flows: Vec<(SocketAddr, String)>,
}

impl Open {
    fn all(bed: &Bed, first_port: u16) -> Result<Self> {
        let client = client(bed);
        let mut open = Self {
            connections: Vec::new(),
            flows: Vec::new(),
        };
        for port in first_port..first_port + OPEN {
            let from = SocketAddr::new(client.addr_v4().into(), port);
            let mut connection = client.connect_from(from, vip())?;
            let server = connection.get()?.server;
            open.connections.push((connection, server));
            open.flows.push((from, client.udp_get_from(from, vip())?.server));
        }
        Ok(open)
    }

    /// Asks all again; how many were answered by another or not at all, by who answered them before.
    fn broken(&mut self, bed: &Bed) -> BTreeMap<String, usize> {
        let client = client(bed);
        let mut broken = BTreeMap::new();
        let mut note = |is_kept: bool, server: &String| {
            if !is_kept {
                *broken.entry(server.clone()).or_default() += 1;
            }
            is_kept
        };
        self.connections.retain_mut(|(connection, server)| {
            note(connection.get().is_ok_and(|reply| reply.server == *server), server)
        });
        self.flows.retain(|(from, server)| {
            let reply = client.udp_get_from(*from, vip());
            note(reply.is_ok_and(|reply| reply.server == *server), server)
        });
        broken
    }

    fn at(&self, worker: &str) -> usize {
        let connections = self.connections.iter().filter(|(_, server)| server == worker);
        connections.count() + self.flows.iter().filter(|(_, server)| server == worker).count()
    }
}

/// Connections are spread over these, evenly.
fn assert_new(bed: &Bed, workers: &[&str]) -> Result<()> {
    let counts = count_servers(&client(bed).http_get(vip(), 150)?);
    let share: Vec<(&str, u32)> = workers.iter().map(|worker| (*worker, 1)).collect();
    assert_spread("new connections", &counts, &share);
    Ok(())
}

/// Who takes no new flows.
fn drains(bed: &Bed) -> Result<Vec<DrainView>> {
    bed.lb().cli_json(&["drain", "list"])
}

#[test]
fn draining_backend_keeps_established_flows_and_says_when_they_are_gone() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(SHORT)?;
    let mut open = Open::all(&bed, 20_000)?;
    assert!(drains(&bed)?.is_empty());
    assert!(bed.lb().cli(&["drain", "list"])?.contains("no backend is drained"));

    let view: DrainView = bed.lb().cli_json(&DRAIN)?;
    assert!(!view.empty && view.slots > 0 && view.deadline_s.is_none(), "{view:?}");
    let before = open.at("worker-2");
    assert!(before > 20, "{before}");
    assert_eq!(open.broken(&bed), BTreeMap::new());
    assert_new(&bed, &["worker-1", "worker-3"])?;
    let backends = bed.lb().cli(&["backends"])?;
    assert!(
        backends
            .lines()
            .any(|line| line.starts_with("worker-2") && line.contains("drained")),
        "{backends}"
    );

    // As many as there are, by and large: two flows in a slot count as one. Who speaks within the second in which the drain began is
    // not told from that.
    sleep(Duration::from_millis(1500));
    assert_eq!(open.broken(&bed), BTreeMap::new());
    let view = drains(&bed)?.remove(0);
    let flows = view.flows.unwrap_or(u64::MAX) as usize;
    assert!(
        view.active_slots > 0 && view.silent_s.is_some_and(|seconds| seconds < 5),
        "{view:?}"
    );
    assert!(
        (before / 2..before * 2).contains(&flows),
        "{before} live there: {view:?}"
    );

    // They live for as long as they speak, and it is empty a timeout after the last has spoken.
    for _ in 0..6 {
        sleep(Duration::from_secs(1));
        assert_eq!(open.broken(&bed), BTreeMap::new());
    }
    assert!(!drains(&bed)?.remove(0).empty);
    drop(open);
    let waited: DrainView = bed
        .lb()
        .cli_json(&[&DRAIN[..], &["--wait", "--quiet", "1h"]].concat())?;
    assert!(waited.empty && waited.slots == 0, "{waited:?}");

    let undone: UndrainView = bed.lb().cli_json(&[&DRAIN[..], &["--undo"]].concat())?;
    assert!(undone.was_drained);
    assert_new(&bed, &["worker-1", "worker-2", "worker-3"])?;
    assert!(drains(&bed)?.is_empty());
    let undone: UndrainView = bed.lb().cli_json(&[&DRAIN[..], &["--undo"]].concat())?;
    assert!(!undone.was_drained);
    Ok(())
}

#[test]
fn a_deadline_ends_what_is_left_and_nothing_else() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let mut open = Open::all(&bed, 20_000)?;
    let there = open.at("worker-2");
    let view: DrainView = bed.lb().cli_json(&[&DRAIN[..], &["--deadline", "6s"]].concat())?;
    assert!(
        view.deadline_s.is_some_and(|seconds| (4..=6).contains(&seconds)),
        "{view:?}"
    );
    assert_eq!(open.broken(&bed), BTreeMap::new(), "before the deadline");
    let mut young = Open::all(&bed, 21_000)?;
    let of_drained = |(_, server): &&(Conn, String)| server == "worker-2";
    assert_eq!(young.connections.iter().filter(of_drained).count(), 0);
    // Who a datagram's flow is of is learnt for a while: until then new ones cannot be told from old ones.
    let learnt = young.at("worker-2");
    // What waits for silence that does not come ends with the deadline.
    let view: DrainView = bed
        .lb()
        .cli_json(&[&DRAIN[..], &["--deadline", "3s", "--wait", "--quiet", "1h"]].concat())?;
    assert_eq!(view.deadline_s, Some(0), "{view:?}");
    eventually("nothing is sent there", || Ok(drains(&bed)?.remove(0).empty))?;
    assert_eq!(open.broken(&bed), BTreeMap::from([("worker-2".to_owned(), there)]));
    assert_eq!(young.broken(&bed), BTreeMap::from([("worker-2".to_owned(), learnt)]));

    // At once, for another.
    let there = open.at("worker-3");
    let now: DrainView = bed.lb().cli_json(&["drain", "backend", "worker-3", "--now"])?;
    assert!(now.empty, "{now:?}");
    assert_eq!(open.broken(&bed), BTreeMap::from([("worker-3".to_owned(), there)]));
    assert_new(&bed, &["worker-1"])
}

#[test]
fn a_drain_outlives_the_daemon_and_a_reload_and_ends_with_its_backend() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed(SHORT)?;
    bed.lb().cli(&DRAIN)?;
    assert_new(&bed, &["worker-1", "worker-3"])?;
    bed.lbs[0].end(Signal::SIGKILL)?;
    bed.lbs[0].start_again()?;
    let there = |bed: &Bed| {
        bed.lb()
            .status()
            .is_ok_and(|status| status.backends_ready == status.backends)
    };
    eventually("next hops", || Ok(there(&bed)))?;
    assert_eq!(drains(&bed)?.len(), 1);
    assert_new(&bed, &["worker-1", "worker-3"])?;

    // Without a word it is the same.
    let mut weightless = bed.file();
    weightless.weight("v4", "worker-1", 0);
    weightless.members("v4").retain(|member| member.0 != "worker-3");
    bed.lb().reload_lb(&weightless)?;
    let causes: Vec<_> = drains(&bed)?
        .into_iter()
        .map(|view| (view.backend, view.cause))
        .collect();
    let expected = [
        ("worker-1", DrainCause::Weight),
        ("worker-2", DrainCause::Word),
        ("worker-3", DrainCause::Left),
    ];
    assert_eq!(causes, expected.map(|(name, cause)| (name.to_owned(), cause)));
    bed.lb().reload_lb(&bed.file())?;

    let mut file = bed.file().more("protection: { denied_sources: [192.0.2.0/24] }");
    bed.lb().reload_lb(&file)?;
    assert_new(&bed, &["worker-1", "worker-3"])?;
    file.members("v4").retain(|member| member.0 != "worker-2");
    bed.lb().reload_lb(&file)?;
    eventually("it is forgotten", || Ok(drains(&bed)?.is_empty()))?;
    // One of the same name that comes later is another.
    bed.lb().reload_lb(&bed.file())?;
    eventually("next hops", || Ok(there(&bed)))?;
    assert_new(&bed, &["worker-1", "worker-2", "worker-3"])
}

#[test]
fn nobody_is_drained_by_mistake() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let refused = |args: &[&str], words: &[&str]| -> Result<()> {
        let error = bed
            .lb()
            .cli(args)
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default();
        ensure!(words.iter().all(|word| error.contains(word)), "{args:?}: {error}");
        Ok(())
    };
    refused(&["drain", "backend", "worker-9"], &["worker-9", "vipline backends"])?;
    refused(&["drain", "backend", "worker-1", "--deadline", "soon"], &["90s, 30m"])?;
    refused(&["drain", "backend", "worker-1", "--now", "--undo"], &["--undo"])?;
    bed.lb().cli(&["drain", "backend", "worker-1"])?;
    bed.lb().cli(&DRAIN)?;
    refused(
        &["drain", "backend", "worker-3"],
        &["last backend", "tcp 203.0.113.1:80", "--force"],
    )?;
    assert_new(&bed, &["worker-3"])?;
    assert_eq!(drains(&bed)?.len(), 2);
    bed.lb().cli(&["drain", "backend", "worker-3", "--force"])?;
    let refused = client(&bed).try_http_get(vip(), 5)?;
    assert!(refused.iter().all(Result::is_err), "{refused:?}");
    bed.lb().cli(&["drain", "backend", "worker-1", "--undo"])?;
    assert_new(&bed, &["worker-1"])?;

    // A worker's agent has nobody to drain.
    let output = vipline(&[
        "drain",
        "list",
        "--socket",
        &bed.nodes[0].socket().display().to_string(),
    ])?;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("ask an LB node's daemon"));
    Ok(())
}
