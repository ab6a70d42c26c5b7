//! Fuzz targets: each a function of bytes that must hold for all bytes. Never does IO, so that fuzzers and tests can share them.
#![expect(clippy::unwrap_used, reason = "what cannot go on says where")]

mod bfd;
mod bgp;
mod check;
mod frames;
mod run;
mod world;

use lb_core::slow::{FlowKey, Packet, Way, way};
use xdp_prog::{
    host::Host,
    verdict::{Fate, Verdict},
};

pub use self::{bfd::bfd, bgp::bgp};
use frames::{Bytes, Carries};
use run::Run;
use world::{IFINDEX, SCENES, Scene, world};

/// A target.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora.
pub const ALL: [(&str, Target); 10] = [
    ("bfd", bfd),
    ("bgp", bgp),
    ("engine", engine),
    ("fragments", fragments),
    ("mss", mss),
    ("neighbour", neighbour),
    ("packet", packet),
    ("program", program),
    ("reject", reject),
    ("steer", steer),
];

/// Verdicts that bring packets to the slow path, and one that should not.
const VERDICTS: [Verdict; 12] = [
    Verdict::SlowFragment,
    Verdict::SlowIpOptions,
    Verdict::SlowExtensionHeader,
    Verdict::SlowIcmp,
    Verdict::SlowProtocol,
    Verdict::SlowUnservedPort,
    Verdict::SlowNoBackend,
    Verdict::SlowNextHop,
    Verdict::SlowTooBig,
    Verdict::SlowNeighbour,
    Verdict::SlowVlanTags,
    Verdict::DropInternal,
];

fn verdict(which: u8) -> Verdict {
    VERDICTS[usize::from(which) % VERDICTS.len()]
}

fn scene(which: u8) -> &'static Scene {
    &world().scenes[usize::from(which) % SCENES]
}

fn host(which: u8) -> Host<xdp_prog::host::View<'static>> {
    Host::new(scene(which).image.view(&world().config), IFINDEX)
}

/// The frame parser, and the way of what it has parsed: what is sent is the packet that came, behind an outer header.
pub fn packet(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let frame = if how & 1 == 0 {
        bytes.0.to_vec()
    } else {
        frames::ip(&mut bytes, Carries::Any)
    };
    let Ok(packet) = Packet::parse(&frame) else { return };
    assert!(packet.header_len <= packet.ip.len() && packet.ip.len() <= packet.link.payload.len());
    let Some(flow) = FlowKey::of(&packet) else { return };
    if let Way::Send { frame: sent, .. } = way(&mut host(how >> 2), IFINDEX, &packet, &flow, how & 2 == 0) {
        let inner = check::forwarded(&sent, 0);
        if !is_syn(&packet) {
            assert_eq!(inner, packet.ip);
        }
        let again = [packet.link.bytes, inner].concat();
        let again = Packet::parse(&again).unwrap();
        assert_eq!((again.header_len, again.fragment), (packet.header_len, packet.fragment));
        assert_eq!(FlowKey::of(&again), Some(flow));
    }
}

fn is_syn(packet: &Packet<'_>) -> bool {
    packet.protocol == 6 && packet.payload().get(13).is_some_and(|flags| flags & 2 != 0)
}

/// Everything: packets of any kind with any verdict, time that passes, tables that change.
pub fn engine(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let mut run = Run::new(usize::from(how), how & 0x80 != 0);
    while !bytes.is_empty() {
        let what = bytes.u8();
        match what >> 4 {
            0..=8 => run.through(&frames::ip(&mut bytes, Carries::Any)),
            9 => run.through(&frames::question(&mut bytes)),
            10 => run.packet(verdict(what), &frames::ip(&mut bytes, Carries::Any)),
            11 => run.packet(verdict(what), &frames::question(&mut bytes)),
            12 => {
                let len = usize::from(bytes.u8());
                run.packet(verdict(what), bytes.take(len));
            }
            13 => run.change(usize::from(what)),
            14 | 15.. => run.wait(1 << (bytes.u8() % 37)),
        }
    }
    run.finish();
}

