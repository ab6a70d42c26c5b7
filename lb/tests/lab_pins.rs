//! What is pinned, in the lab: who may have it, what becomes of what nobody wants, and how it ends.

mod lab_support;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use aya::maps::{Array, Map, MapData};
use lab::{Bpffs, Netns, Proto, Topology, require_root};
use lab_support::{Bed, Daemon, LbFile, SEED, vip_v4};
use lb::datapath::holders;
use nix::sys::signal::Signal;
use xdp_prog::abi::ABI_VERSION;

fn vip() -> SocketAddr {
    vip_v4(1, 80)
}

fn file(topology: &Topology) -> LbFile {
    LbFile::new(topology, topology.lb(0)).vips(&[(Proto::Tcp, vip())], "v4")
}

fn programs(ns: &Netns, interface: &str) -> Result<usize> {
    ns.run(|| Ok(holders(interface)?.len()))
}

/// Waits for the end of a start that must fail; what it says.
fn refused(mut daemon: Daemon, code: i32) -> Result<String> {
    let status = daemon.wait()?;
    assert_eq!(status.code(), Some(code), "{}", daemon.log()?);
    assert!(!daemon.socket().exists(), "no control socket stays");
    daemon.log()
}

#[test]
fn the_data_plane_serves_without_a_daemon_until_detach_takes_all_of_it_away() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // An LB node that is a worker too, so that there are rules.
    let topology = Topology::builder().workers(1).lb_pods().two_interfaces().build()?;
    let qdiscs = topology.lb(0).ns().sh("tc qdisc show")?;
    let mut bed = Bed::start(topology, |topology, lb| {
        let mut file = LbFile::new(topology, lb).vips(&[(Proto::Tcp, vip())], "v4");
        file.members("v4").push(("lb-1".to_owned(), lb.addr_v4().into(), 100));
        file.more("tunnel: { sources: [10.20.2.2], vip_prefixes: [203.0.113.0/24, \"2001:db8:f00d::/64\"] }")
    })?;
    let ns = bed.topology.lb(0).ns().clone();
    let rules = || Ok::<_, anyhow::Error>(ns.sh("ip -4 rule")? + &ns.sh("ip -6 rule")?);
    let neighbours = || ns.sh("ip neigh show");
    assert_eq!(bed.lb().status()?.pinned, Some(bed.lb().pins().display().to_string()));

    // A live daemon's is not taken away.
    let said = bed.lb().detach()?;
    assert_eq!(said.status.code(), Some(1));
    let said = String::from_utf8(said.stderr)?;
    assert!(said.contains("is in use") && said.contains("vipline run"), "{said}");

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        assert!(neighbours()?.contains("managed"), "{}", neighbours()?);
        bed.lbs[0].end(signal)?;
        for interface in ["eth0", "eth1"] {
            assert_eq!(programs(&ns, interface)?, 1, "{signal}: {interface}");
        }
        assert!(rules()?.contains("blackhole"), "{}", rules()?);
        assert_eq!(bed.lb().socket().exists(), signal == Signal::SIGKILL);
        bed.topology.client().http_get(vip(), 20)?;

        let said = bed.lb().detach()?;
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let said = String::from_utf8(said.stdout)?;
        for line in [
            "detached eth0",
            "detached eth1",
            "removed 1 programs with their maps",
            "policy rules",
            "pins",
        ] {
            assert!(said.contains(line), "{line} in {said}");
        }
        assert_eq!((programs(&ns, "eth0")?, programs(&ns, "eth1")?), (0, 0));
        assert!(!rules()?.contains("blackhole"), "{}", rules()?);
        assert!(!neighbours()?.contains("managed"), "{}", neighbours()?);
        assert!(!bed.lb().pins().exists());
        let root = bed.lb().pins().parent().context("a root")?.to_owned();
        assert!(!root.exists(), "{} stays", root.display());
        assert_eq!(ns.sh("tc qdisc show")?, qdiscs, "no clsact, nor another");

        let again = bed.lb().detach()?;
        assert!(again.status.success());
        let again = String::from_utf8(again.stdout)?;
        assert!(again.contains("nothing is pinned"), "{again}");
        bed.lbs[0].start_again()?;
        bed.topology.client().http_get(vip(), 20)?;
    }
    Ok(())
}

#[test]
fn two_daemons_on_one_instance_the_second_is_refused() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::simple(1, &[(Proto::Tcp, vip())])?;
    let second = Daemon::spawn_beside(bed.lb(), bed.topology.lb(0), &bed.file())?;
    let said = refused(second, 1)?;
    assert!(said.contains("is in use") && said.contains("--instance"), "{said}");
    bed.topology.client().http_get(vip(), 20)?;
    // Another instance does not get past the program at the interface, and leaves it alone.
    let bpffs = bed
        .lb()
        .pins()
        .parent()
        .and_then(Path::parent)
        .context("a root")?
        .display()
        .to_string();
    let words = ["--bpffs", bpffs.as_str(), "--instance", "other"];
    let said = refused(Daemon::spawn_lb_with(bed.topology.lb(0), &bed.file(), &[], &words)?, 1)?;
    assert!(said.contains("XDP program vipline_lb"), "{said}");
    let words = ["--bpffs", bpffs.as_str(), "--instance", "not.a.name"];
    let said = refused(Daemon::spawn_lb_with(bed.topology.lb(0), &bed.file(), &[], &words)?, 1)?;
    assert!(said.contains("no name of an instance"), "{said}");
    bed.topology.client().http_get(vip(), 20)?;
    assert_eq!(bed.lb().status()?.pid, bed.lb().pid());
    Ok(())
}

