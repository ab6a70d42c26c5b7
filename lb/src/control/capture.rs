//! What a capture asks for and what it tells, as it stands on the control socket. Never a filter itself: that is the daemon's.
//!
//! The client sends [`super::Request::Capture`]; the daemon answers with [`CaptureStarted`] and then, line by line, with
//! [`CaptureEvent`]s until an [`CaptureEvent::End`]. A client that has enough shuts its writing half down and reads on to the end;
//! one that hangs up ends the capture as well.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use lb_core::desired::VipKey;

use super::ProtocolName;

/// Bytes of a frame that are captured, where nothing else is said: any frame of an MTU of 1,500 with its tunnel.
pub const SNAPLEN: u32 = 2048;
/// Fewest bytes of a frame that can be asked for: the headers of a tunnelled packet without options.
pub const SNAPLEN_MIN: u32 = 64;
/// Most bytes of a frame that can be asked for: any jumbo frame; below what a perf record holds (64 KiB).
pub const SNAPLEN_MAX: u32 = 16_384;
/// Samples per second and CPU, where nothing else is said: less than the slow path would take of them.
pub const RATE: u32 = 1000;
/// Most samples per second and CPU that can be asked for.
pub const RATE_MAX: u32 = 1_000_000;

/// Which packets are captured, and how much of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureOptions {
    /// Reasons of the verdicts to capture; empty: all.
    pub reasons: Vec<String>,
    /// Only packets of this VIP or VIP address.
    pub vip: Option<VipFilter>,
    /// End after this many samples.
    pub count: Option<u64>,
    /// One in so many packets, by chance; 0 and 1: all.
    pub one_in: u32,
    /// Most bytes of a frame, brought into [`SNAPLEN_MIN`]..=[`SNAPLEN_MAX`].
    pub snaplen: u32,
    /// Most samples per second and CPU, brought into 1..=[`RATE_MAX`].
    pub rate: u32,
}

impl Default for CaptureOptions {
    /// Everything, at the usual rate and length, until the client has enough.
    fn default() -> Self {
        Self {
            reasons: Vec::new(),
            vip: None,
            count: None,
            one_in: 1,
            snaplen: SNAPLEN,
            rate: RATE,
        }
    }
}

/// A VIP, or all that is for or from a VIP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VipFilter {
    /// Packets that this VIP claimed: compared in the kernel.
    Vip {
        /// `tcp` or `udp`.
        protocol: ProtocolName,
        /// VIP address and port.
        at: SocketAddr,
    },
    /// Packets that a VIP of this address claimed, or that name the address as source or destination: compared in the daemon,
    /// after sampling.
    Address(IpAddr),
}

impl VipFilter {
    /// The VIP that the kernel compares; none for a bare address.
    pub fn key(&self) -> Option<VipKey> {
        match *self {
            Self::Vip { protocol, at } => Some(VipKey {
                address: at.ip(),
                protocol: protocol.into(),
                port: at.port(),
            }),
            Self::Address(_) => None,
        }
    }

    /// Reads `203.0.113.10`, `tcp://203.0.113.10:80` or, as `vipline vips` prints it, `tcp 203.0.113.10:80`; IPv6 in brackets where
    /// a port follows.
    ///
    /// # Errors
    ///
    /// What should be written instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self::Address(address));
        }
        if text.parse::<SocketAddr>().is_ok() {
            return Err(format!("a port needs its protocol: tcp://{text} or udp://{text}"));
        }
        let (protocol, at) = text
            .split_once("://")
            .or_else(|| text.split_once(' '))
            .ok_or("give ADDRESS, tcp://ADDRESS:PORT or udp://ADDRESS:PORT")?;
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => ProtocolName::Tcp,
            "udp" => ProtocolName::Udp,
            other => return Err(format!("protocol `{other}` is not tcp or udp")),
        };
        match at.trim().parse() {
            Ok(at) => Ok(Self::Vip { protocol, at }),
            Err(_) => Err(format!("`{at}` is not ADDRESS:PORT (IPv6: [ADDRESS]:PORT)")),
        }
    }
}

/// The capture is on: packets are being sampled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStarted {
    /// Interfaces with the program.
    pub interfaces: Vec<String>,
    /// Most bytes of a frame.
    pub snaplen: u32,
}

/// A line of a running capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureEvent {
    /// A packet.
    Sample(Box<SampleView>),
    /// Nothing follows, and the program without capture is in place again.
    End(CaptureEnd),
}

/// A sampled packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleView {
    /// When the program decided, in nanoseconds since 1970 (UTC): the kernel's monotonic clock, to which the daemon adds what the
    /// clocks differ by when it reads the sample.
    pub time_ns: u64,
    /// Interface that the packet came in by.
    pub interface: String,
    /// Its receive queue.
    pub queue: u64,
    /// `forward`, `pass`, `slow` or `drop`.
    pub verdict: String,
    /// The verdict's reason.
    pub reason: String,
    /// The VIP that claimed it, as `vipline vips` prints it; absent where none did.
    pub vip: Option<String>,
    /// The chosen backend's name; absent where none was chosen.
    pub backend: Option<String>,
    /// What the frame says of itself, as far as it was captured.
    pub flow: FlowView,
    /// Length of the frame as it came, in bytes.
    pub received_len: u64,
    /// Length of the frame as it left, in bytes.
    pub len: u64,
    /// The frame as it left, from its Ethernet header on, in hexadecimal digits.
    pub data: String,
}

/// Who talks to whom: the innermost packet, and the tunnel around it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `arp`, `ip proto 47`, `ethertype 0x88cc`.
    pub protocol: String,
    /// Source address, with its port where there is one.
    pub source: Option<String>,
    /// Destination address, with its port where there is one.
    pub destination: Option<String>,
    /// Source and destination of the outer header of a tunnelled packet.
    pub outer: Option<(IpAddr, IpAddr)>,
}

/// How a capture ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureEnd {
    /// Samples sent.
    pub samples: u64,
    /// Packets that should have been sampled and for which a ring had no room.
    pub lost: u64,
    /// Why it ended against the client's will.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{ProtocolName, VipFilter};

    #[test]
    fn vips_are_written_as_the_other_commands_print_them_or_as_urls() {
        let vip = |protocol, at: &str| {
            Ok(VipFilter::Vip {
                protocol,
                at: at.parse().unwrap(),
            })
        };
        let tcp = vip(ProtocolName::Tcp, "203.0.113.10:80");
        assert_eq!(VipFilter::parse("tcp://203.0.113.10:80"), tcp);
        assert_eq!(VipFilter::parse("tcp 203.0.113.10:80"), tcp);
        assert_eq!(VipFilter::parse(" TCP 203.0.113.10:80 "), tcp);
        let udp = vip(ProtocolName::Udp, "[2001:db8::1]:53");
        assert_eq!(VipFilter::parse("udp://[2001:db8::1]:53"), udp);
        for (text, address) in [
            ("203.0.113.10", "203.0.113.10"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
        ] {
            assert_eq!(VipFilter::parse(text), Ok(VipFilter::Address(address.parse().unwrap())));
        }
        let wrong = |text| VipFilter::parse(text).unwrap_err();
        assert!(wrong("203.0.113.10:80").contains("tcp://203.0.113.10:80"));
        assert!(wrong("sctp://203.0.113.10:80").contains("sctp"));
        assert!(wrong("tcp://203.0.113.10").contains("ADDRESS:PORT"));
        assert!(wrong("web").contains("ADDRESS"));
    }
}
