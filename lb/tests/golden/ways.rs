//! What the backend line decides: where a frame goes, whether it fits, and what happens when it cannot go.

use anyhow::Result;
use xdp_prog::{
    abi::{LineMeta, MIN_TABLE_SLOTS, SEGMENT_UNITS, TableUnit, VipIndex, VipMeta, feature},
    verdict::Verdict,
};

use crate::support::{
    bed::{Bed, Sent},
    frames::{DOT1Q, Packet, TCP, UDP},
    site::{CLIENT_V4, CLIENT_V6, LOOPBACK, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

fn one_vip(features: u64, line: xdp_prog::abi::BackendLine) -> (Tables, u32, u16) {
    let mut tables = Tables::new(features);
    let backend = tables.backend(line);
    let vip = tables.vip(VIP_V4, TCP, 80, &[backend]);
    (tables, vip, backend)
}

fn packet() -> Packet {
    Packet::tcp(CLIENT_V4, &at(VIP_V4, 80))
}

#[test]
fn another_egress_interface_is_a_redirect_and_the_same_one_is_not() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for (ifindex, verdict) in [
        (LOOPBACK, Verdict::ForwardTx),
        (LOOPBACK + 98, Verdict::ForwardRedirect),
    ] {
        let way = Way { ifindex, ..Way::v4(1) };
        let (mut tables, vip, backend) = one_vip(feature::REDIRECT, way.line());
        tables.ports = vec!["lo"];
        let mut bed = Bed::balancer(tables)?;
        let sent = Sent {
            vip,
            backend,
            bytes: packet().bytes(),
        };
        bed.becomes(
            "redirect",
            &packet().frame(),
            verdict,
            Some(sent),
            &way.carries(&packet()),
        )?;
    }
    Ok(())
}

#[test]
fn without_the_redirect_feature_frames_leave_where_they_came() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = Way {
        ifindex: 99,
        ..Way::v4(1)
    };
    let (tables, vip, backend) = one_vip(0, way.line());
    Bed::balancer(tables)?.forwards(&packet(), vip, backend, &way)?;
    Ok(())
}

#[test]
fn a_port_that_is_not_there_is_an_internal_drop_and_counts_no_traffic() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = Way {
        ifindex: 99,
        port: 3,
        ..Way::v4(1)
    };
    let (mut tables, ..) = one_vip(feature::REDIRECT, way.line());
    tables.ports = vec!["lo"];
    let mut bed = Bed::balancer(tables)?;
    bed.step("no such port", &packet().frame(), Verdict::DropInternal, None)?;
    Ok(())
}

#[test]
fn a_local_backend_gets_the_frame_as_it_came() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (tables, vip, backend) = one_vip(0, Way::v4(1).line_with(LineMeta::LOCAL, 0, [0, 0]));
    let mut bed = Bed::balancer(tables)?;
    // Also where it would not fit a tunnel.
    for packet in [packet(), packet().tagged(&[(DOT1Q, 5)]), packet().ip_len(1500)] {
        let sent = Sent {
            vip,
            backend,
            bytes: packet.bytes(),
        };
        let frame = packet.frame();
        bed.becomes("local", &frame, Verdict::ForwardLocal, Some(sent), &frame)?;
    }
    Ok(())
}

#[test]
fn a_next_hop_that_is_not_known_is_for_the_slow_path() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (tables, ..) = one_vip(0, Way::v4(1).line_with(0, 0, [0, 0]));
    Bed::balancer(tables)?.unchanged("unresolved", &packet().frame(), Verdict::SlowNextHop)?;
    Ok(())
}

#[test]
fn a_next_hop_that_becomes_known_is_used_from_the_next_packet_on() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = Way::v4(1);
    let (tables, vip, backend) = one_vip(0, way.line_with(0, 0, [0, 0]));
    let mut bed = Bed::balancer(tables)?;
    bed.unchanged("unresolved", &packet().frame(), Verdict::SlowNextHop)?;
    bed.tables.backends[usize::from(backend)] = way.line();
    bed.kernel.write(&bed.tables)?;
    bed.forwards(&packet(), vip, backend, &way)?;
    Ok(())
}