#[test]
fn without_a_bpf_file_system_it_is_mounted_or_a_clear_word() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let lb = topology.lb(0);
    let directory = tempfile::TempDir::new()?;
    let here = directory.path().display().to_string();
    let capabilities = [
        "setpriv",
        "--inh-caps=-all",
        "--bounding-set=-all,+bpf,+net_admin,+net_raw,+perfmon,+ipc_lock",
    ];
    let said = refused(
        Daemon::spawn_lb_with(lb, &file(&topology), &capabilities, &["--bpffs", &here])?,
        1,
    )?;
    assert!(
        said.contains("is no BPF file system") && said.contains("--no-pin"),
        "{said}"
    );
    assert_eq!(programs(lb.ns(), "eth0")?, 0);

    // In a mount namespace of its own, so that it goes with the process.
    let mut daemon = Daemon::spawn_lb_with(lb, &file(&topology), &["unshare", "--mount"], &["--bpffs", &here])?;
    daemon.ready()?;
    assert!(daemon.log()?.contains("mounted a BPF file system"), "{}", daemon.log()?);
    let pinned = daemon.status()?.pinned.context("pinned")?;
    assert!(pinned.starts_with(&here), "{pinned}");
    drop(daemon);

    let mut daemon = Daemon::spawn_lb_with(lb, &file(&topology), &capabilities, &["--bpffs", &here, "--no-pin"]);
    if let Ok(daemon) = &mut daemon {
        daemon.ready()?;
        assert_eq!(daemon.status()?.pinned, None);
    }
    daemon?;
    Ok(())
}

#[test]
fn a_read_only_bpf_file_system_is_a_clear_word() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let bpffs = Bpffs::read_only()?;
    let words = ["--bpffs".to_owned(), bpffs.path().display().to_string()];
    let words = words.each_ref().map(String::as_str);
    let said = refused(Daemon::spawn_lb_with(topology.lb(0), &file(&topology), &[], &words)?, 1)?;
    assert!(
        said.contains("mounted read-only") && said.contains("ReadWritePaths"),
        "{said}"
    );
    assert_eq!(programs(topology.lb(0).ns(), "eth0")?, 0);
    Ok(())
}

#[test]
fn with_the_capabilities_of_the_unit_it_pins_and_goes_on() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let lb = topology.lb(0);
    let bpffs = Bpffs::new()?;
    let words = ["--bpffs".to_owned(), bpffs.path().display().to_string()];
    let words = words.each_ref().map(String::as_str);
    let capabilities = [
        "setpriv",
        "--inh-caps=-all",
        "--bounding-set=-all,+bpf,+net_admin,+net_raw,+perfmon,+ipc_lock",
    ];
    for round in 0..2 {
        let mut daemon = Daemon::spawn_lb_with(lb, &file(&topology), &capabilities, &words)?;
        daemon.ready()?;
        let goes_on = daemon.log()?.contains("goes on with the maps of the process before");
        assert_eq!(goes_on, round > 0, "{}", daemon.log()?);
        daemon.end(Signal::SIGTERM)?;
        assert_eq!(programs(lb.ns(), "eth0")?, 1);
    }
    Ok(())
}

#[test]
fn pins_of_interfaces_that_are_gone_are_taken_away() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).two_interfaces().build()?;
    let mut bed = Bed::start(topology, |topology, _| file(topology))?;
    let ns = bed.topology.lb(0).ns().clone();
    let links = |bed: &Bed| Ok::<_, anyhow::Error>(fs::read_dir(bed.lb().pins().join("links"))?.count());
    assert_eq!(links(&bed)?, 2);
    bed.lbs[0].end(Signal::SIGKILL)?;
    ns.sh("ip link del eth1")?;
    let mut one = bed.file();
    one.interfaces = vec!["eth0".to_owned()];
    bed.lb().write(&one.yaml(&bed.lb().socket()))?;
    bed.lbs[0].start_again()?;
    assert_eq!(links(&bed)?, 1);
    assert!(
        bed.lb().log()?.contains("of an interface that is gone"),
        "{}",
        bed.lb().log()?
    );
    bed.topology.client().http_get(vip(), 20)?;
    Ok(())
}

