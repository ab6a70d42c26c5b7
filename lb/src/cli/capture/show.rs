//! A sample as a line, and as a packet of a file with its comment.

use std::{fmt::Write as _, io};

use super::pcapng::{Direction, Packet, Writer};
use crate::control::SampleView;

/// A line for people: time (UTC), interface, verdict and reason, who talks to whom, VIP, backend, tunnel, length.
pub(super) fn line(sample: &SampleView) -> String {
    let flow = &sample.flow;
    let mut text = format!(
        "{} {} {} {}  {}",
        time_of_day(sample.time_ns),
        sample.interface,
        sample.verdict,
        sample.reason,
        flow.protocol
    );
    // A string takes everything.
    if let (Some(source), Some(destination)) = (&flow.source, &flow.destination) {
        let _ = write!(text, " {source} > {destination}");
    }
    if let Some(vip) = &sample.vip {
        let _ = write!(text, "  vip {}", url(vip));
    }
    if let Some(backend) = &sample.backend {
        let _ = write!(text, "  backend {backend}");
    }
    if let Some((from, to)) = flow.outer {
        let _ = write!(text, "  tunnel {from} > {to}");
    }
    let _ = write!(text, "  {} B", sample.len);
    text
}

/// Writes a sample to a file.
pub(super) fn packet<W: io::Write>(writer: &mut Writer<W>, sample: &SampleView) -> io::Result<()> {
    let data = unhex(&sample.data).ok_or(io::ErrorKind::InvalidData)?;
    let is_sent = sample.verdict == "forward" && sample.reason != "local";
    let packet = Packet {
        time_ns: sample.time_ns,
        direction: if is_sent {
            Direction::Outbound
        } else {
            Direction::Inbound
        },
        queue: u32::try_from(sample.queue).unwrap_or(u32::MAX),
        len: u32::try_from(sample.len).unwrap_or(u32::MAX),
        data: &data,
        comment: &comment(sample),
    };
    writer.packet(&sample.interface, &packet)
}

/// What the file says of a packet beyond its bytes: words that a display filter can look for.
fn comment(sample: &SampleView) -> String {
    let mut text = format!("verdict={} reason={}", sample.verdict, sample.reason);
    if let Some(vip) = &sample.vip {
        let _ = write!(text, " vip={}", url(vip));
    }
    if let Some(backend) = &sample.backend {
        let _ = write!(text, " backend={backend}");
    }
    let _ = write!(text, " received={}", sample.received_len);
    text
}

/// `tcp 203.0.113.10:80` in one word.
fn url(vip: &str) -> String {
    vip.replacen(' ', "://", 1)
}

fn time_of_day(time_ns: u64) -> String {
    let (seconds, micros) = (time_ns / 1_000_000_000, time_ns / 1000 % 1_000_000);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{micros:06}", seconds % 60)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| {
            let pair = str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{comment, line, unhex};
    use crate::control::{FlowView, SampleView};

    fn sample() -> SampleView {
        SampleView {
            time_ns: (13 * 3600 + 14 * 60 + 15) * 1_000_000_000 + 16_017_999,
            interface: "eth0".to_owned(),
            queue: 1,
            verdict: "forward".to_owned(),
            reason: "tx".to_owned(),
            vip: Some("tcp [2001:db8::1]:80".to_owned()),
            backend: Some("worker-1".to_owned()),
            flow: FlowView {
                protocol: "tcp".to_owned(),
                source: Some("[2001:db8::7]:4000".to_owned()),
                destination: Some("[2001:db8::1]:80".to_owned()),
                outer: Some(([10, 0, 0, 9].into(), [10, 0, 0, 1].into())),
            },
            received_len: 74,
            len: 94,
            data: "00ff".to_owned(),
        }
    }

    #[test]
    fn a_line_has_what_one_looks_for() {
        assert_eq!(
            line(&sample()),
            "13:14:15.016017 eth0 forward tx  tcp [2001:db8::7]:4000 > [2001:db8::1]:80  vip tcp://[2001:db8::1]:80  \
             backend worker-1  tunnel 10.0.0.9 > 10.0.0.1  94 B"
        );
        let arp = SampleView {
            verdict: "slow".to_owned(),
            reason: "neighbour".to_owned(),
            vip: None,
            backend: None,
            flow: FlowView {
                protocol: "arp".to_owned(),
                ..FlowView::default()
            },
            ..sample()
        };
        assert_eq!(line(&arp), "13:14:15.016017 eth0 slow neighbour  arp  94 B");
        assert_eq!(comment(&arp), "verdict=slow reason=neighbour received=74");
    }

    #[test]
    fn a_comment_is_made_of_words() {
        assert_eq!(
            comment(&sample()),
            "verdict=forward reason=tx vip=tcp://[2001:db8::1]:80 backend=worker-1 received=74"
        );
    }

    #[test]
    fn digits_are_bytes_or_nothing() {
        assert_eq!(unhex("00ff10"), Some(vec![0, 255, 16]));
        for wrong in ["0", "zz", "+1", "äö"] {
            assert_eq!(unhex(wrong).is_none(), wrong != "+1", "{wrong}");
        }
    }
}