#[test]
fn a_vip_without_backend_is_for_the_slow_path() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut tables = Tables::new(0);
    tables.vip(VIP_V4, TCP, 80, &[]);
    tables.vip(VIP_V6, UDP, 53, &[]);
    let mut bed = Bed::balancer(tables)?;
    bed.unchanged("v4", &packet().frame(), Verdict::SlowNoBackend)?;
    bed.unchanged(
        "v6",
        &Packet::udp(CLIENT_V6, &at(VIP_V6, 53)).frame(),
        Verdict::SlowNoBackend,
    )?;
    Ok(())
}

#[test]
fn a_packet_fits_up_to_the_mtu_and_one_byte_more_is_too_big() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for mtu in [1280, 1500, 1501, 3000] {
        for way in [Way::v4(1).mtu(mtu), Way::v6(2).mtu(mtu)] {
            let mut tables = Tables::new(0);
            let backend = tables.backend(way.line());
            for (address, client) in [(VIP_V4, CLIENT_V4), (VIP_V6, CLIENT_V6)] {
                let vip = tables.vip(address, TCP, 80, &[backend]);
                let mut bed = Bed::balancer(tables.clone())?;
                let packet = Packet::tcp(client, &at(address, 80));
                let most = usize::from(mtu) - way.overhead();
                bed.forwards(&packet.clone().ip_len(most - 1), vip, backend, &way)?;
                bed.forwards(&packet.clone().ip_len(most), vip, backend, &way)?;
                bed.unchanged("too big", &packet.clone().ip_len(most + 1).frame(), Verdict::SlowTooBig)?;
                bed.unchanged("far too big", &packet.ip_len(3400).frame(), Verdict::SlowTooBig)?;
            }
        }
    }
    Ok(())
}

/// Frames beyond a page come in several buffers; only the first is what the program reads and writes.
#[test]
fn frames_of_several_buffers_are_carried_whole() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for way in [Way::v4(1).mtu(u16::MAX), Way::v6(2).mtu(u16::MAX)] {
        let mut tables = Tables::new(0);
        let backend = tables.backend(way.line());
        for (address, client) in [(VIP_V4, CLIENT_V4), (VIP_V6, CLIENT_V6)] {
            let vip = tables.vip(address, UDP, 443, &[backend]);
            let mut bed = Bed::balancer(tables.clone())?;
            let packet = Packet::udp(client, &at(address, 443));
            for ip_len in [3400, 3500, 3520, 4096, 5000, 8960, 9000, 20_000, 60_000] {
                bed.forwards(&packet.clone().ip_len(ip_len), vip, backend, &way)?;
                bed.forwards(&packet.clone().ip_len(ip_len).tagged(&[(DOT1Q, 9)]), vip, backend, &way)?;
            }
        }
    }
    Ok(())
}

#[test]
fn jumbo_frames_obey_the_mtu_too() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = Way::v4(1).mtu(9000);
    let (tables, vip, backend) = one_vip(0, way.line());
    let mut bed = Bed::balancer(tables)?;
    bed.forwards(&packet().ip_len(8980), vip, backend, &way)?;
    bed.unchanged("8981 bytes", &packet().ip_len(8981).frame(), Verdict::SlowTooBig)?;
    // The IP packet ends one byte behind the last buffer.
    let mut short = packet().ip_len(8980).frame();
    short.pop();
    bed.unchanged("a byte short", &short, Verdict::DropMalformed)?;
    Ok(())
}

#[test]
fn tables_that_contradict_each_other_are_an_internal_drop() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (mut tables, ..) = one_vip(0, Way::v4(1).line());
    let absent_segment = TableUnit(SEGMENT_UNITS as u32 * 3);
    tables.vip_at(
        VIP_V4,
        TCP,
        81,
        VipMeta::new(VipIndex(9), absent_segment, MIN_TABLE_SLOTS, 0),
    );
    tables.vip(VIP_V4, TCP, 82, &[u16::MAX]);
    let mut bed = Bed::balancer(tables)?;
    for (what, port) in [("a table in no segment", 81), ("a backend in no line", 82)] {
        let frame = Packet::tcp(CLIENT_V4, &at(VIP_V4, port)).frame();
        bed.unchanged(what, &frame, Verdict::DropInternal)?;
    }
    Ok(())
}