#[test]
fn an_interface_that_is_not_configured_any_more_is_detached_and_a_new_one_attached() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).two_interfaces().build()?;
    let mut bed = Bed::start(topology, |topology, _| file(topology))?;
    let ns = bed.topology.lb(0).ns().clone();
    let at = |ns: &Netns| Ok::<_, anyhow::Error>((programs(ns, "eth0")?, programs(ns, "eth1")?));
    let both = bed.file();
    let mut one = bed.file();
    one.interfaces = vec!["eth0".to_owned()];
    for (file, expected) in [(&one, (1, 0)), (&both, (1, 1))] {
        bed.lbs[0].end(Signal::SIGTERM)?;
        bed.lb().write(&file.yaml(&bed.lb().socket()))?;
        bed.lbs[0].start_again()?;
        assert_eq!(at(&ns)?, expected);
        assert_eq!(bed.lb().status()?.interfaces.len(), file.interfaces.len());
    }
    // Backends are behind the other one.
    bed.topology.client().http_get(vip(), 20)?;
    Ok(())
}

#[test]
fn a_record_of_another_abi_under_our_path_is_not_believed() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::simple(1, &[(Proto::Tcp, vip())])?;
    bed.lbs[0].end(Signal::SIGTERM)?;
    let versions = bed.lb().pins().join(format!("v{ABI_VERSION}"));
    let generation = fs::read_dir(versions)?.next().context("a generation")??.path();
    let mut record = Array::<_, u64>::try_from(Map::Array(MapData::from_pin(generation.join("RECORD"))?))?;
    assert_eq!(record.get(&1, 0)?, ABI_VERSION);
    record.set(1, ABI_VERSION + 7, 0)?;
    bed.lbs[0].start_again()?;
    let said = bed.lb().log()?;
    assert!(said.contains("whatever their path says"), "{said}");
    bed.topology.client().http_get(vip(), 20)?;
    Ok(())
}

/// Somebody has taken the program's pin away, and the interface runs it still.
#[test]
fn a_generation_that_is_not_whole_serves_until_another_is_ready_and_detach_takes_it_away() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::simple(2, &[(Proto::Tcp, vip())])?;
    let ns = bed.topology.lb(0).ns().clone();
    let generations = |bed: &Bed| -> Result<Vec<PathBuf>> {
        let versions = fs::read_dir(bed.lb().pins().join(format!("v{ABI_VERSION}")))?;
        versions.map(|entry| Ok(entry?.path())).collect()
    };
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut connection = bed.topology.client().connect(vip())?;
        let server = connection.get()?.server;
        open.push((connection, server));
    }
    let halve = |bed: &mut Bed| -> Result<()> {
        bed.lbs[0].end(Signal::SIGKILL)?;
        let [generation] = generations(bed)?.try_into().map_err(|found| anyhow!("{found:?}"))?;
        fs::remove_file(generation.join("PROGRAM"))?;
        bed.topology.client().http_get(vip(), 20)?;
        Ok(())
    };
    halve(&mut bed)?;
    bed.lbs[0].start_again()?;
    let said = bed.lb().log()?;
    for line in ["the pin of its program is gone", "is of such a generation"] {
        assert!(said.contains(line), "{line} in {said}");
    }
    bed.topology.client().http_get(vip(), 20)?;
    for (connection, server) in &mut open {
        assert_eq!(connection.get()?.server, *server, "by its slot, as ever");
    }
    assert_eq!(programs(&ns, "eth0")?, 1);
    let whole = generations(&bed)?;
    assert!(whole.len() == 1 && whole[0].join("PROGRAM").exists(), "{whole:?}");
    // It is as good as any other: the next start goes on with it.
    bed.lbs[0].end(Signal::SIGTERM)?;
    bed.lbs[0].start_again()?;
    assert!(bed.lb().log()?.contains("goes on with the maps of the process before"));

    halve(&mut bed)?;
    let said = bed.lb().detach()?;
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let said = String::from_utf8(said.stdout)?;
    assert!(said.contains("detached eth0") && said.contains("pins"), "{said}");
    assert_eq!(programs(&ns, "eth0")?, 0);
    assert!(!bed.lb().pins().exists());
    bed.lbs[0].start_again()?;
    bed.topology.client().http_get(vip(), 20)?;
    Ok(())
}

#[test]
fn another_seed_is_refused_while_vips_are_served_unless_it_is_asked_for() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::simple(2, &[(Proto::Tcp, vip())])?;
    let other = SEED.chars().rev().collect::<String>();
    bed.lbs[0].end(Signal::SIGTERM)?;
    let good = bed.file().yaml(&bed.lb().socket());
    bed.lb().write(&good.replace(SEED, &other))?;
    bed.lbs[0].start_again_unready()?;
    assert_eq!(bed.lbs[0].wait()?.code(), Some(2), "{}", bed.lb().log()?);
    let said = bed.lb().log()?;
    assert!(
        said.contains("every connection would break") && said.contains("--new-seed"),
        "{said}"
    );
    assert!(!said.contains(&other), "and the seed is not printed");
    bed.topology.client().http_get(vip(), 20)?;

    bed.lbs[0].next_with(&["--new-seed"]);
    bed.lbs[0].start_again()?;
    bed.topology.client().http_get(vip(), 20)?;
    assert!(bed.lb().log()?.contains("connections break"), "{}", bed.lb().log()?);
    // From then on it is the seed.
    bed.lbs[0].end(Signal::SIGTERM)?;
    bed.lbs[0].next_without(&["--new-seed"]);
    bed.lbs[0].start_again()?;
    Ok(())
}
