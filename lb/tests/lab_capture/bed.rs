//! A product to capture from, captures, and what tshark makes of their files.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::lab_support::{Bed, Daemon, LbFile, eventually, vip_v4, vip_v6};
use anyhow::{Context as _, Result, ensure};
use lab::{Load, LoadKind, Process, Proto, Topology};
use lb::control::SampleView;
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// Two workers and one LB node; TCP and UDP on the first VIP of both families, UDP alone on a second one.
pub(crate) fn bed() -> Result<Bed> {
    let vips = [
        (Proto::Tcp, vip_v4(1, 80)),
        (Proto::Udp, vip_v4(1, 80)),
        (Proto::Tcp, vip_v6(1, 80)),
        (Proto::Udp, vip_v4(2, 53)),
    ];
    let topology = Topology::builder().workers(2).build()?;
    Bed::start(topology, |topology, lb| LbFile::new(topology, lb).vips(&vips, "v4"))
}

/// A capture under way, in the LB node's neighbourhood.
pub(crate) struct Capture {
    pub(crate) process: Process,
    directory: TempDir,
}

impl Capture {
    /// Starts one and waits until it samples; `args` are the command's, `out` and `err` get its output.
    pub(crate) fn start(lb: &Daemon, args: &[&str]) -> Result<Self> {
        let mut capture = Self::spawn(lb, args)?;
        eventually("the capture has begun", || {
            ensure!(capture.process.ended()?.is_none(), "it ended: {}", capture.err()?);
            is_on(lb)
        })?;
        Ok(capture)
    }

    pub(crate) fn spawn(lb: &Daemon, args: &[&str]) -> Result<Self> {
        let directory = TempDir::with_prefix("vipline-capture-")?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_vipline"));
        command.arg("capture").args(args).arg("--socket").arg(lb.socket());
        command
            .current_dir(directory.path())
            .stdout(File::create(directory.path().join("out"))?)
            .stderr(File::create(directory.path().join("err"))?);
        Ok(Self {
            process: Process::start(command)?,
            directory,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn out(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("out"))?)
    }

    pub(crate) fn err(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("err"))?)
    }

    /// Waits for its end by itself; its exit code.
    pub(crate) fn wait(&mut self) -> Result<Option<i32>> {
        let mut status = None;
        eventually("the capture ends", || {
            status = self.process.ended()?;
            Ok(status.is_some())
        })?;
        Ok(status.and_then(|status| status.code()))
    }

    /// Ctrl-C, and that it ends well.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        let code = self.wait()?;
        ensure!(code == Some(0), "exit code {code:?}: {}", self.err()?);
        Ok(())
    }

    /// Its samples, with `-o json`.
    pub(crate) fn samples(&self) -> Result<Vec<SampleView>> {
        let out = self.out()?;
        out.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

pub(crate) fn is_on(lb: &Daemon) -> Result<bool> {
    Ok(lb.status()?.features.contains(&"capture".to_owned()))
}

pub(crate) fn eventually_within(limit: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Waits until the program that samples is gone.
pub(crate) fn is_over(lb: &Daemon, before: &[String]) -> Result<()> {
    let took = eventually("the program without capture is back", || Ok(!is_on(lb)?))?;
    println!("the capture was over after {took:?}");
    assert_eq!(lb.status()?.features, before, "the features are those before");
    Ok(())
}

/// Runs tshark on a file; its fields, one line a packet.
pub(crate) fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command
        .arg("-n")
        .arg("-r")
        .arg(file)
        .args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    // It warns that it runs as root.
    let output = command.stderr(Stdio::null()).output().context("tshark")?;
    ensure!(output.status.success(), "tshark {filter}: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect())
}

/// What capinfos says of a file, which must be whole.
pub(crate) fn capinfos(file: &Path) -> Result<String> {
    let Output { status, stdout, stderr } = Command::new("capinfos").arg(file).output().context("capinfos")?;
    let (out, err) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    ensure!(status.success() && err.is_empty(), "capinfos: {status}: {err}{out}");
    Ok(out)
}

/// Requests of every kind at the first VIP.
pub(crate) struct Traffic(Vec<(LoadKind, Load)>);

impl Traffic {
    pub(crate) fn start(bed: &Bed) -> Result<Self> {
        let client = bed.topology.client();
        let kinds = [
            LoadKind::NewConnections,
            LoadKind::KeepAlive,
            LoadKind::NewDatagramFlows,
            LoadKind::DatagramFlow,
        ];
        let start = |kind| Ok((kind, Load::start(client, vip_v4(1, 80), kind, 1)?));
        Ok(Self(kinds.into_iter().map(start).collect::<Result<_>>()?))
    }

    pub(crate) fn goes_on(&self) -> Result<()> {
        for (_, load) in &self.0 {
            load.wait_for(50, crate::lab_support::PATIENCE)?;
        }
        Ok(())
    }

    /// Failed requests of all kinds.
    pub(crate) fn stop(self) -> Result<u64> {
        let mut failed = 0;
        for (_, load) in self.0 {
            failed += load.stop()?.failed;
        }
        Ok(failed)
    }

    pub(crate) fn assert_nothing_lost(self, what: &str) -> Result<()> {
        for (kind, load) in self.0 {
            let report = load.stop()?;
            println!("{what}: {kind:?}: {} answered", report.ok);
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
