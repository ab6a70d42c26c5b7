//! BGP sessions as a scrape gets them.

use std::fmt;

use lb_core::bfd::{Discard, SessionView, State};

use super::{
    super::{
        BgpFacts,
        names::{
            BFD_DISCARDED, BFD_DOWNS, BFD_UP, BGP_ANNOUNCED, BGP_ERROR, BGP_FLAPS, BGP_IGNORED, BGP_MALFORMED,
            BGP_MESSAGES, BGP_UP, BGP_WITHHELD,
        },
    },
    Out,
};

pub(super) fn bgp(out: &mut Out<'_>, peers: &[BgpFacts]) -> fmt::Result {
    let of = |value: fn(&BgpFacts) -> u64| peers.iter().map(move |peer| (vec![peer.name.clone()], value(peer)));
    out.family(&BGP_UP, of(|peer| peer.session.connection.is_some().into()))?;
    out.family(&BGP_ANNOUNCED, of(|peer| peer.session.announced as u64))?;
    out.family(&BGP_WITHHELD, of(|peer| peer.session.withheld as u64))?;
    out.family(&BGP_IGNORED, of(|peer| peer.session.counters.routes_ignored))?;
    out.family(&BGP_MALFORMED, of(|peer| peer.session.counters.malformed))?;
    let messages = peers.iter().flat_map(|peer| {
        let counters = &peer.session.counters;
        let both = [("sent", counters.sent), ("received", counters.received)];
        both.map(|(way, count)| (vec![peer.name.clone(), way.to_owned()], count))
    });
    out.family(&BGP_MESSAGES, messages)?;
    out.family(&BGP_FLAPS, of(|peer| peer.session.counters.flaps))?;
    let errors = peers.iter().filter_map(|peer| {
        let (_, error) = peer.session.last_error.as_ref()?;
        Some((vec![peer.name.clone(), error.kind().to_owned()], 1))
    });
    out.family(&BGP_ERROR, errors)?;
    let watched = |value: fn(&SessionView) -> u64| {
        let one = move |peer: &BgpFacts| Some((vec![peer.name.clone()], value(peer.bfd.as_ref()?)));
        peers.iter().filter_map(one)
    };
    out.family(&BFD_UP, watched(|bfd| (bfd.state == State::Up).into()))?;
    out.family(&BFD_DOWNS, watched(|bfd| bfd.downs))
}

pub(super) fn bfd(out: &mut Out<'_>, discarded: &[(Discard, u64)]) -> fmt::Result {
    let discarded = discarded
        .iter()
        .map(|(reason, count)| (vec![reason.name().to_owned()], *count));
    out.family(&BFD_DISCARDED, discarded)
}
