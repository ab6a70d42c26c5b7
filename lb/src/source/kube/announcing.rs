//! What an LbNode says of announcing, within its bounds.
//!
//! Never cuts a count, so that whoever reads a list that was cut knows that it was.

use operator_api::{
    Announcing, MAX_ANNOUNCING_BYTES, MAX_EXCEPTIONS, MAX_L2_MEMBERS, MAX_PEER_STATUSES, MAX_PLACES, MAX_UNSERVED,
};

use super::report::cut;

/// Longest words for people, in bytes.
const MAX_WORDS: usize = 160;
/// Longest name, in bytes.
const MAX_NAME: usize = 253;

/// As much of it as there is room for. Lists are to be sorted.
pub(super) fn bounded(mut said: Announcing) -> Announcing {
    if let Some(bgp) = &mut said.bgp {
        bgp.peer_count = count(&bgp.peers);
        bgp.established = u32::try_from(bgp.peers.iter().filter(|peer| peer.established).count()).unwrap_or(u32::MAX);
        bgp.peers.truncate(MAX_PEER_STATUSES);
        for peer in &mut bgp.peers {
            peer.name = cut(&peer.name, MAX_NAME);
            peer.last_error = peer.last_error.as_deref().map(|error| cut(error, MAX_WORDS));
        }
    }
    if let Some(l2) = &mut said.l2 {
        l2.networks.truncate(MAX_PLACES);
        l2.members.truncate(MAX_L2_MEMBERS);
        l2.members
            .iter_mut()
            .for_each(|member| member.name = cut(&member.name, MAX_NAME));
    }
    said.exception_count = count(&said.exceptions);
    said.exceptions.truncate(MAX_EXCEPTIONS);
    said.exceptions
        .iter_mut()
        .for_each(|exception| exception.why = cut(&exception.why, MAX_WORDS));
    said.unserved_count = count(&said.unserved);
    said.unserved.truncate(MAX_UNSERVED);
    said.places.truncate(MAX_PLACES);
    // Long names and words: what matters least to others goes first.
    while bytes(&said) > MAX_ANNOUNCING_BYTES && shorten(&mut said) {}
    said
}

/// Takes one thing out; `false` when there is nothing left that could be.
fn shorten(said: &mut Announcing) -> bool {
    if let Some(bgp) = &mut said.bgp {
        let error = bgp.peers.iter_mut().rev().find_map(|peer| peer.last_error.take());
        if error.is_some() || bgp.peers.len() > 1 && bgp.peers.pop().is_some() {
            return true;
        }
    }
    if let Some(l2) = &mut said.l2
        && l2.members.pop().is_some()
    {
        return true;
    }
    said.exceptions.pop().is_some()
}

fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

fn bytes(said: &Announcing) -> usize {
    serde_json::to_string(said).map_or(0, |text| text.len())
}

#[cfg(test)]
mod tests {
    use operator_api::{
        AnnounceException, BgpAnnouncing, EXCEPTION_ADDRESS_IN_USE, L2Announcing, L2Member, PeerStatus, Way,
    };

    use super::*;

    fn large(length: usize, many: usize) -> Announcing {
        let word = |number: usize| format!("{number:04}{}", "ä\"\n".repeat(length));
        Announcing {
            bgp: Some(BgpAnnouncing {
                peers: (0..many)
                    .map(|number| PeerStatus {
                        name: word(number),
                        address: "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff".to_owned(),
                        established: number % 2 == 0,
                        last_error: Some(word(number)),
                        ..PeerStatus::default()
                    })
                    .collect(),
                ..BgpAnnouncing::default()
            }),
            l2: Some(L2Announcing {
                networks: vec!["2001:db8:ffff:ffff::/64".to_owned(); many],
                members: (0..many)
                    .map(|number| L2Member {
                        name: word(number),
                        heard: true,
                    })
                    .collect(),
                ..L2Announcing::default()
            }),
            exceptions: (0..many)
                .map(|number| AnnounceException {
                    address: format!("203.0.113.{number}"),
                    way: Way::L2,
                    reason: EXCEPTION_ADDRESS_IN_USE.to_owned(),
                    why: word(number),
                })
                .collect(),
            unserved: vec!["2001:db8:ffff:ffff:ffff:ffff:ffff:ffff".to_owned(); many],
            places: vec!["2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/64".to_owned(); many],
            ..Announcing::default()
        }
    }

    #[test]
    fn lists_are_cut_and_their_counts_are_not() {
        let said = bounded(large(0, 64));
        let bgp = said.bgp.as_ref().unwrap();
        assert_eq!((bgp.peer_count, bgp.established), (64, 32));
        assert!((1..=16).contains(&bgp.peers.len()));
        assert!((1..=16).contains(&said.exceptions.len()) && said.exception_count == 64);
        assert_eq!((said.unserved.len(), said.unserved_count), (32, 64));
        assert!(said.l2.as_ref().unwrap().members.len() <= 32);
        assert_eq!(bounded(Announcing::default()), Announcing::default());
    }

    #[test]
    fn whatever_is_said_stays_within_its_bound() {
        for (length, many) in [(0, 1000), (60, 200), (600, 40), (5_000, 20)] {
            let said = bounded(large(length, many));
            assert!(
                bytes(&said) <= MAX_ANNOUNCING_BYTES,
                "{length} {many}: {}",
                bytes(&said)
            );
            let peers = &said.bgp.as_ref().unwrap().peers;
            assert!(!peers.is_empty() && peers.iter().all(|peer| peer.name.len() <= MAX_NAME));
        }
    }
}
