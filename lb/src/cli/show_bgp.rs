//! BGP as a table.

use std::io;

use super::{output::table, show::duration};
use crate::control::{BfdPeerView, BgpPeerView, BgpView};

pub(super) fn bgp(out: &mut dyn io::Write, view: &Option<BgpView>) -> io::Result<()> {
    let Some(view) = view else {
        return writeln!(out, "BGP is not configured: `bgp` in the configuration file");
    };
    writeln!(
        out,
        "AS {}, router id {}; {} VIP addresses are announced",
        view.local_asn, view.router_id, view.addresses
    )?;
    if let Some(deaf) = &view.deaf {
        writeln!(out, "NOBODY CAN CONNECT: {deaf}")?;
    }
    writeln!(out)?;
    let rows = view.peers.iter().map(|peer| {
        vec![
            peer.name.clone(),
            peer.address.to_string(),
            peer.asn.to_string(),
            peer.state.clone(),
            duration(peer.seconds),
            peer.announced.to_string(),
            peer.withheld.to_string(),
            peer.ignored.to_string(),
            peer.flaps.to_string(),
            bfd(peer),
        ]
    });
    let headings = [
        "PEER",
        "ADDRESS",
        ">AS",
        "STATE",
        ">FOR",
        ">ANNOUNCED",
        ">WITHHELD",
        ">IGNORED",
        ">FLAPS",
        "BFD",
    ];
    table(out, &headings, rows.collect())?;
    for peer in &view.peers {
        trouble(out, peer, "\n")?;
        if let Some(bfd) = &peer.bfd {
            silence(out, &peer.name, bfd)?;
        }
        if peer.withheld > 0 {
            writeln!(
                out,
                "\n{}: {} prefixes are withheld: the peer did not agree to their family, or there is no next hop for them \
                 (`next_hop_v4`, `next_hop_v6`)",
                peer.name, peer.withheld
            )?;
        }
    }
    Ok(())
}

/// `up, 300 ms`: BFD's state, and after which silence the peer is lost.
fn bfd(peer: &BgpPeerView) -> String {
    match &peer.bfd {
        None => "-".to_owned(),
        Some(bfd) => match bfd.detection_ms {
            Some(detection_ms) => format!("{}, {detection_ms} ms", bfd.state),
            None => bfd.state.clone(),
        },
    }
}

/// Why BFD with a peer is not up.
fn silence(out: &mut dyn io::Write, peer: &str, bfd: &BfdPeerView) -> io::Result<()> {
    if let Some(fault) = &bfd.fault {
        writeln!(out, "\n{peer}: BFD {fault}")?;
    }
    if bfd.holds_bgp {
        let cause = bfd.cause.as_deref().unwrap_or("down");
        let lasts = duration(bfd.seconds);
        writeln!(
            out,
            "\n{peer}: BFD lost it {lasts} ago ({cause}): BGP waits for BFD to be up again; see whether the peer is alive, and \
             has BFD with this node"
        )?;
    }
    Ok(())
}

/// A line or two of `vipline status`.
pub(super) fn status(out: &mut dyn io::Write, view: &BgpView) -> io::Result<()> {
    let up = view.peers.iter().filter(|peer| peer.up).count();
    writeln!(
        out,
        "BGP        {up} of {} sessions up, {} VIP addresses announced",
        view.peers.len(),
        view.addresses
    )?;
    if let Some(deaf) = &view.deaf {
        writeln!(out, "           NOBODY CAN CONNECT: {deaf}")?;
    }
    for peer in view.peers.iter().filter(|peer| !peer.up) {
        writeln!(
            out,
            "           {} is DOWN ({}) for {}",
            peer.name,
            peer.state,
            duration(peer.seconds)
        )?;
        trouble(out, peer, "           ")?;
    }
    Ok(())
}

/// What went wrong last, and what to do.
fn trouble(out: &mut dyn io::Write, peer: &BgpPeerView, before: &str) -> io::Result<()> {
    match &peer.last_error {
        Some(error) => writeln!(
            out,
            "{before}{}, {} ago: {}: {}",
            peer.name,
            duration(error.seconds_ago),
            error.error,
            error.advice
        ),
        None => Ok(()),
    }
}
