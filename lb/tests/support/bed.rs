//! One step of a test: a frame through the loaded program and through the host build, then every counter compared with what the
//! test said should have happened since the beginning.

use anyhow::Result;
use xdp_prog::{
    abi::feature,
    host::Host,
    verdict::{Fate, Verdict},
};

use super::{
    frames::Packet,
    kernel::{Action, Counts, Kernel},
    site::{LOOPBACK, Way},
    tables::Tables,
};

/// A loaded program, its tables, and what its counters should say.
pub(crate) struct Bed {
    pub(crate) tables: Tables,
    pub(crate) kernel: Kernel,
    expected: Counts,
}

/// Where a forwarded packet should be counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) vip: u32,
    pub(crate) backend: u16,
    pub(crate) bytes: u64,
}

impl Bed {
    /// The balancer.
    pub(crate) fn balancer(tables: Tables) -> Result<Self> {
        let kernel = Kernel::balancer(&tables)?;
        Ok(Self {
            tables,
            kernel,
            expected: Counts::default(),
        })
    }

    /// The worker node's program.
    pub(crate) fn worker(tables: Tables) -> Result<Self> {
        let kernel = Kernel::worker(&tables)?;
        Ok(Self {
            tables,
            kernel,
            expected: Counts::default(),
        })
    }

    /// A packet that should reach a backend by this way, back out of where it came from. Returns the frame as it left, as the
    /// other steps do.
    pub(crate) fn forwards(&mut self, packet: &Packet, vip: u32, backend: u16, way: &Way) -> Result<Vec<u8>> {
        let sent = Sent {
            vip,
            backend,
            bytes: packet.bytes(),
        };
        let what = format!("{packet:?}");
        self.becomes(
            &what,
            &packet.frame(),
            Verdict::ForwardTx,
            Some(sent),
            &way.carries(packet),
        )
    }

    /// A frame that should get this verdict and leave as it came.
    pub(crate) fn unchanged(&mut self, what: &str, frame: &[u8], verdict: Verdict) -> Result<Vec<u8>> {
        self.becomes(what, frame, verdict, None, frame)
    }

    /// A frame that should get this verdict, be counted there, and look like `expected` afterwards.
    pub(crate) fn becomes(
        &mut self,
        what: &str,
        frame: &[u8],
        verdict: Verdict,
        sent: Option<Sent>,
        expected: &[u8],
    ) -> Result<Vec<u8>> {
        let left = self.step(what, frame, verdict, sent)?;
        if left != expected {
            panic!(
                "{what}: the frame left as\n{}\nand should have as\n{}",
                hex(&left),
                hex(expected)
            );
        }
        Ok(left)
    }

    /// A frame that should get this verdict and be counted there; returns it as it left.
    pub(crate) fn step(&mut self, what: &str, frame: &[u8], verdict: Verdict, sent: Option<Sent>) -> Result<Vec<u8>> {
        let ran = self.kernel.run(frame)?;
        self.expected.verdict(verdict);
        if let Some(Sent { vip, backend, bytes }) = sent {
            self.expected.traffic(vip, u32::from(backend), bytes);
        }
        assert_eq!(
            self.kernel.counts()?,
            self.expected,
            "{what}: all counters, as they are and as they should be"
        );
        assert_eq!(ran.action, self.action(verdict), "{what}: what the driver was told");
        self.agrees_with_the_host(what, frame, verdict, &ran.frame);
        Ok(ran.frame)
    }

    /// Takes the counters as they are for right: after frames that were run without a step.
    pub(crate) fn recount(&mut self) -> Result<()> {
        self.expected = self.kernel.counts()?;
        Ok(())
    }

    /// Everything counted so far, as the test said it should be.
    pub(crate) fn counted(&self) -> &Counts {
        &self.expected
    }

    /// What the driver should be told. Said here once more, apart from the program's own list.
    fn action(&self, verdict: Verdict) -> Action {
        let slow_path = self.tables.config.features & feature::SLOW_PATH != 0;
        match verdict {
            Verdict::ForwardTx => Action::Tx,
            Verdict::ForwardRedirect => Action::Redirect,
            Verdict::ForwardLocal => Action::Pass,
            _ => match verdict.fate() {
                Fate::Pass => Action::Pass,
                Fate::Slow if slow_path => Action::Redirect,
                Fate::Slow | Fate::Drop => Action::Drop,
                Fate::Forward => unreachable!("all three stand above"),
            },
        }
    }

    /// The host build has no sockets, sheds nothing, and has one token bucket for all VIPs and every port: where these matter it is
    /// not asked, or asked for less.
    fn agrees_with_the_host(&self, what: &str, frame: &[u8], verdict: Verdict, left: &[u8]) {
        if self.tables.config.features & feature::LIMITS != 0 || verdict == Verdict::DropInternal {
            return;
        }
        let mut host = Host::new(self.tables.view(), LOOPBACK);
        let outcome = match self.kernel {
            Kernel::Balancer(_) => host.balance(frame),
            Kernel::Worker(_) => host.unwrap_tunnel(frame),
        };
        let slow_path = self.tables.config.features & feature::SLOW_PATH != 0;
        let mut expected = outcome.frame;
        match verdict {
            Verdict::DropNoSlowPath | Verdict::DropSlowBudget => {
                assert_eq!(outcome.verdict.fate(), Fate::Slow, "{what}: the host build's verdict");
                // The reason was in front already when the socket turned out to be closed.
                if left.len() != frame.len() {
                    expected.splice(0..0, (outcome.verdict as u64).to_le_bytes());
                }
            }
            _ => {
                assert_eq!(outcome.verdict, verdict, "{what}: the host build's verdict");
                if slow_path && verdict.fate() == Fate::Slow {
                    expected.splice(0..0, (verdict as u64).to_le_bytes());
                }
            }
        }
        if expected != left {
            panic!(
                "{what}: the host build says\n{}\nthe loaded program\n{}",
                hex(&expected),
                hex(left)
            );
        }
    }
}

/// Bytes as people read them in a failed assertion.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let rows: Vec<String> = bytes
        .chunks(16)
        .take(128)
        .map(|row| {
            row.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    format!("{} bytes:\n{}", bytes.len(), rows.join("\n"))
}
