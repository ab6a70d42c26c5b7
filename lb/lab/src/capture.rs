//! tcpdump on an interface, read back through tshark. Never writes a file: the capture stays in memory.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::Stdio,
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::{Netns, Process, run};

/// A capture under way; it ends when it is asked for, or dropped.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    reader: Option<JoinHandle<std::io::Result<Vec<u8>>>>,
}

/// What was captured: a pcap file's bytes.
#[derive(Clone, Debug)]
pub struct Captured(Vec<u8>);

impl Capture {
    /// Captures what passes `filter` (tcpdump's language) on `iface`; frames from now on.
    ///
    /// # Errors
    ///
    /// tcpdump's: a filter that it does not understand, no such interface.
    pub fn start(ns: &Netns, iface: &str, filter: &str) -> Result<Self> {
        let mut command = ns.command("tcpdump");
        command
            .args([
                "-n",
                "-U",
                "--immediate-mode",
                "-s",
                "0",
                "-Z",
                "root",
                "-i",
                iface,
                "-w",
                "-",
            ])
            .args(filter.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process::start(command)?;
        let mut stdout = process.child().stdout.take().context("tcpdump has no output")?;
        let stderr = process.child().stderr.take().context("tcpdump has no stderr")?;
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let mut line = String::new();
        BufReader::new(stderr).read_line(&mut line)?;
        ensure!(line.contains("listening on"), "tcpdump on {iface}: {line}");
        Ok(Self {
            process,
            reader: Some(reader),
        })
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// When tcpdump is gone.
    pub fn stop(mut self) -> Result<Captured> {
        self.process.signal(Signal::SIGTERM)?;
        let reader = self.reader.take().context("no reader")?;
        let bytes = reader.join().ok().context("the reader panicked")??;
        Ok(Captured(bytes))
    }
}

impl Captured {
    /// These fields of every packet that passes `filter` (tshark's language, "" for all); a field that occurs several times has all of
    /// its values, separated by commas, and one that does not is empty.
    ///
    /// # Errors
    ///
    /// tshark's: a filter or field that it does not know.
    pub fn fields(&self, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
        let mut tshark = std::process::Command::new("tshark");
        // Checksums are checked, and fragments shown as they are.
        tshark.args(["-n", "-r", "-", "-T", "fields", "-E", "separator=|"]);
        for option in ["ip.check_checksum:TRUE", "ip.defragment:FALSE", "ipv6.defragment:FALSE"] {
            tshark.args(["-o", option]);
        }
        for option in ["tcp.check_checksum:TRUE", "udp.check_checksum:TRUE"] {
            tshark.args(["-o", option]);
        }
        if !filter.is_empty() {
            tshark.args(["-Y", filter]);
        }
        for field in fields {
            tshark.args(["-e", field]);
        }
        let text = run::output_fed(&mut tshark, &self.0)?;
        Ok(text
            .lines()
            .map(|line| line.split('|').map(str::to_owned).collect())
            .collect())
    }

    /// How many packets pass `filter`.
    ///
    /// # Errors
    ///
    /// As [`Self::fields`].
    pub fn count(&self, filter: &str) -> Result<usize> {
        Ok(self.fields(filter, &["frame.number"])?.len())
    }
}
