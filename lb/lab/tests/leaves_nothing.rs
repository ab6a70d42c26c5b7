//! However it ends, nothing of a lab stays: no namespace, no interface, no process, no program.
//!
//! A namespace that nobody holds cannot be looked up, so a witness tells: a veth pair between a namespace that the test keeps and
//! one of the lab's. The kernel takes the witness's end away when the lab's namespace is really gone.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{Load, LoadKind, Netns, Process, Server, Topology, VlanTags, require_root};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
/// Set in the child: the path of the witness's namespace.
const ROLE: &str = "LAB_WITNESS";

fn until(what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < LIMIT, "not so after {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn tie(lab: &Netns, witness_path: &str, name: &str) -> Result<()> {
    lab.ip(&[
        "link",
        "add",
        "tie",
        "type",
        "veth",
        "peer",
        "name",
        name,
        "netns",
        witness_path,
    ])
    .map(drop)
}

fn links(ns: &Netns) -> Result<usize> {
    // lo is always there.
    Ok(ns.ip(&["-o", "link"])?.lines().count() - 1)
}

fn host_is_clean() -> Result<()> {
    let names = lab::output(std::process::Command::new("ip").args(["netns", "list"]))?;
    let host_links = lab::output(std::process::Command::new("ip").args(["-o", "link"]))?;
    for name in ["router", "client", "lb-1", "worker-1"] {
        ensure!(
            !names.lines().any(|line| line.starts_with(name)),
            "ip netns list: {names}"
        );
    }
    for name in [" lb1", " w1", " client", " veth", " tie"] {
        ensure!(!host_links.contains(&format!("{name}@")), "ip link: {host_links}");
    }
    Ok(())
}

#[test]
fn after_a_drop() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let witness = Netns::new("witness")?;
    let topology = Topology::builder().workers(1).vlan(VlanTags::One(9)).build()?;
    let worker = topology.worker(0);
    let namespaces = [
        topology.client().ns(),
        topology.router().ns(),
        topology.lb(0).ns(),
        worker.ns(),
        worker.pod()?.ns(),
    ];
    for (index, ns) in namespaces.into_iter().enumerate() {
        tie(ns, &witness.path(), &format!("told{index}"))?;
    }
    let server = Server::start(worker.pod()?.ns(), "pod", 8080)?;
    let vip = (worker.pod()?.addr_v4(), 8080).into();
    let load = Load::start(topology.client(), vip, LoadKind::KeepAlive, 2)?;
    load.wait_for(5, LIMIT)?;
    let asleep = {
        let mut command = worker.ns().command("sleep");
        command.arg("1000");
        Process::start(command)?
    };
    assert_eq!(links(&witness)?, 5);
    host_is_clean()?;
    drop((topology, server, load, asleep));
    until("all namespaces are gone", || Ok(links(&witness)? == 0))?;
    host_is_clean()
}

#[test]
fn after_sigkill_and_after_ctrl_c() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    if let Ok(witness) = std::env::var(ROLE) {
        return be_killed(&witness);
    }
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let witness = Netns::new("witness")?;
        let mut again = std::process::Command::new(std::env::current_exe()?);
        again
            .args(["--exact", "after_sigkill_and_after_ctrl_c", "--nocapture"])
            .env(ROLE, witness.path())
            .stdout(Stdio::piped());
        let mut child = Process::start(again)?;
        let output = BufReader::new(child.child().stdout.take().context("stdout")?);
        let grandchild = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("asleep as ").map(|(_, pid)| pid.to_owned()))
            .context("the child did not build its lab")?;
        assert_eq!(links(&witness)?, 2);
        let grandchild = std::path::Path::new("/proc").join(grandchild);
        assert!(grandchild.exists());
        child.signal(signal)?;
        assert!(!child.wait()?.success());
        until("the grandchild is gone", || Ok(!grandchild.join("fd/0").exists()))?;
        until("the namespaces are gone", || Ok(links(&witness)? == 0))?;
        host_is_clean()?;
    }
    Ok(())
}

/// Builds a lab with everything in it, and waits.
fn be_killed(witness: &str) -> Result<()> {
    let topology = Topology::builder()
        .workers(1)
        .two_interfaces()
        .vlan(VlanTags::One(9))
        .build()?;
    let pod = topology.worker(0).pod()?;
    tie(topology.client().ns(), witness, "told1")?;
    tie(topology.router().ns(), witness, "told2")?;
    let _server = Server::start(pod.ns(), "pod", 8080)?;
    let _load = Load::start(topology.client(), (pod.addr_v4(), 8080).into(), LoadKind::KeepAlive, 2)?;
    let mut command = topology.lb(0).ns().command("sleep");
    command.arg("1000");
    let asleep = Process::start(command)?;
    #[expect(clippy::print_stdout, reason = "tells the parent")]
    {
        println!("asleep as {}", asleep.id());
    }
    std::thread::sleep(LIMIT);
    Ok(())
}

#[test]
fn a_process_lives_longer_than_the_thread_that_asked_for_it() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let ns = Netns::new("quiet")?;
    let mut command = ns.command("sleep");
    command.arg("1000");
    let mut asleep = std::thread::spawn(|| Process::start(command))
        .join()
        .expect("no panic")?;
    std::thread::sleep(Duration::from_millis(100));
    assert!(asleep.ended()?.is_none());
    let proc = format!("/proc/{}", asleep.id());
    drop(asleep);
    assert!(!std::path::Path::new(&proc).exists());
    Ok(())
}

#[test]
fn errors_and_panics_come_out_of_a_namespace() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let ns = Netns::new("quiet")?;
    let error = ns.sh("ip addr add nonsense dev lo").expect_err("nonsense");
    let text = format!("{error:#}");
    for part in [
        "in quiet",
        "`ip addr add nonsense dev lo`",
        "exit status: 1",
        "any valid prefix",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let error = ns
        .run(|| -> Result<()> { anyhow::bail!("by itself") })
        .expect_err("it says so");
    assert_eq!(error.to_string(), "by itself");
    let panicked = std::panic::catch_unwind(|| ns.run(|| -> Result<()> { panic!("loudly") }));
    assert_eq!(panicked.expect_err("it panics").downcast_ref(), Some(&"loudly"));
    // And it is another namespace than ours.
    assert_eq!(links(&ns)?, 0);
    Ok(())
}