/// Fragments of few datagrams.
pub fn fragments(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut run = Run::new(usize::from(bytes.u8()), false);
    while !bytes.is_empty() {
        match bytes.u8() {
            what @ 0..=239 => {
                let frame = frames::ip(&mut bytes, Carries::Fragment);
                run.packet(
                    if what < 200 {
                        Verdict::SlowFragment
                    } else {
                        verdict(what)
                    },
                    &frame,
                );
            }
            240..=247 => run.wait(1 << (bytes.u8() % 37)),
            scene @ 248.. => run.change(usize::from(scene)),
        }
    }
    run.finish();
}

/// ARP and neighbour discovery.
pub fn neighbour(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let mut run = Run::new(usize::from(how >> 1), false);
    if how & 1 == 0 {
        run.packet(Verdict::SlowNeighbour, bytes.0);
    } else {
        while !bytes.is_empty() {
            run.packet(Verdict::SlowNeighbour, &frames::question(&mut bytes));
        }
    }
    run.finish();
}

/// ICMP: errors about flows and echo requests.
pub fn steer(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut run = Run::new(usize::from(bytes.u8()), false);
    while !bytes.is_empty() {
        run.packet(Verdict::SlowIcmp, &frames::ip(&mut bytes, Carries::Icmp));
    }
    run.finish();
}

/// What nobody serves.
pub fn reject(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let mut run = Run::new(usize::from(how), false);
    while !bytes.is_empty() {
        let verdicts = [Verdict::SlowUnservedPort, Verdict::SlowNoBackend, Verdict::SlowProtocol];
        let verdict = verdicts[usize::from(bytes.u8()) % verdicts.len()];
        run.packet(verdict, &frames::ip(&mut bytes, Carries::Any));
    }
    run.finish();
}

/// SYNs with any options: a right checksum stays right, and nothing but options and checksum changes.
pub fn mss(data: &[u8]) {
    let mut bytes = Bytes(data);
    let scene = bytes.u8();
    let frame = frames::ip(&mut bytes, Carries::Tcp);
    let outcome = host(scene).balance(&frame);
    if !matches!(outcome.verdict, Verdict::ForwardTx | Verdict::ForwardRedirect) {
        return;
    }
    let packet = Packet::parse(&frame).unwrap();
    let inner = check::forwarded(&outcome.frame, packet.link.payload.len() - packet.ip.len());
    let behind = [packet.link.bytes, inner].concat();
    let sent = Packet::parse(&behind).unwrap();
    let same = |mut segment: Vec<u8>| {
        let options = 20..(usize::from(segment[12] >> 4) * 4).clamp(20, segment.len());
        segment[options].fill(0);
        segment[16..18].fill(0);
        segment
    };
    assert_eq!(inner[..packet.header_len], packet.ip[..packet.header_len]);
    assert_eq!(same(sent.payload().to_vec()), same(packet.payload().to_vec()));
    if check::transport_sum(&packet) == 0 {
        assert_eq!(check::transport_sum(&sent), 0);
    }
    if !is_syn(&packet) {
        assert_eq!(inner, packet.ip);
    }
}

/// Both programs on any frame.
pub fn program(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let frame = if how & 1 == 0 {
        bytes.0.to_vec()
    } else {
        frames::ip(&mut bytes, Carries::Any)
    };
    let mut host = host(how >> 1);
    let outcome = host.balance(&frame);
    match outcome.verdict {
        Verdict::ForwardTx | Verdict::ForwardRedirect => {
            let packet = Packet::parse(&frame).unwrap();
            check::forwarded(&outcome.frame, packet.link.payload.len() - packet.ip.len());
            assert!(outcome.choice.is_some());
        }
        Verdict::PassDecapsulated => assert!(outcome.frame.len() < frame.len()),
        verdict if verdict.fate() == Fate::Drop => {}
        verdict => assert_eq!(outcome.frame, frame, "{verdict:?} leaves the frame alone"),
    }
    let outcome = host.unwrap_tunnel(&frame);
    match outcome.verdict {
        Verdict::PassDecapsulated => assert!(outcome.frame.len() < frame.len()),
        verdict if verdict.fate() == Fate::Drop => {}
        verdict => assert_eq!(outcome.frame, frame, "{verdict:?} leaves the frame alone"),
    }
}
