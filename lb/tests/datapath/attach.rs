//! Attaching: modes, refusals, and what is left when the process dies.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lab::{End, Netns, Process, Veth};
use lb::datapath::{AttachMode, DatapathError, Holder, Mode, holders};
use nix::sys::signal::Signal;

use crate::vip::{XDP_PASS, balancer, syn};

/// Set for the child of [`a_killed_process_leaves_nothing_on_the_interface`]: the interface to attach to.
const CHILD: &str = "DATAPATH_TEST_ATTACH_TO";

fn end(ns: &Netns, name: &str, last: u8) -> End {
    End {
        ns: ns.clone(),
        name: name.to_owned(),
        mac: [2, 0, 0, 0, 0, last],
        v4: None,
        v6: None,
    }
}

/// `lb0` in the first namespace, its peer `wire0` in the second.
pub(crate) fn wired() -> Result<(Netns, Netns)> {
    let (ns, far) = (Netns::new("lb")?, Netns::new("far")?);
    Veth::new(end(&ns, "lb0", 1), end(&far, "wire0", 2), 1500, 1)?;
    Ok((ns, far))
}

#[test]
fn native_on_veth_and_nothing_after_detach() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (ns, _far) = wired()?;
    ns.run(|| {
        let balancer = balancer()?;
        assert_eq!(holders("lb0")?, []);
        let attachment = balancer.program.attach("lb0", AttachMode::Auto)?;
        assert_eq!(attachment.mode(), Mode::Native);
        assert!(attachment.native_refused().is_none());
        let id = balancer.program.facts()?.id;
        assert_eq!(
            holders("lb0")?,
            [Holder {
                program_id: id,
                name: "vipline_lb".to_owned(),
                mode: Mode::Native
            }]
        );
        attachment.detach()?;
        assert_eq!(holders("lb0")?, []);
        drop(balancer.program.attach("lb0", AttachMode::Native)?);
        assert_eq!(holders("lb0")?, [], "a drop detaches too");
        Ok(())
    })
}

#[test]
fn generic_when_it_is_asked_for() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (ns, _far) = wired()?;
    ns.run(|| {
        let attachment = balancer()?.program.attach("lb0", AttachMode::Generic)?;
        assert_eq!(attachment.mode(), Mode::Generic);
        assert!(attachment.native_refused().is_none(), "native was not tried");
        assert_eq!(holders("lb0")?[0].mode, Mode::Generic);
        Ok(())
    })
}

#[test]
fn a_driver_without_xdp_gets_generic_with_the_reason_or_an_error() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let ns = Netns::new("lb")?;
    ns.run(|| {
        let balancer = balancer()?;
        let refused = balancer.program.attach("lo", AttachMode::Native).err();
        let Some(DatapathError::Attach {
            interface,
            mode: Mode::Native,
            source,
            ..
        }) = refused
        else {
            bail!("{refused:?}");
        };
        assert_eq!(
            (interface.as_str(), source.raw_os_error()),
            ("lo", Some(libc::EOPNOTSUPP))
        );

        let attachment = balancer.program.attach("lo", AttachMode::Auto)?;
        assert_eq!(attachment.mode(), Mode::Generic);
        let reason = attachment.native_refused().and_then(std::io::Error::raw_os_error);
        assert_eq!(reason, Some(libc::EOPNOTSUPP));
        Ok(())
    })
}

#[test]
fn an_interface_that_is_taken_is_refused_with_who_is_there() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (ns, _far) = wired()?;
    let stranger = lab::program::pass(&ns, &["lb0"])?;
    ns.run(|| {
        let balancer = balancer()?;
        let there = holders("lb0")?;
        assert_eq!((there.len(), there[0].name.as_str()), (1, "pass"));
        for ask in [AttachMode::Auto, AttachMode::Native, AttachMode::Generic] {
            let error = balancer
                .program
                .attach("lb0", ask)
                .err()
                .context("attached over another program")?;
            let text = error.to_string();
            let expected = format!(
                "interface lb0 already runs XDP program pass (id {}, native mode)",
                there[0].program_id
            );
            assert!(text.starts_with(&expected), "{ask}: {text}");
            assert_eq!(holders("lb0")?, there, "the stranger is untouched");
        }
        Ok(())
    })?;
    drop(stranger);
    ns.run(|| Ok(balancer()?.program.attach("lb0", AttachMode::Auto)?.detach()?))
}

#[test]
fn an_interface_that_is_not_there_is_named() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let error = Netns::new("lb")?.run(|| Ok(balancer()?.program.attach("eth9", AttachMode::Auto).err()))?;
    assert!(error.is_some_and(|error| error.to_string().starts_with("interface eth9: ")));
    Ok(())
}

#[test]
fn ports_keep_their_positions() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (ns, _far) = wired()?;
    ns.run(|| {
        let mut balancer = balancer()?;
        balancer.ports.add(&["lo"])?;
        balancer.ports.add(&["lb0", "lo"])?;
        let names: Vec<_> = balancer
            .ports
            .interfaces()
            .iter()
            .map(|port| port.name.as_str())
            .collect();
        assert_eq!(names, ["lo", "lb0"]);
        let before = balancer.ports.interfaces()[1].index;
        assert_eq!(balancer.ports.position(before), Some(1));
        // The same name with another index: made anew meanwhile.
        ns.ip(&["link", "del", "lb0"])?;
        ns.ip(&["link", "add", "lb1", "type", "veth", "peer", "name", "lb2"])?;
        ns.ip(&["link", "add", "lb0", "type", "veth", "peer", "name", "wire0"])?;
        balancer.ports.add(&["lb0"])?;
        let after = balancer.ports.interfaces()[1].index;
        assert_ne!(before, after);
        assert_eq!(
            (balancer.ports.position(before), balancer.ports.position(after)),
            (None, Some(1))
        );
        Ok(())
    })
}

#[test]
fn a_killed_process_leaves_nothing_on_the_interface() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (ns, _far) = wired()?;
    let mut command = ns.command(std::env::current_exe()?.to_str().context("path of the test")?);
    command.args([
        "--exact",
        "attach::child_that_attaches_and_waits",
        "--ignored",
        "--nocapture",
    ]);
    let mut child = Process::start({
        command.env(CHILD, "lb0").stdout(Stdio::piped());
        command
    })?;
    let output = BufReader::new(child.child().stdout.take().context("the child's output")?);
    let attached = output
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("attached"));
    assert!(attached, "the child ended before it attached");
    assert_eq!(ns.run(|| Ok(holders("lb0")?.len()))?, 1);

    child.signal(Signal::SIGKILL)?;
    child.wait()?;
    // The kernel closes the dead process's descriptors before wait(2) returns, and the link goes with the last
    // reference to it.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !ns.run(|| Ok(holders("lb0")?))?.is_empty() {
        assert!(Instant::now() < deadline, "still attached");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
#[ignore = "the child process of a_killed_process_leaves_nothing_on_the_interface"]
fn child_that_attaches_and_waits() -> Result<()> {
    let Ok(interface) = std::env::var(CHILD) else {
        return Ok(());
    };
    let balancer = balancer()?;
    assert_eq!(balancer.program.test_run(&syn(), 1)?.retval, XDP_PASS);
    let _attachment = balancer.program.attach(&interface, AttachMode::Native)?;
    println!("attached");
    loop {
        std::thread::park();
    }
}
